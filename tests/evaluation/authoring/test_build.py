"""Building a benchmark from a folder of pictures: whole runs, further runs, killed runs."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from authoring_helpers import (
    ChatServer,
    Reply,
    Request,
    Scripted,
    answer,
    build,
    by_picture,
    good,
    painted,
    resaved,
    rows,
    tag_of,
    well,
)

from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, DatasetError, InputError
from abc_rag.evaluation.authoring.build import build_ctrlbench, write_ctrlbench
from abc_rag.evaluation.authoring.chat import OpenAIDescriber
from abc_rag.evaluation.authoring.pairs import prompt_for


def test_a_folder_becomes_a_benchmark(photos: Path) -> None:
    describer = by_picture()
    report = build(photos, describer)
    found = rows(report)
    assert [row["image"] for row in found] == [f"../photos/{n}.png" for n in range(4)]
    for row in found:
        assert (report.file.parent / row["image"]).is_file()
        assert [list(pair) for pair in row["pairs"]] == [["instruction", "phrase"]] * 3
    assert (report.pictures, report.pairs, report.ceiling) == (4, 12, pytest.approx(1 / 3))
    assert report.pairs_per_picture == {3: 4}
    assert report.distinct_instructions == 3
    assert not report.reviewed
    assert len(describer.prompts) == 4
    build_json = json.loads((report.file.parent / "build.json").read_text())
    assert build_json["settings"]["prompt"] == prompt_for(3)
    assert build_json["settings"]["model"] == "scripted"
    assert build_json["statistics"]["pairs"] == 12
    assert build_json["run"]["requests"] == 4
    assert build_json["reviewed"] is False
    json.dumps(report.as_dict())


def test_a_further_run_asks_only_for_what_is_missing(photos: Path) -> None:
    first = build(photos, by_picture())
    again = by_picture()
    same = build(photos, again)
    assert again.prompts == []
    assert rows(same) == rows(first)
    assert same.run["kept"] == 4
    painted(photos / "1.png", 100)  # changed
    painted(photos / "9.png", 9)  # new
    (photos / "3.png").unlink()
    more = build(photos, again)
    assert len(again.prompts) == 2
    assert [row["image"] for row in rows(more)] == [f"../photos/{n}.png" for n in (0, 1, 2, 9)]


def test_another_model_or_prompt_is_asked_anew_and_the_first_one_is_remembered(photos: Path) -> None:
    build(photos, by_picture())
    other = Scripted(lambda image, _: good("other " + tag_of(image)), name="other")
    assert "other" in rows(build(photos, other))[0]["pairs"][0]["phrase"]
    assert len(other.prompts) == 4
    back = by_picture()
    assert "other" not in rows(build(photos, back))[0]["pairs"][0]["phrase"]
    assert back.prompts == []
    build(photos, back, pairs=4)
    assert len(back.prompts) == 12  # three times each, as there are never four


def test_a_limit_looks_no_further(photos: Path) -> None:
    report = build(photos, by_picture(), limit=2)
    assert [row["image"] for row in rows(report)] == ["../photos/0.png", "../photos/1.png"]


def test_identical_and_similar_pictures_are_asked_about_once(photos: Path) -> None:
    (photos / "copies").mkdir()
    (photos / "copies" / "0.png").write_bytes((photos / "0.png").read_bytes())
    resaved(PIL.Image.open(photos / "1.png").convert("RGB"), 60, 0.5).save(photos / "copies" / "1.jpg")
    describer = by_picture()
    report = build(photos, describer)
    assert len(describer.prompts) == 4
    assert (report.run["identical"], report.run["similar"]) == (1, 1)
    record = json.loads((report.file.parent / "build.json").read_text())
    assert {(d["image"], d["same_as"], d["how"]) for d in record["duplicates"]} == {
        ("../photos/copies/0.png", "../photos/0.png", "identical"),
        ("../photos/copies/1.jpg", "../photos/1.png", "similar"),
    }
    everything = build(photos, describer, near=0)
    assert (everything.run["similar"], everything.run["asked"]) == (0, 1)


def test_a_later_look_alike_does_not_take_the_place_of_a_picture(photos: Path) -> None:
    build(photos, by_picture())
    resaved(PIL.Image.open(photos / "2.png").convert("RGB"), 60).save(photos / "00.jpg")
    again = by_picture()
    report = build(photos, again)
    assert again.prompts == []
    assert "../photos/2.png" in [row["image"] for row in rows(report)]


def test_bad_pictures_cost_only_themselves(photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "cut.png").write_bytes((photos / "0.png").read_bytes()[:300])
    (photos / ".hidden.png").write_bytes(b"not looked at")
    (photos / "notes.txt").write_text("not looked at")
    report = build(photos, by_picture())
    assert report.pictures == 4
    assert report.bad["by_problem"] == {"unusable picture": 2}
    with pytest.raises(DatasetError, match=r"2 unusable rows \(2 unusable picture\); the limit is 1"):
        build(photos, by_picture(), max_bad=1)


def test_an_answer_is_asked_for_again_with_the_reason(photos: Path) -> None:
    def reply(image: PIL.Image.Image, prompt: str) -> str:
        return good(tag_of(image)) if "empty phrase" in prompt else answer(("what?", ""), ("where?", "here"))

    describer = Scripted(reply)
    report = build(photos, describer, limit=1)
    assert report.pairs == 3
    assert len(describer.prompts) == 2
    assert describer.prompts[1].startswith(describer.prompts[0])
    assert "1 usable pairs instead of 3; pair 1: empty phrase" in describer.prompts[1]


def test_the_best_of_three_answers_is_taken_if_it_has_two_pairs(photos: Path) -> None:
    replies = iter([answer(("a?", "one")), answer(("a?", "one"), ("b?", "two"), ("c?", "")), "nonsense"])
    report = build(photos, Scripted(lambda *_: next(replies)), limit=1)
    assert report.pairs == 2
    assert report.left_out == {"unusable pair: empty phrase": 1}
    assert write_ctrlbench(photos.parent / "out").left_out == report.left_out


def test_a_picture_without_an_answer_is_bad_and_asked_again_next_time(photos: Path) -> None:
    odd = tag_of(PIL.Image.open(photos / "2.png").convert("RGB"))
    sulky = Scripted(lambda image, _: "no" if tag_of(image) == odd else good(tag_of(image)))
    report = build(photos, sulky)
    assert report.pictures == 3
    (row,) = report.bad["rows"]
    assert (row["where"], row["problem"]) == ("../photos/2.png", "unusable answer")
    assert row["detail"] == "the answer was not one JSON object"
    willing = by_picture()
    assert build(photos, willing).pictures == 4
    assert len(willing.prompts) == 1


@pytest.mark.parametrize("error", [RuntimeError("overloaded\nplease"), InputError("the model refuses: no faces")])
def test_what_a_model_raises_costs_only_its_picture(photos: Path, error: Exception) -> None:
    odd = tag_of(PIL.Image.open(photos / "2.png").convert("RGB"))

    def reply(image: PIL.Image.Image, _: str) -> str:
        if tag_of(image) == odd:
            raise error
        return good(tag_of(image))

    report = build(photos, Scripted(reply))
    assert report.pictures == 3
    assert str(error).split()[-1] in report.bad["rows"][0]["detail"]


def test_a_model_that_always_fails_is_not_asked_for_long(photos: Path) -> None:
    for seed in range(20, 60):
        painted(photos / f"{seed}.png", seed, (16, 12))

    def reply(*_: object) -> str:
        raise RuntimeError("wrong key")

    describer = Scripted(reply)
    with pytest.raises(ABCRagError, match=r"the first 10 pictures all failed, the last one by: .*wrong key"):
        build(photos, describer, concurrency=2)
    assert len(describer.prompts) <= 14


def test_a_model_that_cannot_be_asked_stops_the_run_and_what_was_answered_stays(photos: Path) -> None:
    left = iter(range(2))

    def reply(image: PIL.Image.Image, _: str) -> str:
        if next(left, None) is None:
            raise ABCRagError("the quota is used up")
        return good(tag_of(image))

    with pytest.raises(ABCRagError, match="quota"):
        build(photos, Scripted(reply), concurrency=1)
    assert len((photos.parent / "out" / "answers.jsonl").read_text().splitlines()) == 2
    assert write_ctrlbench(photos.parent / "out").pictures == 2  # what is there can be looked at
    again = by_picture()
    assert build(photos, again).pictures == 4
    assert len(again.prompts) == 2


def test_too_many_bad_pictures_stop_the_asking(photos: Path) -> None:
    for seed in range(20, 60):
        painted(photos / f"{seed}.png", seed, (16, 12))
    describer = Scripted(lambda image, _: good(tag_of(image)) if image.width > 100 else "no")
    with pytest.raises(DatasetError, match="the limit is 1"):
        build(photos, describer, max_bad=1, concurrency=1)
    for thread in threading.enumerate():
        if thread.name == "abc-rag-ask":
            thread.join(300)
            assert not thread.is_alive()
    assert len(describer.prompts) < 30  # of 120: a few were under way


def test_a_phrase_goes_in_once_over_all_pictures(photos: Path) -> None:
    shared = ("the background", "A grey wall.")
    report = build(
        photos, Scripted(lambda image, _: answer(shared, ("a?", f"x {tag_of(image)}"), ("b?", tag_of(image))))
    )
    assert [len(row["pairs"]) for row in rows(report)] == [3, 2, 2, 2]
    assert report.left_out == {"phrase that another pair has": 3}
    assert report.ceiling == pytest.approx(4 / 9)


def test_a_picture_with_one_pair_left_stays_out(photos: Path) -> None:
    report = build(photos, Scripted(lambda image, _: answer(("a?", "same"), ("b?", "too"), ("c?", tag_of(image)))))
    assert report.pictures == 1
    assert report.left_out["picture with fewer than 2 pairs"] == 3


def test_phrases_that_an_embedder_finds_alike_stay_out(photos: Path) -> None:
    def reply(image: PIL.Image.Image, _: str) -> str:
        tag = tag_of(image)
        return answer(("a?", f"dog red {tag}"), ("b?", f"red dog {tag}"), ("c?", f"grey wall behind {tag}"))

    report = build(photos, Scripted(reply), embedder=FakeEmbedder())
    assert [[p["instruction"] for p in row["pairs"]] for row in rows(report)] == [["a?", "c?"]] * 4
    assert report.left_out == {"phrase nearly like another of its picture": 4}
    assert write_ctrlbench(photos.parent / "out").pairs == 8
    assert build(photos, Scripted(reply)).pairs == 12


def test_pairs_that_the_instruction_answers_without_the_picture_stay_out(photos: Path) -> None:
    def reply(image: PIL.Image.Image, _: str) -> str:
        tag = tag_of(image)
        return answer((f"{tag} red dog?", f"red dog {tag}"), ("sky?", f"grey wall {tag}"), ("wall?", f"blue sky {tag}"))

    report = build(photos, Scripted(reply), embedder=FakeEmbedder())
    assert [[p["instruction"] for p in row["pairs"]] for row in rows(report)] == [["sky?", "wall?"]] * 4
    assert report.left_out == {"answered by the instruction without the picture": 4}


def test_what_is_sent_is_a_small_jpeg_without_metadata(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x010E] = "taken at home"
    painted(tmp_path / "photos" / "big.png", 1, (900, 600), exif=exif)
    seen: list[PIL.Image.Image] = []

    def reply(image: PIL.Image.Image, _: str) -> str:
        seen.append(image)
        return good("it")

    build(tmp_path / "photos", Scripted(reply), side=300)
    assert (seen[0].format, seen[0].size) == ("JPEG", (300, 200))
    assert not seen[0].getexif()


def test_the_results_may_lie_within_the_pictures_folder(photos: Path) -> None:
    out = photos / "bench"
    painted(out / "not-a-picture-of-theirs.png", 50)
    report = build_ctrlbench(photos, out, by_picture(), pairs=3)
    assert [row["image"] for row in rows(report)] == [f"../{n}.png" for n in range(4)]


def test_confirm_is_asked_with_the_number_and_may_refuse(photos: Path) -> None:
    asked: list[int] = []
    describer = by_picture()
    report = build(photos, describer, confirm=lambda count: bool(asked.append(count)))
    assert (asked, describer.prompts, report.pictures) == ([4], [], 0)
    assert report.ceiling == 0
    assert report.file.read_text() == ""
    build(photos, describer)
    build(photos, describer, confirm=lambda count: bool(asked.append(count)))
    assert asked == [4]  # nothing was left to ask


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 1}, "pairs must be an int from 2 to 20, not 1"),
        ({"pairs": True}, "pairs must be an int"),
        ({"side": 10}, "side must be an int from 32"),
        ({"near": 257}, "near must be an int from 0 to 256"),
        ({"concurrency": 0}, "concurrency must be an int from 1"),
        ({"limit": 0}, "limit must be an int of at least 1"),
        ({"phrase_cosine": 0}, "phrase_cosine must be above 0"),
        ({"describer": print}, "describer must be an OpenAIDescriber"),
        ({"folder": "no-such-folder"}, "no-such-folder: no such folder"),
    ],
)
def test_bad_arguments(photos: Path, settings: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"folder": photos, "out": photos.parent / "out", "describer": by_picture()} | settings
    with pytest.raises(InputError, match=re.escape(message)):
        build_ctrlbench(**given)


def test_folders_that_cannot_be(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need their own folder"):
        build_ctrlbench(photos, photos, by_picture())
    with pytest.raises(InputError, match="cannot be created"):
        build_ctrlbench(photos, photos / "0.png", by_picture())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no usable pictures; 0 unusable rows"):
        build_ctrlbench(tmp_path / "empty", tmp_path / "out", by_picture())
    with pytest.raises(InputError, match="build first"):
        write_ctrlbench(tmp_path / "nowhere")
    (tmp_path / "out" / "build.json").write_text("{")
    with pytest.raises(InputError, match="delete it and build again"):
        write_ctrlbench(tmp_path / "out")


def test_one_run_at_a_time(photos: Path) -> None:
    def reply(image: PIL.Image.Image, _: str) -> str:
        with pytest.raises(InputError, match="another run is at work there"):
            build(photos, by_picture())
        return good(tag_of(image))

    assert build(photos, Scripted(reply), concurrency=1).pictures == 4


def test_a_line_cut_short_does_not_spoil_the_next(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(photos, by_picture(), limit=2)
    answers = photos.parent / "out" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes()[:-20])
    again = by_picture()
    with caplog.at_level(logging.ERROR):
        assert build(photos, again).pictures == 4
    assert len(again.prompts) == 3
    kept = [line for line in answers.read_text().splitlines() if line.endswith("}")]
    assert len(kept) == 4


# --- Killed, and run again --------------------------------------------------------------------------------

RUN = """
import sys
from abc_rag.evaluation.authoring.build import build_ctrlbench
from abc_rag.evaluation.authoring.chat import OpenAIDescriber
build_ctrlbench(sys.argv[1], sys.argv[2], OpenAIDescriber("m", sys.argv[3]), pairs=3, concurrency=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_where_it_stopped(photos: Path, how: signal.Signals) -> None:
    for seed in range(10, 18):
        painted(photos / f"{seed}.png", seed)
    hold = threading.Event()

    def reply(request: Request, number: int) -> Reply:
        if number > 5:
            hold.wait(300)
        return well(request)

    out = photos.parent / "out"
    with ChatServer(reply) as server:
        process = subprocess.Popen([sys.executable, "-c", RUN, photos, out, server.url], stderr=subprocess.DEVNULL)
        answers = out / "answers.jsonl"
        while not answers.exists() or len(answers.read_bytes().splitlines()) < 5:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(how)
        assert process.wait(120) != 0
        hold.set()
        asked = len(server.requests)
        assert asked <= 7  # two were under way
        report = build(photos, OpenAIDescriber("m", server.url))
        assert len(server.requests) - asked == 12 - 5
    assert report.pictures == 12
    assert not list(out.glob("*.part"))

"""Building a CtrlBench: against a real server on loopback, resumed, reviewed over HTTP, with every kind of failure."""

from __future__ import annotations

import base64
import errno
import http.client
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest

from abc_rag.cli import main as cli
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, DatasetError, InputError
from abc_rag.evaluation.authoring import folder as _build_folder
from abc_rag.evaluation.authoring.build import BuildReport, build_ctrlbench, write_ctrlbench
from abc_rag.evaluation.authoring.chat import Describer, OpenAIDescriber, is_loopback
from abc_rag.evaluation.authoring.dedupe import LookAlikes, print_of
from abc_rag.evaluation.authoring.pairs import Pair, normalised, parse_answer, prompt_for
from abc_rag.evaluation.authoring.review import ReviewServer, write_review_page

KEY = "sk-test-5f1b7c0d"
EVIL = "</script><script>alert('x')</script><img src=x onerror=y> {{DATA}} & \"quoted\""


def painted(path: Path, seed: int, size: tuple[int, int] = (160, 120), **settings: Any) -> Path:
    """A picture unlike all of other seeds."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(grid).resize(size, PIL.Image.Resampling.BICUBIC).save(path, **settings)
    return path


def answer(*pairs: tuple[str, str]) -> str:
    return json.dumps({"pairs": [{"instruction": i, "phrase": p} for i, p in pairs]})


def good(tag: object, count: int = 3) -> str:
    return answer(*((f"what is at place {n}?", f"thing {n} of {tag}") for n in range(count)))


class Scripted(Describer):
    """Answers by a function of the decoded picture; remembers what it was asked."""

    def __init__(self, reply: Callable[[PIL.Image.Image, str], str], name: str = "scripted") -> None:
        self.reply, self._name = reply, name
        self.prompts: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        assert mime_type == "image/jpeg"
        self.prompts.append(prompt)
        return self.reply(PIL.Image.open(io.BytesIO(image)), prompt)


def tag_of(image: PIL.Image.Image) -> str:
    """Says which picture it is, whatever JPEG did to it."""
    return "-".join(str(v // 8) for v in np.asarray(image.resize((2, 1), PIL.Image.Resampling.BOX)).ravel().tolist())


def by_picture(count: int = 3) -> Scripted:
    return Scripted(lambda image, _: good(tag_of(image), count))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(4):
        painted(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


def rows(report: BuildReport) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.file.read_text(encoding="utf-8").splitlines()]


def build(photos: Path, describer: Describer, **settings: Any) -> BuildReport:
    return build_ctrlbench(photos, photos.parent / "out", describer, **({"pairs": 3} | settings))


# --- Answers ----------------------------------------------------------------------------------------------


def test_a_usable_answer() -> None:
    parsed = parse_answer(answer(("what is  left?", " a dog\n"), ("the sky", "clouds")), 2)
    assert parsed.pairs == [Pair("what is left?", "a dog"), Pair("the sky", "clouds")]
    assert not parsed.problems
    fenced = parse_answer(f"```json\n{answer(('a', 'b'), ('c', 'd'))}\n```", 2)
    assert len(fenced.pairs) == 2
    assert len(parse_answer(good("x", 7), 5).pairs) == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not one JSON object"),
        ("Here you are: {}", "not one JSON object"),
        ('{"pairs": []} {"pairs": []}', "not one JSON object"),
        ("[" * 100_000, "longer than"),
        ("[" * 40_000, "not one JSON object"),
        ("[]", 'a list named "pairs"'),
        ("null", 'a list named "pairs"'),
        ('{"pairs": {}}', 'a list named "pairs"'),
        ('{"pairs": []}', "0 usable pairs instead of 2"),
        ('{"pairs": [1, {}]}', "pair 1: not an object"),
        ('{"pairs": [{"instruction": "a", "phrase": 3}]}', "pair 1: instruction or phrase that is not a string"),
        (answer(("what?", " ")), "pair 1: empty phrase"),
        (answer(("", "dog")), "pair 1: empty instruction"),
        (answer(("what?", "d" * 301)), "pair 1: phrase of more than 300 characters"),
        ('{"pairs": [{"instruction": "a", "phrase": "\\ud800"}]}', "pair 1: phrase with control characters"),
        ('{"pairs": [{"instruction": "a", "phrase": "b\\u0000"}]}', "pair 1: phrase with characters"),
        (answer(("what is left?", "a dog"), ("What is LEFT", "a cat")), "pair 2: repeated instruction"),
        (answer(("left?", "a dog"), ("right?", "The dog.")), "pair 2: repeated phrase"),
        (answer(("where is the red bus?", "a red bus")), "pair 1: instruction that contains the phrase"),
    ],
)
def test_unusable_answers_say_why(text: str, problem: str) -> None:
    assert problem in "; ".join(parse_answer(text, 2).problems)


def test_what_counts_as_the_same_wording() -> None:
    assert normalised("The Dog!") == normalised("a dog") == "dog"
    assert normalised("A") == "a"
    assert normalised("?!") == "?!"
    assert normalised("\uff24og") == "dog"
    assert normalised("狗") != normalised("猫")


def test_the_prompt_asks_for_as_many_pairs() -> None:
    assert "Write 5 pairs" in prompt_for(5)
    assert "other 4 instructions" in prompt_for(5)
    assert "other instruction;" in prompt_for(2).replace(":", ";")


def test_an_id_is_of_a_picture_and_a_wording() -> None:
    ids = {
        Pair("a", "b").id_for("1"),
        Pair("a", "b").id_for("2"),
        Pair("a b", "").id_for("1"),
        Pair("b", "a").id_for("1"),
    }
    assert len(ids) == 4


# --- Near-identical pictures ------------------------------------------------------------------------------


def resaved(image: PIL.Image.Image, quality: int, share: float = 1.0) -> PIL.Image.Image:
    stream = io.BytesIO()
    image.resize((int(image.width * share), int(image.height * share))).save(stream, "JPEG", quality=quality)
    return PIL.Image.open(stream).convert("RGB")


def test_a_picture_saved_otherwise_is_the_same_and_others_are_not(tmp_path: Path) -> None:
    pictures = [PIL.Image.open(painted(tmp_path / f"{seed}.png", seed)) for seed in range(30)]
    alike = LookAlikes(10)
    for number, picture in enumerate(pictures):
        assert alike.find(print_of(picture)) is None
        alike.add(str(number), print_of(picture))
    for number, picture in enumerate(pictures):
        for other in (resaved(picture, 40), resaved(picture, 70, 0.5), resaved(picture, 90, 2.0)):
            assert alike.find(print_of(other)) == str(number)


def test_plain_pictures_differ_by_their_colour() -> None:
    alike = LookAlikes(10)
    alike.add("red", print_of(PIL.Image.new("RGB", (50, 50), "red")))
    assert alike.find(print_of(PIL.Image.new("RGB", (50, 50), "blue"))) is None
    assert alike.find(print_of(PIL.Image.new("RGB", (70, 90), "red"))) == "red"


def test_more_pictures_than_there_was_room_for() -> None:
    alike = LookAlikes(10)
    prints = [print_of(PIL.Image.new("RGB", (20, 20), (n, 255 - n, n // 2))) for n in range(0, 256, 1)]
    for number, one in enumerate(prints):
        alike.add(str(number), one)
    assert alike.find(prints[200]) is not None
    assert LookAlikes(0).find(prints[0]) is None


# --- A run ------------------------------------------------------------------------------------------------


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
    with pytest.raises(InputError, match="need a folder of their own"):
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


# --- A server that speaks OpenAI's chat completions -------------------------------------------------------


class Request(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str] = {}
    wait_s: float = 0.0


def said(text: str | None, **fields: Any) -> Reply:
    return Reply(200, {"choices": [{"message": {"role": "assistant", "content": text, **fields}}]})


class ChatServer:
    """Replies by a function of the request and its number."""

    def __init__(self, reply: Callable[[Request, int], Reply]) -> None:
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    with lock:
                        outer.requests.append(Request(self.path, dict(self.headers), body))
                        number = len(outer.requests)
                    made = reply(outer.requests[number - 1], number)
                except BaseException as error:
                    outer.errors.append(error)
                    raise
                time.sleep(made.wait_s)
                data = made.body if isinstance(made.body, bytes) else json.dumps(made.body).encode()
                self.send_response(made.status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in made.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def picture_in(request: Request) -> PIL.Image.Image:
    text, image = request.body["messages"][0]["content"]
    assert (text["type"], image["type"]) == ("text", "image_url")
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG"
    picture.load()
    return picture


def well(request: Request, _: int = 0) -> Reply:
    return said(good(tag_of(picture_in(request))))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TEST_CHAT_KEY", KEY)
    return "TEST_CHAT_KEY"


def test_the_whole_way_over_http(photos: Path, key: str) -> None:
    with ChatServer(well) as server:
        report = build(photos, OpenAIDescriber("see-all", server.url, key))
    assert not server.errors
    assert report.pictures == 4
    assert len(server.requests) == 4
    for request in server.requests:
        assert request.path == "/v1/chat/completions"
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.body["model"] == "see-all"
        schema = request.body["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"]["required"] == ["pairs"]
        assert "Write 3 pairs" in request.body["messages"][0]["content"][0]["text"]
    for file in report.file.parent.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    record = json.loads((report.file.parent / "build.json").read_text())
    assert record["settings"]["describer"] == {
        "name": "see-all",
        "type": "OpenAIDescriber",
        "base_url": server.url,
        "api_key_env": key,
    }


def test_a_busy_server_is_asked_again(photos: Path) -> None:
    def reply(request: Request, number: int) -> Reply:
        if number <= 3:
            busy = {"error": {"message": "slow down"}}
            return Reply(
                (429, 503, 500)[number - 1],
                busy,
                {"Retry-After": ("0", "Wed, 21 Oct 2015 07:28:00 GMT", "0")[number - 1]},
            )
        return well(request)

    with ChatServer(reply) as server:
        assert build(photos, OpenAIDescriber("m", server.url), concurrency=1).pictures == 4
    assert len(server.requests) == 7


def test_a_server_that_stays_busy_stops_the_run(photos: Path, key: str) -> None:
    def reply(request: Request, number: int) -> Reply:
        return Reply(429, {"error": {"message": f"no quota for {KEY}"}}, {"Retry-After": "0"})

    with ChatServer(reply) as server:
        with pytest.raises(
            ABCRagError, match=r"no answer after 3 tries: status 429: no quota for \.\.\.; try again"
        ) as error:
            build(photos, OpenAIDescriber("m", server.url, key, retries=2), concurrency=1)
        assert KEY not in str(error.value)
        assert len(server.requests) == 3

    with (
        ChatServer(lambda *_: Reply(429, {}, {"Retry-After": "86400"})) as server,
        pytest.raises(ABCRagError, match=r"no answer after 1 try: .*it asks to wait 86400 s"),
    ):
        build(photos, OpenAIDescriber("m", server.url), concurrency=1)


def test_a_server_without_response_format_is_asked_in_words(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    def reply(request: Request, _: int) -> Reply:
        if "response_format" in request.body:
            return Reply(400, {"error": "response_format is not supported"})
        return said(f"```json\n{good(tag_of(picture_in(request)))}\n```")

    with ChatServer(reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), concurrency=1)
    assert report.pictures == 4
    assert ["response_format" in request.body for request in server.requests] == [True] + 4 * [False]
    assert caplog.text.count("does not support response_format") == 1


def test_a_request_that_is_wrong_costs_only_its_picture(photos: Path) -> None:
    odd = tag_of(PIL.Image.open(photos / "2.png").convert("RGB"))

    def reply(request: Request, number: int) -> Reply:
        return (
            Reply(400, {"error": {"message": "bad picture"}}) if tag_of(picture_in(request)) == odd else well(request)
        )

    with ChatServer(reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), concurrency=1)
    assert report.pictures == 3
    assert report.bad["rows"][0]["detail"] == f"{server.url}: status 400: bad picture"
    assert ["response_format" in request.body for request in server.requests].count(False) == 1


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (said("x", refusal="I cannot  look at faces"), "the model refuses: I cannot look at faces"),
        (said(None), "choices[0].message.content is a NoneType instead of text"),
        (Reply(200, {"choices": []}), "has no choices[0].message.content"),
        (Reply(200, []), "has no choices[0].message.content"),
        (Reply(200, b"<html>"), "is not JSON"),
        (Reply(200, b"x" * (4 * 2**20 + 1)), "is larger than 4 MiB"),
        (
            Reply(200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}),
            "content filter",
        ),
        (said("Sorry."), "the answer was not one JSON object"),
    ],
)
def test_odd_answers_are_named(photos: Path, reply: Reply, detail: str) -> None:
    with ChatServer(lambda *_: reply) as server:
        report = build(photos, OpenAIDescriber("m", server.url), limit=1)
    assert report.pictures == 0
    assert detail in report.bad["rows"][0]["detail"]


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "check $TEST_CHAT_KEY"), (404, "check the base URL"), (307, "check the")]
)
def test_what_is_wrong_for_all_pictures_stops_at_once(photos: Path, key: str, status: int, remedy: str) -> None:
    reply = Reply(status, {"error": {"message": "no"}}, {"Location": "http://127.0.0.1:9/"})
    with ChatServer(lambda *_: reply) as server:
        with pytest.raises(ABCRagError, match=re.escape(f"status {status}: no; {remedy}")):
            build(photos, OpenAIDescriber("m", server.url, key), concurrency=1)
        assert len(server.requests) == 1


def test_a_slow_server_runs_into_the_limit(photos: Path) -> None:
    given_up = threading.Event()

    def reply(request: Request, number: int) -> Reply:
        if number == 1:
            given_up.wait(300)
        return well(request)

    with ChatServer(reply) as server:
        with pytest.raises(ABCRagError, match=r"no (complete )?answer within 0.4 s"):
            build(photos, OpenAIDescriber("m", server.url, timeout_s=0.4, retries=0), concurrency=1)
        given_up.set()
        assert build(photos, OpenAIDescriber("m", server.url), concurrency=1).pictures == 4


def test_a_server_that_is_not_there(photos: Path) -> None:
    with pytest.raises(ABCRagError, match=r"http://127.0.0.1:9/v1: no answer after 1 try: ConnectError"):
        build(photos, OpenAIDescriber("m", "http://127.0.0.1:9/v1", retries=0))


def test_a_key_goes_where_it_belongs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert OpenAIDescriber("m").base_url == "https://api.openai.com/v1"
    with ChatServer(well) as server:
        build(photos, OpenAIDescriber("m", server.url))
    assert not any("Authorization" in request.headers for request in server.requests)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match=r"\$OPENAI_API_KEY is not set"):
        OpenAIDescriber("m")
    monkeypatch.setenv("ODD_KEY", f"{KEY}\nX: y")
    with pytest.raises(InputError, match=r"\$ODD_KEY holds characters") as error:
        OpenAIDescriber("m", "http://127.0.0.1:9", "ODD_KEY")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": " "}, "model must be a name"),
        ({"base_url": "127.0.0.1:8000"}, "base_url must be an http"),
        ({"base_url": "ftp://x/"}, "base_url must be an http"),
        ({"base_url": "http://x:99999"}, "base_url must be an http"),
        ({"base_url": None}, "base_url must be an http"),
        ({"base_url": "http://me:secret@x/v1"}, "without user, password"),
        ({"base_url": "http://x/v1?key=secret"}, "without user, password"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"retries": -1}, "retries must be"),
    ],
)
def test_a_describer_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": "m", "base_url": "http://127.0.0.1:1"} | arguments
    with pytest.raises(InputError, match=message) as error:
        OpenAIDescriber(**given)
    assert "secret" not in str(error.value)


def test_which_addresses_are_of_this_machine() -> None:
    assert all(is_loopback(f"http://{host}/v1") for host in ("127.0.0.1:8000", "localhost", "[::1]:1", "127.8.8.8"))
    assert not any(is_loopback(f"http://{host}/v1") for host in ("10.0.0.1", "localhost.example", "api.openai.com"))


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


# --- The review -------------------------------------------------------------------------------------------


@pytest.fixture
def out(photos: Path) -> Path:
    build(photos, by_picture())
    return photos.parent / "out"


@pytest.fixture
def server(out: Path) -> Iterator[ReviewServer]:
    with ReviewServer(out) as served:
        yield served


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ReviewServer, Path]]:
    """A server, and its folder, for requests that change nothing."""
    folder = tmp_path_factory.mktemp("idle")
    painted(folder / "photos" / "0.png", 0)
    build(folder / "photos", by_picture())
    with ReviewServer(folder / "out") as served:
        yield served, folder / "out"


def call(
    server: ReviewServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} if data is not None else {}
    try:
        connection.request(
            method, path, data, given | {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answered = connection.getresponse()
        return answered.status, answered.read(), dict(answered.headers)
    finally:
        connection.close()


class Page(HTMLParser):
    """Finds scripts, their attributes, and what is referred to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.refers: list[str | None] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append((dict(attrs), ""))
        self.refers += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def state_of(page: bytes) -> Any:
    parsed = Page(page.decode())
    assert [attributes.get("type") for attributes, _ in parsed.scripts] == ["application/json", None]
    assert parsed.refers == ["data:,"]  # no icon: nothing else is referred to
    return json.loads(parsed.scripts[0][1])


def state(server: ReviewServer) -> Any:
    status, page, _ = call(server, "GET", f"/{server.token}/")
    assert status == 200
    return state_of(page)


def decide(server: ReviewServer, pair: Mapping[str, Any], decision: str, **changed: str) -> None:
    row = {"pair": pair["id"], "decision": decision, "instruction": pair["instruction"], "phrase": pair["phrase"]}
    assert call(server, "POST", f"/{server.token}/decisions", row | changed)[:2] == (200, b"{}")


def test_the_page_shows_every_picture_and_its_pairs(server: ReviewServer) -> None:
    status, page, headers = call(server, "GET", f"/{server.token}/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
    assert nonce not in call(server, "GET", f"/{server.token}/")[1].decode()
    shown = state_of(page)
    assert (shown["mode"], shown["model"]) == ("server", "scripted")
    assert [p["name"] for p in shown["pictures"]] == [f"../photos/{n}.png" for n in range(4)]
    for picture in shown["pictures"]:
        assert [pair["decision"] for pair in picture["pairs"]] == [None] * 3
        status, data, headers = call(server, "GET", f"/{server.token}/{picture['source']}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert PIL.Image.open(io.BytesIO(data)).size == (160, 120)


def test_decisions_are_saved_at_once_and_only_accepted_pairs_go_in(server: ReviewServer, out: Path) -> None:
    first, second = state(server)["pictures"][:2]
    for pair in first["pairs"]:
        decide(server, pair, "accept")
    decide(server, first["pairs"][2], "reject")  # the last one counts
    decide(server, second["pairs"][0], "accept", phrase=" an  edited phrase ")
    decide(server, second["pairs"][1], "accept", instruction="an edited instruction")
    decide(server, second["pairs"][2], "accept")
    decide(server, second["pairs"][2], "undo")
    assert len((out / "review.jsonl").read_text().splitlines()) == 8
    again = state(server)["pictures"]
    assert [pair["decision"] for pair in again[0]["pairs"]] == ["accept", "accept", "reject"]
    assert again[1]["pairs"][0]["phrase"] == "an edited phrase"
    assert again[1]["pairs"][0]["original"]["phrase"] != "an edited phrase"
    report = write_ctrlbench(out)
    assert report.reviewed
    assert report.review == {"accepted": 4, "rejected": 1, "undecided": 7, "edited": 2}
    found = rows(report)
    assert [len(row["pairs"]) for row in found] == [2, 2]
    assert found[1]["pairs"][0]["phrase"] == "an edited phrase"
    assert found[1]["pairs"][1]["instruction"] == "an edited instruction"
    assert json.loads((out / "build.json").read_text())["review"]["accepted"] == 4


def test_a_further_run_keeps_the_review(server: ReviewServer, out: Path, photos: Path) -> None:
    for pair in state(server)["pictures"][0]["pairs"]:
        decide(server, pair, "accept")
    painted(photos / "00.png", 70)
    report = build(photos, by_picture())
    assert [row["image"] for row in rows(report)] == ["../photos/0.png"]
    assert report.review["undecided"] == 12


def test_pairs_made_alike_by_editing_go_in_once(server: ReviewServer, out: Path) -> None:
    first, second = state(server)["pictures"][:2]
    for pair in [*first["pairs"], *second["pairs"]]:
        decide(server, pair, "accept")
    decide(server, second["pairs"][0], "accept", phrase=first["pairs"][0]["phrase"].upper())
    decide(server, second["pairs"][1], "accept", instruction=second["pairs"][2]["instruction"])
    report = write_ctrlbench(out)
    assert report.left_out["phrase that another pair has"] == 1
    assert report.left_out["instruction that another pair of its picture has"] == 1
    assert [len(row["pairs"]) for row in rows(report)] == [3]
    assert "another pair has" in state(server)["pictures"][1]["pairs"][0]["note"]


def test_a_rejected_pair_makes_room_for_the_same_phrase_elsewhere(photos: Path) -> None:
    build(
        photos,
        Scripted(lambda image, _: answer(("behind?", "a wall"), ("a?", f"x {tag_of(image)}"), ("b?", tag_of(image)))),
    )
    with ReviewServer(photos.parent / "out") as server:
        before = state(server)["pictures"]
        assert [len(p["pairs"]) for p in before] == [3, 2, 2, 2]
        decide(server, before[0]["pairs"][0], "reject")
        assert [len(p["pairs"]) for p in state(server)["pictures"]] == [3, 3, 2, 2]


def test_finish_ends_the_wait(server: ReviewServer) -> None:
    waited = threading.Thread(target=server.wait, daemon=True)
    waited.start()
    assert call(server, "POST", f"/{server.token}/finish", {})[0] == 200
    waited.join(10)
    assert not waited.is_alive()


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 403),
        ("GET", "/wrong/", {}, 403),
        ("GET", "/TOKEN", {}, 403),
        ("GET", "/TOKENx/", {}, 403),
        ("GET", "/%C3%A9/", {}, 403),
        ("GET", "*", {}, 403),
        ("GET", "http://127.0.0.1/TOKEN/", {}, 403),
        ("GET", "/TOKEN/", {"Host": "evil.example"}, 403),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1"}, 403),
        ("GET", "/TOKEN/", {"Origin": "http://evil.example"}, 403),
        ("GET", "/TOKEN/", {"Origin": "null"}, 403),
        ("GET", "/TOKEN/other", {}, 404),
        ("GET", "/TOKEN/../build.json", {}, 404),
        ("GET", "/TOKEN/picture/../../build.json", {}, 404),
        ("GET", "/TOKEN/picture/..%2f..%2fbuild.json", {}, 404),
        ("GET", "/TOKEN//etc/passwd", {}, 404),
        ("GET", "/TOKEN/picture/" + 64 * "0", {}, 404),
        ("GET", "/TOKEN/decisions", {}, 404),
        ("POST", "/wrong/decisions", {}, 403),
        ("POST", "/wrong/finish", {}, 403),
        ("POST", "/TOKEN/decisions", {"Host": "evil.example"}, 403),
        ("POST", "/TOKEN/decisions", {"Origin": "http://evil.example"}, 403),
        ("POST", "/TOKEN/decisions", {"Content_Type": "text/plain"}, 415),
        ("POST", "/TOKEN/decisions", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/TOKEN/finish", {"Content_Type": "text/plain"}, 415),
        ("POST", "/TOKEN/decisions", {"Content_Length": "x"}, 411),
        ("POST", "/TOKEN/decisions", {"Content_Length": "999999"}, 413),
        ("POST", "/TOKEN/decisions", {"Content_Length": "9" * 5000}, 413),
        ("POST", "/TOKEN/other", {}, 404),
        ("PUT", "/TOKEN/decisions", {}, 501),
        ("OPTIONS", "/TOKEN/decisions", {}, 501),
    ],
)
def test_what_the_server_refuses(
    idle: tuple[ReviewServer, Path], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    server, out = idle
    pair = json.loads((out / "answers.jsonl").read_text().splitlines()[0])
    id_ = Pair(**pair["pairs"][0]).id_for(pair["sha256"])
    body = None if method == "GET" else {"pair": id_, "decision": "accept", **pair["pairs"][0]}
    got, data, answered = call(server, method, path.replace("TOKEN", server.token), body, **headers)
    assert got == status
    assert b"sha256" not in data
    assert server.token.encode() not in data
    assert "Access-Control-Allow-Origin" not in answered
    assert not (out / "review.jsonl").exists()
    assert not server._finished.is_set()


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b"[" * 16_000,
        [],
        {},
        {"pair": "nonsense", "decision": "accept", "instruction": "a", "phrase": "b"},
        {"decision": "perhaps"},
        {"phrase": 3},
        {"phrase": " "},
        {"phrase": "x" * 301},
        {"phrase": "\ud800"},
        {"instruction": None},
        {"instruction": "where is the thing?", "phrase": "the thing"},
    ],
)
def test_decisions_that_are_none(idle: tuple[ReviewServer, Path], body: Any) -> None:
    server, out = idle
    pair = state(server)["pictures"][0]["pairs"][0]
    if isinstance(body, dict) and body:
        body = {"pair": pair["id"], "decision": "accept", "instruction": "a?", "phrase": "b"} | body
    status, data, _ = call(server, "POST", f"/{server.token}/decisions", body)
    assert status == 400
    assert json.loads(data)["error"]
    assert not (out / "review.jsonl").exists()


def test_many_decisions_at_once_are_all_saved(server: ReviewServer, out: Path) -> None:
    pairs = [pair for picture in state(server)["pictures"] for pair in picture["pairs"]]
    threads = [threading.Thread(target=decide, args=(server, pair, "accept")) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert write_ctrlbench(out).review["accepted"] == 12


def test_a_disk_that_is_full_is_told_to_the_reviewer(
    server: ReviewServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pair = state(server)["pictures"][0]["pairs"][0]
    monkeypatch.setattr(os, "fsync", full)
    row = {"pair": pair["id"], "decision": "accept", "instruction": "a?", "phrase": "b"}
    status, data, _ = call(server, "POST", f"/{server.token}/decisions", row)
    assert status == 507
    assert json.loads(data)["error"] == "cannot be saved: No space left on device"


def test_a_picture_that_is_gone_or_changed_is_not_shown(server: ReviewServer, photos: Path) -> None:
    first, second = state(server)["pictures"][:2]
    (photos / "0.png").unlink()
    painted(photos / "1.png", 99)
    for picture in (first, second):
        status, data, _ = call(server, "GET", f"/{server.token}/{picture['source']}")
        assert status == 404
        assert "cannot be shown" in json.loads(data)["error"]


@pytest.mark.parametrize("mode", ["server", "page"])
def test_nothing_from_outside_becomes_a_part_of_the_page(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "a<b>&'\"{{NONCE}}"
    painted(folder / "x.png", 1)
    evil = answer(("what?", EVIL), (EVIL.replace("x", "z"), "<!--"), ("c?", "\u2028 & <script"))
    out = tmp_path / "out"
    build_ctrlbench(folder, out, Scripted(lambda *_: evil, name=EVIL), pairs=3)
    if mode == "server":
        with ReviewServer(out) as server:
            shown = state(server)
    else:
        shown = state_of(write_review_page(out).read_bytes())
    assert shown["pictures"][0]["pairs"][0]["phrase"] == EVIL
    assert shown["pictures"][0]["name"].endswith("a<b>&'\"{{NONCE}}/x.png")
    assert shown["model"] == EVIL


def test_the_page_without_a_server(out: Path, photos: Path) -> None:
    (photos / "3.png").unlink()
    page = write_review_page(out)
    text = page.read_text(encoding="utf-8")
    assert page.name == "review.html"
    assert "connect-src" not in text
    shown = state_of(text.encode())
    assert shown["mode"] == "page"
    for picture in shown["pictures"][:3]:
        head, _, data = picture["source"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 120)
    assert shown["pictures"][3]["source"] == ""


def test_nothing_to_review(photos: Path, tmp_path: Path) -> None:
    build(photos, by_picture(), confirm=lambda _: False)
    for make in (ReviewServer, write_review_page):
        with pytest.raises(InputError, match="holds no answers to review"):
            make(tmp_path / "out")
    with pytest.raises(InputError, match="build first"):
        ReviewServer(tmp_path / "nowhere")


def test_a_port_that_is_taken(server: ReviewServer, out: Path) -> None:
    with pytest.raises(ABCRagError, match=f"port {server.port} of 127.0.0.1 cannot be used"):
        ReviewServer(out, port=server.port)
    with pytest.raises(ABCRagError, match="port 99999"):
        ReviewServer(out, port=99999)


def test_lines_that_are_no_decisions_are_passed_over(out: Path) -> None:
    lines = [
        {"pair": 3},
        {"pair": "x", "decision": "accept"},
        {"pair": "y", "decision": "accept", "instruction": "", "phrase": "b"},
    ]
    (out / "review.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert _build_folder.BuildFolder(out).read_decisions() == {}
    assert not write_ctrlbench(out).reviewed


# --- The command ------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call_it(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main(["evaluate", "ctrlbench-build", *map(str, arguments)])
        out, err = capsys.readouterr()
        return Ended(int(end.value.code or 0), out, err)

    return call_it


def test_the_command(run: Callable[..., Ended], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ChatServer(well) as server:
        done = run(photos, out, "--chat-model", "m", "--base-url", server.url, "--pairs", 3)
        assert done.code == 0, done.err
        assert "ctrlbench.jsonl" in done.out
        assert "33.3" in done.out
        assert "unreviewed: nobody has looked at these pairs" in done.out
        (photos / "bad.png").write_bytes(b"x")
        done = run(photos, out, "--chat-model", "m", "--base-url", server.url, "--pairs", 3, "--json", "--page")
        assert done.code == 3
        assert json.loads(done.out)["run"]["kept"] == 4
        assert len(server.requests) == 4
    assert (out / "review.html").exists()
    assert json.loads(run(photos, out, "--json").out)["pairs"] == 12


def test_the_command_reviews(
    run: Callable[..., Ended], photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reviewer(server: ReviewServer) -> None:
        for pair in state(server)["pictures"][0]["pairs"]:
            decide(server, pair, "accept")
        raise KeyboardInterrupt  # as good an end as the button

    monkeypatch.setattr(ReviewServer, "wait", reviewer)
    done = run(photos, out, "--review-only", "--json")
    assert done.code == 0
    assert json.loads(done.out)["review"] == {"accepted": 3, "rejected": 0, "undecided": 9, "edited": 0}
    assert "review: http://127.0.0.1:" in done.err
    assert "9 pairs are undecided" in run(photos, out).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--chat-model NAME"),
        (["--base-url", "http://127.0.0.1:9"], "--base-url needs --chat-model"),
        (["--chat-model", "m", "--review-only"], "leave --chat-model out"),
        (["--chat-model", "m"], "$OPENAI_API_KEY is not set"),
        (["--review-only"], "build first"),
        (
            ["--chat-model", "m", "--base-url", "http://192.0.2.1/v1"],
            "4 pictures will be sent to http://192.0.2.1/v1 (m)",
        ),
    ],
)
def test_the_command_refuses(run: Callable[..., Ended], photos: Path, arguments: list[str], message: str) -> None:
    done = run(photos, photos.parent / "out", *arguments)
    assert done.code == 2
    assert message in done.err


def test_the_command_asks_before_it_sends_anything_elsewhere(
    run: Callable[..., Ended], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    done = run(photos, photos.parent / "out", "--chat-model", "m", "--base-url", "http://192.0.2.1/v1")
    assert done.code == 1
    assert "4 pictures will be sent to http://192.0.2.1/v1 (m), which may cost money. Go on? [y/N]" in done.err
    assert not (photos.parent / "out" / "answers.jsonl").exists()


def test_the_help_says_where_pictures_go(run: Callable[..., Ended]) -> None:
    text = " ".join(run("--help").out.split())
    assert "https://api.openai.com/v1, to which the pictures then go" in text

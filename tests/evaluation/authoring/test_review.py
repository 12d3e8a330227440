"""The review server: what it shows, saves and refuses."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from authoring_helpers import (
    EVIL,
    Scripted,
    answer,
    build,
    by_picture,
    call,
    decide,
    painted,
    rows,
    state,
    state_of,
    tag_of,
)

from abc_rag.errors import ABCRagError, InputError
from abc_rag.evaluation.authoring import folder as _build_folder
from abc_rag.evaluation.authoring.build import build_ctrlbench, write_ctrlbench
from abc_rag.evaluation.authoring.pairs import Pair
from abc_rag.evaluation.authoring.review import ReviewServer, write_review_page


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

"""Which pictures of a store may be opened again, now and in later processes."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from abc_rag.errors import InputError
from abc_rag.store.roots import Roots, state_folder


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABC_RAG_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("photos/deep/a.png", "photos/b.png", "photos-of-others/c.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "photos"


def allows(roots: Roots, path: object) -> bool:
    return not roots.outside([str(path)])


def test_folders_with_all_that_is_in_them_and_files_alone(photos: Path) -> None:
    roots = Roots("here#abc")
    assert not allows(roots, photos / "b.png")
    roots.add([photos, photos.parent / "photos-of-others" / "c.png"])
    assert allows(roots, photos / "b.png")
    assert allows(roots, photos / "deep" / "a.png")
    assert allows(roots, photos / "deep" / ".." / "b.png")
    assert allows(roots, photos.parent / "photos-of-others" / "c.png")
    for outside in ("secret.png", "photos/../secret.png", "photos-of-others/d.png", "photos-of-others", "state", ""):
        assert not allows(roots, photos.parent / outside)
    for odd in ("", ".", "/", "a\0b", "~", "\udce9", "x" * 10_000, "file:///etc/passwd", "/proc/self/environ"):
        assert not allows(roots, odd)


def test_links_do_not_lead_out(photos: Path) -> None:
    roots = Roots("here#abc")
    roots.add([photos])
    (photos / "link.png").symlink_to(photos.parent / "secret.png")
    (photos / "up").symlink_to(photos.parent)
    assert not allows(roots, photos / "link.png")
    assert not allows(roots, photos / "up" / "secret.png")
    # Nor in: what is allowed is a name as much as a file.
    (photos.parent / "way-in").symlink_to(photos)
    assert not allows(roots, photos.parent / "way-in" / "b.png")


def test_a_folder_that_is_itself_a_link(photos: Path) -> None:
    link = photos.parent / "album"
    link.symlink_to(photos)
    roots = Roots("here#abc")
    roots.add([link])
    assert allows(roots, link / "b.png")
    assert allows(roots, photos / "b.png")


def test_each_store_has_its_own(photos: Path) -> None:
    Roots("one#abc").add([photos])
    assert allows(Roots("one#abc"), photos / "b.png")
    assert not allows(Roots("other#abc"), photos / "b.png")
    # A document that does not say where it is from: whatever this user indexed.
    assert allows(Roots(), photos / "b.png")
    assert not allows(Roots(), photos.parent / "secret.png")


def test_later_processes_know(photos: Path, state: Path) -> None:
    program = f"from abc_rag.store.roots import Roots; Roots('here#abc').add([{str(photos)!r}])"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert allows(Roots("here#abc"), photos / "b.png")
    assert state_folder() == state
    if os.name == "posix":
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "roots.sqlite3").stat().st_mode & 0o777 == 0o600


def test_what_the_caller_vouches_for_is_not_written_down(photos: Path) -> None:
    assert allows(Roots("here#abc").including([photos]), photos / "b.png")
    assert not allows(Roots("here#abc"), photos / "b.png")
    assert allows(Roots("here#abc").including(["a\0b", "", photos]), photos / "b.png")
    with pytest.raises(InputError, match=r"roots must be a list of paths; got a single str"):
        Roots(further="photos")
    with pytest.raises(InputError, match="roots must be paths, not int"):
        Roots(further=[3])  # type: ignore[list-item]


def test_a_stores_own_folder(photos: Path) -> None:
    kept = photos / "deep"
    assert allows(Roots("own#abc", own=[kept]), kept / "a.png")
    assert not allows(Roots("own#abc", own=[kept]), photos / "b.png")
    # Somebody who fills a store may put a link where its folder was.
    link = photos.parent / "kept"
    link.symlink_to(photos.parent)
    assert not allows(Roots("own#other", own=[link]), link / "secret.png")


def test_a_temporary_store_leaves_nothing_behind(photos: Path, state: Path) -> None:
    roots = Roots("temporary#abc")
    roots.add([photos])
    roots.forget()
    with sqlite3.connect(state / "roots.sqlite3") as registry:
        assert registry.execute("SELECT * FROM roots").fetchall() == []
    registry.close()
    assert allows(Roots("temporary#abc"), photos / "b.png")  # as long as this process lives
    Roots("never-seen#abc").forget()


def test_a_state_folder_that_cannot_be_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ABC_RAG_STATE", str(tmp_path / "file" / "state"))
    with caplog.at_level(logging.WARNING):
        Roots("no-registry#abc").add([photos])
    assert "set ABC_RAG_STATE to a folder that can be written to" in caplog.text
    assert allows(Roots("no-registry#abc"), photos / "b.png")


def test_a_damaged_registry_opens_nothing(photos: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    state.mkdir()
    (state / "roots.sqlite3").write_bytes(b"no database" * 1000)
    with caplog.at_level(logging.WARNING):
        assert not allows(Roots("damaged#abc"), photos / "b.png")
    assert "delete it and index again" in caplog.text


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_STATE_HOME": "/x/state"}, "/x/state/abc-rag"),
        ("linux", {}, "/home/me/.local/state/abc-rag"),
        ("darwin", {}, "/home/me/Library/Application Support/abc-rag"),
        ("win32", {"LOCALAPPDATA": "/x/local"}, "/x/local/abc-rag"),
    ],
)
def test_the_state_folder_is_the_platforms(
    platform: str, environment: dict[str, str], expected: str, monkeypatch: Any
) -> None:
    for name in ("ABC_RAG_STATE", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert state_folder() == Path(expected)


def test_many_write_at_once(photos: Path) -> None:
    program = (
        "import sys; from abc_rag.store.roots import Roots; r = Roots('busy#abc')\n"
        "for n in range(50): r.add([f'/made/up/{sys.argv[1]}/{n}'])"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    roots = Roots("busy#abc")
    assert all(allows(roots, f"/made/up/{number}/{n}") for number in range(4) for n in range(50))

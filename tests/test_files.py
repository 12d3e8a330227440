"""Files and folders are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from abc_rag.files import append, is_draft, move, new_file, new_folder, remove_drafts, write, write_json


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text("new")


def test_the_content_is_there_and_no_draft(tmp_path: Path) -> None:
    target = _made(tmp_path / "made") / "a.txt"
    write(target, "käse \udcff\n")
    assert target.read_bytes() == "käse ?\n".encode()
    write(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    write_json(target, {"ä": 1})
    assert target.read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'
    assert os.listdir(target.parent) == ["a.txt"]


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    write(target, "text")
    assert target.read_text() == "text"


def test_an_error_keeps_the_earlier_file_and_removes_the_draft(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted() -> None:
        with new_file(target) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["a.txt"]
    assert target.read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_the_earlier_file_or_of_any_new_one(tmp_path: Path) -> None:
    plain, target = tmp_path / "plain", tmp_path / "target"
    plain.touch()
    with new_file(target) as draft:
        draft.unlink()
        draft.touch(0o600)  # as some libraries make their files
    assert target.stat().st_mode == plain.stat().st_mode
    target.chmod(0o640)
    write(target, "again")
    assert target.stat().st_mode & 0o777 == 0o640
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o750)
    (folder / "old").touch()
    with new_folder(folder, replace=True) as part:
        _fill(part)
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_is_replaced_and_what_it_shows_is_left_alone(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.write_text("precious")
    target.symlink_to(outside)
    write(target, "new")
    assert (outside.read_text(), target.read_text(), target.is_symlink()) == ("precious", "new", False)


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and devices")
def test_devices_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for target in (pipe, folder, Path(os.devnull)):
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
            write(target, "text")
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def _limited(code: str, limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files may not grow past ``limit`` bytes, as on a full disk."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() answers with an error instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-B", "-c", code, *map(str, arguments)]
    return subprocess.run(command, preexec_fn=prepare, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="RLIMIT_FSIZE")
def test_a_full_disk_keeps_the_earlier_content(tmp_path: Path) -> None:
    target, folder = tmp_path / "a.bin", tmp_path / "folder"
    target.write_text("old")
    _fill(_made(folder))
    code = """
import sys
from pathlib import Path
from abc_rag.files import new_folder, write
target, folder = map(Path, sys.argv[1:])
try:
    write(target, bytes(1 << 20))
except OSError as error:
    print(error.strerror)
try:
    with new_folder(folder, replace=True) as draft:
        (draft / "small").write_bytes(b"fits")
        (draft / "large").write_bytes(bytes(1 << 20))
except OSError as error:
    print(error.strerror)
"""
    ended = _limited(code, 1 << 16, target, folder)
    assert ended.stdout.split("\n") == ["File too large", "File too large", ""], ended.stderr
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.bin", "a.txt", "folder", "inner"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_kill_in_the_middle_keeps_the_earlier_content(tmp_path: Path) -> None:
    target, folder = tmp_path / "a.txt", tmp_path / "folder"
    target.write_text("old")
    _fill(_made(folder))
    code = """
import os, signal, sys
from pathlib import Path
from abc_rag.files import new_file, new_folder
target, folder = map(Path, sys.argv[1:])
with new_file(target) as draft, new_folder(folder, replace=True) as part:
    draft.write_text("half")
    (part / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(target), str(folder)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert (folder / "inner" / "a.txt").read_text() == "new"
    left = [path for path in tmp_path.iterdir() if path not in (target, folder)]
    assert len(left) == 2
    assert all(is_draft(path.name) for path in left)
    remove_drafts(tmp_path, older_than_s=3600)
    assert len(list(tmp_path.iterdir())) == 4
    remove_drafts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder"]


def test_a_reader_beside_two_writers_sees_whole_files_only(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write(target, "0" * 100_000)
    code = """
import sys
from pathlib import Path
from abc_rag.files import write
for _ in range(200):
    write(Path(sys.argv[1]), sys.argv[2] * 100_000, durable=False)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(target), digit]) for digit in "12"]
    while any(writer.poll() is None for writer in writers):
        text = target.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_a_folder_takes_the_place_of_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "deep" / "folder"
    target.parent.mkdir()
    make(target)
    with new_folder(target) as draft:
        _fill(draft)
        assert not target.exists() or not os.listdir(target)
    assert (target / "inner" / "a.txt").read_text() == "new"
    assert os.listdir(target.parent) == ["folder"]


def test_a_folder_with_content_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    target = _made(tmp_path / "folder")
    (target / "old").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(target) as draft:
        _fill(draft)
    assert os.listdir(target) == ["old"]
    with new_folder(target, replace=True) as draft:
        _fill(draft)
    assert os.listdir(target) == ["inner"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.touch()
    with pytest.raises(FileExistsError, match="not a folder"), new_folder(target, replace=True):
        pass
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_an_error_names_the_target(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path / "a.txt", "text")
    tmp_path.chmod(0o700)
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_read_only_files_and_links_in_a_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as draft:
        _fill(draft)
        (draft / "inner" / "a.txt").chmod(0o444)
        (draft / "nowhere").symlink_to("missing")
    assert sorted(os.listdir(tmp_path / "folder")) == ["inner", "nowhere"]


def test_appending_cuts_what_a_killed_run_left(tmp_path: Path) -> None:
    target = tmp_path / "lines"
    append(target, b"one\n")
    append(target, b"two\n")
    assert target.read_bytes() == b"one\ntwo\n"
    append(target, b"2\n", at=4)
    assert target.read_bytes() == b"one\n2\n"
    append(target, b"", at=0)
    assert target.read_bytes() == b""


def test_a_finished_draft_is_moved(tmp_path: Path) -> None:
    draft, target = tmp_path / "draft", tmp_path / "target"
    draft.write_text("new")
    target.write_text("old")
    move(draft, target)
    assert (target.read_text(), draft.exists()) == ("new", False)

"""What a store holds, from the shell: listed, shown, counted, removed, filtered; without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from abc_rag import ChromaStore, Record
from abc_rag.cli import main as cli
from abc_rag.embedding import load
from abc_rag.embedding.fake import FakeEmbedder

Run = Callable[..., tuple[int, str, str]]
EMBEDDER = FakeEmbedder(dim=64)


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def filled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures and two passages from files, and a passage of the caller's own."""
    folder = Path("photos")
    (folder / "sub").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("sub/blue.png", "blue")):
        PIL.Image.new("RGB", (60, 60), colour).save(folder / name)
    (folder / "notes.txt").write_text("a red bicycle\n\na blue boat")
    with monkeypatch.context() as patch:
        patch.setattr(load, "load_embedder", lambda *_, **__: EMBEDDER)
        assert run("index", folder)[0] == 0
    with ChromaStore("abc-rag-store", fingerprint=EMBEDDER.fingerprint) as store:
        page = Record("page-7", "text", text="the seventh page", source="book", metadata={"page": 7, "lang": "en"})
        store.add([page], EMBEDDER.embed_texts(["the seventh page"]))
    monkeypatch.setattr(load, "load_embedder", no_model)


@pytest.mark.usefixtures("filled")
def test_list(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert "photos/sub/blue.png" in out
    assert "a blue boat" in out
    assert "page-7" in out
    records = json.loads(run("list", "--json")[1])
    assert len(records) == 5
    assert {record["modality"] for record in json.loads(run("list", "--only", "image", "--json")[1])} == {"image"}
    (page,) = json.loads(run("list", "--where", '{"page": {"$gte": 3}}', "--json")[1])
    assert (page["id"], page["metadata"]) == ("page-7", {"page": 7, "lang": "en"})
    image = next(record for record in records if record["modality"] == "image")
    for field in ("modality", "source", "mime_type", "sha256"):
        expected = [record for record in records if record[field] == image[field]]
        for name in (field, f"abc:{field}"):
            assert json.loads(run("list", "--where", json.dumps({name: image[field]}), "--json")[1]) == expected
    code, out, _ = run("list", "--limit", "2")
    assert out.count("image-") + out.count("text-") + out.count("page-7") == 2
    assert "--limit shows more than 2" in out


@pytest.mark.usefixtures("filled")
def test_show(run: Run) -> None:
    code, out, _ = run("show", "page-7")
    assert code == 0
    for shown in ("the seventh page", "metadata page", "7", "metadata lang", "en"):
        assert shown in out
    (image, *_) = json.loads(run("list", "--only", "image", "--json")[1])
    (shown,) = json.loads(run("show", image["id"], "--json")[1])
    assert shown == {**image, "facets": []}
    assert (shown["mime_type"], len(shown["sha256"])) == ("image/png", 64)
    code, _, err = run("show", "page-7", "nothing")
    assert (code, "no record 'nothing'" in err) == (2, True)


@pytest.mark.usefixtures("filled")
def test_stats(run: Run) -> None:
    counted = json.loads(run("stats", "--json")[1])
    assert counted["kinds"] == {"text": 3, "image": 2}
    assert counted["formats"] == {"image/png": 2}
    assert counted["fingerprint"] == str(EMBEDDER.fingerprint)
    photos = str(Path("photos").resolve())
    assert counted["folders"] == {photos: 3, f"{photos}/sub": 1, "": 1}
    out = run("stats")[1]
    assert "image/png" in out
    assert "image tokens" not in out


@pytest.mark.parametrize("patterns", [["photos/**/*.png"], ["photos/*.png", "photos/s*/*"]])
def test_patterns_that_the_shell_left_as_they_are(patterns: list[str], run: Run, filled: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_embedder", lambda *_, **__: EMBEDDER)
        assert run("index", *patterns, "--store", "a")[0] == 0
        assert run("index", "photos/**/*.png", "--store", "b", "--exclude", "**/b*.png")[0] == 0
        code, _, said = run("index", "photos/*.gif", "--store", "c")
    assert (code, said) == (2, "error: photos/*.gif: no such file or folder, and no file matches it\n")
    counted = {store: json.loads(run("stats", "--json", "--store", store)[1])["folders"] for store in "ab"}
    photos = str(Path("photos").resolve())
    assert counted == {"a": {photos: 1, f"{photos}/sub": 1}, "b": {photos: 1}}


@pytest.mark.usefixtures("filled")
def test_remove(run: Run) -> None:
    code, _, err = run("remove", "page-7")
    assert (code, "1 of 5 records will be removed; pass --yes to agree" in err) == (2, True)
    assert run("remove", "page-7", "photos/sub", "--yes") == (0, "2 removed; 3 in abc-rag-store\n", "")
    Path("photos/notes.txt").unlink()
    assert json.loads(run("remove", "photos/notes.txt", "-y", "--json")[1]) == {"removed": 2, "total": 1}
    assert Path("photos/sub/blue.png").exists()
    code, _, err = run("remove", "nothing", "--yes")
    assert (code, "nothing is stored under 'nothing'" in err) == (2, True)
    assert run("remove", "photos", "--yes")[1].startswith("1 removed; 0 in")
    assert run("list")[0] == 2


@pytest.mark.usefixtures("filled")
def test_ask_with_a_filter(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ('{"page": ', "[1]", '{"page": {"$near": 3}}', "7"):
        code, _, err = run("ask", "x", "--where", wrong)
        assert code == 2
        assert err.startswith("error: ")
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: EMBEDDER)
    (hit,) = json.loads(run("ask", "a page", "--where", '{"lang": "en"}', "--json")[1])["hits"]
    assert hit["id"] == "page-7"


@pytest.mark.usefixtures("filled")
def test_a_picture_that_is_asked_with_does_not_find_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: EMBEDDER)

    def sources(*options: str) -> list[str]:
        return [Path(hit["source"]).name for hit in json.loads(run("ask", *options, "--json")[1])["hits"]]

    ask = ("--image", "photos/red.png", "--only", "image")
    assert sources(*ask) == ["blue.png"]
    assert sources(*ask, "--itself")[0] == "red.png"
    assert sources(*ask, "--where", '{"abc:mime_type": "image/png"}') == ["blue.png"]
    assert "red.png" not in sources("what is on the left?", "--image", "photos/red.png")


@pytest.mark.parametrize("command", [["list"], ["show", "x"], ["remove", "x"], ["stats"]])
def test_a_store_that_is_not_there_is_not_made(command: list[str], run: Run) -> None:
    code, _, err = run(*command)
    assert (code, "no store here" in err) == (2, True)
    assert not Path("abc-rag-store").exists()

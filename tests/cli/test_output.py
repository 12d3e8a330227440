"""What others wrote cannot steer the terminal: every command shows control characters as text."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from pdf_helpers import encrypted, manual
from rich.table import Table

import abc_rag
from abc_rag import ChromaStore, Record
from abc_rag.cli import main as cli
from abc_rag.cli import output
from abc_rag.cli.output import in_options, in_words, visible
from abc_rag.embedding import load
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.images.limits import ImageLimits
from abc_rag.types import Fingerprint

# Writes the clipboard, clears the screen, sets the title, in C1 codes too; reverses what follows.
HOSTILE = "a\x1b]52;c;ZXZpbA==\x07b\x1b[2Jc\x9b2Jd\x9d0;title\x9ce\rf\x08g\x7fh\u202ei\u2066j\u2028k"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)
    embedder = FakeEmbedder(dim=64)
    monkeypatch.setattr(load, "load_embedder", lambda *_, **__: embedder)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert not OBEYED.search(out), ascii(out)
        assert not OBEYED.search(err), ascii(err)
        return int(end.value.code or 0), out, err

    return call


def test_what_is_obeyed_is_spelled_out() -> None:
    assert visible("plain \u00fc \u732b \U0001f600 text") == "plain \u00fc \u732b \U0001f600 text"
    assert visible("\x1b[2J\x07\x9b\x7f\t") == "\\x1b[2J\\x07\\x9b\\x7f\\t"
    assert visible("\u202ex\u2069\u2028") == "\\u202ex\\u2069\\u2028"
    assert visible("a\nb") == "a\\nb"
    assert visible("a\nb", newlines=True) == "a\nb"
    assert not OBEYED.search(visible(HOSTILE))


@pytest.fixture
def hostile_store(run: Callable[..., tuple[int, str, str]]) -> Path:
    embedder = FakeEmbedder(dim=64)
    with ChromaStore("s", fingerprint=embedder.fingerprint) as store:
        records = [
            Record("passage", "text", text=HOSTILE, metadata={"note": HOSTILE}),
            Record("picture", "image", source=f"/nowhere/{HOSTILE}.jpg", sha256="0" * 64),
            Record(f"id {HOSTILE}", "image"),
        ]
        store.add(records, embedder.embed_texts([HOSTILE, "b", "c"]))
    return Path("s")


@pytest.mark.parametrize("options", [[], ["--json"], ["--trace"], ["--rerank", "--trace"], ["--mmr", "0.5"]])
def test_ask(options: list[str], hostile_store: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("ask", "what is on the left?", "--store", "s", *options)
    assert code == 0
    if options == ["--json"]:
        found = json.loads(out)["hits"]
        assert {hit["text"] for hit in found} == {"", HOSTILE}
        assert {hit["id"] for hit in found} == {"passage", "picture", f"id {HOSTILE}"}
    else:
        assert "\\x1b]52;c;" in out
        assert "\\u202e" in out
    _, out, _ = run("ask", HOSTILE, "--store", "s", *options)
    assert "\\x" in out or "\\u" in out


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_records(options: list[str], hostile_store: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("stats", "--store", "s", *options)[0] == 0
    for command in (["list"], ["show", "passage", "picture", f"id {HOSTILE}"]):
        code, out, _ = run(*command, "--store", "s", *options)
        assert code == 0
        assert "\\x1b]52" in out or "\\u001b]52" in out
    assert run("show", HOSTILE, "--store", "s")[0] == 2
    assert run("remove", HOSTILE, "--store", "s", "--yes")[0] == 2
    assert run("remove", f"id {HOSTILE}", "--store", "s", "--yes", *options)[0] == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_index_and_embed(options: list[str], run: Callable[..., tuple[int, str, str]]) -> None:
    name = HOSTILE.replace("/", "")
    folder = Path("photos")
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(b"no picture")
    PIL.Image.new("RGB", (9, 9), "red").save(folder / "fine.png")
    (folder / f"{name}.txt").write_bytes(b"\xff\xfe")
    code, out, err = run("index", folder, "--store", "s", *options)
    assert code == 3
    assert "\\x1b" in (out + err) or "\\u001b" in out
    for arguments in (["index", folder / f"{name}.gif"], ["index", folder, "--exclude", f"[z-a{HOSTILE}"]):
        assert run(*arguments, "--store", "s2")[0] in (0, 2, 3)
    assert run("embed", HOSTILE)[0] == 0
    assert run("embed", "--image", folder / f"{name}.png")[0] in (0, 2)
    assert run("info", "--store", HOSTILE.replace("/", ""))[0] == 0
    assert run("ask", "x", "--store", HOSTILE.replace("/", ""))[0] == 2


def test_usage_errors(run: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in ([HOSTILE], ["ask", "x", f"--{HOSTILE}"], ["evaluate", HOSTILE]):
        code, _, err = run(*arguments)
        assert code == 2
        assert "\\x1b]52" in err


def test_tables_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    output.console().print(table)
    output.console().print(HOSTILE)
    with output.plain_logs():
        logging.getLogger("abc_rag.somewhere").warning("no second look at %s", HOSTILE)
    out, err = capsys.readouterr()
    assert not OBEYED.search(out + err)
    assert "warning: no second look at a\\x1b]52" in err


def test_json_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, {"x": "line\nline \u00fc"}]}
    output.print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value
    assert not OBEYED.search(text)
    assert "\u00fc" in text
    assert "\\u009b" in text


def test_nothing_is_printed_past_this_module() -> None:
    for file in (Path(abc_rag.__file__).parent / "cli").glob("*.py"):
        if file.name == "output.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                allowed = file.name == "main.py" and ast.unparse(node).startswith("typer.echo(visible(")
                assert called not in ("print", "Console", "sys.stdout.write", "sys.stderr.write"), file
                assert called not in ("typer.echo", "typer.secho") or allowed, file


def test_messages_name_options(run: Callable[..., tuple[int, str, str]]) -> None:
    PIL.Image.new("RGB", (40, 30), "red").save("a.png")
    code, out, err = run("index", "a.png", "--image-limit", "max_pixels=100", "--store", "s")
    assert (code, out[:7]) == (3, "0 added")
    assert "exceed --image-limit max_pixels=100; to allow it, pass --image-limit max_pixels=..." in err
    assert "ImageLimits" not in err
    code, out, _ = run("index", "a.png", "--image-limit", "max_pixels=100", "--store", "s", "--json")
    assert "--image-limit max_pixels=..." in json.loads(out)["failed"][0]["reason"]
    assert run("index", "a.png", "--image-limit", "max-pixels=1,200", "--image-limit", "formats=png,gif")[0] == 0
    for wrong, said in (
        ("max_bytes=many", "takes a value such as 52428800, not 'many'"),
        ("allow_urls=perhaps", "such as False"),
        ("nonsense=1", "there is no limit 'nonsense'; there are max_bytes"),
        ("max_frames=0", "max_frames"),
        ("__doc__=1", "there is no limit"),
        ("formats=exe", "formats"),
    ):
        code, _, err = run("index", "a.png", "--image-limit", wrong)
        assert code == 2
        assert said in err


@pytest.mark.parametrize("limit", ImageLimits.__dataclass_fields__)
def test_every_limit_that_a_message_names_is_an_option(limit: str) -> None:
    said = in_options(f"5 exceed ImageLimits.{limit}=4; to allow it, pass limits=ImageLimits({limit}=...)")
    assert said == f"5 exceed --image-limit {limit}=4; to allow it, pass --image-limit {limit}=..."


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((9, 9), " (9 tokens for each picture)"),
        ((256, 1024), " (256 to 1024 tokens for each picture)"),
        ((1, 1), ""),  # a model without this setting
    ],
)
def test_a_fingerprint_in_words(limits: tuple[int, int], words: str) -> None:
    assert in_words(f"holds vectors of {Fingerprint('m', 'r', *limits)}, ...") == f"holds vectors of m@r{words}, ..."


def test_pruning_names_its_option(run: Callable[..., tuple[int, str, str]]) -> None:
    folder = Path("notes")
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"passage {number}")
    assert run("index", folder)[0] == 0
    for number in range(3):
        (folder / f"{number}.txt").unlink()
    code, _, err = run("index", folder, "--prune")
    assert code == 2
    assert "3 of 4 indexed files are gone" in err
    assert "pass --yes" in err
    assert "prune_most" not in err
    assert run("index", folder, "--prune", "--yes")[1].startswith("0 added, 1 unchanged, 3 removed")
    os.remove(folder / "3.txt")
    assert "has become empty" in run("index", folder, "--prune", "--yes")[2]


def test_left_out_files_are_told_of(run: Callable[..., tuple[int, str, str]]) -> None:
    folder = Path("mixed")
    folder.mkdir()
    (folder / "a.txt").write_text("words")
    (folder / "b.ps").write_bytes(b"%!PS-Adobe")
    (folder / "c.ps").write_bytes(b"%!PS-Adobe")
    (folder / ".hidden").touch()
    (folder / "d.txt").write_text("more words")
    code, out, _ = run("index", folder, "--exclude", "d.*")
    assert code == 0
    assert out.splitlines()[1] == "left out: 2 PostScript, 1 excluded, 1 hidden"
    assert json.loads(run("index", folder, "--json")[1])["left_out"] == {"PostScript": 2, "hidden": 1}


def test_a_hit_in_a_document_says_its_page(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("manual.pdf").write_bytes(manual())
    Path("locked.pdf").write_bytes(encrypted("letmein"))
    code, out, err = run("index", "manual.pdf", "locked.pdf")
    assert (code, out.splitlines()[0][:29]) == (3, "5 added, 0 unchanged, 0 remov")
    assert "is encrypted; pass --document-password" in err
    assert run("index", "locked.pdf", "--document-password", "letmein")[1].startswith("2 added")
    assert run("index", "manual.pdf")[1].startswith("0 added, 5 unchanged")
    shown = run("ask", "how is the filter cleaned?", "-k", "7")[1]
    assert "manual.pdf, p. ii" in shown
    assert "locked.pdf, p. 1" in shown
    hits = json.loads(run("ask", "how is the filter cleaned?", "-k", "7", "--json")[1])["hits"]
    assert sorted(hit["metadata"]["page"] for hit in hits) == [1, 1, 1, 1, 2, 2, 2]


def test_two_pictures_of_one_name_can_be_told_apart(run: Callable[..., tuple[int, str, str]]) -> None:
    for camera, colour in (("canon", "red"), ("iphone", "blue")):
        Path(camera).mkdir()
        PIL.Image.new("RGB", (60, 60), colour).save(Path(camera) / "IMG_0001.jpg")
    assert run("index", "canon", "iphone")[0] == 0
    out = run("ask", "a picture")[1]
    assert "canon/IMG_0001.jpg" in out
    assert "iphone/IMG_0001.jpg" in out
    assert os.getcwd() not in out

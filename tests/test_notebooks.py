"""The notebooks run from top to bottom without a network, and what is committed is what running them gives."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
NAMES = [
    *("01_quickstart", "02_instructions", "03_langchain_rag", "04_llamaindex_rag", "05_your_own_pictures", "06_chat"),
    "07_ask_your_documents",
]
MOST_BYTES = 400_000
# Pictures are compared in blocks of so many pixels a side, by the greatest difference (of 255) of their means. Pillow's
# versions resize and write text a little differently: moved by a pixel, what is committed differs by up to 10 from
# itself; with its neighbour in a picture's place, by 64 or more, unless these two are nearly the same.
BLOCK, ALIKE = 25, 35.0
PICTURES = ("image/jpeg", "image/png")
# Of this machine, or different at every run.
LOCAL = re.compile(r"/(tmp|home|root|Users|private|var)\b|site-packages|\.venv|0x[0-9a-f]{6,}|\b\d+ ?m?s\b")
NUMBER = re.compile(r"\d+\.\d+|\d+(?=%)")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py")]
    return subprocess.run(
        [*program, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8", timeout=900, check=False
    )


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def committed(name: str) -> Any:
    return read(NOTEBOOKS / f"{name}.ipynb")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> Iterator[tuple[str, str, str]]:
    """Cell, kind and content of everything that was printed or shown."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield cell.id, output.name, output.text
            elif output.output_type == "error":
                yield cell.id, "error", "\n".join(output.traceback)
            else:
                for kind, content in sorted(output.data.items()):
                    yield cell.id, kind, content


def opened(content: str) -> PIL.Image.Image:
    with PIL.Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        return picture.convert("RGB")


def blocks(picture: PIL.Image.Image) -> Any:
    size = (max(1, picture.width // BLOCK), max(1, picture.height // BLOCK))
    return np.asarray(picture.resize(size, PIL.Image.Resampling.BOX), dtype=np.float32)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All notebooks, run just now."""
    folder = tmp_path_factory.mktemp("executed")
    done = run("--to", folder)
    print(done.stdout, done.stderr)  # shown where a test fails
    return {name: read(folder / f"{name}.ipynb") for name in NAMES}


def test_these_are_all() -> None:
    assert sorted(path.name for path in NOTEBOOKS.iterdir() if not path.name.startswith(".")) == [
        f"{name}.ipynb" for name in NAMES
    ]


# --- Run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom_in_silence(executed: dict[str, Any], name: str) -> None:
    kinds = {(cell, kind): content for cell, kind, content in outputs(executed[name])}
    assert {key: content for key, content in kinds.items() if key[1] in ("error", "stderr")} == {}
    cells = code_cells(executed[name])
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_what_running_gives(executed: dict[str, Any], name: str) -> None:
    ours, fresh = committed(name), executed[name]
    assert [(cell.id, cell.source) for cell in ours.cells] == [(cell.id, cell.source) for cell in fresh.cells]
    counts = [[cell.execution_count for cell in code_cells(notebook)] for notebook in (ours, fresh)]
    assert counts[0] == counts[1]
    for (cell, kind, content), (fresh_cell, fresh_kind, fresh_content) in zip(
        outputs(ours), outputs(fresh), strict=True
    ):
        assert (cell, kind) == (fresh_cell, fresh_kind)
        if kind in PICTURES:
            was, now = opened(content), opened(fresh_content)
            assert was.size == now.size, cell
            assert np.abs(blocks(was) - blocks(now)).max() < ALIKE, cell
        else:
            same_but_for_rounding(content, fresh_content)


def same_but_for_rounding(text: str, other: str) -> None:
    """Equal words; numbers, to one in their last digit: they are cut where another machine may round the other way."""
    assert NUMBER.sub("#", text) == NUMBER.sub("#", other)
    for number, again in zip(NUMBER.findall(text), NUMBER.findall(other), strict=True):
        assert abs(float(number) - float(again)) <= 1.01 * 10.0 ** -len(number.partition(".")[2]), (number, again)


def test_numbers_may_differ_in_their_last_digit_and_nothing_else() -> None:
    same_but_for_rounding("score 0.81, 60%", "score 0.82, 61%")
    for text in ("score 0.83, 60%", "score 0.81, 62%", "rank 0.81, 60%"):
        with pytest.raises(AssertionError):
            same_but_for_rounding("score 0.81, 60%", text)


# --- As a reader sees it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_pictures_and_is_small(name: str) -> None:
    shown = [content for _, kind, content in outputs(committed(name)) if kind in PICTURES]
    assert len(shown) >= 3
    assert all(np.asarray(opened(content)).std() > 10 for content in shown)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_this_machine_or_this_hour_is_in_it(name: str) -> None:
    notebook = committed(name)
    texts = [content for _, kind, content in outputs(notebook) if kind not in PICTURES]
    assert [text for text in [*texts, *(cell.source for cell in notebook.cells)] if LOCAL.search(text)] == []
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_says_how_to_switch_to_the_published_model(name: str) -> None:
    (cell,) = (cell for cell in committed(name).cells if "With the 7B model" in cell.source)
    assert cell.id == "with-the-7b-model"
    assert re.search(r'load_embedder\("abc"\)|ABCEmbeddings\(model="abc"\)', cell.source)
    for word in ("GPU", "15.6 GB", "bfloat16", "Nothing else on this page"):
        assert word in " ".join(cell.source.split())


def test_cells_have_names_and_the_helpers_come_from_the_package() -> None:
    for name in NAMES:
        cells = {cell.id: cell for cell in committed(name).cells}
        assert len(cells) == len(committed(name).cells)
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id_) for id_ in cells)
        assert "from abc_rag.search.notebook import show, table" in cells["helpers"].source


def test_installing_names_a_clone_or_a_wheel() -> None:
    for name in NAMES:
        for cell in committed(name).cells:
            for what in re.findall(r"pip install (.+?)`", cell.source.replace("```", "")):
                assert re.match(r"'\./abc|torch --index-url https://download\.pytorch\.org/whl/cpu", what), (name, what)


def test_links_between_notebooks_lead_somewhere() -> None:
    for name in NAMES:
        for cell in committed(name).cells:
            for target in re.findall(r"\]\(([^):]+\.ipynb)\)", cell.source):
                assert (NOTEBOOKS / target).is_file(), (name, target)


# --- What runs them ---------------------------------------------------------------------------------------


def test_a_notebook_that_fails_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    sources = {
        "calls": "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)",
        "asks": "import urllib.request\nurllib.request.urlopen('http://example.org/', timeout=5)",
        "litters": "open('litter.txt', 'w').close()",
        "works": "print('fine')",
    }
    for name, source in sources.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source, id="only")]), tmp_path / f"{name}.ipynb")
    before = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(*sorted(tmp_path.iterdir()))
    assert done.returncode == 1
    assert done.stdout.count("notebooks run without a network, and this one asked for") >= 2
    assert "litters.ipynb: it left litter.txt in the folder that it was run in" in done.stdout
    changed = {path.stem for path in tmp_path.iterdir() if path.read_bytes() != before[path.stem]}
    assert changed == {"works"}
    ((_, kind, text),) = outputs(read(tmp_path / "works.ipynb"))
    assert (kind, text) == ("stdout", "fine\n")

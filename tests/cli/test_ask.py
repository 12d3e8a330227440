"""What a question does not import: what takes seconds and is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import abc_rag
from abc_rag.cli.main import main

NOT_NEEDED = (
    "accelerate", "bitsandbytes", "datasets", "huggingface_hub", "matplotlib", "peft", "scipy", "sentence_transformers",
    "sklearn", "sympy", "torch._dynamo", "torchvision", "transformers",
)  # fmt: skip
INDEX = "['index', 'pig-car.jpg', '--model', 'abc-mini', '--device', 'cpu']"
STARTS = {
    "import": "import abc_rag",
    "embedder": "import abc_rag\nembedder = abc_rag.load_embedder('abc-mini', device='cpu')\n"
    "embedder.embed([abc_rag.Text('a pig'), abc_rag.InstructedImage('pig-car.jpg', 'what is on the left?')])",
    "ask": "from abc_rag.cli.main import app\n"
    "app(['ask', 'a pig', '--model', 'abc-mini', '--device', 'cpu'], standalone_mode=False)",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, and a store of it."""
    folder = tmp_path_factory.mktemp("place")
    picture = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo" / "pig-car.jpg"
    (folder / "pig-car.jpg").write_bytes(picture.read_bytes())
    imported(folder, f"from abc_rag.cli.main import app\napp({INDEX}, standalone_mode=False)")
    return folder


def imported(folder: Path, program: str) -> list[str]:
    """Modules that are there when a program ends."""
    ending = "import json, sys\nopen('modules.json', 'w').write(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{ending}"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads((folder / "modules.json").read_text())
    return found


def test_nothing_is_collected_while_torch_is_imported_and_everything_afterwards(place: Path) -> None:
    watching = (
        "import gc, sys\nseen = []\nimporting = lambda: 'torch' in sys.modules and 'torch.nn' not in sys.modules\n"
        "gc.callbacks.append(lambda phase, info: seen.append(importing()))\n"
    )
    after = "\nassert gc.isenabled() and seen and not any(seen)\ngc.disable()\n"
    imported(place, watching + STARTS["ask"] + after + STARTS["ask"] + "\nassert not gc.isenabled()")


@pytest.mark.parametrize("start", STARTS)
def test_what_is_not_needed_is_not_imported(start: str, place: Path) -> None:
    modules = imported(place, STARTS[start])
    assert [name for name in NOT_NEEDED if name in modules] == []
    assert ("torch" in modules) == (start != "import")
    assert "chromadb" not in modules


def test_what_is_found_is_explained_in_words_and_on_a_page(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    asked = ["ask", "a picture with a pig on the left", "--model", "abc-mini", "--device", "cpu", "--explain", "1"]
    for more in ([], ["--json", "--html", "page.html"]):
        with pytest.raises(SystemExit) as end:
            main([*asked, *more])
        assert not end.value.code
        out = capsys.readouterr().out
        if not more:
            assert "evidence in 1: yes, +0." in out
    told = json.loads(out)
    ((id_, evidence),) = told["evidence"].items()
    assert (id_, evidence["evidence"]) == (told["hits"][0]["id"], True)
    assert sum(row[-1] for row in evidence["map"]) < 0.2  # the car
    page = Path("page.html").read_text()
    assert page.count("<details>") == 1
    assert page.count("<img") == 2


def test_pictures_like_one_in_one_respect(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    asked = ["ask", "--image", "pig-car.jpg", "--itself", "--same", "what is on the left?", "--model", "abc-mini"]
    for more, status in (
        (["--different", "the background", "--device", "cpu"], 0),
        (["a pig"], 2),
        (["--explain", "1"], 2),
        (["--different", "what is on the left?"], 2),
        (["--same", " "], 2),
    ):
        with pytest.raises(SystemExit) as end:
            main([*asked, *more])
        out, told = capsys.readouterr()
        assert (end.value.code or 0) == status, told
        if not status:
            assert "same: what is on the left?" in out
            assert "different: the background" in out
            assert "0.500" in out  # the picture itself is as like as can be, and not unlike at all
    assert "must be a list of instructions" in told

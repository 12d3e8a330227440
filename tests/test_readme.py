"""What the README shows is run as it stands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from abc_rag.cli.demo import demo_folder

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language; every other fence closes one."""
    fenced = README.read_text(encoding="utf-8").split("```")[1::2]
    return [body for block in fenced for head, _, body in [block.partition("\n")] if head == language]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with demo_folder() as folder:
        shutil.copytree(folder, tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    (tmp_path / "manual.md").write_text("The pig rolls in mud.\n\nA car has thirty thousand parts.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Citing(BaseChatModel):
    """Stands for a chat model: keeps what it was sent, and cites every source."""

    seen: list[list[dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "citing"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.seen.append(messages[0].content)  # type: ignore[arg-type]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("A pig [1], which rolls in mud [2]."))])


def run_example(marker: str, **names: Any) -> dict[str, Any]:
    (example,) = (b for b in blocks("python") if marker in b)
    exec(compile(example, "README.md", "exec"), names)
    return names


def test_the_langchain_example(photos: Path) -> None:
    model = Citing()
    names = run_example("langchain_abc", model=model)
    found = names["found"]
    names["store"].close()
    assert "[1]" in found["answer"]
    assert {Path(d.metadata.get("source", "")).name for d in found["sources"]} == {"pig-car.jpg", ""}
    assert any("rolls in mud" in document.page_content for document in found["documents"])
    kinds = [block["type"] for block in model.seen[0]]
    assert kinds.count("image") == 1
    assert "which animal is in the picture?" in model.seen[0][-1]["text"]


def test_the_llama_index_example(photos: Path) -> None:
    names = run_example("ABCMultiModalIndex")
    names["store"].close()
    assert "pig" in names["passage"]
    first, second = (found.node for found in names["answers"][:2])
    assert first.get_content() == "A rose has thorns."
    assert Path(second.image_path).name == "rose-fox.jpg"


def test_the_chroma_example(photos: Path) -> None:
    assert run_example("ABCEmbeddingFunction")["nearest"] == [["The pig rolls in mud."]]


def test_the_plain_example(photos: Path) -> None:
    names = run_example("index_paths(")
    pictures = len(list((photos / "photos").iterdir()))
    assert (names["report"].added, names["report"].facets) == (pictures, 2 * pictures)
    hits = names["answer"].hits
    assert Path(hits[0].source).name == "rose-fox.jpg"
    assert hits[0].trace.instruction == "what is on the left?"
    assert names["passages"].hits == []  # the folder holds no text


def test_the_example_of_streams_and_event_loops(photos: Path) -> None:
    names = run_example("embed_iter")
    assert set(names["vectors"]) == {path.name for path in (photos / "photos").iterdir()}
    assert [rows.shape for rows in names["rows"]] == [(1, 192)] * 3
    assert (photos / "seen").is_dir()
    names["embedder"].close()


def run_commands(marker: str, count: int) -> None:
    (shell,) = (b for b in blocks("") if marker in b)
    commands = [line.split("#")[0].strip() for line in shell.splitlines() if line.startswith("abc-rag ")]
    assert len(commands) == count
    for command in commands:
        words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', command)][1:]
        done = subprocess.run(
            [sys.executable, "-m", "abc_rag.cli", *words], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (command, done.stderr)


@pytest.fixture
def own_data(photos: Path) -> Path:
    captions, pairs = [], []
    for picture in sorted((photos / "photos").iterdir()):
        names = [f"a {name.replace('_', ' ')}" for name in picture.stem.split("-")]
        image = str(picture.relative_to(photos))
        captions.append({"image": image, "caption": " and ".join(names)})
        asked = [{"instruction": f"thing number {n}", "phrase": name} for n, name in enumerate(names)]
        pairs.append({"image": image, "pairs": asked})
    for name, found in (("captions", captions), ("pairs", pairs)):
        (photos / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    return photos


def test_the_training_commands(own_data: Path) -> None:
    run_commands("abc-rag train mine-negatives", 4)
    assert "| seed | 0 |" in (own_data / "runs" / "mine" / "README.md").read_text()


def test_the_vlm2vec_commands(photos: Path) -> None:
    shutil.copytree(Path(__file__).parent / "fixtures" / "vlm2vec_qwen2vl" / "base", "Qwen2-VL-2B-Instruct")
    shutil.copytree("photos", "MMEB-train/images/photos")
    rows = [
        {"qry": "<|image_1|> Represent the given image for classification", "qry_image_path": str(picture),
         "pos_text": picture.stem, "pos_image_path": ""}
        for picture in (path.relative_to("MMEB-train") for path in Path("MMEB-train").rglob("*.jpg"))
    ]  # fmt: skip
    Path("MMEB-train/Photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_commands("abc-rag train vlm2vec", 2)
    config = json.loads((photos / "runs" / "vlm2vec" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["use_dora"]) == ("../../Qwen2-VL-2B-Instruct", True)


def test_the_evaluation_commands(own_data: Path) -> None:
    run_commands("abc-rag evaluate ctrlbench scenes", 4)
    assert (own_data / "results" / "report.html").stat().st_size > 10_000


def test_the_sentence_transformers_example(photos: Path) -> None:
    assert "`abc-rag export sentence-transformers abc-mini exported`" in README.read_text(encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "abc_rag.cli", "export", "sentence-transformers", "abc-mini", "exported"], check=True
    )
    assert run_example("load_sentence_transformer")["vectors"].shape == (3, 192)


def test_the_vlm2vec_example(photos: Path) -> None:
    """On the fixture, as there is no hub here."""
    (example,) = (b for b in blocks("python") if "VLM2Vec" in b)
    names: dict[str, Any] = {}
    fixture = Path(__file__).parent / "fixtures" / "vlm2vec_qwen2vl"
    exec(compile(example.replace("TIGER-Lab/VLM2Vec-Qwen2VL-2B", str(fixture)), "README.md", "exec"), names)
    assert names["both"].shape == (128,)
    assert "TIGER-Lab/VLM2Vec-Qwen2VL-2B" in example


def test_the_commands(photos: Path) -> None:
    run_commands("abc-rag index", 5)
    assert (photos / "answer.html").stat().st_size > 10_000
    assert (photos / "vectors.npy").exists()


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for text in (README, README.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"make ([a-z-]+)", text.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

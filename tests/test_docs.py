"""The README and the guides: every block is run, twice in one folder, and gives what the text says.

A ``python`` block is executed. On a guide, the blocks of a page share their names, as a reader would type them; in the
README each stands alone. In a ``shell`` block, lines of ``abc-rag`` are run; of the others, make targets, modules and
extras must exist. A block that cannot be run says why in the line before it: ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from gemma_helpers import standin as gemma
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.llms import ChatMessage, ChatResponse, LLMMetadata, MockLLM
from pdf_helpers import manual
from pydantic import Field
from qwen3_vl_helpers import standin

from abc_rag import ChromaStore, EngineSettings, ImageLimits
from abc_rag.cli.demo import demo_folder
from abc_rag.cli.main import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *GUIDES, *sorted((ROOT / "docs" / "api").glob("*.md"))]
# There is no hub here: what a block fetches is a small checkpoint of the same layout.
STANDINS = {
    "TIGER-Lab/VLM2Vec-Qwen2VL-2B": str(FIXTURES / "vlm2vec_qwen2vl"),
    "Qwen/Qwen3-VL-Embedding-2B": f"qwen3-vl:{standin()}",
    "google/embeddinggemma-2": str(gemma()),
}
LANGUAGES = {"json", "python", "shell", "text", "{toctree}", "{eval-rst}"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    body: str
    place: str
    skipped: str

    def __str__(self) -> str:
        return self.place


def blocks(page: Path) -> list[Block]:
    found, before, inside = [], "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            if inside is None:
                before = line or before
            else:
                inside.append(line)
        elif inside is None:
            inside, language, start = [], line[3:].strip(), number
        else:
            reason = re.fullmatch(r"<!-- not run: (.+) -->", before)
            place = f"{page.relative_to(ROOT)}:{start}"
            found.append(Block(language, "\n".join(inside), place, reason[1] if reason else ""))
            inside, before = None, ""
    assert inside is None, page
    return found


class Citing(BaseChatModel):
    """Stands for a chat model: keeps what it was sent, and cites every source."""

    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "citing"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        self.seen.append(messages[0].content)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("A pig [1], which rolls in mud [2]."))])


class Chatting(MockLLM):
    """Stands for LlamaIndex's kind of a chat model."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=128_000)

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        pictures = sum(block.block_type == "image" for message in messages for block in message.blocks)
        return ChatResponse(message=ChatMessage(f"I was shown {pictures} pictures.", role="assistant"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages' blocks find where they are run."""
    with demo_folder() as demo:
        shutil.copytree(demo, tmp_path / "photos", ignore=shutil.ignore_patterns("*.json"))
    (tmp_path / "manual.pdf").write_bytes(manual())
    (tmp_path / "manual.md").write_text("The pig rolls in mud.\n\nA car has thirty thousand parts.\n")
    (tmp_path / "notes.md").write_text("The pig rolls in mud to stay cool.\n\nA rose has thorns.\n")
    captions, pairs = [], []
    for picture in sorted((tmp_path / "photos").iterdir()):
        names = [f"a {name.replace('_', ' ')}" for name in picture.stem.split("-")]
        image = str(picture.relative_to(tmp_path))
        captions.append({"image": image, "caption": " and ".join(names)})
        both = [{"instruction": f"thing number {n}", "phrase": name} for n, name in enumerate(names)]
        pairs.append({"image": image, "pairs": both})
    for name, rows in (("captions", captions), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(FIXTURES / "vlm2vec_qwen2vl" / "base", tmp_path / "Qwen2-VL-2B-Instruct")
    shutil.copytree(tmp_path / "photos", tmp_path / "MMEB-train" / "images" / "photos")
    asked = "<|image_1|> Represent the given image for classification"
    rows = [
        {"qry": asked, "qry_image_path": f"images/photos/{image.name}", "pos_text": image.stem, "pos_image_path": ""}
        for image in sorted((tmp_path / "photos").iterdir())
    ]
    (tmp_path / "MMEB-train" / "Photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("ABC_RAG_MODEL", "ABC_RAG_STORE", "ABC_RAG_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(block: Block, names: dict[str, Any]) -> None:
    source = block.body
    for name, other in STANDINS.items():
        source = source.replace(name, other)
    exec(compile(source, block.place, "exec"), names)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line, without what a comment says."""
    for line in block.body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def run_shell(block: Block) -> None:
    for program, *words in commands(block):
        if program == "abc-rag":
            with pytest.raises(SystemExit) as end:
                main(words)
            assert end.value.code in (0, None), (block.place, words)


def closed(names: dict[str, Any]) -> None:
    """Close our objects, as the end of a reader's process would."""
    for value in names.values():
        if type(value).__module__.split(".")[0] in ("abc_rag", "langchain_abc") and hasattr(value, "close"):
            value.close()


# --- The README -------------------------------------------------------------------------------------------


def readme(marker: str) -> Block:
    (block,) = (block for block in blocks(README) if block.language == "python" and marker in block.body)
    return block


def is_about_the_pig(text: str) -> bool:
    return "pig rolls in mud" in text


def check_plain(names: dict[str, Any], folder: Path) -> None:
    pictures = len(list((folder / "photos").iterdir()))
    assert names["report"].added + names["report"].unchanged == pictures + 2
    assert Path(names["pictures"][0].source).name == "rose-fox.jpg"
    assert is_about_the_pig(names["passages"][0].text)
    assert names["vectors"].shape == (1, names["embedder"].dim)
    with ChromaStore(folder / "store") as store:
        assert store.count() == pictures + 2


def check_langchain(names: dict[str, Any], folder: Path) -> None:
    assert {Path(d.metadata.get("source", "")).name for d in names["sources"]} == {"pig-car.jpg", ""}
    assert any(is_about_the_pig(document.page_content) for document in names["documents"])
    kinds = [part["type"] for part in names["model"].seen[0]]
    assert kinds.count("image") == 1
    assert names["store"].store.count() == 6


def check_llama_index(names: dict[str, Any], folder: Path) -> None:
    assert is_about_the_pig(names["found"][0].text)
    assert names["store"].count() == 5


@pytest.mark.parametrize(
    ("marker", "check"),
    [("index_paths(", check_plain), ("langchain_abc", check_langchain), ("ABCMultiModalIndex", check_llama_index)],
)
def test_readme_blocks_run_twice_in_one_folder(
    folder: Path, marker: str, check: Callable[[dict[str, Any], Path], None]
) -> None:
    for _ in range(2):
        names: dict[str, Any] = {"model": Citing()}
        run_python(readme(marker), names)
        check(names, folder)
        closed(names)


def test_all_python_blocks_of_the_readme_are_those() -> None:
    assert sum(block.language == "python" for block in blocks(README)) == 3


def test_readme_commands_run_twice_in_one_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        for block in blocks(README):
            if block.language == "shell" and not block.skipped:
                run_shell(block)
    assert "unchanged" in capsys.readouterr().out


def test_readme_is_read_in_a_minute() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180
    for block in blocks(README):
        if block.language == "python":
            statements = re.sub(r"^(from|import) .*\n|^\s*#.*\n|^\s*\n", "", block.body + "\n", flags=re.MULTILINE)
            assert len(statements.splitlines()) <= 10, block


# --- The guides -------------------------------------------------------------------------------------------


def check_retrieval(names: dict[str, Any], folder: Path) -> None:
    assert Path(names["best"].source).name == "rose-fox.jpg"
    assert names["best"].trace.instruction == "what is on the left?"
    assert is_about_the_pig(names["passages"][0].text)
    assert Path(names["alike"][0].source).name == "pig-car.jpg"


def check_langchain_guide(names: dict[str, Any], folder: Path) -> None:
    found = names["found"]
    assert "[1]" in found["answer"]
    assert {Path(d.metadata.get("source", "")).name for d in found["sources"]} == {"pig-car.jpg", ""}
    assert "which animal is in the picture?" in names["model"].seen[0][-1]["text"]
    pig, car = (turn["documents"][0].page_content for turn in names["turns"])
    assert is_about_the_pig(pig)
    assert car == "A car has thirty thousand parts."
    assert [message.type for message in names["history"]] == ["human", "ai", "human", "ai"]
    assert sorted(block["type"] for block in names["result"].content) == ["image", "text", "text"]
    assert len(names["result"].artifact) == 2
    assert names["near"][0][0].page_content == "A rose has thorns."
    assert len(names["diverse"]) == 2
    with ChromaStore(folder / "chain-store") as store:
        assert store.count() == 6


def check_llama_index_guide(names: dict[str, Any], folder: Path) -> None:
    assert "pig" in names["passage"]
    best = [found.node for found in names["answers"][:2]]
    assert {Path(getattr(node, "image_path", None) or "").name for node in best} == {"rose-fox.jpg", ""}
    assert "A rose has thorns." in {node.get_content() for node in best}
    assert str(names["response"]) == "I was shown 1 pictures."
    assert [turn.source_nodes[0].node.node_id for turn in names["turns"]] == ["pig", "car"]
    assert [str(turn) for turn in names["turns"]] == ["I was shown 1 pictures."] * 2
    with ChromaStore(folder / "index-store") as store:
        assert store.count() == 6


def check_chroma(names: dict[str, Any], folder: Path) -> None:
    assert names["nearest"] == names["about_the_pig"] == [["The pig rolls in mud."]]
    assert names["collection"].count() == 3


def check_models(names: dict[str, Any], folder: Path) -> None:
    assert names["both"].shape == (128,)
    assert -1 <= names["embedder"].similarity(names["asked"], names["picture"]) <= 1


def check_performance(names: dict[str, Any], folder: Path) -> None:
    assert set(names["vectors"]) == {path.name for path in (folder / "photos").iterdir()}
    assert [rows.shape for rows in names["rows"]] == [(1, 192)] * 3
    assert (folder / "seen").is_dir()


def check_store(names: dict[str, Any], folder: Path) -> None:
    assert Path(names["found"][0].source).name == "pig-car.jpg"
    photos = folder / "photos"
    with ChromaStore(folder / "guide-store") as store:
        # Pictures of the album are further records, as their metadata differ.
        assert store.count() == len(list(photos.iterdir())) + len(list(photos.glob("p*.jpg"))) + 2


def check_training(names: dict[str, Any], folder: Path) -> None:
    assert "| seed | 0 |" in (folder / "runs" / "mine" / "README.md").read_text()
    config = json.loads((folder / "runs" / "vlm2vec" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["use_dora"]) == ("../../Qwen2-VL-2B-Instruct", True)


def check_evaluation(names: dict[str, Any], folder: Path) -> None:
    assert (folder / "results" / "report.html").stat().st_size > 10_000
    assert names["vectors"].shape == (3, 192)


def check_command_line(names: dict[str, Any], folder: Path) -> None:
    assert (folder / "answer.html").stat().st_size > 10_000
    assert (folder / "vectors.npy").exists()


def check_answering(names: dict[str, Any], folder: Path) -> None:
    assert set(names["found"]) == {"animal", "sure"}
    assert len(names["answers"]) == 2
    assert names["whole"].outcome.new_tokens <= 8
    assert 0 <= names["share"] <= 1
    assert names["vectors"].shape == (1, names["generator"].embedder.dim)


CHECKS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "answering": check_answering,
    "chroma": check_chroma,
    "command-line": check_command_line,
    "evaluation": check_evaluation,
    "langchain": check_langchain_guide,
    "llama-index": check_llama_index_guide,
    "models": check_models,
    "performance": check_performance,
    "retrieval": check_retrieval,
    "store": check_store,
    "training": check_training,
}
RUNNABLE = [page for page in GUIDES if any(block.language in ("python", "shell") for block in blocks(page))]


@pytest.fixture
def loop() -> Iterator[None]:
    """LlamaIndex makes an event loop where the thread has none, and leaves it open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_guides_run_twice_in_one_folder(folder: Path, page: Path) -> None:
    for _ in range(2):
        names: dict[str, Any] = {"model": Citing(), "llm": Chatting()}
        for block in blocks(page):
            if block.skipped:
                continue
            if block.language == "python":
                run_python(block, names)
            elif block.language == "shell":
                run_shell(block)
        closed(names)
        if page.stem in CHECKS:
            CHECKS[page.stem](names, folder)


def test_every_guide_has_an_example() -> None:
    assert {page.stem for page in GUIDES} - {page.stem for page in RUNNABLE} == {"index"}
    assert set(CHECKS) <= {page.stem for page in RUNNABLE}


# --- What is named exists ---------------------------------------------------------------------------------


def test_blocks_are_of_known_languages() -> None:
    assert {block.language for page in PAGES for block in blocks(page)} <= LANGUAGES


def test_what_shell_blocks_and_texts_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE):
            assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), (page, target)
        for extra in re.findall(r"(?:abc-rag|\.whl)\[([a-z-]+)\]", text):
            assert extra in project["optional-dependencies"], (page, extra)
        for module in re.findall(r"python -m (benchmarks\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), (page, module)
        for script in re.findall(r"\b(scripts/\w+\.py|tests/[\w/]+\.py|benchmarks/README\.md)", text):
            assert (ROOT / script).is_file(), (page, script)
        for path in re.findall(r"`(abc_rag/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), (page, path)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not re.match(r"https?://|#", target):
                assert (page.parent / target.partition("#")[0]).exists(), (page, target)


def test_extras_in_the_guide_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("## Extras")[2]
    named = set(re.findall(r"`([a-z-]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    assert named == set(project["optional-dependencies"]) - {"dev", "docs", "all"}


def test_settings_and_limits_in_tables_are_fields() -> None:
    for guide, settings in (("performance.md", EngineSettings), ("security.md", ImageLimits)):
        text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
        named = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        assert named
        fields = {field.name for field in dataclasses.fields(settings)}
        assert {name for row in named for name in re.findall(r"`(\w+)`", row)} <= fields


# --- What a command writes into them ----------------------------------------------------------------------


def test_help_pages_are_those_of_today() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_help.py"))
    guide = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert script["with_help"](guide) == guide, "run: python scripts/write_help.py"


def test_diagrams_are_drawn_by_their_script() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw_figures.py"))
    drawn = {name: draw() for name, draw in script["FIGURES"].items()}
    assert {path.name for path in script["IMAGES"].glob("*.svg")} == set(drawn)
    for name, figure in drawn.items():
        assert (script["IMAGES"] / name).read_text(encoding="utf-8") == figure, "run: make pictures"


def test_the_picture_of_the_readme_shows_what_the_model_answers() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw_demo.py"))
    with PIL.Image.open(script["PICTURE"]) as picture:
        shown = picture.text[script["KEY"]].split("\n")
        assert picture.size == (script["WIDTH"] * script["SCALE"], script["HEIGHT"] * script["SCALE"])
    _, words = script["page"]()
    for was, now in zip(shown, words.split("\n"), strict=True):
        if re.fullmatch(r"0\.\d\d", now):
            assert abs(float(was) - float(now)) < 0.011  # rounded, on another machine
        else:
            assert was == now, "run: make pictures"

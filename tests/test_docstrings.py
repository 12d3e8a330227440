"""The examples in docstrings run.

Two kinds are run: ``>>>`` by doctest, and blocks that are marked as Python, by a fence or ``.. code-block:: python``.
The blocks of one docstring share their names, and begin with those of `PRELUDE`; those of a class with those of its
module. A literal block after ``::`` is an illustration: a tree, a format, a protocol.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abc_rag.cli.demo import demo_folder

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "abc_rag").rglob("*.py")), *sorted((ROOT / "integrations").rglob("*.py"))]
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
# What an example may use without saying where it is from.
PRELUDE = """
import PIL.Image
from llama_index.core import StorageContext
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.vector_stores.abc import ABCMultiModalIndex, ABCVectorStore
from langchain_core.documents import Document

from abc_rag import ChromaStore, InstructedImage

embed_model = ABCEmbeddings(model="abc-mini")
nodes = [ImageNode(id_="1", image_path="photo.jpg"), TextNode(id_="2", text="A rose has thorns.")]
documents = [Document("The pig rolls in mud.")]
picture = PIL.Image.new("RGB", (64, 64), "pink")
"""
PICTURES = {"photo": "pig-car", "scene": "burger-rabbit", "a": "pig-car", "b": "rose-fox", "rose": "rose-fox"} | {
    "pig": "pig-car"
}


def module_of(path: Path) -> str:
    base = ROOT / "integrations" if "integrations" in path.parts else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def examples() -> Iterator[tuple[str, list[str]]]:
    """Each docstring's name and its Python blocks, in order."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            text = (ast.get_docstring(node) or "") + "\n"
            found = [*FENCE.finditer(text), *DIRECTIVE.finditer(text)]
            if found:
                blocks = [textwrap.dedent(match[2]) for match in sorted(found, key=lambda match: match.start())]
                yield f"{module_of(path)}.{getattr(node, 'name', '')}".rstrip("."), blocks


EXAMPLES = dict(examples())
INTERACTIVE = [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")]


def test_the_classes_that_users_start_with_have_examples() -> None:
    classes = {name.rpartition(".")[2] for name in EXAMPLES}
    assert {"ABCEmbeddings", "ABCVectorStore", "InstructionRetriever", "ABCMultiModalIndex"} <= classes


@pytest.mark.parametrize("name", EXAMPLES)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with demo_folder() as demo:
        for copy, original in PICTURES.items():
            shutil.copy(demo / f"{original}.jpg", f"{copy}.jpg")
        shutil.copytree(demo, "photos")
    names: dict[str, Any] = {}

    async def run() -> None:
        for block in (PRELUDE, *EXAMPLES.get(name.rpartition(".")[0], []), *EXAMPLES[name]):
            # Chroma keeps clients by path, and a relative one is another folder in each test.
            block = block.replace('PersistentClient("store")', f'PersistentClient("{tmp_path}")')
            running = eval(compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.isawaitable(running):
                await running

    asyncio.run(run())
    for value in names.values():
        if type(value).__module__.split(".")[0] in ("abc_rag", "langchain_abc") and hasattr(value, "close"):
            value.close()


@pytest.mark.parametrize("path", INTERACTIVE, ids=module_of)
def test_interactive_examples_give_what_they_show(path: Path) -> None:
    module = importlib.import_module(module_of(path))
    done = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0 or "# doctest: +SKIP" in path.read_text(encoding="utf-8")
    assert done.failed == 0

"""The integrations without their frameworks: an error that names the extra, and a core that works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import abc_rag
from abc_rag.errors import ABCRagError, MissingExtraError

ROOT = Path(abc_rag.__file__).parent.parent
EXTRAS = {
    "langchain_abc": "langchain",
    "langchain_abc.chat": "langchain",
    "langchain_abc.retrievers": "langchain",
    "llama_index.embeddings.abc": "llama-index",
    "llama_index.llms.abc": "llama-index",
    "llama_index.retrievers.abc": "llama-index",
    "llama_index.vector_stores.abc": "llama-index",
}


def run(program: str) -> str:
    # None in sys.modules is how Python says that a module is not there.
    without = "import sys; sys.modules.update(dict.fromkeys(['langchain_core', 'llama_index.core']))"
    done = subprocess.run(
        [sys.executable, "-c", f"{without}\n{program}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", EXTRAS)
def test_the_error_names_the_extra(module: str) -> None:
    said = run(f"""
from abc_rag.errors import ABCRagError
try:
    import {module}
except ImportError as error:
    assert isinstance(error, ABCRagError)
    print(error)
""")
    assert "which is not installed" in said
    assert f"pip install 'abc-rag[{EXTRAS[module]}]'" in said


def test_the_core_works_without_any_framework(tmp_path: Path) -> None:
    said = run(f"""
from abc_rag import ChromaStore, Record, Retriever
from abc_rag.embedding import FakeEmbedder
embedder = FakeEmbedder()
with ChromaStore({str(tmp_path)!r}, fingerprint=embedder.fingerprint) as store:
    store.add([Record("a", "text", "a rose")], embedder.embed_texts(["a rose"]))
    print(Retriever(embedder, store).search("a rose")[0].text)
import abc_rag.cli.main, abc_rag.ingest, abc_rag.adapters.chroma
""")
    assert said == "a rose\n"


def test_a_missing_module_of_our_own_is_not_blamed_on_an_extra() -> None:
    for name in ("abc_rag.nothing", "langchain_abc.nothing", "llama_index.embeddings.abc.nothing"):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        assert MissingExtraError.for_module(error, "this", extra="langchain") is error
    made = MissingExtraError.for_module(ModuleNotFoundError(name="httpx"), "asking a chat model", extra="evaluate")
    assert isinstance(made, ABCRagError)
    assert str(made) == "asking a chat model needs httpx, which is not installed: pip install 'abc-rag[evaluate]'"

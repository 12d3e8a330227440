"""What users may rely on: the names, what importing costs, and what may import what."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import abc_rag
from abc_rag import ABCCheckpoint, Text, load_embedder
from abc_rag.errors import CheckpointError, InputError

PACKAGE = Path(abc_rag.__file__).parent
ROOT = PACKAGE.parent
INTEGRATIONS = ROOT / "integrations"
NAMES = """URL ABCCheckpoint ABCRagError ChromaStore DataURI Embedder EngineSettings Fingerprint Hit Image ImageLimits
    ImageSource Input InstructedImage InstructedText Interleaved Record Retriever Store Text Trace __version__
    load_embedder""".split()


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ABC_RAG", "HF_"))}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=kept | environment, cwd=ROOT, check=False
    )


# --- Names ------------------------------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert abc_rag.__all__ == NAMES
    assert dir(abc_rag) == sorted(NAMES)
    star: dict[str, Any] = {}
    exec("from abc_rag import *", star)
    assert set(NAMES) <= set(star)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_home_has(name: str) -> None:
    value = getattr(abc_rag, name)
    if name == "__version__":
        assert value.split(".")[0].isdigit()
    elif name not in ("ImageSource", "Input"):  # unions have no name
        assert value.__name__ == name
        assert value.__module__.startswith("abc_rag.")
        assert getattr(importlib.import_module(value.__module__), name) is value
        assert value.__doc__


def test_another_name_is_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        abc_rag.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        exec("from abc_rag import nonsense")


def test_every_module_names_what_is_public() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        if (file.name.startswith("_") and file.name != "__init__.py") or not imports(file):
            continue
        module = importlib.import_module(
            ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        )
        assert module.__all__, file
        for name in module.__all__:
            assert hasattr(module, name), (file, name)


# --- What importing costs ---------------------------------------------------------------------------------

HEAVY = ["torch", "transformers", "peft", "chromadb", "huggingface_hub", "PIL", "rich", "typer", "langchain_core"]
HEAVY += ["llama_index", "pydantic"]


def test_importing_the_package_is_light() -> None:
    program = f"""
import sys, json
def loaded():
    return [name for name in {HEAVY!r} if name in sys.modules]
import abc_rag
found = [loaded()]
from abc_rag import URL, DataURI, Embedder, EngineSettings, Fingerprint, Hit, Image, InstructedImage, Record, Text
import abc_rag.errors
Image("photo.jpg"), Text("words"), InstructedImage(b"", "left?")
found.append(loaded())
from abc_rag import ChromaStore
import abc_rag.embedding.fake
abc_rag.embedding.fake.FakeEmbedder().embed([Text("words")])
found.append(loaded())
from abc_rag import load_embedder
found.append(loaded())
print(json.dumps(found))
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], [], [], []]


# --- What may import what ---------------------------------------------------------------------------------


def imports(file: Path) -> list[tuple[str, str | None]]:
    """(module, name) of every import of a file, wherever in it."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def sources(folder: Path) -> Iterator[tuple[Path, str, str | None]]:
    files = sorted(folder.rglob("*.py"))
    assert files
    for file in files:
        for module, name in imports(file):
            yield file, module, name


def test_the_package_knows_no_framework() -> None:
    for file, module, _ in sources(PACKAGE):
        assert not module.startswith(("langchain", "llama_index", "llama_cloud", "haystack")), (file, module)
        assert module.split(".")[0] != "integrations", (file, module)


def test_integrations_use_only_what_is_public() -> None:
    used = set()
    for file, module, name in sources(INTEGRATIONS):
        parts = module.split(".")
        if parts[0] != "abc_rag":
            continue
        used.add(file.relative_to(INTEGRATIONS).parts[0])
        assert not any(part.startswith("_") for part in parts), (file, module)
        assert name is not None, f"{file}: import names, not {module}"
        assert name in importlib.import_module(module).__all__, (file, module, name)
    assert used == {"langchain_abc", "llama_index"}


def test_the_namespaces_of_llama_index_are_left_to_it() -> None:
    found = sorted(str(file.parent.relative_to(INTEGRATIONS)) for file in INTEGRATIONS.rglob("__init__.py"))
    packages = [f"llama_index/{kind}/abc" for kind in ("embeddings", "llms", "readers", "retrievers", "vector_stores")]
    assert found == ["langchain_abc", *packages]


# --- load_embedder ----------------------------------------------------------------------------------------


def test_the_published_model_is_asked_for_late_and_with_a_warning(tmp_path: Path) -> None:
    program = """
import json, sys, warnings
network = []
def watch(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        network.append(event)
sys.addaudithook(watch)
from abc_rag import Text, load_embedder
from abc_rag.errors import CheckpointError

embedder = load_embedder("abc")
default = load_embedder()
said = {"constructed": list(network)}
warnings.simplefilter("error", UserWarning)
try:
    embedder.embed([Text("words")])
except UserWarning as warning:
    said["warning"] = str(warning)
said["warned"] = list(network)
warnings.simplefilter("always")

def refused(one):
    network.clear()
    try:
        one.embed([Text("words")])
    except CheckpointError as error:
        return str(error), list(network)

said["unreachable"] = refused(embedder)
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
said["offline"] = refused(default)
print(json.dumps(said))
"""
    done = run(program, HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["constructed"] == []
    assert "15.6 GB" in said["warning"]
    assert "abc-mini" in said["warning"]
    assert said["warned"] == []
    assert "socket.connect" in said["unreachable"][1]
    assert said["offline"][1] == []
    for message, _ in (said["unreachable"], said["offline"]):
        assert "Qwen/Qwen2-VL-7B-Instruct" in message
        assert "abc-mini" in message
    assert done.stderr.count("15.6 GB to download") == 2  # where a user sees it


def folder_with(tmp_path: Path, *parts: str) -> Path:
    for part in parts:
        (tmp_path / "checkpoint" / part).mkdir(parents=True)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of auto, float32, bfloat16, float16, not 'float8'"),
        ({"attention": "flash"}, "attention must be one of auto, sdpa, eager, flash_attention_2, not 'flash'"),
        ({"min_tokens": 0}, "min_tokens must be a positive number of image tokens, not 0"),
        ({"max_tokens": True}, "max_tokens must be a positive number"),
        ({"max_tokens": 2.5}, "max_tokens must be a positive number"),
        ({"min_tokens": 16, "max_tokens": 9}, r"min_tokens \(16\) is larger than max_tokens \(9\)"),
        ({"model": "no-such-model"}, "neither 'abc', 'abc-mini', 'auto' nor a folder; .*ABCCheckpoint"),
        ({"model": Path("no/such/folder")}, "nor a folder"),
        ({"model": "TIGER-Lab/ABC-Qwen2VL-Instruct"}, "for other hub ids pass"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_embedder(**({"model": "abc-mini"} | settings))


@pytest.mark.parametrize("missing", ["base", "pretrain", "instruct"])
def test_a_folder_that_is_no_checkpoint_is_refused_at_once(missing: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, *{"base", "pretrain", "instruct"} - {missing})
    with pytest.raises(InputError, match=f"holds no {missing}/; an ABC checkpoint has base/, pretrain/ and instruct/"):
        load_embedder(folder)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_on_first_use(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}' cannot be used here"):
        load_embedder("abc-mini", device=device).embed([Text("words")])


def test_an_empty_checkpoint_is_named_on_first_use(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "base", "pretrain", "instruct")
    with pytest.raises(CheckpointError, match=str(folder)):
        load_embedder(folder, device="cpu").embed([Text("words")])


def test_a_checkpoint_of_parts_says_which_is_missing(tmp_path: Path) -> None:
    here, gone = tmp_path, tmp_path / "gone"
    with pytest.raises(CheckpointError, match="gone: no such folder"):
        load_embedder(ABCCheckpoint(here, gone, here), device="cpu").embed([Text("words")])
    with pytest.raises(InputError, match="is a folder and has no revision 'main'"):
        load_embedder(ABCCheckpoint(here, here, here, base_revision="main"), device="cpu").embed([Text("words")])
    with pytest.raises(InputError, match="is not a hub id"):
        load_embedder(ABCCheckpoint("not a hub id", here, here), device="cpu").embed([Text("words")])


def test_the_environment_names_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABC_RAG_MODEL", "no-such-model")
    with pytest.raises(InputError, match="no-such-model"):
        load_embedder()
    load_embedder("abc-mini")

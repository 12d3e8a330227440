"""The layout of the package: its rooms, what may import what, and that nothing private leaves its folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import abc_rag

PACKAGE = Path(abc_rag.__file__).parent
ROOT = PACKAGE.parent
INTEGRATIONS = ROOT / "integrations"

# Rooms that each room may import, besides itself. A room further down never imports one further up.
FOUNDATION = {"errors", "types", "files"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "types": {"errors"},
    "images": FOUNDATION,
    "models": FOUNDATION | {"images"},
    "embedding": FOUNDATION | {"images", "models"},
    "store": FOUNDATION | {"images"},
    "search": FOUNDATION | {"images", "models", "embedding", "store"},
    "answering": FOUNDATION | {"images", "models", "embedding", "store", "search"},
    "ingest": FOUNDATION | {"images", "embedding", "store"},
    "bench": FOUNDATION | {"images", "models", "embedding"},
    "adapters": FOUNDATION | {"images", "models", "embedding"},
    "scenes": FOUNDATION,
    "training": FOUNDATION | {"images", "models", "embedding", "scenes"},
    "evaluation": FOUNDATION
    | {"images", "models", "embedding", "store", "search", "answering", "ingest", "scenes", "training"},
}
EVERYTHING = {"cli", "server"}  # the ends: they may import all rooms, and nobody imports them
MOST_ENTRIES = 20


def modules_of(folder: Path) -> dict[str, Path]:
    """Each module below a folder with its file."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports_of(source: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import in a file: at the top, lazy, and for the type checker alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            for alias in node.names:
                yield node.module or "", alias.name


def arrows_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, of those that are given."""
    arrows: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = set()
        for imported, name in imports_of(source):
            whole = f"{imported}.{name}"
            if whole in sources:
                targets.add(whole)
            elif imported in sources:
                targets.add(imported)
        arrows[module] = targets - {module}
    return arrows


def circle_in(arrows: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle, or nothing."""
    done: set[str] = set()
    for start in sorted(arrows):
        path: list[str] = []
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            module, left = todo.pop()
            if left:
                done.add(path.pop())
            elif module in path:
                return [*path[path.index(module) :], module]
            elif module not in done:
                path.append(module)
                todo.append((module, True))
                todo += [(target, False) for target in sorted(arrows[module])]
    return []


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def forbidden_in(arrows: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows between rooms that are not allowed."""
    wrong = []
    for module, targets in arrows.items():
        room = room_of(module)
        for target in targets:
            other = room_of(target)
            # The package's own `__init__` only hands on names, and has the version.
            if room in ("", other) or other == "" or room in EVERYTHING:
                continue
            if other not in ALLOWED.get(room, set()):
                wrong.append((module, target))
    return wrong


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The source of each module of the package."""
    return {module: file.read_text(encoding="utf-8") for module, file in modules_of(PACKAGE).items()}


def test_no_circle_of_imports(sources: dict[str, str]) -> None:
    assert circle_in(arrows_of(sources)) == []


def test_imports_between_rooms_follow_the_directions(sources: dict[str, str]) -> None:
    assert forbidden_in(arrows_of(sources)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("abc_rag.errors", "from abc_rag.types import Text"),
        ("abc_rag.store.base", "def late():\n    from abc_rag.search.retriever import Retriever"),
        ("abc_rag.models.family", "import abc_rag.embedding.embedder"),
        (
            "abc_rag.images.open",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from abc_rag.models.family import Family",
        ),
        ("abc_rag.training.step", "from abc_rag.evaluation import metrics"),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(sources: dict[str, str], module: str, line: str) -> None:
    changed = {**sources, module: f"{sources[module]}\n{line}\n"}
    assert [wrong[0] for wrong in forbidden_in(arrows_of(changed))] == [module]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_circle_is_found_within_a_room(sources: dict[str, str], lazy: bool) -> None:
    line = "from abc_rag.images.open import open_image"
    line = f"def late():\n    {line}" if lazy else line
    module = "abc_rag.images.limits"
    circle = circle_in(arrows_of({**sources, module: f"{sources[module]}\n{line}\n"}))
    assert {module, "abc_rag.images.open"} <= set(circle)


def test_every_room_is_known_and_the_root_is_small(sources: dict[str, str]) -> None:
    rooms = {room_of(module) for module in sources} - {""}
    assert rooms <= set(ALLOWED) | EVERYTHING
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    assert [name for name in entries if name.startswith("_") and name != "__init__.py"] == []


def test_nothing_private_leaves_its_folder(sources: dict[str, str]) -> None:
    """A leading underscore means: used in this file or this folder only."""
    files = modules_of(PACKAGE)
    wrong = []
    for module, source in sources.items():
        for imported, name in imports_of(source):
            if not imported.startswith("abc_rag"):
                continue
            whole = f"{imported}.{name}"
            home = files.get(whole, files.get(imported))
            private = [part for part in whole.split(".") if part.startswith("_") and not part.startswith("__")]
            if private and (home is None or home.parent != files[module].parent):
                wrong.append((module, whole))
    assert wrong == []


def test_a_folder_hands_on_names_and_defines_nothing(sources: dict[str, str]) -> None:
    for module, file in modules_of(PACKAGE).items():
        if file.name != "__init__.py" or file.parent == PACKAGE:
            continue
        for node in ast.parse(sources[module]).body:
            assigned = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
            words = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert assigned or words or isinstance(node, (ast.Import, ast.ImportFrom)), (module, ast.unparse(node))


def test_integrations_have_no_circle_either() -> None:
    packages = [INTEGRATIONS / "langchain_abc", *sorted((INTEGRATIONS / "llama_index").glob("*/abc"))]
    sources = {}
    for folder in packages:
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(INTEGRATIONS).with_suffix("").parts
            sources[".".join(parts).removesuffix(".__init__")] = file.read_text(encoding="utf-8")
    assert len(sources) > len(packages)
    assert circle_in(arrows_of(sources)) == []


def test_tests_mirror_the_package() -> None:
    """Each folder of tests is one of the package or of the integrations."""
    tests = ROOT / "tests"
    for folder in tests.rglob("*"):
        within = folder.relative_to(tests)
        if not folder.is_dir() or within.parts[0] in ("fixtures", "__pycache__") or "__pycache__" in within.parts:
            continue
        assert (PACKAGE / within).is_dir() or (ROOT / within).is_dir(), within

"""Loads checkpoints whose settings were changed one by one; run in a process of its own, with a limit on its memory.

Prints what did not end as it should: in a model, or in an error of ours that names the file.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from abc_rag.errors import CheckpointError
from abc_rag.models.abc.network import ABCSettings, load_network
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.config import read_json
from abc_rag.models.lora import lora_config
from abc_rag.models.placement import CPU
from abc_rag.models.qwen2_vl.network import load_backbone
from abc_rag.models.vlm2vec.loader import load_parts

FIXTURES = Path(__file__).parent / "fixtures"
SECONDS = 300
MEMORY = 6 * 2**30
VALUES: list[Any] = [None, 0, -1, 2 * 10**9, 1.5, "(a+)+$", [[]]]
DEEP = "[" * 100_000 + "]" * 100_000


def abc(folder: Path) -> None:
    settings = ABCSettings.read(folder)
    load_network(*(folder / part for part in ("base", "pretrain", "instruct")), head_hidden=settings.head_hidden)


def base(folder: Path) -> None:
    load_backbone(folder / "base")
    load_prompts(folder / "base")


def adapter(folder: Path) -> None:
    lora_config(folder / "instruct", load_backbone(folder / "base"))


def qwen(folder: Path) -> None:
    load_parts(folder / "base", folder / "adapter", CPU)


def phi(folder: Path) -> None:
    load_parts(folder / "model", None, CPU)


CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "abc/base/config.json": ("abc", base),
    "abc/instruct/adapter_config.json": ("abc", adapter),
    "mini/base/config.json": ("mini", base),
    "mini/abc.json": ("mini", abc),
    "qwen/base/config.json": ("vlm2vec_qwen2vl", qwen),
    "qwen/base/preprocessor_config.json": ("vlm2vec_qwen2vl", qwen),
    "qwen/adapter/adapter_config.json": ("vlm2vec_qwen2vl", qwen),
    "phi/model/config.json": ("vlm2vec_phi3v", phi),
    "phi/model/clip_dimensions.json": ("vlm2vec_phi3v", phi),
    "phi/model/tokenizer_config.json": ("vlm2vec_phi3v", phi),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be changed; of lists, only the first element."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else []
    for key, one in inner:
        yield from places(one, (*path, key))


def changed(original: Any, path: tuple[Any, ...], value: Any) -> Any:
    copied = json.loads(json.dumps(original))
    at = copied
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copied


def wrong(file: Path, load: Callable[[], None], text: str) -> str | None:
    """What is wrong with how loading ended."""
    file.write_text(text)
    signal.alarm(SECONDS)  # ends this process: what hangs may not come back to Python
    try:
        load()
    except CheckpointError as error:
        named = file.name in str(error) or str(file.parent) in str(error) or str(file.parent.parent) in str(error)
        return None if named and len(str(error)) < 2000 else f"does not name the file, or says too much: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    return None


def main(case: str) -> None:
    torch.set_num_threads(1)
    source, load = CASES[case]
    mini = Path(sys.modules["abc_rag.models.config"].__file__ or "").parent / "bundled" / "abc-mini"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(mini if source == "mini" else FIXTURES / source, Path(place) / "checkpoint"))
        file = folder.joinpath(*case.split("/")[1:])
        original = read_json(file) if file.exists() else {}
        if not original:  # the published numbers, which the fixture leaves out
            original = {"min_pixels": 3136, "max_pixels": 12845056}
        load(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        found = []
        for path in places(original):
            for value in VALUES:
                problem = wrong(file, lambda: load(folder), json.dumps(changed(original, path, value)))
                found += [f"{path} = {str(value)[:40]}: {problem}"] if problem else []
            deep = json.dumps(changed(original, path, "DEEP")).replace('"DEEP"', DEEP)
            problem = wrong(file, lambda: load(folder), deep)
            found += [f"{path} nested: {problem}"] if problem else []
        for text in ("", "[]", "null", "{", '{"a": NaN}', DEEP, '{"a": ' + "1" * 100_000 + "}", " " * 5 * 2**20):
            problem = wrong(file, lambda: load(folder), text)
            found += [f"{text[:40]}: {problem}"] if problem else []
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

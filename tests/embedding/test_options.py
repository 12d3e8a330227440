"""The options of `load_embedder` are one value, and an embedder travels as it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_rag import ABCCheckpoint, EngineSettings, ImageLimits, Text, load_embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.embedding.options import EmbedderKeywords, EmbedderOptions, model_as_json, model_from_json
from abc_rag.errors import InputError

TEXT = [Text("a dog")]
CHANGED: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "min_tokens": 4,
    "max_tokens": 16,
    "resolution": "low",
    "dims": 8,
    "query_instruction": "find",
    "document_instruction": "",
    "attention": "eager",
    "weights": "int8",
    "background": "white",
    "depth": "scaled",
    "image_limits": ImageLimits(max_bytes=1000),
    "engine": EngineSettings(workers=1, cache_folder=Path("cache")),
}


def test_the_options_stand_in_one_place() -> None:
    signature = inspect.signature(load_embedder).parameters
    fields = {field.name: field.default for field in dataclasses.fields(EmbedderOptions)}
    assert {name: one.default for name, one in signature.items() if name not in ("model", "download")} == fields
    assert list(EmbedderKeywords.__annotations__) == list(fields) == list(CHANGED)


def test_options_survive_json() -> None:
    for options in (EmbedderOptions(), EmbedderOptions(**CHANGED)):
        told = json.loads(json.dumps(options.as_dict()))
        again = EmbedderOptions.from_dict(told)
        assert again.as_dict() == told
    assert again.engine == EngineSettings(workers=1, cache_folder="cache")
    assert dataclasses.replace(again, engine=None) == EmbedderOptions(**CHANGED | {"engine": None})
    assert EmbedderOptions.from_dict({}) == EmbedderOptions()
    with pytest.raises(InputError, match="load_embedder has no option 'devise'"):
        EmbedderOptions.from_dict({"devise": "cpu"})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("device", 3, "device must be a str such as 'cuda:0', not int"),
        ("dtype", "float8", "dtype must be one of auto, float32, bfloat16, float16, not 'float8'"),
        ("min_tokens", True, "min_tokens must be a positive number of image tokens, not True"),
        ("max_tokens", 0, "max_tokens must be a positive number"),
        ("resolution", 1.5, "resolution must be a name or a number"),
        ("dims", 0, "dims must be a positive number, not 0"),
        ("query_instruction", 3, "query_instruction must be a str or None, not 3"),
        ("document_instruction", b"x", "document_instruction must be a str or None"),
        ("attention", "flash", "attention must be one of auto, sdpa, eager, flash_attention_2"),
        ("weights", "int2", "weights must be one of full, int8, int4"),
        ("background", "clear", "background must be a colour"),
        ("depth", "deep", "depth must be"),
        ("image_limits", {}, "image_limits must be an ImageLimits or None"),
        ("engine", 4, "engine must be an EngineSettings or None"),
    ],
)
def test_an_unusable_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbedderOptions(**{option: value})


def test_models_survive_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for model, expected in (
        ("abc-mini", "abc-mini"),
        (Path("here"), str(tmp_path / "here")),
        ("here", str(tmp_path / "here")),
        (
            ABCCheckpoint(base="org/name", pretrain=Path("here"), instruct="./here", base_revision="1"),
            ABCCheckpoint(base="org/name", pretrain=tmp_path / "here", instruct=tmp_path / "here", base_revision="1"),
        ),
    ):
        assert model_from_json(json.loads(json.dumps(model_as_json(model)))) == expected


# --- Embedders that travel --------------------------------------------------------------------------------


def test_copies_share_the_weights_and_a_pickle_holds_the_settings(tmp_path: Path) -> None:
    engine = EngineSettings(workers=1)
    embedder = load_embedder("abc-mini", device="cpu", engine=engine)
    expected = embedder.embed(TEXT)
    assert copy.copy(embedder) is embedder
    assert copy.deepcopy({"embedder": embedder})["embedder"] is embedder
    pickled = pickle.dumps(embedder)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    try:
        assert again.settings == engine
        assert again.fingerprint == embedder.fingerprint
        np.testing.assert_array_equal(again.embed(TEXT), expected)
    finally:
        again.close()
        embedder.close()


def test_a_pickle_of_a_folder_means_that_folder_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(str(files("abc_rag.models.bundled").joinpath("abc-mini")), tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embedder.pickle").write_bytes(pickle.dumps(load_embedder("mini", device="cpu")))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).fingerprint.model)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "embedder.pickle")],
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == load_embedder("mini", device="cpu").fingerprint.model, done.stderr


def test_a_fake_is_copied_and_pickled_too() -> None:
    fake = FakeEmbedder(dim=4, model="other")
    for again in (copy.copy(fake), copy.deepcopy(fake), pickle.loads(pickle.dumps(fake))):
        assert again.fingerprint == fake.fingerprint
        np.testing.assert_array_equal(again.embed(TEXT), fake.embed(TEXT))

"""Prompts of Phi-3-vision."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_v_helpers import (
    MODEL,
)
from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts


def test_every_piece_has_its_own_beginning(prompts: Phi3VPrompts) -> None:
    assert prompts([]).tolist() == prompts([""]).tolist() == [1]
    assert prompts([3]).tolist() == [1, -1, -1, -1, 1]
    assert prompts([2, 1]).tolist() == [1, -1, -1, 1, -1, 1]
    assert prompts(["a", 1, "", 1, "a"]).tolist() == [1, 321, -1, 1, -1, 1, 321]
    assert prompts(["A cat ", "and a dog"]).tolist() == prompts(["A cat and a dog"]).tolist()
    assert prompts(["a"]).dtype == np.int64


@pytest.mark.parametrize("token", ["<s>", "</s>", "<|image|>", "<|endoftext|>", "<|user|>", "<unk>", "<|image_1|>"])
def test_special_tokens_typed_by_a_user_are_plain_text(prompts: Phi3VPrompts, token: str) -> None:
    special = {-1, 0, 1, 2, *range(1000, 1024)}
    text = f"before {token}after"
    reader = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for one in (prompts, copy.deepcopy(prompts), pickle.loads(pickle.dumps(prompts))):
        first, *rest = one([text]).tolist()
        assert first == 1
        assert not special & set(rest)
        assert reader.decode(rest, skip_special_tokens=False) == text


def test_half_a_character_is_refused(prompts: Phi3VPrompts) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        prompts([2, "a \ud83d b"])


def test_how_texts_begin_follows_the_files(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())

    def with_settings(**changes: Any) -> Phi3VPrompts:
        file.write_text(json.dumps({k: v for k, v in {**settings, **changes}.items() if v is not None}))
        return load_phi3_v_prompts(folder)

    assert with_settings(add_bos_token=False)([1, "a"]).tolist() == [-1, 321]
    assert with_settings(bos_token={"content": "<|user|>", "special": True})(["a"]).tolist() == [1010, 321]
    assert with_settings(bos_token=None)(["a"]).tolist() == [1, 321]
    with pytest.raises(CheckpointError, match="begins a text"):
        with_settings(bos_token="<no such token>")
    with pytest.raises(CheckpointError, match="add_eos_token"):
        with_settings(add_eos_token=True)
    file.unlink()
    assert load_phi3_v_prompts(folder)([""]).tolist() == [1]
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_phi3_v_prompts(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_phi3_v_prompts(folder)

"""The tokenizer that is read without transformers, against transformers' own."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from abc_rag.models.qwen2_vl.prompts import load_chat_tokenizer

TURNS = [
    [{"role": "user", "content": [{"type": "text", "text": "a <pig> & a {{ car }}"}]}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Instruction: \u00e4\n"}]}],
]


@pytest.mark.parametrize("turns", TURNS)
def test_the_bundled_tokenizer_is_read_as_transformers_reads_it(turns: list[dict[str, object]]) -> None:
    with as_file(files("abc_rag.models.bundled").joinpath("abc-mini", "base")) as base:
        ours, _ = load_chat_tokenizer(Path(base))
        library = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    assert not isinstance(ours, type(library))
    assert ours.backend_tokenizer.to_str() == library.backend_tokenizer.to_str()
    rendered = ours.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == library.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert ours.backend_tokenizer.encode(rendered).ids == library.backend_tokenizer.encode(rendered).ids

"""Prompts: those of the model card, and ids as the published tokenizer's own call gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gemma_helpers import tokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.embedding_gemma.prompts import PROMPTS, GemmaPrompts, read_prompts, task_prefix
from abc_rag.models.tokenizer import PlainTokenizer


def test_ids_are_those_of_the_tokenizer() -> None:
    words = tokenizer()
    number = words.convert_tokens_to_ids
    image = (number("<|image>"), number("<|image|>"), number("<image|>"))
    prompts = GemmaPrompts(PlainTokenizer(words.backend_tokenizer), ends=(2, 1), image=image)
    seen = "<|image>" + "<|image|>" * 3 + "<image|>"
    for parts, written in (
        (["a red cube"], "p: a red cube"),
        (["red", " c", "ube"], "p: red cube"),
        ([""], "p: "),
        ([3], f"p: {seen}"),
        (["from ", 3, " to ", 3], f"p: from {seen} to {seen}"),
    ):
        assert prompts("p: ", parts).tolist() == words(written)["input_ids"], parts
    assert prompts("", [""]).tolist() == words("")["input_ids"]
    assert image[1] not in prompts("", ["<|image|>"])  # typed by a user


def test_prompts_of_the_model_card_and_of_a_checkpoint(tmp_path: Path) -> None:
    assert PROMPTS["query"] == PROMPTS["Reranking"] == "task: search result | query: "
    assert PROMPTS["document"] == PROMPTS["Retrieval-document"] == "title: none | text: "
    assert PROMPTS["STS"] == task_prefix("  sentence similarity. ") == "task: sentence similarity | query: "
    assert len(PROMPTS) == 20
    assert read_prompts(tmp_path) == PROMPTS
    file = tmp_path / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": {"query": "find: ", "mine": "x"}}))
    assert read_prompts(tmp_path) == {**PROMPTS, "query": "find: ", "mine": "x"}
    for wrong in ({"query": 3}, {"query": "x" * 20_000}, {str(n): "" for n in range(2000)}):
        file.write_text(json.dumps({"prompts": wrong}))
        with pytest.raises(CheckpointError, match="config_sentence_transformers"):
            read_prompts(tmp_path)

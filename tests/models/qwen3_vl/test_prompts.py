"""Prompts of Qwen3-VL-Embedding: the chat template's, with what a user wrote as plain text in it."""

from __future__ import annotations

from typing import Any

import pytest
from qwen3_vl_helpers import IMAGE, TEMPLATE, tokenizer
from tokenizers.processors import TemplateProcessing

from abc_rag.errors import CheckpointError
from abc_rag.models.qwen3_vl.prompts import Qwen3VLPrompts, sentence


def made(template: str = TEMPLATE) -> Any:
    words = tokenizer()
    words.chat_template = template
    return words


def test_an_instruction_is_a_sentence() -> None:
    assert [sentence(said) for said in ("the cube", " the cube. ", "which?", "find:", "", "  ")] == [
        "the cube.",
        "the cube.",
        "which?",
        "find:",
        "Represent the user's input.",
        "Represent the user's input.",
    ]


def test_a_prompt_is_the_templates() -> None:
    words = made()
    ids = Qwen3VLPrompts(words, image_token_id=IMAGE)("say.", ["from ", 3, "to", 1])
    said = (
        "<|im_start|>system\nsay.<|im_end|>\n<|im_start|>user\nfrom <|vision_start|><|image_pad|><|image_pad|>"
        "<|image_pad|><|vision_end|>to<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.tolist() == words(said)["input_ids"]


def test_tokens_that_a_tokenizer_adds_by_itself_are_kept() -> None:
    words = made()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    ids = Qwen3VLPrompts(words, image_token_id=IMAGE)("say.", ["x"])
    assert ids[-1] == 0
    assert ids.tolist()[:-1] == Qwen3VLPrompts(made(), image_token_id=IMAGE)("say.", ["x"]).tolist()


def test_special_tokens_that_somebody_typed_stay_text() -> None:
    prompts = Qwen3VLPrompts(made(), image_token_id=IMAGE)
    ids = prompts("say <|im_end|>.", ["<|image_pad|>", 2])
    assert (ids == IMAGE).sum() == 2
    plain = prompts("say.", ["", 2])
    assert len(ids) == len(plain) + len(" <|im_end|>") + len("<|image_pad|>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATE.replace("{%- for message in messages %}", "{%- for message in messages[1:] %}"), "instruction"),
        (
            TEMPLATE.replace(
                "{%- for content in message.content %}",
                "{%- for content in message.content | sort(attribute='type') %}",
            ),
            "does not keep texts and pictures in their order",
        ),
        (TEMPLATE.replace("<|image_pad|>", ""), "no single image token"),
    ],
)
def test_templates_that_lose_something_are_refused(template: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        Qwen3VLPrompts(made(template), image_token_id=IMAGE)

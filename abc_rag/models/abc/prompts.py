"""The prompts that ABC was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.qwen2_vl.prompts import load_chat_tokenizer
from abc_rag.models.tokenizer import PlainTokenizer

__all__ = ["ABCPrompts", "load_prompts"]


class ABCPrompts:
    """Inputs to token ids, through the checkpoint's own chat template.

    The template is rendered once around a marker. What a user wrote is then tokenised as plain
    text: ``<|im_end|>`` typed into a passage stays harmless text and cannot end the turn.
    """

    _MARK = "\x00"

    def __init__(self, tokenizer: Any, *, image_token_id: int) -> None:  # noqa: ANN401  (transformers' own type varies)
        self._image_token_id = image_token_id
        self._special: Tokenizer = tokenizer.backend_tokenizer
        self._plain = PlainTokenizer(self._special)
        self._special_names = [t.content for t in self._special.get_added_tokens_decoder().values()]
        self._text = self._split(tokenizer, [{"type": "text", "text": self._MARK}])
        self._image = self._split(tokenizer, [{"type": "image"}, {"type": "text", "text": self._MARK}])
        if [*self._image[0], *self._image[3]].count(image_token_id) != 1:
            raise CheckpointError(f"the chat template has no single image token ({image_token_id}) for a picture")

    def _split(self, tokenizer: Any, content: list[dict[str, str]]) -> tuple[list[int], str, str, list[int]]:  # noqa: ANN401
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, mark, after = rendered.partition(self._MARK)
        if not mark or self._MARK in after:
            raise CheckpointError("the chat template does not keep the user's text as it is")
        # Special tokens cut a text before anything else happens, so only the stretch between the last one
        # before the text and the first one after it has to be tokenised together with the text.
        start = max((before.rfind(t) + len(t) for t in self._special_names if t in before), default=0)
        end = min((after.find(t) for t in self._special_names if t in after), default=len(after))
        return self._ids(before[:start]), before[start:], after[:end], self._ids(after[end:])

    def _ids(self, text: str) -> list[int]:
        return list(self._special.encode(text, add_special_tokens=False).ids)

    def __call__(self, text: str, *, image_tokens: int | None = None) -> npt.NDArray[np.int64]:
        """Token ids of one prompt; with ``image_tokens``, of one with a picture of that many tokens."""
        head, before, after, tail = self._text if image_tokens is None else self._image
        body = self._plain(before + text + after)
        ids = np.array([*head, *body, *tail], dtype=np.int64)
        if image_tokens is None:
            return ids
        (at,) = np.flatnonzero(ids == self._image_token_id)[:1]
        return np.concatenate([ids[:at], np.full(image_tokens, self._image_token_id), ids[at + 1 :]])


def load_prompts(base: Path) -> ABCPrompts:
    """The tokenizer and the chat template of a Qwen2-VL folder.

    Raises:
        CheckpointError: They are missing or unusable.
    """
    tokenizer, image_token_id = load_chat_tokenizer(base)
    try:
        return ABCPrompts(tokenizer, image_token_id=image_token_id)
    except Exception as error:  # a template raises whatever it likes
        raise CheckpointError(f"{base}: no usable chat template ({str(error)[:200]})") from error

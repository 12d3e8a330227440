"""The prompts that ABC was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.checkpoint import read_json
from abc_rag.models.tokenizer import PlainTokenizer

__all__ = ["ABCPrompts"]


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
    """The tokenizer and the chat template of a Qwen2-VL folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{base}: no usable tokenizer ({error})") from error
    if tokenizer.chat_template is None:
        file = base / "chat_template.json"
        tokenizer.chat_template = read_json(file).get("chat_template")
    return ABCPrompts(tokenizer, image_token_id=int(read_json(base / "config.json")["image_token_id"]))

"""Prompts of Qwen3-VL-Embedding, as its authors' ``format_model_input`` makes them.

The instruction is the system's message and ends with a full stop; what is embedded is the user's message, and the
assistant's turn is opened. Source: README and ``src/models/qwen3_vl_embedding.py`` of
github.com/QwenLM/Qwen3-VL-Embedding.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.tokenizer import PlainTokenizer

__all__ = ["DOCUMENT", "QUERY", "Qwen3VLPrompts", "sentence"]

DOCUMENT = "Represent the user's input."
"""The authors' default instruction, which documents have."""
QUERY = "Retrieve images or text relevant to the user's query."
"""The instruction of a query in the authors' examples."""

_SYSTEM, _USER = "\x00", "\x01"


def sentence(instruction: str) -> str:
    """An instruction as the authors' code has it: without spaces around it, with a full stop, never empty."""
    found = instruction.strip()
    if not found:
        return DOCUMENT
    return found if unicodedata.category(found[-1]).startswith("P") else found + "."


class Qwen3VLPrompts:
    """Inputs to token ids, through the checkpoint's own chat template.

    The template is rendered once around marks. What a user wrote is tokenised as plain text: a special token typed into
    it stays harmless.

    Args:
        tokenizer: transformers', with a chat template.
        image_token_id: What stands for a picture's tokens.

    Raises:
        CheckpointError: The template leaves something out or changes the order.
    """

    def __init__(self, tokenizer: Any, *, image_token_id: int) -> None:  # noqa: ANN401
        self._image_token_id = image_token_id
        special: Tokenizer = tokenizer.backend_tokenizer
        self._plain = PlainTokenizer(special)
        self._ids = {token.content: number for number, token in special.get_added_tokens_decoder().items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        added, plain = (special.encode("a", add_special_tokens=both).ids for both in (True, False))
        begin = len(added) - len(plain)
        where = next((at for at in range(begin + 1) if added[at : at + len(plain)] == plain), None)
        if where is None:
            raise CheckpointError("the tokenizer changes a text when it adds its special tokens")
        self._before, self._after = list(added[:where]), list(added[where + len(plain) :])
        words, seen = {"type": "text", "text": _USER}, {"type": "image"}
        self._head, self._middle, self._tail = self._rendered(tokenizer, [words])
        _, middle, tail = self._rendered(tokenizer, [seen, words])
        self._picture = middle.removeprefix(self._middle)
        _, other, after = self._rendered(tokenizer, [words, seen])
        in_order = (self._middle + self._picture, self._tail) == (middle, tail)
        if not in_order or other != self._middle or after != self._picture + self._tail:
            raise CheckpointError("the chat template does not keep texts and pictures in their order")
        parts = self._split(self._picture)
        if parts.count(image_token_id) != 1:
            raise CheckpointError(f"the chat template has no single image token ({image_token_id}) for a picture")

    def _rendered(self, tokenizer: Any, content: list[dict[str, str]]) -> tuple[str, str, str]:  # noqa: ANN401
        messages = [
            {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
            {"role": "user", "content": content},
        ]
        made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head, system, rest = made.partition(_SYSTEM)
        middle, user, tail = rest.partition(_USER)
        if not system or not user or _SYSTEM in rest or _USER in tail:
            raise CheckpointError("the chat template does not keep the instruction and the user's text as they are")
        return head, middle, tail

    def _split(self, template: str) -> list[int | str]:
        """Ids of special tokens, and the plain text between them."""
        found: list[int | str] = []
        at = 0
        for match in self._pattern.finditer(template):
            found += [template[at : match.start()], self._ids[match.group()]]
            at = match.end()
        return [part for part in [*found, template[at:]] if part != ""]

    def __call__(self, instruction: str, parts: Sequence[str | int]) -> npt.NDArray[np.int64]:
        """Token ids.

        Args:
            instruction: As it is told to the model.
            parts: The user's message: texts, and pictures as the number of their image tokens.

        Raises:
            InputError: A text holds half a character.
        """
        pieces: list[int | str] = [*self._split(self._head), instruction, *self._split(self._middle)]
        for part in parts:
            if isinstance(part, str):
                pieces.append(part)
                continue
            for piece in self._split(self._picture):
                pieces += [piece] * part if piece == self._image_token_id else [piece]
        pieces += self._split(self._tail)
        ids = list(self._before)
        words = ""
        for piece in [*pieces, *self._after]:
            if isinstance(piece, str):  # neighbours are tokenised together, as in one string
                words += piece
                continue
            if words:
                ids += self._plain(words)
                words = ""
            ids.append(piece)
        return np.array(ids + (self._plain(words) if words else []), dtype=np.int64)

"""Phi-3-vision's prompts for embedding: plain text without a chat template, cut where pictures are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.config import Config, read_json, shown
from abc_rag.models.tokenizer import PlainTokenizer, load_tokenizer

__all__ = ["IMAGE_TOKEN_ID", "Phi3VPrompts", "load_phi3_v_prompts"]

IMAGE_TOKEN_ID = -1
"""What stands in ``input_ids`` where an image token goes. No tokenizer gives it, and it has no embedding."""


class Phi3VPrompts:
    """Texts and pictures to token ids.

    A text is cut at its pictures and each piece is tokenised by itself, with a token for the beginning of a text of its
    own: also the empty ones before a first picture, after a last one, and between two.

    Args:
        tokenizer: Of the checkpoint.
        bos_token_id: What each piece begins with; None for nothing.
    """

    def __init__(self, tokenizer: Tokenizer, *, bos_token_id: int | None) -> None:
        self.tokenizer = tokenizer
        self._tokenizer = PlainTokenizer(tokenizer)
        self._begin = [] if bos_token_id is None else [bos_token_id]

    def __call__(self, parts: Sequence[str | int], /) -> npt.NDArray[np.int64]:
        """Token ids of one input.

        Args:
            parts: In order: a ``str`` is text, an ``int`` a picture of that many image tokens. Texts that follow one
                another are one.

        Raises:
            InputError: A text holds half a character.
        """
        pieces, pictures = [""], []
        for part in parts:
            if isinstance(part, str):
                pieces[-1] += part
            else:
                pictures.append(part)
                pieces.append("")
        ids: list[int] = []
        for piece, tokens in zip(pieces, [*pictures, 0], strict=True):
            ids += [*self._begin, *self._tokenizer(piece), *[IMAGE_TOKEN_ID] * tokens]
        return np.array(ids, dtype=np.int64)


def load_phi3_v_prompts(folder: Path) -> Phi3VPrompts:
    """The tokenizer of a Phi-3-vision folder: ``tokenizer.json``, and what the other files say of how texts begin.

    Raises:
        CheckpointError: A file is missing or unusable.
    """
    tokenizer = load_tokenizer(folder, all_special=True)
    file = folder / "tokenizer_config.json"
    settings = Config.read(file) if file.is_file() else Config({}, file)
    if settings.flag("add_eos_token"):
        settings.refuse("add_eos_token", "false; it is not supported")
    begins = settings.flag("add_bos_token", default=True)
    token = settings.values.get("bos_token")
    return Phi3VPrompts(tokenizer, bos_token_id=_begin_id(folder, tokenizer, token) if begins else None)


def _begin_id(folder: Path, tokenizer: Tokenizer, token: Any) -> int:  # noqa: ANN401
    if isinstance(token, dict):  # with how it is cut out of a text, as older files have it
        token = token.get("content")
    if token is None:
        found = read_json(folder / "config.json").get("bos_token_id")
    else:
        found = tokenizer.token_to_id(str(token))
    if type(found) is not int or found < 0 or tokenizer.id_to_token(found) is None:
        raise CheckpointError(f"{folder}: the token that begins a text ({shown(token)}) is not in the tokenizer")
    return found

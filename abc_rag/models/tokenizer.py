"""Reading untrusted tokenizers, and tokenising user text without interpreting special tokens in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.config import MAX_JSON_BYTES, read_json, shown

__all__ = ["PlainTokenizer", "check_patterns", "check_vocabulary", "load_tokenizer"]

# A repeated group can make a backtracking matcher run for years; no tokenizer of the supported backbones has one.
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")
_MAX_PATTERN = 2000


def load_tokenizer(folder: Path, *, all_special: bool = False) -> Tokenizer:
    """The tokenizer in ``tokenizer.json``.

    Args:
        folder: Of the checkpoint.
        all_special: Take all added tokens for special ones. Only those can be left unread in a text, and not every
            file calls them so.

    Raises:
        CheckpointError: It is missing or unusable.
    """
    file = folder / "tokenizer.json"
    raw = check_patterns(folder)
    try:
        if all_special:
            for added in raw.get("added_tokens", []):
                added["special"] = True
        return Tokenizer.from_str(json.dumps(raw))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{file}: no usable tokenizer ({str(error)[:200]})") from error


def check_patterns(folder: Path) -> dict[str, Any]:
    """Refuse a tokenizer whose regular expressions could hang; they are matched against users' texts.

    Returns:
        ``tokenizer.json``.

    Raises:
        CheckpointError: It is missing, or holds such a pattern.
    """
    file = folder / "tokenizer.json"
    raw = read_json(file, max_bytes=MAX_JSON_BYTES)
    waiting: list[Any] = [raw.get("normalizer"), raw.get("pre_tokenizer"), raw.get("decoder")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
            pattern = value.get("Regex")
            if isinstance(pattern, str) and (len(pattern) > _MAX_PATTERN or _REPEATED_GROUP.search(pattern)):
                raise CheckpointError(f"{file}: the pattern {shown(pattern)} repeats a group, which can take forever")
        elif isinstance(value, list):
            waiting += value
    return raw


def check_vocabulary(tokenizer: Tokenizer, rows: int, where: object) -> None:
    """Refuse a tokenizer that gives ids without an embedding.

    Raises:
        CheckpointError: Its largest id is ``rows`` or more.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= rows:
        raise CheckpointError(f"{where}: the tokenizer gives ids up to {largest}, but there are {rows} embeddings")


class PlainTokenizer:
    """Tokenises user text: a special token that somebody typed stays harmless text.

    Args:
        tokenizer: Copied, so that no thread ever sees another setting.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._set()

    def _set(self) -> None:
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy of a tokenizer (deepcopy, another process) forgets this setting.
        self.__dict__.update(state)
        self._set()

    def __call__(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            InputError: It holds half a character.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise InputError(
                f"a text holds half a character (a lone surrogate), which no tokenizer reads: {text[:60]!r}; "
                "decode it again with errors='replace'"
            ) from error

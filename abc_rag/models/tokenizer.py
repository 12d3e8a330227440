"""What a user wrote, as token ids, with nothing added and nothing read into it."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from abc_rag.errors import InputError

__all__ = ["PlainTokenizer"]


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

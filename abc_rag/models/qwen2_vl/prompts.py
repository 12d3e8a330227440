"""Conversations as token ids, through the chat template of a Qwen2-VL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from abc_rag.errors import CheckpointError
from abc_rag.models.config import MAX_SIZE, Config, read_json
from abc_rag.models.tokenizer import PlainTokenizer, check_patterns, check_vocabulary, load_tokenizer
from abc_rag.types import Message, Text

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["ChatPrompts", "load_chat_tokenizer"]

_MAX_TEMPLATE = 20_000
_MARK = "\x00"
_SPECIAL = ("eos_token", "pad_token")
# A tokenizer whose file has other settings is left to transformers.
_PLAIN_SETTINGS = {*_SPECIAL, "backend", "chat_template", "model_max_length", "tokenizer_class"}


def load_chat_tokenizer(base: Path) -> tuple[Any, int]:
    """The tokenizer of a Qwen2-VL folder, with its chat template, and the id of the image token.

    The template is rendered in jinja's sandbox.

    Raises:
        CheckpointError: It is missing or unusable.
    """
    check_patterns(base)
    file = base / "tokenizer_config.json"
    about = read_json(file) if file.is_file() else {}
    config = Config.read(base / "config.json")
    words = config.part("text_config") if "text_config" in config else config
    rows = words.whole("vocab_size", most=MAX_SIZE)
    image_token_id = config.whole("image_token_id", 151655, least=0, most=rows - 1)
    tokenizer = _as_written(base, about) or _by_library(base)
    check_vocabulary(tokenizer.backend_tokenizer, rows, base)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = Config.read(base / "chat_template.json").text("chat_template", most=_MAX_TEMPLATE)
    template = tokenizer.chat_template
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise CheckpointError(f"{base}: its chat template is not one text of up to {_MAX_TEMPLATE:,} characters")
    return tokenizer, image_token_id


class _Tokenizer:
    """The two things that a prompt needs of transformers' tokenizer, whose import takes a second."""

    def __init__(self, backend_tokenizer: Tokenizer, chat_template: str, special: dict[str, str]) -> None:
        self.backend_tokenizer = backend_tokenizer
        self.chat_template = chat_template
        self._special = special

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        template = _compiled(self.chat_template)
        return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._special)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Template:
    """Compiling takes milliseconds, which every conversation would wait for."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    return environment.from_string(template)


def _as_written(base: Path, about: dict[str, Any]) -> _Tokenizer | None:
    """The tokenizer of ``tokenizer.json``, where transformers would take it as it stands; else None."""
    if set(about) - _PLAIN_SETTINGS or about.get("tokenizer_class") != "TokenizersBackend":
        return None
    tokenizer, template = load_tokenizer(base), about.get("chat_template")
    special = {name: about[name] for name in _SPECIAL if about.get(name) is not None}
    known = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
    if not all(isinstance(one, str) and one in known for one in special.values()) or not isinstance(template, str):
        return None
    return _Tokenizer(tokenizer, template, special)


def _by_library(base: Path) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises whatever it likes
        raise CheckpointError(f"{base}: no usable tokenizer ({str(error)[:200]})") from error


class ChatPrompts:
    """Messages to token ids.

    The template sees a mark in place of each text. What a message says is then tokenised as plain text: a special token
    typed into a passage stays harmless text and cannot end the turn, and no text changes what the template does.

    Args:
        tokenizer: From `load_chat_tokenizer`.
        image_token_id: What stands for a picture's tokens.

    Raises:
        CheckpointError: The template does not keep texts as they are, or has no token for a picture.
    """

    def __init__(self, tokenizer: Any, *, image_token_id: int) -> None:  # noqa: ANN401  (transformers' own type varies)
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id
        added = {token.content: id_ for id_, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
        self._special = added
        self._cut = re.compile("|".join(re.escape(text) for text in sorted(added, key=len, reverse=True)) or r"(?!)")
        self.plain = PlainTokenizer(tokenizer.backend_tokenizer)

    def __call__(self, messages: Sequence[Message], picture_tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token ids of a conversation, up to where the answer begins.

        Args:
            messages: The turns.
            picture_tokens: Number of image tokens of each picture, in order.
        """
        texts: list[str] = []
        turns = []
        for message in messages:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if isinstance(part, Text):
                    texts.append(part.text)
                    content.append({"type": "text", "text": _MARK})
                else:
                    content.append({"type": "image"})
            turns.append({"role": message.role, "content": content})
        try:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises whatever it likes
            raise CheckpointError(f"the chat template cannot render this conversation ({str(error)[:200]})") from error
        literals = rendered.split(_MARK)
        if len(literals) != len(texts) + 1:
            raise CheckpointError("the chat template does not keep texts as they are")
        ids = self._ids(literals, texts)
        if (ids == self._image_token_id).sum() != len(picture_tokens):
            raise CheckpointError(f"the chat template has no single image token ({self._image_token_id}) for a picture")
        times = np.ones(len(ids), dtype=np.int64)
        times[ids == self._image_token_id] = picture_tokens
        return np.repeat(ids, times)

    def _ids(self, literals: Sequence[str], texts: Sequence[str]) -> npt.NDArray[np.int64]:
        # Special tokens cut a text before anything else happens, so all that lies between two of the template's is
        # tokenised together, whoever wrote it.
        ids: list[int] = []
        stretch = ""
        for number, literal in enumerate(literals):
            at = 0
            for found in self._cut.finditer(literal):
                ids += self.plain(stretch + literal[at : found.start()])
                ids.append(self._special[found.group()])
                stretch, at = "", found.end()
            stretch += literal[at:]
            if number < len(texts):
                stretch += texts[number]
        return np.array([*ids, *self.plain(stretch)], dtype=np.int64)

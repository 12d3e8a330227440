"""Models of sentence-transformers 6 behind the engine's seam.

The library's own ``preprocess`` and modules compute the vectors. What it would guess is decided here: a text is a text
even where it looks like a link, a path or a data URI, pictures are opened by `abc_rag.images`, nothing is truncated.

* `Text`: the text as a document, as in ``encode_document(text)``; with ``role="query"`` as in ``encode_query(text)``;
  with the name of another of the model's prompts as its role, as in ``encode(text, prompt_name=role)``
* `InstructedText`: as ``encode(text, prompt=instruction)``: the instruction before the text exactly as it stands, so it
  ends with the space or line break that belongs there; where the model has a chat template, as the system's message
* `Image`: the picture
* `InstructedImage`: where the model has a chat template, the picture in the user's message and the instruction in the
  system's, as in ``encode({"image": picture}, prompt=instruction)``; where that template has no place for a system's
  message, or the model takes pairs without one, ``encode({"image": picture, "text": instruction})``
* `Interleaved`: where the model has a chat template that keeps the order of a message's parts, the user's message

All but `InstructedText` have roles, as a text has. An instruction that is no more than the name of a prompt is refused:
the words of the prompt, or ``role=``, say which is meant. `STFamily.accepts` says which of the types a model takes: one
like CLIP takes texts and pictures but not both in one input, many take texts only.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from abc_rag.errors import ABCRagError, CheckpointError, InputError, MissingExtraError
from abc_rag.models.family import Family, FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.loader import LoadOptions
from abc_rag.models.sentence_transformers.batches import groups_of, is_padded_safely, stacked
from abc_rag.models.sentence_transformers.library import Router, SentenceTransformer, Transformer, first_line
from abc_rag.models.sentence_transformers.pictures import Pixels, PlainPictures
from abc_rag.models.sentence_transformers.processing import longest_text, processing_of, prompts_of
from abc_rag.types import ROLES, Fingerprint, Image, Input, InstructedImage, InstructedText, Interleaved, Text

__all__ = ["STFamily", "STPrepared"]

_MEDIA = frozenset({"image", "video", "audio"})
_PLACEHOLDERS = ("image_token", "video_token", "audio_token")
_PROBES = ("a", "a text of some more words than one, which a batch would fill up", "a b c d e", "a b")
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 1e-2  # rounding alone makes more of a difference


@dataclass(frozen=True, eq=False)
class STPrepared(Prepared):
    """An input as the library's ``preprocess`` has it.

    Attributes:
        features: Tensors, and what else the library notes, on the CPU.
    """

    features: Mapping[str, Any] = field(default_factory=dict)


_FAMILIES: weakref.WeakSet[STFamily] = weakref.WeakSet()


def _free_tokenizers() -> None:
    for family in list(_FAMILIES):
        family._tokenizing = threading.Lock()


# A child forked while another thread tokenises would find the lock taken for good.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_tokenizers)


class STFamily(Family):
    """A ``SentenceTransformer``; see the module for what becomes of each type of input.

    Args:
        model: In inference mode.
        fingerprint: Name and revision.
        options: Limits of a picture's tokens, length of a vector, prompts of the roles, and what to compute in.

    Raises:
        CheckpointError: It gives no vectors.
        InputError: An option cannot be followed.
    """

    def __init__(self, model: SentenceTransformer, *, fingerprint: Fingerprint, options: LoadOptions) -> None:
        first = model[0]
        told, (least, most) = processing_of(first, options.min_tokens, options.max_tokens)
        prompts = prompts_of(model, options)
        super().__init__(
            FamilyFacts(
                dim=0,  # until a text has been embedded
                fingerprint=replace(fingerprint, min_tokens=least, max_tokens=most),
                device=torch.device(model.device),
                dtype=options.dtype,
                image_limits=options.image_limits,
                recipe=PlainPictures(),
                roles=tuple(prompts),
                query_instruction=prompts["query"],
                document_instruction=prompts["document"],
            )
        )
        self.model = model
        self._name = fingerprint.model
        # Tokenizers keep their settings where all threads see them.
        self._tokenizing = threading.Lock()
        _FAMILIES.add(self)
        modalities = set(model.modalities)
        self._media = any(_MEDIA.intersection(one if isinstance(one, tuple) else (one,)) for one in modalities)
        self._chats = "message" in modalities
        self._prompts = prompts
        self._dims = options.dims
        self._told = told
        self._most_tokens = longest_text(first)
        processor = getattr(first, "processor", None)
        found = [getattr(processor, name, None) for name in _PLACEHOLDERS] if self._media and self._chats else []
        self._placeholders = [token for token in found if isinstance(token, str)]
        self._hears = self._chats and self._hears_the_system()
        self.facts = replace(self.facts, accepts=self._accepted())
        self._left = getattr(getattr(first, "tokenizer", None), "padding_side", "right") == "left"
        self._pads: Mapping[str, int] | None = None
        self.facts = replace(self.facts, dim=options.length_of(self._probed(), self._name))

    def picture_tokens(self, opened: Pixels) -> int:
        """A measure of its size: only the model's processor knows the number of tokens."""
        return opened.patches

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> STPrepared:
        """Preprocess one input as the library does; see `Family.prepare`."""
        self._check(item)
        opened = self.opened(item, pictures)
        value, prompt = self._given(item, [_as_pil(picture) for picture in opened])
        # A router and some templates ask what an input is for.
        task = item.role if item.role in ROLES and not isinstance(item, InstructedText) else None
        try:
            with self._tokenizing:
                features = dict(self.model.preprocess([value], prompt=prompt, task=task, **self._told))
        except ValueError as error:
            if isinstance(self.model[0], Router) and task is None:
                raise InputError(
                    f"{self._name} has one network for queries and one for documents, and takes no instructions; say "
                    "Text(text, role='query') or Text(text)"
                ) from error
            raise self._unreadable(item, error) from error
        except Exception as error:
            raise self._unreadable(item, error) from error
        if isinstance(self.model[0], Router):
            features["task"] = task
        ids = features.get("input_ids")
        if isinstance(ids, torch.Tensor):
            tokens = ids.reshape(-1).numpy().astype(np.int64)
            if not len(tokens):
                raise InputError(f"an empty text has no tokens for {self._name} to read; leave it out")
        else:
            tokens = np.zeros(_size(features), dtype=np.int64)
        prepared = STPrepared("image" if opened else "text", tokens, opened, features)
        if self._most_tokens is not None and isinstance(ids, torch.Tensor):
            check_length(prepared, item, self._most_tokens)
        return prepared

    def _unreadable(self, item: Input, error: Exception) -> InputError:
        return InputError(
            f"{self._name} cannot read this {type(item).__name__} ({first_line(error)}); change or leave it out"
        )

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """The pixels themselves: its features may depend on the rest of the input."""
        return [torch.from_numpy(one.pixels) for one in opened]

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch; see `Family.forward`."""
        rows = torch.empty((len(batch), self.facts.dim), dtype=torch.float32, device=self.facts.device)
        all_features = [prepared.features for prepared in batch if isinstance(prepared, STPrepared)]
        for group in groups_of(all_features, any_length=self._pads is not None):
            rows[group] = self._compute([all_features[i] for i in group])
        return rows

    def probes(self) -> list[tuple[Input, list[Picture]]]:
        """A text and a picture, as far as the model takes them; the caller's limits of pictures do not matter."""
        opened = Pixels(np.array(_probe()))
        both: list[tuple[Input, list[Picture]]] = [
            (Text(_PROBES[0]), []),
            (Image(_probe()), [Picture("", self.picture_tokens(opened), opened)]),
        ]
        return [one for one in both if isinstance(one[0], self.facts.accepts)]

    # --- What the model can do ------------------------------------------------------------------------

    def _accepted(self) -> tuple[type, ...]:
        text, image, pair = (self.model.supports(kind) for kind in ("text", "image", ("image", "text")))
        formatter = getattr(self.model[0], "input_formatter", None)
        listed = self._chats and getattr(formatter, "message_format", None) == "structured"
        takes = (
            (Text, text),
            (Image, image),
            (InstructedImage, pair or (image and self._hears)),
            (InstructedText, text and (self._hears or not self._chats)),
            (Interleaved, text and image and listed and self._keeps_order()),
        )
        return tuple(kind for kind, taken in takes if taken)

    def _keeps_order(self) -> bool:
        """Whether the chat template leaves a message's parts where they are; some put pictures first."""
        said, other = ({"type": "text", "text": words} for words in ("a b", "c"))
        seen = {"type": "image", "image": _probe()}
        orders = ([said, seen, other], [seen, said, other], [said, other, seen])
        try:
            with self._tokenizing:
                read = [
                    self.model.preprocess([{"role": "user", "content": parts}], **self._told)["input_ids"].flatten()
                    for parts in orders
                ]
        except Exception:  # templates raise whatever they like
            return False
        return len({tuple(ids.tolist()) for ids in read}) == len(orders)

    def _hears_the_system(self) -> bool:
        """Whether a prompt reaches the model through its chat template."""
        try:
            one, other = (self.model.preprocess([self._words("a")], prompt=said)["input_ids"] for said in ("b", "c d"))
        except Exception:  # templates raise whatever they like
            return False
        return one.shape != other.shape or not torch.equal(one, other)

    def _probed(self) -> int:
        """Length of a vector; finds out on the way whether texts of different length may share a batch."""
        found: list[tuple[Mapping[str, Any], torch.Tensor]] = []
        for item, pictures in self.probes():
            try:
                features = self.prepare(item, pictures).features
                found.append((features, self._compute([features])))
            except (CheckpointError, MissingExtraError):
                raise
            except Exception as error:
                reason = str(error) if isinstance(error, ABCRagError) else first_line(error)
                if isinstance(item, Text):
                    raise CheckpointError(f"{self._name} cannot embed a text: {reason}") from error
                raise InputError(f"{self._name} cannot read a picture as it was told to: {reason}") from error
        if not found:
            raise CheckpointError(f"{self._name} takes neither a text nor a picture")
        if not all(bool(vector.isfinite().all()) for _, vector in found):
            name = str(self.facts.dtype).removeprefix("torch.")
            raise InputError(
                f"{self._name} gives no finite vectors in {name}; load it with dtype='bfloat16' or dtype='float32'"
            )
        if Text in self.facts.accepts:
            self._pads = self._padding(*found[0])
        return int(found[0][1].shape[1])

    def _padding(self, short: Mapping[str, Any], vector: torch.Tensor) -> Mapping[str, int] | None:
        """What shorter texts of a batch are filled up with, or None where that would change a vector."""
        tokenizer = getattr(self.model[0], "tokenizer", None)
        pad = getattr(tokenizer, "pad_token_id", None)
        if not isinstance(self.model[0], Transformer) or pad is None:
            return None
        long = None
        for words in _PROBES[1:]:  # the first that is not too long for the model
            with suppress(InputError):
                long = self.prepare(Text(words)).features
                break
        if long is None or not is_padded_safely(short, long):
            return None
        self._pads = {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
        alone = torch.cat([vector, self._compute([long])])
        off = (self._compute([short, long]) - alone).abs().max().item()
        harmless = off <= (_TOLERANCE if self.facts.dtype == torch.float32 else _HALF_TOLERANCE)
        return self._pads if harmless else None

    # --- Inputs ---------------------------------------------------------------------------------------

    def _check(self, item: Input) -> None:
        model = self._name
        if not isinstance(item, self.facts.accepts):
            takes = ", ".join(kind.__name__ for kind in self.facts.accepts)
            if not item.pictures:
                remedy = "take another model"
            elif Image not in self.facts.accepts:
                remedy = "it reads no pictures; take a model that does, or embed a caption as Text"
            else:
                remedy = "it takes a picture or a text, not both in one input; embed them as Image and as Text"
            raise InputError(f"{model} does not take {type(item).__name__} inputs, only {takes}: {remedy}")
        if isinstance(item, (InstructedText, InstructedImage)) and item.instruction in self._prompts:
            name = item.instruction
            raise InputError(
                f"the instruction {name!r} is the name of a prompt of {model}; for that prompt write role={name!r}, or "
                f"its own words as the instruction: {self._prompts[name]!r}"
            )
        for words in _said(item):
            if any("\ud800" <= character <= "\udfff" for character in words):
                raise InputError(
                    f"a text holds half a character (a lone surrogate), which no tokenizer reads: {words[:60]!r}; "
                    "decode it again with errors='replace'"
                )
            for token in self._placeholders:
                if token in words:
                    raise InputError(
                        f"a text holds {token!r}, which stands for something else in the prompts of {model}; take it "
                        f"out: {words[:60]!r}"
                    )

    def _given(self, item: Input, pictures: Sequence[PIL.Image.Image]) -> tuple[Any, str | None]:
        """An input in the form that the library takes, and its prompt."""
        default = self._prompts[item.role]
        if isinstance(item, Text):
            return self._prompted(item.text, default)
        if isinstance(item, InstructedText):
            return self._prompted(item.text, item.instruction)
        if isinstance(item, Image):
            return {"image": pictures[0]}, default
        if isinstance(item, InstructedImage):
            if self._hears:
                return {"image": pictures[0]}, item.instruction
            return {"image": pictures[0], "text": item.instruction}, default if self._chats else None
        assert isinstance(item, Interleaved)
        waiting = iter(pictures)
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "image": next(waiting)}
            for part in item.parts
        ]
        return {"role": "user", "content": content}, default

    def _prompted(self, text: str, prompt: str | None) -> tuple[Any, str | None]:
        if self._media and not self._chats:
            # Of such a model the library measures a prompt by itself, and would guess what that string is.
            return self._words((prompt or "") + text), None
        return self._words(text), prompt

    def _words(self, text: str) -> Any:  # noqa: ANN401
        # Under this key a string is a text, whatever it looks like. Models of texts alone guess nothing.
        return {"text": text} if self._media else text

    # --- Batches --------------------------------------------------------------------------------------

    def _compute(self, group: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Unit rows of one group."""
        features = dict(group[0]) if len(group) == 1 else stacked(group, pads=self._pads or {}, left=self._left)
        for name, value in features.items():
            if isinstance(value, torch.Tensor):
                features[name] = value.to(self.facts.device)
        with torch.inference_mode():
            rows = self.model(features).get("sentence_embedding")
            if rows is None:
                raise CheckpointError(
                    f"{self._name} gives a vector for each token and none for the whole input; add a "
                    "Pooling module to it"
                )
            return nn.functional.normalize(rows[..., : self._dims or self.model.truncate_dim].float(), dim=-1)


def _probe() -> PIL.Image.Image:
    return PIL.Image.linear_gradient("L").convert("RGB")


def _said(item: Input) -> list[str]:
    if isinstance(item, Interleaved):
        return [part.text for part in item.parts if isinstance(part, Text)]
    return [words for name in ("text", "instruction") if isinstance(words := getattr(item, name, None), str)]


def _as_pil(picture: Picture) -> PIL.Image.Image:
    opened = picture.opened  # first, as whoever takes it away has set the features before
    pixels = opened.pixels if opened is not None else picture.features.numpy()  # type: ignore[union-attr]
    return PIL.Image.fromarray(pixels)


def _size(features: Mapping[str, Any]) -> int:
    """Of an input without words: about how many patches it has."""
    numbers = sum(value.numel() for value in features.values() if isinstance(value, torch.Tensor))
    return max(1, numbers // (3 * 14 * 14))

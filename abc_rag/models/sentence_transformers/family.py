"""Models of sentence-transformers 6 behind the engine's seam.

The library's own ``preprocess`` and modules compute the vectors. What it would guess is decided here: a text is a text
even where it looks like a link, a path or a data URI, pictures are opened by `abc_rag.images`, nothing is truncated.

* `Text`: the text; of a model with a ``default_prompt_name``, with that prompt, as in ``encode(text)``
* `InstructedText`: as ``encode(text, prompt=instruction)``: the instruction before the text exactly as it stands, so it
  ends with the space or line break that belongs there; where the model has a chat template, as the system's message
* `Image`: the picture
* `InstructedImage`: where the model has a chat template, the picture in the user's message and the instruction in the
  system's, as in ``encode({"image": picture}, prompt=instruction)``; where that template has no place for a system's
  message, or the model takes pairs without one, ``encode({"image": picture, "text": instruction})``
* `Interleaved`: where the model has a chat template, the user's message, its parts in order

A model's other named prompts are never applied, and an instruction that is the name of one is a text like any other:
give the prompt's own words as the instruction. `STFamily.accepts` says which of the types a model takes: one like CLIP
takes texts and pictures but not both in one input, many take texts only.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from abc_rag.errors import ABCRagError, CheckpointError, InputError, MissingExtraError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.family import Family, FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.loader import LoadOptions
from abc_rag.models.sentence_transformers.pictures import Pixels, PlainPictures
from abc_rag.types import Fingerprint, Image, Input, InstructedImage, InstructedText, Interleaved, Text

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
except ImportError as error:
    raise MissingExtraError(
        "sentence-transformers 6 is not installed; install it with: pip install 'abc-rag[sentence-transformers]'"
    ) from error

__all__ = ["STFamily", "STPrepared", "load_family"]

# One row an input, padded with what belongs there.
_ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# What a processor gives for two inputs, one behind the other, if it gives these for each. Of any other name that is not
# known, and such inputs are computed one by one.
_STACKED = frozenset({*_ROWS, "pixel_values", "pixel_attention_mask", "image_grid_thw", "num_images_per_sample"})
_MEDIA = frozenset({"image", "video", "audio"})
_PLACEHOLDERS = ("image_token", "video_token", "audio_token")
_BUCKETS = ("text", "common", "chat_template")  # where the library looks for a truncation
_PROBES = ("a", "a text of some more words than one, which a batch would fill up")
_TOLERANCE = 1e-4
_HALF_TOLERANCE = 1e-2  # rounding alone makes more of a difference
_LEAST_FULL = 0.75  # of a padded batch's longest text, so that little of it is padding


@dataclass(frozen=True, eq=False)
class STPrepared(Prepared):
    """An input as the library's ``preprocess`` has it.

    Attributes:
        features: Tensors, and what else the library notes, on the CPU.
    """

    features: Mapping[str, Any] = field(default_factory=dict)


class STFamily(Family):
    """A ``SentenceTransformer``; see the module for what becomes of each type of input.

    Args:
        model: In inference mode.
        fingerprint: Name and revision.
        image_limits: Which pictures are accepted.
        dtype: What it computes in.

    Raises:
        CheckpointError: It gives no vectors.
    """

    def __init__(
        self, model: SentenceTransformer, *, fingerprint: Fingerprint, image_limits: ImageLimits, dtype: torch.dtype
    ) -> None:
        super().__init__(
            FamilyFacts(
                dim=0,  # until a text has been embedded
                fingerprint=fingerprint,
                device=torch.device(model.device),
                dtype=dtype,
                image_limits=image_limits,
                recipe=PlainPictures(),
            )
        )
        self.model = model
        self._name = fingerprint.model
        # Tokenizers keep their settings where all threads see them.
        self._tokenizing = threading.Lock()
        first = model[0]
        modalities = set(model.modalities)
        self._media = any(_MEDIA.intersection(one if isinstance(one, tuple) else (one,)) for one in modalities)
        self._chats = "message" in modalities
        self._default = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
        self._whole = _without_truncation(first)
        self._most_tokens = _longest(first)
        processor = getattr(first, "processor", None)
        found = [getattr(processor, name, None) for name in _PLACEHOLDERS] if self._media and self._chats else []
        self._placeholders = [token for token in found if isinstance(token, str)]
        self._hears = self._chats and self._hears_the_system()
        self.facts = replace(self.facts, accepts=self._accepted())
        self._pads: Mapping[str, int] | None = None
        self.facts = replace(self.facts, dim=self._probed())

    def picture_tokens(self, opened: Pixels) -> int:
        """A measure of its size; how many tokens it has, only the model's processor knows."""
        return opened.patches

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> STPrepared:
        """Preprocess one input as the library does; see `Family.prepare`."""
        self._check(item)
        opened = self.opened(item, pictures)
        value, prompt = self._given(item, [_as_pil(picture) for picture in opened])
        try:
            with self._tokenizing:
                features = dict(self.model.preprocess([value], prompt=prompt, **self._whole))
        except Exception as error:
            raise InputError(
                f"{self._name} cannot read this {type(item).__name__} ({_first_line(error)}); change or leave it out"
            ) from error
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

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """The pixels themselves: what the model makes of a picture may depend on the rest of its input."""
        return [torch.from_numpy(one.pixels) for one in opened]

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch; see `Family.forward`."""
        rows = torch.empty((len(batch), self.facts.dim), dtype=torch.float32, device=self.facts.device)
        all_features = [prepared.features for prepared in batch if isinstance(prepared, STPrepared)]
        for group in self._groups(all_features):
            rows[group] = self._compute([all_features[i] for i in group])
        return rows

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
            (Interleaved, text and image and listed),
        )
        return tuple(kind for kind, taken in takes if taken)

    def _hears_the_system(self) -> bool:
        """Whether a prompt reaches the model through its chat template."""
        try:
            one, other = (self.model.preprocess([self._words("a")], prompt=said)["input_ids"] for said in ("b", "c d"))
        except Exception:  # templates raise whatever they like
            return False
        return one.shape != other.shape or not torch.equal(one, other)

    def _probed(self) -> int:
        """Length of a vector; finds out on the way whether texts of different length may share a batch."""
        if Text not in self.facts.accepts:
            dim = self.model.get_embedding_dimension()
            if not isinstance(dim, int):
                raise CheckpointError(f"{self._name} does not say how long its vectors are")
            return dim
        try:
            short, long = (self.prepare(Text(words)).features for words in _PROBES)
            alone = [self._compute([features]) for features in (short, long)]
        except ABCRagError as error:
            raise CheckpointError(f"{self._name} cannot embed a text: {error}") from error
        except Exception as error:
            raise CheckpointError(f"{self._name} cannot embed a text ({_first_line(error)})") from error
        tokenizer = getattr(self.model[0], "tokenizer", None)
        pad = getattr(tokenizer, "pad_token_id", None)
        if isinstance(self.model[0], Transformer) and pad is not None and _is_padded_safely(short, long):
            self._pads = {"input_ids": pad, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
            off = (self._compute([short, long]) - torch.cat(alone)).abs().max().item()
            if not off <= (_TOLERANCE if self.facts.dtype == torch.float32 else _HALF_TOLERANCE):
                self._pads = None
        return int(alone[0].shape[1])

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
        """What the library takes for an input, and its prompt."""
        if isinstance(item, Text):
            return self._prompted(item.text, self._default)
        if isinstance(item, InstructedText):
            return self._prompted(item.text, item.instruction)
        if isinstance(item, Image):
            return {"image": pictures[0]}, self._default
        if isinstance(item, InstructedImage):
            if self._hears:
                return {"image": pictures[0]}, item.instruction
            return {"image": pictures[0], "text": item.instruction}, self._default if self._chats else None
        waiting = iter(pictures)
        content = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "image": next(waiting)}
            for part in item.parts
        ]
        return {"role": "user", "content": content}, self._default

    def _prompted(self, text: str, prompt: str | None) -> tuple[Any, str | None]:
        if self._media and not self._chats:
            # Of such a model the library measures a prompt by itself, and would guess what that string is.
            return self._words((prompt or "") + text), None
        return self._words(text), prompt

    def _words(self, text: str) -> Any:  # noqa: ANN401
        # Under this key a string is a text, whatever it looks like. Models of texts alone guess nothing.
        return {"text": text} if self._media else text

    # --- Batches --------------------------------------------------------------------------------------

    def _groups(self, all_features: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Positions of what can be computed together."""
        alike: dict[object, list[int]] = {}
        for position, features in enumerate(all_features):
            alike.setdefault(_alike(features, any_length=self._pads is not None), []).append(position)
        groups: list[list[int]] = []
        for positions in alike.values():
            positions.sort(key=lambda i: -_length(all_features[i]))
            longest = 0.0
            for position in positions:
                length = _length(all_features[position])
                if length < _LEAST_FULL * longest or not longest:
                    groups.append([])
                    longest = length
                groups[-1].append(position)
        return groups

    def _compute(self, group: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Unit rows of one group."""
        features = dict(group[0]) if len(group) == 1 else self._stacked(group)
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
            return nn.functional.normalize(rows[..., : self.model.truncate_dim].float(), dim=-1)

    def _stacked(self, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        stacked = dict(group[0])
        longest = max(_length(features) for features in group)
        tokenizer = getattr(self.model[0], "tokenizer", None)
        left = getattr(tokenizer, "padding_side", "right") == "left"
        for name, value in group[0].items():
            if not isinstance(value, torch.Tensor):
                continue
            values = [features[name] for features in group]
            if name in _ROWS:
                fill = (self._pads or {}).get(name, 0)
                short = [longest - one.shape[1] for one in values]
                sides = [(by, 0) if left else (0, by) for by in short]
                values = [nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)]
            stacked[name] = torch.cat(values)
        return stacked


def load_family(folder: Path, options: LoadOptions, fingerprint: Fingerprint) -> STFamily:
    """Load a model from its folder, from nowhere else, and without any code of its own.

    Raises:
        CheckpointError: It cannot be loaded.
        MissingExtraError: It needs a package that is not installed.
    """
    if options.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        # transformers would fetch a kernel from the hub instead.
        raise MissingExtraError(
            "attention='flash_attention_2' needs flash-attention: pip install flash-attn, or leave attention='auto'"
        )
    try:
        model = _loaded(folder, options)
    except ABCRagError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{fingerprint.model} needs a package that is not installed ({_first_line(error)}); for models of pictures "
            "that is most often: pip install 'sentence-transformers[image]'"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{folder}: sentence-transformers cannot load it ({_first_line(error)}); check that it is a whole model in "
            "safetensors that needs no code of its own"
        ) from error
    if not (folder / "modules.json").is_file() and len(model) > 1:
        raise CheckpointError(
            f"{folder} has no modules.json, so how its tokens become one vector would have to be guessed; save it from "
            "a SentenceTransformer with the pooling that it was trained with"
        )
    if not isinstance(model[0], (Transformer, Router, StaticEmbedding)):
        raise CheckpointError(f"{folder} begins with a {type(model[0]).__name__} module, which abc-rag does not know")
    if isinstance(model[0], Transformer):
        model[0].unpad_inputs = False  # with flash attention the library would put a batch into one row
    model.eval()
    model.requires_grad_(False)
    return STFamily(model, fingerprint=fingerprint, image_limits=options.image_limits, dtype=options.dtype)


def _loaded(folder: Path, options: LoadOptions) -> SentenceTransformer:
    def load(attention: str) -> SentenceTransformer:
        return SentenceTransformer(
            str(folder),
            device=str(options.device),
            local_files_only=True,
            trust_remote_code=False,
            # Always named: left to the model's files, it could be a kernel that is fetched from somewhere.
            model_kwargs={"dtype": options.dtype, "attn_implementation": attention, "use_safetensors": True},
        )

    try:
        model = load(options.attention)
    except ValueError as error:
        if options.attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        model = load("eager")  # a network that has no other
    # Of others the library follows dtype, and keeps in float32 what has to stay so.
    return model.to(options.dtype) if isinstance(model[0], StaticEmbedding) else model


def _without_truncation(first: nn.Module) -> dict[str, Any]:
    """What ``preprocess`` is told so that it leaves inputs whole."""
    if isinstance(first, StaticEmbedding):
        return {}
    told = getattr(first, "processing_kwargs", None) or {}
    buckets = [name for name in _BUCKETS if name == "text" or "truncation" in told.get(name, {})]
    return {"processing_kwargs": {name: {"truncation": False} for name in buckets}}


def _longest(first: nn.Module) -> int | None:
    """Most tokens that the model reads, or None."""
    words: Any = getattr(first, "config", None)
    with suppress(AttributeError, ValueError):  # none, or one with several texts
        words = words.get_text_config()
    limits = [getattr(first, "max_seq_length", None), getattr(words, "max_position_embeddings", None)]
    told = getattr(first, "processing_kwargs", None) or {}
    limits += [told.get(name, {}).get("max_length") for name in _BUCKETS]
    known = [limit for limit in limits if isinstance(limit, (int, float)) and 0 < limit < math.inf]
    return int(min(known)) if known else None


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


def _length(features: Mapping[str, Any]) -> int:
    ids = features.get("input_ids")
    return int(ids.shape[-1]) if isinstance(ids, torch.Tensor) else 1


def _alike(features: Mapping[str, Any], *, any_length: bool) -> object:
    """Equal for inputs that may be stacked; with ``any_length``, those of words alone whatever their length."""
    words = any_length and all(name in _ROWS for name, value in features.items() if isinstance(value, torch.Tensor))
    known: list[object] = []
    for name, value in sorted(features.items()):
        if not isinstance(value, torch.Tensor):
            known.append((name, repr(value)))
        elif name not in _STACKED or not value.ndim or (name in _ROWS and (value.ndim != 2 or len(value) != 1)):
            return object()
        else:
            known.append((name, value.dtype, None if words else tuple(value.shape[1:])))
    return tuple(known)


def _is_padded_safely(short: Mapping[str, Any], long: Mapping[str, Any]) -> bool:
    """Whether two texts differ in length, and say which of a batch's tokens would be padding."""
    kinds = {_alike(features, any_length=True) for features in (short, long)}
    return len(kinds) == 1 and "attention_mask" in short and _length(short) != _length(long)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:300]}"

"""VLM2Vec (arXiv 2410.05160): a vision-language model as it is, and the last token's state as the embedding.

What is known of an input and what is asked of it stand in one plain prompt, so there is one network for all inputs:

* `Text`: the text, and nothing else
* `InstructedText`: the instruction, a space, the text
* `Image`: the picture, and ``Represent the given image.``
* `InstructedImage`: the picture, and the instruction if it begins with one of `TASK_INSTRUCTIONS`; any other is asked
  as ``Represent the given image with the following question: ...``
* `Interleaved`: any number of pictures and texts, exactly as they stand; prompts of one's own are written so

No chat template, no token at the end; causal attention (Section 3.2 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.family import Family, Picture, PictureRecipe, Prepared, check_length
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.kernels.packed import PackedBatch, split_features
from abc_rag.types import INPUT_TYPES, Fingerprint, Image, Input, InstructedImage, InstructedText, Text

__all__ = ["TASK_INSTRUCTIONS", "VLM2VecBackbone", "VLM2VecFamily", "VLM2VecNetwork", "VLM2VecPrompts"]

TASK_INSTRUCTIONS: Mapping[str, str] = MappingProxyType(
    {
        # Of a picture, with or without a text after it.
        "image": "Represent the given image.",
        "vqa": "Represent the given image with the following question:",
        "classification": "Represent the given image for classification",
        "object_classification": "Identify the object shown in the image",
        "scene_classification": "Identify the scene shown in the image",
        "country_classification": "Identify the country depicted in the image",
        "news_classification": "Represent the given news image with the following caption for domain classification:",
        "hateful_memes": (
            "Represent the given image for binary classification to determine whether it constitutes hateful speech "
            "or not"
        ),
        "image_to_text": "Find an image caption describing the given everyday image.",
        "picture_to_caption": "Find an image caption describing the given image.",
        "image_to_news": "Find a caption for the news in the given photo.",
        "image_to_image": "Find a day-to-day image that looks similar to the provided image.",
        "changed_image": "Given an image, find a similar everyday image with the described changes:",
        "fashion_image": "Find an image to match the fashion image and style note:",
        "image_to_wikipedia": (
            "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:"
        ),
        "grounding": "Select the portion of the image that isolates the object labeled as",
        "grounding_label": "Select the portion of the image that isolates the object of the given label:",
        "grounding_expression": "Select the portion of the image that follows the language expressions.",
        "grounding_question": "Select the portion of the image that answers the question",
        # Of a text.
        "text_to_image": "Find me an everyday image that matches the given caption:",
        "news_to_image": "Retrieve an image of this news caption.",
        "dialogue_to_image": "Represent the given dialogue about an image, which is used for image retrieval:",
        "question_to_wikipedia": "Find a Wikipedia image that answers this question:",
        "caption_to_news_image": "Find a news image that matches the provided caption:",
        "question_to_document": "Find the document image that can answer the given query:",
        # Of what is searched among.
        "cropped_image": "Represent the given cropped image of the object",
        "wikipedia_image": "Represent the given Wikipedia image with related text information:",
        "image_with_text": "Represent the given image with related text information:",
    }
)
"""Task -> how the published models were told it: the words of ``TIGER-Lab/MMEB-train`` and ``MMEB-eval``.

Questions of pictures are ``"vqa"``, which is what a plain instruction of an `InstructedImage` becomes. Texts that look
for pictures are ``"text_to_image"``; pictures that look for captions ``"image_to_text"``; a part of a picture that is
asked for by name is ``"grounding"``, with the name in quotation marks after it.
"""

_QUESTION = TASK_INSTRUCTIONS["vqa"]
_PUBLISHED = tuple(TASK_INSTRUCTIONS.values())


class VLM2VecPrompts(Protocol):
    """Makes token ids of a prompt: text pieces, and pictures as the number of their image tokens."""

    def __call__(self, parts: Sequence[str | int], /) -> npt.NDArray[np.int64]:
        """Token ids, with `VLM2VecBackbone.image_token_id` where pictures go.

        Raises:
            InputError: A text holds half a character.
        """
        ...


class VLM2VecBackbone(Protocol):
    """What this family needs of a vision-language model; an ``nn.Module``."""

    image_token_id: int
    compiled: bool

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Their precision."""
        ...

    def recipe(self, resolution: int | str | None, min_tokens: int | None, max_tokens: int | None) -> PictureRecipe:
        """How pictures are opened at a resolution.

        Raises:
            InputError: There is no such resolution.
        """
        ...

    def token_limits(self, recipe: Any) -> tuple[int, int]:  # noqa: ANN401
        """Fewest and most image tokens of a picture that is opened so."""
        ...

    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """How many image tokens an opened picture has."""
        ...

    def flops(self, tokens: int, pictures: Sequence[Any]) -> float:
        """Operations of the matrix products of one input of so many tokens."""
        ...

    def image_features(self, opened: Sequence[Any]) -> torch.Tensor:
        """Vision features ``(sum of tokens, hidden)``, with gradients."""
        ...

    def packed_features(self, opened: Sequence[Any]) -> torch.Tensor:
        """The same without gradients."""
        ...

    def recompute_activations(self) -> None:
        """Keep no activations of the layers in training; the backward pass computes them again."""
        ...

    def published_name(self, name: str) -> str:
        """The name that one of its parameters has in the hub's checkpoints, from which adapters' names are made."""
        ...

    def hidden_states(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Final-norm states ``(batch, length, hidden)`` of right-padded sequences, causal, with gradients."""
        ...

    def packed_last_states(
        self,
        input_ids: torch.Tensor,
        segments: Segments,
        *,
        features: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Final-norm state ``(n, hidden)`` of the last token of each sequence, causal, without gradients."""
        ...


class VLM2VecNetwork(nn.Module):
    """A backbone, and the pooling of the last token; the forward that training uses."""

    backbone: Any  # a VLM2VecBackbone, which as a protocol is no nn.Module

    def __init__(self, backbone: VLM2VecBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit vectors ``(batch, dim)`` in float32 of right-padded sequences, with gradients.

        Args:
            input_ids: int64 ``(batch, length)``.
            lengths: int64 ``(batch,)``: how many tokens of each row are real.
            features: Of all pictures in order, ``(image tokens, hidden)``.
        """
        states = self.backbone.hidden_states(input_ids, lengths=lengths, features=features)
        last = states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        return nn.functional.normalize(last.float(), dim=-1)


class VLM2VecFamily(Family):
    """VLM2Vec behind the engine's seam, on any backbone.

    Args:
        network: In inference mode, its adapter merged.
        prompts: The backbone's.
        recipe: How pictures are opened.
        fingerprint: Model, revision and resolution.
        image_limits: Which pictures are accepted.
        resolution: What the recipe was asked for by name or number; `at` keeps it.
    """

    def __init__(
        self,
        network: VLM2VecNetwork,
        prompts: VLM2VecPrompts,
        *,
        recipe: PictureRecipe,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
        resolution: int | str | None = None,
    ) -> None:
        self.network = network
        self.backbone: VLM2VecBackbone = network.backbone
        self._prompts = prompts
        self._recipe = recipe
        self._fingerprint = fingerprint
        self._image_limits = image_limits
        self._resolution = resolution

    def at(self, *, min_tokens: int, max_tokens: int) -> VLM2VecFamily:
        """The same network at another resolution; see `Family.at`."""
        return VLM2VecFamily(
            self.network,
            self._prompts,
            recipe=self.backbone.recipe(self._resolution, min_tokens, max_tokens),
            fingerprint=replace(self._fingerprint, min_tokens=min_tokens, max_tokens=max_tokens),
            image_limits=self._image_limits,
            resolution=self._resolution,
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.backbone.hidden_size

    @property
    def fingerprint(self) -> Fingerprint:
        """Model, revision and resolution."""
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.backbone.dtype

    @property
    def image_limits(self) -> ImageLimits:
        """Which pictures are accepted."""
        return self._image_limits

    @property
    def recipe(self) -> PictureRecipe:
        """How pictures are opened."""
        return self._recipe

    @property
    def accepts(self) -> tuple[type, ...]:
        """All types of inputs."""
        return INPUT_TYPES

    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """How many image tokens an opened picture has."""
        return self.backbone.picture_tokens(opened)

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        opened = self.opened(item, pictures)
        ids = self._prompts(_prompt(item, [picture.tokens for picture in opened]))
        if not len(ids):
            raise InputError(f"an empty text has no tokens for {self._fingerprint.model} to read; leave it out")
        prepared = Prepared("image" if opened else "text", ids, opened)
        check_length(prepared, item, self.backbone.max_length)
        return prepared

    def count_flops(self, item: Input) -> tuple[int, float]:
        """Tokens in the language model, and operations; see `Family.count_flops`."""
        prepared = self.prepare(item)
        return prepared.tokens, self.backbone.flops(prepared.tokens, [picture.opened for picture in prepared.pictures])

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """Vision features of some pictures; see `Family.see`."""
        with torch.inference_mode():
            return split_features(self.backbone.packed_features(opened), [self.picture_tokens(one) for one in opened])

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch; see `Family.forward`."""
        self.see_all(batch)
        packed = PackedBatch.of(batch, image_token_id=self.backbone.image_token_id, device=self.device)
        with torch.inference_mode():
            states = self.backbone.packed_last_states(
                packed.input_ids,
                packed.segments,
                features=packed.features,
                image_positions=packed.image_positions,
            )
            return packed.in_order(nn.functional.normalize(states.float(), dim=-1))


def _prompt(item: Input, tokens: Sequence[int]) -> list[str | int]:
    if isinstance(item, Text):
        return [item.text]
    if isinstance(item, InstructedText):
        return [f"{item.instruction} {item.text}"]
    if isinstance(item, Image):
        return [tokens[0], f" {TASK_INSTRUCTIONS['image']}"]
    if isinstance(item, InstructedImage):
        asked = item.instruction
        return [tokens[0], f" {asked}" if asked.startswith(_PUBLISHED) else f" {_QUESTION} {asked}"]
    parts: list[str | int] = []
    numbers = iter(tokens)
    for part in item.parts:
        if isinstance(part, Image):
            parts.append(next(numbers))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += part.text
        else:
            parts.append(part.text)
    return parts

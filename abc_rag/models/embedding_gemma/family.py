"""EmbeddingGemma 2: the mean of all tokens' states, under a task's prompt.

* `Text`, `Image`, `Interleaved`: under the prompt of their role: a document, a query, or one of the model's tasks, such
  as ``"Clustering"``
* `InstructedText`: the instruction is the task
* `InstructedImage`: the instruction is the task; as a query, the picture and the question under a query's prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.embedding_gemma.network import GemmaNetwork, PackedGemma
from abc_rag.models.embedding_gemma.pictures import BUDGETS, GemmaPictures
from abc_rag.models.embedding_gemma.prompts import GemmaPrompts, task_prefix
from abc_rag.models.family import Family, FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.kernels.packed import PackedBatch, split_features
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.types import INPUT_TYPES, Fingerprint, Input, InstructedImage, InstructedText, Interleaved, Text

__all__ = ["GemmaFamily", "check_budget"]

_MOST_TOKENS = 8192
"""The context of the model card, for words and pictures together."""


def check_budget(tokens: int) -> int:
    """A number of image tokens that the model was trained with.

    Raises:
        InputError: It is another one.
    """
    if tokens not in BUDGETS:
        choices = ", ".join(map(str, BUDGETS))
        raise InputError(f"max_tokens={tokens} is none of the model's image tokens; take one of {choices}")
    return tokens


class GemmaFamily(Family):
    """EmbeddingGemma 2 behind the engine's seam.

    Args:
        network: In inference mode.
        prompts: Makes token ids.
        named: The model's prompts by name, ``"query"`` and ``"document"`` among them.
        fingerprint: Model, revision and resolution: its upper limit is that of a picture's tokens.
        image_limits: Which pictures are accepted.
        dims: Length of a vector; the full one if None.
        query_instruction: The task of a query, in place of the model's prompt.
        document_instruction: The task of a document, in place of the model's prompt.

    Raises:
        InputError: The limit is none of the model's.
    """

    def __init__(
        self,
        network: GemmaNetwork,
        prompts: GemmaPrompts,
        named: Mapping[str, str],
        *,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
        dims: int | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        told = {"query": query_instruction, "document": document_instruction}
        self._prefixes = {**named, **{role: task_prefix(task) for role, task in told.items() if task is not None}}
        super().__init__(
            FamilyFacts(
                dim=dims or network.dim,
                fingerprint=fingerprint,
                device=network.device,
                dtype=network.dtype,
                image_limits=image_limits,
                recipe=GemmaPictures(network.patch, network.merge, check_budget(fingerprint.max_tokens)),
                accepts=INPUT_TYPES,
                roles=tuple(self._prefixes),
                query_instruction=named["query"] if query_instruction is None else query_instruction,
                document_instruction=named["document"] if document_instruction is None else document_instruction,
            )
        )
        self.network = network
        self._prompts = prompts
        self._named = named
        self._told = (query_instruction, document_instruction)
        self._most = min(_MOST_TOKENS, network.max_length)

    def at(self, *, min_tokens: int, max_tokens: int) -> GemmaFamily:
        """The same network with another budget of image tokens; see `Family.at`."""
        facts = self.facts
        query, document = self._told
        return GemmaFamily(
            self.network,
            self._prompts,
            self._named,
            fingerprint=replace(facts.fingerprint, min_tokens=1, max_tokens=max_tokens),
            image_limits=facts.image_limits,
            dims=facts.dim,
            query_instruction=query,
            document_instruction=document,
        )

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return opened.patches // self.network.merge**2

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        opened = self.opened(item, pictures)
        tokens = [picture.tokens for picture in opened]
        parts: list[str | int] = [*tokens]
        prefix = self._prefixes[item.role]
        if isinstance(item, Text):
            parts = [item.text]
        elif isinstance(item, InstructedText):
            prefix, parts = task_prefix(item.instruction), [item.text]
        elif isinstance(item, Interleaved):
            numbers = iter(tokens)
            parts = [part.text if isinstance(part, Text) else next(numbers) for part in item.parts]
        elif isinstance(item, InstructedImage) and item.role == "query":
            parts.append(item.instruction)
        elif isinstance(item, InstructedImage):
            prefix = task_prefix(item.instruction)
        prepared = Prepared("image" if opened else "text", self._prompts(prefix, parts), opened)
        check_length(prepared, item, self._most)
        return prepared

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """Vision features of some pictures; see `Family.see`."""
        with torch.inference_mode():
            features = PackedGemma(self.network).image_features(opened)
            return split_features(features, [self.picture_tokens(one) for one in opened])

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch; see `Family.forward`."""
        self.see_all(batch)
        network = self.network
        packed = PackedBatch.of(batch, image_token_id=network.config.image_token_id, device=network.device)
        with torch.inference_mode():
            vectors = PackedGemma(network).vectors(packed)[:, : self.facts.dim]
            return packed.in_order(nn.functional.normalize(vectors, dim=-1))

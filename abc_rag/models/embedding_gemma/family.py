"""EmbeddingGemma 2: the mean of all tokens' states, under a task's prompt.

* `Text`, `Image`, `Interleaved`: under the prompt of their role: a document, a query, or one of the model's tasks, such
  as ``"Clustering"``
* `InstructedText`: the instruction is the task
* `InstructedImage`: the instruction is the task; as a query, the picture and the question under a query's prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.embedding_gemma.network import GemmaNetwork, PackedGemma
from abc_rag.models.embedding_gemma.pictures import BUDGETS, GemmaPictures
from abc_rag.models.embedding_gemma.prompts import GemmaPrompts, task_prefix
from abc_rag.models.family import FamilyFacts, Picture, Prepared, check_length
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.packed_family import PackedFamily, parts_of
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.types import INPUT_TYPES, Fingerprint, Input, InstructedImage, InstructedText

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


class GemmaFamily(PackedFamily):
    """EmbeddingGemma 2 behind the engine's seam.

    Args:
        network: In inference mode.
        prompts: Makes token ids.
        named: The model's prompts by name, ``"query"`` and ``"document"`` among them.
        fingerprint: Model, revision and resolution: its upper limit is that of a picture's tokens.
        image_limits: Which pictures are accepted.
        dims: Length of a vector.
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
        dims: int,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
    ) -> None:
        told = {"query": query_instruction, "document": document_instruction}
        self._prefixes = {**named, **{role: task_prefix(task) for role, task in told.items() if task is not None}}
        self.network = network
        super().__init__(
            FamilyFacts(
                dim=dims,
                fingerprint=fingerprint,
                device=network.device,
                dtype=network.dtype,
                image_limits=image_limits,
                recipe=self._recipe_at(fingerprint.min_tokens, fingerprint.max_tokens),
                accepts=INPUT_TYPES,
                cuts=True,
                roles=tuple(self._prefixes),
                query_instruction=named["query"] if query_instruction is None else query_instruction,
                document_instruction=named["document"] if document_instruction is None else document_instruction,
            ),
            network.config.image_token_id,
        )
        self._prompts = prompts
        self._most = min(_MOST_TOKENS, network.max_length)

    def at(self, *, min_tokens: int, max_tokens: int) -> GemmaFamily:
        """The same network with another budget of image tokens; see `Family.at`."""
        return super().at(min_tokens=1, max_tokens=max_tokens)

    def _recipe_at(self, min_tokens: int, max_tokens: int) -> GemmaPictures:
        return GemmaPictures(self.network.patch, self.network.merge, check_budget(max_tokens))

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return opened.patches // self.network.merge**2

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        opened = self.opened(item, pictures)
        parts = parts_of(item, [picture.tokens for picture in opened])
        prefix = self._prefixes[item.role]
        if isinstance(item, InstructedImage) and item.role == "query":
            parts.append(item.instruction)
        elif isinstance(item, (InstructedImage, InstructedText)):
            prefix = task_prefix(item.instruction)
        prepared = Prepared("image" if opened else "text", self._prompts(prefix, parts), opened)
        check_length(prepared, item, self._most)
        return prepared

    def _features(self, opened: Sequence[Patches]) -> torch.Tensor:
        return PackedGemma(self.network).image_features(opened)

    def _vectors(self, packed: PackedBatch) -> torch.Tensor:
        vectors = PackedGemma(self.network).vectors(packed)[:, : self.facts.dim]
        return nn.functional.normalize(vectors, dim=-1)

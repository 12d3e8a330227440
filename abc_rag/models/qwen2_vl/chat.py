"""Qwen2-VL as it was published: a chat model that sees.

transformers' own modules compute, with causal attention, 3-D rotary positions, a cache of keys and values and the
output layer. Their tensors are those of the embedder's backbone, which has its adapters on modules of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import DynamicCache, Qwen2VLModel

from abc_rag.errors import CheckpointError, ContextError
from abc_rag.images.read import describe_source
from abc_rag.models.chat import ChatFacts, ChatModel, Conversation, Decoding
from abc_rag.models.config import Config
from abc_rag.models.family import FamilyFacts, Picture, Prepared
from abc_rag.models.kernels.packed import split_features
from abc_rag.models.qwen2_vl.network import SpeakingBase
from abc_rag.models.qwen2_vl.packed import PackedQwen2VL
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.models.qwen2_vl.prompts import ChatPrompts, load_chat_tokenizer
from abc_rag.models.tasks import TaskFacts

__all__ = ["Qwen2VLChat", "load_chat"]

_MAX_STOP_IDS = 100
_MAX_VERSION = 1_000_000
_MAX_SOURCES = 1_000


class Qwen2VLChat(ChatModel):
    """The base of a Qwen2-VL.

    Args:
        base: Vision tower, language model and output layer.
        prompts: Of the base.
        facts: Of the embedder: where pictures are concerned, both do the same.
        chat: What else is fixed.
        end: The token that ends a turn; the first of the generation config.
    """

    def __init__(
        self,
        base: SpeakingBase,
        prompts: ChatPrompts,
        facts: FamilyFacts,
        chat: ChatFacts,
        *,
        end: int,
    ) -> None:
        super().__init__(facts, chat)
        self._backbone = base.backbone
        self._lm_head = base.lm_head
        self._prompts = prompts
        self._end = end
        with torch.device("meta"):  # its positions are asked for, not its weights
            self._positions: Any = Qwen2VLModel(base.backbone.config)

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return self._backbone.picture_tokens(opened)

    def prepare(self, item: Conversation, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise a conversation.

        Raises:
            ContextError: It is longer than the model can read; the message says which picture is too many.
        """
        opened = self.opened(item, pictures)
        ids = self._prompts(item.messages, [picture.tokens for picture in opened])
        room = self.chat_facts.max_length - 1
        if len(ids) > room:
            raise ContextError(self._too_long(item, ids, [picture.tokens for picture in opened], room))
        return Prepared("conversation", ids, opened)

    def count(self, item: Conversation) -> int:
        """Tokens of a conversation; see `ChatModel`."""
        return len(self._prompts(item.messages, [picture.tokens for picture in self.opened(item, None)]))

    def _too_long(self, item: Conversation, ids: npt.NDArray[np.int64], tokens: Sequence[int], room: int) -> str:
        name, pictures = self.facts.fingerprint.model, item.pictures
        said = f"a conversation of {len(ids):,} tokens is longer than the {room:,} that {name} reads before an answer"
        if not pictures:
            return f"{said}; split the text, or leave out earlier turns: {item.words[:60]!r} ..."
        at_pictures = np.flatnonzero(ids == self._backbone.image_token_id)
        fitting = int((at_pictures[np.cumsum(tokens) - 1] < room).sum())
        which = f"{fitting} of its {len(pictures)} pictures fit"
        if fitting < len(pictures):
            which += f", the first too many is {describe_source(pictures[fitting])}"
        return (
            f"{said}; {which}: {len(at_pictures):,} tokens are the pictures'. Leave out pictures or earlier turns, or "
            "load the model with a smaller max_tokens"
        )

    def see(self, opened: Sequence[Patches]) -> list[torch.Tensor]:
        """Vision features of some pictures by the base's own tower."""
        with torch.inference_mode():
            features = PackedQwen2VL(self._backbone).image_features(opened)
            merge = self._backbone.merge
            # In the shape of the picture, which positions are made of: a cache keeps nothing but features.
            return [
                part.view(one.rows // merge, one.columns // merge, -1)
                for one, part in zip(
                    opened, split_features(features, [self.picture_tokens(one) for one in opened]), strict=True
                )
            ]

    def decoding(self) -> Decoding:
        """A batch without rows."""
        return _Decoding(self)

    def score(self, prepared: Prepared, answers: Sequence[str]) -> list[float]:
        """Log-probability of each answer, with the token that ends it; see `ChatModel`.

        The answers stand behind the conversation, one after the other. Each begins at the position after it, and sees
        it and itself alone.
        """
        self.see_all([prepared])
        ids = [[*self._prompts.plain(answer), self._end] for answer in answers]
        length, most = prepared.tokens, self.chat_facts.max_length
        if (whole_length := length + sum(map(len, ids))) > most:
            raise ContextError(
                f"a conversation and {len(ids):,} answers of {whole_length:,} tokens together are longer than the "
                f"{most:,} that {self.facts.fingerprint.model} reads at once; give fewer or shorter answers"
            )
        with torch.inference_mode():
            positions, after = self.positions(prepared)
            tokens = [np.array(one[:-1], dtype=np.int64) for one in ids]
            steps = [torch.arange(len(one), device=positions.device).expand(3, -1) + after for one in tokens]
            whole = torch.from_numpy(np.concatenate([prepared.input_ids, *tokens])).to(positions.device)
            part = torch.from_numpy(np.repeat(np.arange(len(ids) + 1), [length, *map(len, tokens)])).to(whole.device)
            allowed = ((part[:, None] == part) | (part == 0)).tril()
            embeds = self.embedded(prepared, whole)[None]
            states = self.forward(embeds, torch.cat([positions, *steps], dim=1)[:, None], allowed[None, None], None)[0]
            found, at = [], length
            for one in ids:
                rows = torch.cat([states[length - 1 : length], states[at : at + len(one) - 1]])
                wanted = torch.tensor(one, device=rows.device)[:, None]
                found.append(float(self.logits(rows).log_softmax(dim=-1).gather(1, wanted).double().sum()))
                at += len(one) - 1
            return found

    def embedded(self, prepared: Prepared, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(length, hidden)`` of tokens, pictures' features in their places."""
        embeds: torch.Tensor = self._backbone.language_model.embed_tokens(ids)
        if prepared.pictures:
            features = torch.cat(
                [p.features.to(embeds).flatten(0, 1) for p in prepared.pictures if p.features is not None]
            )
            embeds = embeds.index_copy(0, (ids == self._backbone.image_token_id).nonzero().flatten(), features)
        return embeds

    def embedded_tokens(self, tokens: Sequence[int]) -> torch.Tensor:
        """Embeddings ``(n, hidden)`` of tokens."""
        embeds: torch.Tensor = self._backbone.language_model.embed_tokens(
            torch.tensor(tokens, device=self._backbone.device)
        )
        return embeds

    def causal(self, length: int) -> torch.Tensor | None:
        """The mask of a conversation; None where the kernels know it."""
        if self._backbone.attention == "sdpa":
            return None
        return torch.ones(1, 1, length, length, dtype=torch.bool, device=self._backbone.device).tril()

    def positions(self, prepared: Prepared) -> tuple[torch.Tensor, int]:
        """3-D positions ``(3, length)`` of a conversation, and the position of what follows it."""
        ids = torch.from_numpy(prepared.input_ids)[None]
        merge = self._backbone.merge
        shapes = [picture.features.shape for picture in prepared.pictures if picture.features is not None]
        grids = torch.tensor([[1, rows * merge, columns * merge] for rows, columns, _ in shapes]).view(-1, 3)
        kinds = (ids == self._backbone.image_token_id).int()
        found, _ = self._positions.get_rope_index(ids, kinds, image_grid_thw=grids)
        return found[:, 0].to(self._backbone.device), int(found.max()) + 1

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        allowed: torch.Tensor | None,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """Final-norm states ``(rows, length, hidden)`` by the base alone.

        Args:
            embeds: ``(rows, length, hidden)``.
            positions: ``(3, rows, length)``.
            allowed: What may attend to what, ``(rows or 1, 1, length, cached + length)``; None for all before.
            cache: Keys and values so far; the new ones are appended.
        """
        if allowed is not None and self._backbone.attention == "eager":
            allowed = torch.zeros_like(allowed, dtype=embeds.dtype).masked_fill(~allowed, torch.finfo(embeds.dtype).min)
        states: torch.Tensor = self._backbone.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": allowed},
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """float32 logits of states, ``(..., hidden)`` to ``(..., vocabulary)``."""
        logits: torch.Tensor = self._lm_head(states).float()
        return logits

    def cache(self) -> DynamicCache:
        """An empty cache of keys and values."""
        return DynamicCache(config=self._backbone.text_config)


class _Decoding(Decoding):
    """Rows of different lengths in one cache, padded on the left.

    Args:
        chat: Whose.
    """

    def __init__(self, chat: Qwen2VLChat) -> None:
        self._chat = chat
        self._cache: DynamicCache | None = None
        self._lengths: list[int] = []
        self._positions: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, prepared: Prepared) -> torch.Tensor:
        chat = self._chat
        chat.see_all([prepared])
        with torch.inference_mode():
            positions, after = chat.positions(prepared)
            ids = torch.from_numpy(prepared.input_ids).to(positions.device)
            cache = chat.cache()
            states = chat.forward(chat.embedded(prepared, ids)[None], positions[:, None], chat.causal(len(ids)), cache)
            logits = chat.logits(states[0, -1])
            self._cache = cache if self._cache is None else self._joined(self._cache, cache)
        self._lengths.append(len(ids))
        self._positions.append(after)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        chat, cache = self._chat, self._cache
        assert cache is not None
        with torch.inference_mode():
            embeds = chat.embedded_tokens(tokens)
            at = torch.tensor(self._positions, device=embeds.device).view(1, -1, 1).expand(3, -1, -1)
            width = max(self._lengths)
            allowed = None
            if min(self._lengths) < width:
                padding = width - torch.tensor(self._lengths, device=embeds.device)
                allowed = (torch.arange(width + 1, device=embeds.device) >= padding[:, None])[:, None, None]
            logits = chat.logits(chat.forward(embeds[:, None], at, allowed, cache)[:, 0])
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return logits

    def drop(self, rows: Sequence[int]) -> None:
        kept = [row for row in range(len(self)) if row not in set(rows)]
        self._lengths = [self._lengths[row] for row in kept]
        self._positions = [self._positions[row] for row in kept]
        if not kept or self._cache is None:
            self._cache = None
            return
        width, old = max(self._lengths), self._cache
        with torch.inference_mode():
            self._cache = self._filled(
                (keys[kept, :, -width:], values[kept, :, -width:]) for keys, values in _pairs(old)
            )

    def _joined(self, first: DynamicCache, second: DynamicCache) -> DynamicCache:
        width = max(first.get_seq_length(), second.get_seq_length())

        def wide(tensor: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(tensor, (0, 0, width - tensor.shape[2], 0))

        pairs = zip(_pairs(first), _pairs(second), strict=True)
        return self._filled((torch.cat([wide(a), wide(c)]), torch.cat([wide(b), wide(d)])) for (a, b), (c, d) in pairs)

    def _filled(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
        cache = self._chat.cache()
        for layer, (keys, values) in enumerate(pairs):
            cache.update(keys, values, layer)
        return cache


def _pairs(cache: DynamicCache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    layers: Any = cache.layers
    for layer in layers:
        yield layer.keys, layer.values


def load_chat(folder: Path, base: SpeakingBase, facts: FamilyFacts) -> Qwen2VLChat:
    """The chat model of a base, whose folder has its tokenizer and its settings.

    Raises:
        CheckpointError: The tokenizer, the chat template or ``generation_config.json`` is missing or unusable.
    """
    tokenizer, image_token_id = load_chat_tokenizer(folder)
    file = folder / "generation_config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: holds no generation_config.json, so this base was trained to embed only; use one that "
            "generates, such as Qwen2-VL-7B-Instruct"
        )
    raw = Config.read(file)
    stop = raw.values.get("eos_token_id")
    stop = [stop] if type(stop) is int else stop
    rows, words = int(base.lm_head.out_features), tokenizer.backend_tokenizer
    if not (isinstance(stop, list) and 0 < len(stop) <= _MAX_STOP_IDS) or not all(
        type(one) is int and 0 <= one < rows for one in stop
    ):
        raw.refuse("eos_token_id", f"a token id below {rows:,}, or a list of some")
    return Qwen2VLChat(
        base,
        ChatPrompts(tokenizer, image_token_id=image_token_id),
        facts,
        ChatFacts(
            tokenizer=words,
            vocabulary=rows,
            max_length=base.backbone.max_length,
            stop_ids=frozenset(stop),
            repetition_penalty=raw.number("repetition_penalty", 1.0, least=0.01, most=100),
            spaced=words.decode(words.encode("a", add_special_tokens=False).ids) == " a",
            tasks=TaskFacts(
                raw.whole("abc_rag_tasks", 0, least=0, most=_MAX_VERSION),
                raw.number("abc_rag_min_confidence", TaskFacts.min_confidence, least=0, most=1),
                raw.whole("abc_rag_sources", most=_MAX_SOURCES) if "abc_rag_sources" in raw else None,
            ),
        ),
        end=stop[0],
    )

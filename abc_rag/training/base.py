"""The first stage of abc-mini: a Qwen2-VL that sees, reads, answers and embeds, from random weights.

It learns to see first (`abc_rag.training.seeing`), then in lessons. Four losses share its weights.
*Seeing*: each image token tells what covers its cell, where that lies and how large it is. *Embedding*: pictures under
an instruction find the text that answers, pictures find their captions and captions their pictures; attention is
bidirectional, as ABC embeds. *Speaking*: answers, word by word, in the conversations of `abc_rag.models.tasks`;
attention is causal and positions are 3-D, as the base generates. *Words*: vectors of sentences resemble a teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn

from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.abc.prompts import ABCPrompts
from abc_rag.models.kernels.packed import with_features
from abc_rag.models.qwen2_vl.prompts import ChatPrompts
from abc_rag.models.tokenizer import PlainTokenizer
from abc_rag.training.data.spoken import Spoken
from abc_rag.training.data.wide import CELLS, WideBatch
from abc_rag.training.losses import contrastive_loss
from abc_rag.training.seeing import NamedKinds, place_heads, square_features, vision_block
from abc_rag.training.step import Encoder

__all__ = [
    "BaseModel",
    "BaseTokens",
    "Conversations",
    "Tokeniser",
    "embedded_loss",
    "packed_conversations",
    "spoken_loss",
]

_IGNORED = -100
_ENDED = 0.2


@dataclass(frozen=True)
class Conversations:
    """Conversations as padded rows, for causal attention.

    Attributes:
        ids: int64 ``(rows, length)``.
        positions: int64 ``(3, rows, length)``.
        parts: int64 ``(rows, length)``: 0 for what all answers of a row share, n for its n-th branch, -1 for padding.
        targets: int64 ``(rows, length)``: the token that follows, where an answer is learnt; else -100.
        weights: float32 ``(rows, length)``: what a learnt token counts: 1, but `_ENDED` for the end, which is soon
            learnt. An answer's tokens are not averaged: what decides it, its first word or the number it cites, is one
            of many, and the others follow from it.
        pictures: Positions of the pictures, row by row.
        answers: Number of answers.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    parts: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    pictures: list[int]
    answers: int


@dataclass(frozen=True)
class BaseTokens:
    """A batch, tokenised.

    Attributes:
        batch: What it was made of.
        asked: Pictures under an instruction, then pictures alone; see `Encoder`.
        texts: Candidates, then captions, then the teacher's sentences.
        spoken: Conversations in rows of similar length.
    """

    batch: WideBatch
    asked: list[tuple[tuple[int, ...], npt.NDArray[np.int64]]]
    texts: list[tuple[tuple[int, ...], npt.NDArray[np.int64]]]
    spoken: list[Conversations]


_Row = tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.float32]], list[int]]
"""What conversations share, then the rest of each; what the tokens of each answer count; positions of pictures."""


class Tokeniser:
    """Batches to tokens, in the thread that makes them.

    Args:
        embed: Prompts of embeddings.
        chat: Prompts of conversations.
        said: Tokenises answers that begin without a space.
        image_token: What stands for a picture's tokens.
        end: What ends a turn.
        sentences: The teacher's.
    """

    def __init__(
        self,
        embed: ABCPrompts,
        chat: ChatPrompts,
        said: Tokenizer,
        *,
        image_token: int,
        end: int,
        sentences: Sequence[str],
    ) -> None:
        self._embed, self._chat, self._said = embed, chat, PlainTokenizer(said)
        self._image_token, self._end, self._sentences = image_token, end, sentences

    def __call__(self, batch: WideBatch) -> BaseTokens:
        """Tokenise a batch."""
        count = CELLS * CELLS
        asked: list[tuple[tuple[int, ...], npt.NDArray[np.int64]]] = [
            ((at,), self._embed(f"Instruction: {q}", image_tokens=count)) for at, q, _ in batch.asked
        ]
        if batch.captions:
            asked += [((at,), self._embed("", image_tokens=count)) for at in range(len(batch.pictures))]
        texts = [*batch.candidates, *batch.captions, *(self._sentences[i] for i in batch.sentences)]
        rows = [self._row(group) for group in (*batch.told, *batch.worked) if group]
        return BaseTokens(
            batch, asked, [((), self._embed(t)) for t in texts], packed_conversations(rows, self._image_token)
        )

    def _row(self, group: list[Spoken]) -> _Row:
        """What a group of conversations share, then each one's rest with its answer."""
        asked = [self._chat(s.messages, [CELLS * CELLS] * len(s.pictures)) for s in group]
        seen = [s.pictures for s in group]
        shared, alike = 0, 0
        if len(group) > 1:
            shared = min(len(ids) for ids in asked) - 1
            alike = _alike(seen)
        for ids, pictures in zip(asked, seen, strict=True):
            different = np.flatnonzero(asked[0][:shared] != ids[:shared])
            shared = int(different[0]) if len(different) else shared
            if len(pictures) > alike:
                # Pictures look alike as tokens: what is shared ends before the first that is another's.
                begins_at = np.flatnonzero(ids == self._image_token)[alike * CELLS * CELLS]
                shared = min(shared, int(begins_at))
        branches, weights = [asked[0][:shared]], [np.zeros(0, dtype=np.float32)]
        for ids, spoken in zip(asked, group, strict=True):
            answer = self._said(spoken.answer) if spoken.exact else self._chat.plain(spoken.answer)
            branches.append(np.array([*ids[shared:], *answer, self._end], dtype=np.int64))
            weights.append(np.array([*np.ones(len(answer)), _ENDED], dtype=np.float32))
        common = int((branches[0] == self._image_token).sum()) // (CELLS * CELLS)
        return branches, weights, [*seen[0][:common], *(at for pictures in seen for at in pictures[common:])]


def _alike(seen: Sequence[tuple[int, ...]]) -> int:
    """How many pictures all begin with."""
    count = 0
    for ones in zip(*seen, strict=False):
        if len(set(ones)) > 1:
            break
        count += 1
    return count


def packed_conversations(rows: list[_Row], image_token: int) -> list[Conversations]:
    """Rows of similar length in one batch, so that little is padding."""
    groups: list[list[int]] = []
    lengths = [sum(map(len, branches)) for branches, _, _ in rows]
    for i in sorted(range(len(rows)), key=lambda i: lengths[i]):
        if groups and lengths[i] <= 1.3 * lengths[groups[-1][0]] + 8:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_padded([rows[i] for i in group], max(lengths[i] for i in group), image_token) for group in groups]


def _padded(rows: list[_Row], longest: int, image_token: int) -> Conversations:
    width = -(-longest // 8) * 8
    ids = np.zeros((len(rows), width), dtype=np.int64)
    parts = np.full((len(rows), width), -1, dtype=np.int64)
    targets = np.full((len(rows), width), _IGNORED, dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    positions = np.zeros((3, len(rows), width), dtype=np.int64)
    pictures: list[int] = []
    for n, (branches, counts, seen) in enumerate(rows):
        pictures += seen
        at, after = 0, 0
        for part, (branch, count) in enumerate(zip(branches, counts, strict=True)):
            end = at + len(branch)
            ids[n, at:end], parts[n, at:end] = branch, part
            positions[:, n, at:end], next_ = _positions(branch, after, image_token)
            if part == 0:
                after = next_
            else:
                targets[n, end - 1 - len(count) : end - 1] = branch[-len(count) :]
                weights[n, end - 1 - len(count) : end - 1] = count
            at = end
    tokens, places, part_of, wanted, counted = map(torch.from_numpy, (ids, positions, parts, targets, weights))
    answers = sum(len(counts) - 1 for _, counts, _ in rows)
    return Conversations(tokens, places, part_of, wanted, counted, pictures, answers)


def _positions(ids: npt.NDArray[np.int64], start: int, image_token: int) -> tuple[npt.NDArray[np.int64], int]:
    """3-D positions as Qwen2-VL counts them; pictures are square."""
    found = np.empty((3, len(ids)), dtype=np.int64)
    at = 0
    while at < len(ids):
        if ids[at] == image_token:
            cells = np.arange(CELLS * CELLS)
            found[:, at : at + len(cells)] = start + np.stack([0 * cells, cells // CELLS, cells % CELLS])
            at, start = at + len(cells), start + CELLS
        else:
            found[:, at] = start
            at, start = at + 1, start + 1
    return found, start


class BaseModel(Encoder):
    """All losses' inputs from one forward.

    Args:
        network: The network; its head is the identity and its embeddings may be frozen.
        bf16: Compute in bfloat16.
        kinds: Number of kinds, or the vectors of their names; see `NamedKinds`.
        colours: Number of background colours.
        places: Vectors of the names of `abc_rag.training.data.wide.SIDES` and then `SIZES`; None to learn them.
        teacher: Width of the teacher's vectors.

    Attributes:
        sees: Whether the vision tower learns.
        layer: Computes its layers; see `abc_rag.training.seeing.square_features`.
    """

    def __init__(
        self,
        network: ABCNetwork,
        *,
        bf16: bool,
        kinds: int | torch.Tensor,
        colours: int,
        teacher: int,
        places: torch.Tensor | None = None,
    ) -> None:
        super().__init__(network, bf16=bf16)
        self._bf16_too = bf16
        width = network.backbone.hidden_size
        self.see_kind = nn.Linear(width, kinds + 1) if isinstance(kinds, int) else NamedKinds(kinds)
        self.see_side, self.see_size = place_heads(width, places)
        self.see_box = nn.Linear(width, 3)
        self.see_ground = nn.Linear(width, colours)
        self.sees = True
        self.layer: Callable[..., torch.Tensor] = vision_block
        self.taught = nn.Linear(width, teacher) if teacher else None

    def forward(self, tokens: BaseTokens) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Logits, vectors and boxes by name.

        They are ``lengths``, ``kinds``, ``boxes``, ``sides``, ``sizes``, ``grounds``, ``queries``, ``texts``,
        ``spoken`` and ``taught``.
        """
        backbone: Any = self.network.backbone
        found: dict[str, torch.Tensor] = {}
        with torch.autocast(backbone.device.type, dtype=torch.bfloat16, enabled=self._bf16_too):
            with torch.set_grad_enabled(self.sees and torch.is_grad_enabled()):
                features = square_features(backbone.visual, tokens.batch.pictures, self.layer)
            found["lengths"] = features.float().norm(dim=-1)
            found["kinds"] = self.see_kind(features).float()
            found["boxes"] = self.see_box(features).float()
            found["sides"], found["sizes"] = self.see_side(features).float(), self.see_size(features).float()
            found["grounds"] = self.see_ground(features.mean(dim=1)).float()
            if tokens.asked:
                found["queries"] = self._embed(tokens.asked, list(features), True)
                found["texts"] = self._embed(tokens.texts, (), True)
            if self.taught is not None and tokens.batch.sentences:
                found["taught"] = self.taught(found["texts"][-len(tokens.batch.sentences) :])
            if tokens.spoken:
                logits = [self._speak(one, features) for one in tokens.spoken]
                found["spoken"] = torch.cat(logits)
        found["temperature"] = self.network.temperature.temp.sum()
        return found

    def _speak(self, spoken: Conversations, features: torch.Tensor) -> torch.Tensor:
        """Logits ``(learnt tokens, vocabulary)``."""
        backbone: Any = self.network.backbone
        embeds = backbone.language_model.embed_tokens(spoken.ids)
        if spoken.pictures:
            seen = features[spoken.pictures].flatten(0, 1)
            embeds = with_features(embeds, seen, spoken.ids == backbone.image_token_id)
        part = spoken.parts
        # A branch sees what is shared and itself.
        allowed = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
        allowed = (allowed & (part[:, None, :] >= 0) & torch.ones_like(allowed).tril()) | torch.eye(
            part.shape[1], dtype=torch.bool
        )
        mask = torch.zeros(allowed.shape, dtype=embeds.dtype).masked_fill(~allowed, torch.finfo(embeds.dtype).min)
        states = backbone.language_model(
            inputs_embeds=embeds,
            position_ids=spoken.positions,
            attention_mask={"full_attention": mask[:, None]},
            use_cache=False,
        ).last_hidden_state
        learnt = states[spoken.targets != _IGNORED]
        logits: torch.Tensor = nn.functional.linear(learnt, backbone.language_model.embed_tokens.weight)
        return logits.float()


def spoken_loss(
    found: dict[str, torch.Tensor], spoken: Sequence[Conversations]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Answers, word by word: the mean over answers of what their words lose together."""
    learnt = [one.targets != _IGNORED for one in spoken]
    targets = torch.cat([one.targets[here] for one, here in zip(spoken, learnt, strict=True)])
    weights = torch.cat([one.weights[here] for one, here in zip(spoken, learnt, strict=True)])
    lost = nn.functional.cross_entropy(found["spoken"], targets, reduction="none")
    right = found["spoken"].argmax(-1) == targets
    loss = (lost * weights).sum() / sum(one.answers for one in spoken)
    return loss, {"spoken": loss.item(), "words": (right * weights).sum().item() / weights.sum().item()}


def embedded_loss(found: dict[str, torch.Tensor], wide: WideBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Questions against answers, and pictures against captions in both directions."""
    assert wide.excluded is not None
    count = len(found["queries"]) - len(wide.asked)
    instructed, images = torch.split(found["queries"], [len(wide.asked), count])
    texts = found["texts"][: len(wide.candidates) + len(wide.captions)]
    answers, captions = torch.split(texts, [len(wide.candidates), len(wide.captions)])
    targets = torch.tensor([target for _, _, target in wide.asked])
    own = torch.arange(count)
    t = found["temperature"].clamp(min=0.02)
    to_answer, right = contrastive_loss(
        instructed, answers, targets, t, smoothing=0.0, excluded=torch.from_numpy(wide.excluded)
    )
    told = {"answers": to_answer.item(), "accuracy": right.item(), "temperature": found["temperature"].item()}
    if wide.said is None:
        return to_answer, told
    said = torch.from_numpy(wide.said)
    to_text, known = contrastive_loss(images, captions, own, t, smoothing=0.0, excluded=said)
    to_image, _ = contrastive_loss(captions[:count], images, own, t, smoothing=0.0, excluded=said[:, :count].T)
    return to_answer + 0.25 * (to_text + to_image), {**told, "caption_accuracy": known.item()}

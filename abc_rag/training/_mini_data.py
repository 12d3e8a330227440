"""What abc-mini is trained on: batches of scenes with questions and captions, drawn from a seed."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from abc_rag.models._qwen2_vl import Patches, patchify, resize_as_pillow_12
from abc_rag.scenes import (
    BACKGROUNDS,
    KINDS,
    Description,
    Scene,
    caption_edits,
    captions,
    describe,
    phrases,
    questions,
    random_scene,
    render,
)
from abc_rag.training._words import mention, mention_background

__all__ = ["IMAGE_TOKENS", "Batch", "MiniConfig", "batches", "make_batch", "make_caption_batch"]

_SIDE = 84
IMAGE_TOKENS = (_SIDE // 28) ** 2


@dataclass(frozen=True)
class MiniConfig:
    """What a run of `train_mini` needs to be repeated."""

    seed: int = 0
    width: int = 192
    text_depth: int = 3
    text_hidden: int = 384
    vision_width: int = 128
    vision_depth: int = 3
    vocab_size: int = 1536
    head_hidden: int = 768
    pictures: int = 64
    questions: int = 4
    negatives: int = 2
    base_steps: int = 5000
    pretrain_steps: int = 500
    instruct_steps: int = 500
    one_object: float = 0.1
    base_lr: float = 5e-3
    lora_lr: float = 1e-3
    lora_rank: int = 16
    threads: int = 2
    bf16: bool = True


@dataclass(frozen=True)
class Batch:
    """Pictures, what is asked of each, and what describes each.

    Attributes:
        pictures: One `Patches` a picture.
        asked: One (picture's position, instruction, candidate's position) per question.
        candidates: A text for every phrase of the world.
        captions: One caption a picture, then ``negatives`` hard negatives of each picture in turn.
        excluded: bool ``(pictures, captions)``: captions that are true of a picture without being its own.
    """

    pictures: list[Patches]
    asked: list[tuple[int, str, int]]
    candidates: list[str]
    captions: list[str]
    excluded: torch.Tensor | None = None


_PHRASES = phrases()
_POSITION = {p: i for i, p in enumerate(_PHRASES)}


def scene_patches(scene: Scene) -> Patches:
    """Draw at twice the size and shrink as inference does, so that both see the same kind of pixels."""
    return patchify(resize_as_pillow_12(render(scene, 2 * _SIDE), _SIDE, _SIDE), patch=14, merge=2)


def make_batch(rng: random.Random, config: MiniConfig, *, singles: float, negatives: int) -> Batch:
    """Draw one batch; ``singles`` is the share of pictures with one object."""
    scenes = [random_scene(rng, objects=1 if rng.random() < singles else 2) for _ in range(config.pictures)]
    asked = []
    for position, scene in enumerate(scenes):
        found = questions(scene, rng)
        while len(found) < config.questions:
            found += questions(scene, rng)
        # The background is one aspect of many: asked of every picture, it would crowd out the objects.
        found = [*rng.sample(found[1:], config.questions - 1), rng.choice(found)]
        asked += [(position, q.instruction, _POSITION[q.answer]) for q in found]
    candidates = [mention(k, rng) for k in KINDS] + [mention_background(c, rng) for c in BACKGROUNDS]
    texts = [captions(s, rng) for s in scenes]
    for scene in scenes:
        edits = list(caption_edits(scene, rng))[:negatives]
        texts += [captions(e, rng) for e in edits]
    return Batch([scene_patches(s) for s in scenes], asked, candidates, texts)


def make_caption_batch(rng: random.Random, config: MiniConfig, *, singles: float, negatives: int) -> Batch:
    """Pictures with captions, and the captions of scenes that differ in one respect.

    Nearly half of the captions say everything, a third say part, and the rest are passages about one of the objects:
    pictures are found by all three. What is true of another picture of the batch is excluded there.
    """
    scenes = [random_scene(rng, objects=1 if rng.random() < singles else 2) for _ in range(config.pictures)]
    own, hard = [], []
    for scene in scenes:
        say = rng.choices((_fully, describe, _about_one), weights=(45, 35, 20))[0]
        own.append(say(scene, rng))
        found = [say(edited, rng) for edited in caption_edits(scene, rng)]
        # An edit may have left alone all that the text mentions: then it is no negative.
        hard += [d for d in found if not d.fits(scene)][:negatives]
    descriptions = own + hard
    excluded = torch.tensor([[d.fits(s) for d in descriptions] for s in scenes])
    excluded.fill_diagonal_(False)
    return Batch([scene_patches(s) for s in scenes], [], [], [d.text for d in descriptions], excluded)


def _fully(scene: Scene, rng: random.Random) -> Description:
    objects = tuple((o.kind, o.size, o.side) for o in scene.objects)
    return Description(captions(scene, rng), objects, scene.background)


def _about_one(scene: Scene, rng: random.Random) -> Description:
    kind = rng.choice(scene.objects).kind
    return Description(mention(kind, rng), ((kind, None, None),))


def batches(
    config: MiniConfig,
    *,
    steps: int,
    seed: int,
    singles: Callable[[int], float],
    negatives: int,
    make: Callable[..., Batch] = make_batch,
) -> Iterator[Batch]:
    """Batches made one ahead in a thread, the same ones for the same seed."""
    rng = random.Random(seed)
    ready: queue.Queue[Batch] = queue.Queue(maxsize=4)
    stop = threading.Event()

    def produce() -> None:
        for step in range(steps):
            batch = make(rng, config, singles=singles(step), negatives=negatives)
            while not stop.is_set():
                try:
                    ready.put(batch, timeout=0.5)
                    break
                except queue.Full:
                    continue
            if stop.is_set():
                return

    threading.Thread(target=produce, daemon=True).start()
    try:
        for _ in range(steps):
            yield ready.get()
    finally:
        stop.set()

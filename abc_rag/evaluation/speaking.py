"""How well abc-mini's base speaks: answers about a picture and from sources, refusals, judgements."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from abc_rag.answering.generator import Generator
from abc_rag.answering.judge import GenerativeJudge
from abc_rag.errors import InputError
from abc_rag.evaluation.metrics import share
from abc_rag.evaluation.results import Results, ResultTable, settings
from abc_rag.models.tasks import JUDGEMENTS, REFUSAL, Source, answering, judging
from abc_rag.scenes.asking import asked
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.searching import searched
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene, as_wide, draw_wide
from abc_rag.scenes.world import KINDS, held_out_scenes, phrase
from abc_rag.types import Image, Message, Text

__all__ = ["evaluate_speaking"]

_SEED = 20_265
_SIZE = 336


_SHOWN = {
    "answered": "picture + question -> answer, exact words",
    "cited": "from sources: answer and citation",
    "refused": "absent things said to be absent",
    "judged": "judged rightly, yes or no (chance: 50)",
}


def evaluate_speaking(generator: Generator, *, scenes: int = 100) -> Results:
    """Ask about held-out scenes of the package's own world.

    Args:
        generator: Such as ``load_generator("abc-mini")``.
        scenes: Number of scenes, and so of questions of each measure.

    Returns:
        Shares in wordings of forms that training never uses. ``answered``: picture and question give the exact words.
        ``cited``: with two to three pictures as sources, answer and citation are both right. ``refused``: things that
        are in none of the sources are said to be absent. ``judged``: yes or no, whether a picture is what a search asks
        for; half of them are. A model that answers from few sources at once (`abc_rag.models.tasks.TaskFacts`) judges
        them first and reads the likeliest, as it does for `abc_rag.Retriever.answer`.

    Raises:
        InputError: There are fewer than two scenes.
    """
    if scenes < 2:
        raise InputError(f"scenes must be at least 2, not {scenes}")
    rng = random.Random(_SEED)
    drawn = [as_wide(scene) for scene in held_out_scenes(scenes, seed=_SEED)]
    kinds = load_kinds()
    pictures = [draw_wide(scene, kinds, _SIZE) for scene in drawn]

    def question(scene: WideScene) -> tuple[str, str]:
        one = rng.choice(asked(scene, rng, form=True, extra=False))
        return typed(one.instruction, rng), one.answer

    asks: list[tuple[str, list[Message], str]] = []
    right: dict[str, list[bool]] = {measure: [] for measure in _SHOWN}

    def from_sources(measure: str, words: str, sources: Sequence[Source], at: int | None, answer: str) -> None:
        given = _read(generator, words, sources)
        if not given or (at is not None and at not in given):
            right[measure].append(at is None)
            return
        wanted = answer if at is None else f"{answer} [{given.index(at) + 1}]"
        asks.append((measure, answering(words, [sources[i] for i in given]), wanted))

    for at, (scene, picture) in enumerate(zip(drawn, pictures, strict=True)):
        words, answer = question(scene)
        asks.append(("answered", [Message("user", [Image(picture), Text(words)])], answer))
        order = [at, *rng.sample([i for i in range(scenes) if i != at], min(2, scenes - 1))]
        rng.shuffle(order)
        sources = [Source(pictures[i]) for i in order]
        words, answer = _named(scene, [drawn[i] for i in order if i != at], rng)
        if answer:
            from_sources("cited", words, sources, order.index(at), answer)
        absent = rng.choice([k for k in KINDS if all(k != o.kind for i in order for o in drawn[i].objects)])
        about = rng.choice(
            ("what is next to the {}?", "is there {a}, and what is beside it?", "which side is the {} on?")
        )
        from_sources("refused", about.format(absent, a=phrase(absent)), sources, None, REFUSAL)
        search = searched(scene, rng, edited=at % 2 == 1)
        chances = generator.score(judging(typed(search.text, rng), Source(picture)), JUDGEMENTS)
        half = len(chances) // 2
        right["judged"].append((max(chances[:half]) > max(chances[half:])) == search.fits(scene))
    said = generator.generate_all([messages for _, messages, _ in asks], max_new_tokens=24)
    for (measure, _, wanted), one in zip(asks, said, strict=True):
        right[measure].append(_plain(one.text) == _plain(wanted))
    metrics = {measure: share(found or [False]) for measure, found in right.items()}
    return Results(
        benchmark="speaking",
        model=generator.model,
        metrics=metrics,
        settings=settings(getattr(generator, "embedder", None), scenes=scenes),
        tables=[
            ResultTable(
                f"speaking: {scenes} held-out scenes",
                ["measure", "%"],
                [[_SHOWN[measure], 100 * value] for measure, value in metrics.items()],
            )
        ],
    )


def _read(generator: Generator, question: str, sources: Sequence[Source]) -> list[int]:
    """Which sources `abc_rag.Retriever.answer` would give the model; none where none is likely enough."""
    facts = generator.tasks
    if facts.sources is None:
        return list(range(len(sources)))
    chances = [one if isinstance(one, float) else 0.0 for one in GenerativeJudge(generator).judge(question, sources)]
    likely = sorted((i for i, one in enumerate(chances) if one >= facts.min_confidence), key=lambda i: -chances[i])
    return likely[: facts.sources]


def _named(scene: WideScene, others: Sequence[WideScene], rng: random.Random) -> tuple[str, str]:
    """A question that names the picture it means by what no other source shows."""
    there = {o.kind for other in others for o in other.objects}
    own = [o.kind for o in scene.objects if o.kind not in there]
    if not own:
        return "", ""
    kind = rng.choice(own)
    one = rng.choice(asked(scene, rng, form=True, extra=False))
    return f"in the picture with {phrase(kind)}, {one.instruction}", one.answer


def _plain(text: str) -> str:
    """Without regard to case, spaces and full stops."""
    return re.sub(r"\s+", " ", text.lower().replace(".", " ")).strip()

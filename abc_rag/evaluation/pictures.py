"""How well abc-mini sees: kinds and styles that training used and never used, clean and worn pictures."""

from __future__ import annotations

import random

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.evaluation.results import Results, ResultTable, settings
from abc_rag.evaluation.wordings import by_aspect, share_right
from abc_rag.scenes.asking import asked
from abc_rag.scenes.kinds import UNSEEN_STYLE, Kinds
from abc_rag.scenes.typing import typed
from abc_rag.scenes.wide import WideScene, draw_scene, draw_wide, wear
from abc_rag.scenes.world import BACKGROUNDS, background_phrase, phrase

__all__ = ["evaluate_pictures"]

_SEED = 20_264
_SIZE = 336


def evaluate_pictures(embedder: Embedder, kinds: Kinds, *, scenes: int = 300, progress: bool = False) -> Results:
    """Ask about scenes of one to three objects, in wordings that training uses, against the phrases of all kinds.

    Args:
        embedder: The model.
        kinds: From an archive; see `abc_rag.scenes.kinds`.
        scenes: Scenes of each set.
        progress: Show progress bars.

    Returns:
        Shares of right answers of five sets: ``"seen styles"``, the same ``"worn"``, ``"unseen style"``, that
        ``"unseen style, worn"``, and ``"unseen kinds"`` in styles that were trained on. ``details["sets"]`` has them
        over ``"all"`` questions and by aspect.

    Raises:
        InputError: There are no kinds or no drawings that training leaves out.
    """
    drawn = [kind for kind in kinds.seen if kinds.has(kind, UNSEEN_STYLE)]
    if len(drawn) < 3 or len(kinds.unseen) < 3:
        raise InputError("these kinds have none that training leaves out; give an archive by scripts/draw_kinds.py")
    answers = [*map(phrase, kinds.categories), *map(background_phrase, BACKGROUNDS)]

    def ask(among: list[str], style: str | None, *, worn: bool = False) -> dict[str, float]:
        rng = random.Random(_SEED)
        found: list[WideScene] = []
        while len(found) < scenes:
            count = rng.choice((1, 2, 2, 3))
            # Pairs that are kept for evaluation where there are two; of three, hardly any are kept altogether.
            found.append(draw_scene(kinds, rng, objects=count, among=among, style=style, held_out=count == 2))
        pictures = [draw_wide(scene, kinds, _SIZE) for scene in found]
        if worn:
            pictures = [wear(picture, rng) for picture in pictures]
        questions = [
            (at, q.aspect, typed(q.instruction, rng), q.answer)
            for at, scene in enumerate(found)
            for q in asked(scene, rng, extra=False)
        ]
        return by_aspect(questions, share_right(embedder, pictures, answers, questions, progress=progress))

    seen = list(kinds.seen)
    sets = {
        "seen styles": ask(seen, None),
        "worn": ask(seen, None, worn=True),
        "unseen style": ask(drawn, UNSEEN_STYLE),
        "unseen style, worn": ask(drawn, UNSEEN_STYLE, worn=True),
        "unseen kinds": ask([k for k in kinds.unseen if kinds.styles(k)], None),
    }
    metrics = {name: shares["all"] for name, shares in sets.items()}
    title = f"pictures: {scenes} scenes a set, {len(answers)} candidate phrases"
    columns = ["picture + instruction -> phrase", "%"]
    return Results(
        benchmark="pictures",
        model=str(embedder.fingerprint),
        metrics=metrics,
        settings=settings(embedder, scenes=scenes) | {"counts": {"candidates": len(answers)}},
        tables=[ResultTable(title, columns, [[name, 100 * share] for name, share in metrics.items()])],
        details={"sets": sets},
    )

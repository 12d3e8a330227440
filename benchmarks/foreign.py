"""What abc-mini understands of short questions that were written before its training's grammar was read.

    python -m benchmarks.foreign --scenes 100

The questions are in ``foreign.txt``, by aspect; every picture is asked each of its aspects in ``--each`` of them. Never
train on them, and change the grammar by what this command prints only, not by what the file says.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from abc_rag import load_embedder
from abc_rag.evaluation.wordings import by_aspect, share_right
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import CATEGORY_OF, held_out_scenes, phrase, phrases
from benchmarks._harness import finish

__all__ = ["main", "wordings"]

_SEED = 20_263


def wordings() -> dict[str, list[str]]:
    """The questions by aspect; ``{other}`` is the other object, ``{category}`` a category."""
    found: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("foreign.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = questions_of = []
        elif line and not line.startswith("#"):
            questions_of.append(line)
    return found


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200, help="number of held-out scenes, at most 1,000")
    parser.add_argument("--each", type=int, default=2, help="questions for each aspect of a scene")
    parser.add_argument("--model", default="abc-mini")
    parser.add_argument("--json", type=Path, default=None, help="write the results here; standard output if not given")
    options = parser.parse_args()
    rng, known = random.Random(_SEED), wordings()
    scenes = held_out_scenes(options.scenes, seed=_SEED)
    asked = []
    for at, scene in enumerate(scenes):
        for question in questions(scene, rng):
            (kind,) = [o.kind for o in scene.objects if phrase(o.kind) == question.answer] or [scene.objects[0].kind]
            (other,) = [o.kind for o in scene.objects if o.kind != kind]
            for words in rng.sample(known[question.aspect], options.each):
                said = words.format(other=other, category=CATEGORY_OF[kind])
                asked.append((at, question.aspect, said, question.answer))
    right = share_right(load_embedder(options.model), [render(s) for s in scenes], phrases(), asked)
    wrong = sorted({(aspect, words) for (_, aspect, words, _), one in zip(asked, right, strict=True) if not one})
    finish("foreign", options, {"questions": len(asked), "right": by_aspect(asked, right), "wrong": wrong[:400]})


if __name__ == "__main__":
    main()

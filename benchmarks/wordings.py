"""What the rules for questions are worth in wordings that they were not written for.

    python -m benchmarks.wordings --scenes 400

The pictures and the right answers are those of ``abc-rag evaluate twins``; only the questions are worded anew, in turn
by the wordings below. These were written as people talk, without taking any from the rules' patterns, from their tests
or from abc-mini's training. Change the rules by what this command prints, and never add its wordings to them.

The paths: ``as asked`` embeds the question and takes no second look; ``question as instruction`` looks at the
candidates again under the question itself; ``rules and second look`` is `Retriever`'s default.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from abc_rag import ChromaStore, load_embedder
from abc_rag.evaluation.twins import AskedScene, ask_all, twin_scenes
from abc_rag.ingest import index_images
from abc_rag.scenes.drawing import render
from abc_rag.search.rewriting import AsAsked, Rewriter, RuleRewriter
from benchmarks._harness import finish

__all__ = ["WORDINGS", "main", "reworded"]

# {a}: "a pig", {kind}: "pig", {side}: left, right, top or bottom; {er}: bigger or smaller, {est}: biggest or smallest;
# {category}: "animal", {colour}: "blue".
WORDINGS: Mapping[str, Sequence[str]] = {
    "beside": (
        "the one where the {kind} sits over on the {side}",
        "photo, {kind} on the {side}",
        "got one with the {kind} {side}?",
        "{kind} {side}",
        "{a} {side} side",
        "the {kind} is to the {side} of the picture",
        "it was the picture that had {a} over to the {side}, I think",
        "which one has got its {kind} on the {side}?",
        "{a} in the {side} half, please",
        "picture with {a} furthest to the {side}",
        "the {side}most object is {a}",
        "I'm after the image whose {side} object is {a}",
        "do we have something where {a} can be seen {side}",
        "the {side} thing is {a}",
        "in the {side} half there should be {a}",
        "everything that has {a} on the {side}-hand side",
        "can't find it... there was {a} standing at the {side}",
        "{a}, placed {side}",
    ),
    "above": (
        "the one where the {kind} is right up against the {side}",
        "got one with the {kind} at the very {side}?",
        "{kind} {side}",
        "{side}: {a}",
        "picture where the {side} object is {a}",
        "it was the picture that had {a} towards the {side}, I think",
        "the {side}most object is {a}",
        "two things above each other, with the {kind} at the {side}",
        "can't find it... {a} was near the {side} edge",
        "which has {a} at its {side}?",
        "{a} at the {side} end",
        "the {side} thing should be {a}",
    ),
    "size": (
        "the one where the {kind} is the {er} of the two",
        "{kind} {er} than the other thing",
        "got one with {a} that is {er} compared with whatever else is there?",
        "it had {a} in it, the {er} thing there",
        "of the two objects I want the {kind} to be {er}",
        "in that shot the {kind} was the {est} thing around",
        "{a} should be the {er} one",
        "image with the {er} {kind}",
        "two things, and the {kind} is {er}",
        "the {kind} looks {er} than what is next to it",
        "{er} {kind} please",
        "which photo shows {a} {er} than the rest?",
        "{a}, the {er} of both",
        "the {er} object has to be {a}",
        "I'm after a drawing whose {est} object is {a}",
        "{a} as the {est} thing",
        "{er} object: {kind}",
        "wasn't there one where {a} is drawn {er}?",
    ),
    "category": (
        "the {category} should be {a}",
        "{category}: {kind}",
        "the one whose {category} is {a}",
        "I only remember that the {category} was {a}",
        "got something with {a} as the {category}?",
        "{a} as {category}",
        "picture with one {category}, {a}",
        "{a} is the only {category} in there",
        "anything with a {category}, namely {a}",
        "which photo has {a} for its {category}?",
        "a shot with {a}, no other {category}",
        "where the {category} is clearly {a}",
    ),
    "background": (
        "everything behind the objects is {colour}",
        "{colour} backdrop",
        "the one that is all {colour} behind",
        "I remember it being {colour} overall",
        "got any on {colour}?",
        "it was shot against something {colour}",
        "{colour} all around the two things",
        "things standing in front of a {colour} wall",
        "we want {colour} for the background",
        "what's behind them should be {colour}",
        "objects on a {colour} surface",
        "the {colour} ones",
        "background in {colour}",
        "with {colour} filling the rest of the frame",
        "make it one whose backdrop is {colour}",
        "can't recall what was in it, just that it was {colour} in the back",
        "pictures on {colour} ground",
        "two objects, {colour} everywhere else",
    ),
}


def reworded(scenes: int) -> list[AskedScene]:
    """The questions of ``abc-rag evaluate twins`` in these wordings, each of them about as often as the others."""
    asked = twin_scenes(scenes)
    left: dict[str, list[str]] = {group: [] for group in WORDINGS}
    rng = random.Random(0)
    worded = []
    for one in asked:
        group = one.aspect
        if group == "side":
            group = "beside" if one.told["side"] in ("left", "right") else "above"
        if not left[group]:
            left[group] = rng.sample(WORDINGS[group], len(WORDINGS[group]))
        worded.append(replace(one, question=left[group].pop().format(**one.told)))
    return worded


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=400, help="number of pictures and questions, even, at most 1,000")
    parser.add_argument("--candidates", type=int, default=50, help="pictures that get a second look")
    parser.add_argument("--model", default="abc-mini")
    parser.add_argument("--json", type=Path, default=None, help="write the results here; standard output if not given")
    options = parser.parse_args()
    embedder = load_embedder(options.model)
    asked = reworded(options.scenes)
    ways: list[tuple[str, Rewriter, bool | Literal["auto"]]] = [
        ("as asked", AsAsked(), False),
        ("question as instruction", AsAsked(), True),
        ("rules", RuleRewriter(), False),
        ("rules and second look", RuleRewriter(), "auto"),
    ]
    with tempfile.TemporaryDirectory(prefix="abc-rag-wordings-") as scratch:
        files = [Path(scratch, f"{number:04}.png") for number in range(len(asked))]
        for file, one in zip(files, asked, strict=True):
            render(one.scene, 168).save(file)
        with ChromaStore(path=Path(scratch, "store"), fingerprint=embedder.fingerprint) as store:
            index_images(files, embedder, store, ids=[f.stem for f in files])
            found = [
                ask_all(name, asked, embedder, store, rewriter, rerank, candidates=options.candidates)
                for name, rewriter, rerank in ways
            ]
    finish("wordings", options, {"paths": [asdict(path) for path in found]})


if __name__ == "__main__":
    main()

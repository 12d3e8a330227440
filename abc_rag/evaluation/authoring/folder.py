"""The files of a benchmark that is being built, and what of them goes into it.

::

    OUT/answers.jsonl     the chat model's answers, one line per picture, written at once
    OUT/review.jsonl      the reviewer's decisions, one per line; the last one counts
    OUT/build.json        settings, pictures, what was left out and why, statistics
    OUT/ctrlbench.jsonl   the benchmark
    OUT/vectors/          vectors of phrases, if an embedder compares them
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from abc_rag.errors import InputError
from abc_rag.evaluation.authoring.pairs import Pair, normalised, pair_problem
from abc_rag.evaluation.authoring.scan import Picture
from abc_rag.files import append, write_json
from abc_rag.training.data.lines import read_jsonl
from abc_rag.training.data.rows import BadRows

__all__ = ["Answer", "BuildFolder", "Candidate", "Decision", "Lines", "Reviewed", "Verdict"]

Verdict = Literal["accept", "reject"]
_FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """The chat model's answer for a picture: the usable pairs, and the number of others by problem."""

    pairs: Sequence[Pair]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Decision:
    """The reviewer's decision about a pair: the verdict, and the pair as edited."""

    verdict: Verdict
    pair: Pair


@dataclass(frozen=True)
class Candidate:
    """A pair on its way into the benchmark.

    Attributes:
        id: Identifies the model's wording for this picture.
        original: The pair as the model wrote it.
        pair: The pair as edited.
        verdict: The reviewer's verdict, if any.
        clash: Why the pair is left out although nobody rejected it: ``"repeated phrase"``; empty if it is not.
    """

    id: str
    original: Pair
    pair: Pair
    verdict: Verdict | None = None
    clash: str = ""


@dataclass(frozen=True)
class Reviewed:
    """Every answered picture with its pairs, and the number of unusable pairs by problem."""

    pictures: Sequence[tuple[Picture, Sequence[Candidate]]]
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def begun(self) -> bool:
        """Whether the reviewer has decided anything."""
        return any(one.verdict is not None for _, pairs in self.pictures for one in pairs)

    def chosen(self, least: int) -> list[tuple[Picture, list[Pair]]]:
        """The pairs of the benchmark: the accepted ones, or all of them before a review.

        Args:
            least: Pictures with fewer pairs are left out.
        """
        wanted = ("accept",) if self.begun else (None,)
        chosen = [
            (picture, [one.pair for one in pairs if not one.clash and one.verdict in wanted])
            for picture, pairs in self.pictures
        ]
        return [(picture, pairs) for picture, pairs in chosen if len(pairs) >= least]

    def counts(self) -> dict[str, int]:
        """Number of pairs by verdict; ``edited`` ones are among the accepted."""
        ones = [one for _, pairs in self.pictures for one in pairs]
        return {
            "accepted": sum(one.verdict == "accept" for one in ones),
            "rejected": sum(one.verdict == "reject" for one in ones),
            "undecided": sum(one.verdict is None and not one.clash for one in ones),
            "edited": sum(one.verdict == "accept" and one.pair != one.original for one in ones),
        }

    def left_out(self) -> Counter[str]:
        """Number of pairs left out although nobody rejected them, by reason."""
        clashes = (one.clash for _, pairs in self.pictures for one in pairs if one.verdict != "reject")
        return Counter(clash for clash in clashes if clash) + self.dropped


class Lines:
    """Appends JSON lines to a file; each is on the disk before the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def append(self, value: Mapping[str, Any]) -> None:
        """Add a line."""
        data = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            # The rest of a line that a killed run left must not spoil the next one.
            append(self._path, data if self._ends_whole() else b"\n" + data)

    def _ends_whole(self) -> bool:
        try:
            with self._path.open("rb") as handle:
                if handle.seek(0, os.SEEK_END):
                    handle.seek(-1, os.SEEK_END)
                    return handle.read(1) == b"\n"
        except FileNotFoundError:
            pass
        return True


@dataclass
class BuildFolder:
    """The folder of a benchmark that is being built."""

    out: Path
    answers: Lines = field(init=False)
    review: Lines = field(init=False)

    def __post_init__(self) -> None:
        self.answers = Lines(self.out / "answers.jsonl")
        self.review = Lines(self.out / "review.jsonl")

    @property
    def benchmark(self) -> Path:
        """The finished file."""
        return self.out / "ctrlbench.jsonl"

    def read_build(self) -> dict[str, Any]:
        """The record of the last run.

        Raises:
            InputError: There is none, or it is unreadable.
        """
        path = self.out / "build.json"
        try:
            build = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; build first: abc-rag evaluate ctrlbench-build") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); delete it and build again") from error
        if not isinstance(build, dict) or build.get("format") != _FORMAT:
            raise InputError(f"{path}: written by another version of abc-rag; delete it and build again")
        return build

    def write_build(self, build: Mapping[str, Any]) -> None:
        """Write the record."""
        write_json(self.out / "build.json", {"format": _FORMAT, **build})

    def read_answers(self, model: str, prompt: str) -> dict[str, Answer]:
        """Hash of a picture -> the answer of one model to one prompt."""
        found: dict[str, Answer] = {}
        for row in self._rows("answers.jsonl"):
            if row.get("model") != model or row.get("prompt") != prompt:
                continue
            pairs = [_pair_of(entry) for entry in row.get("pairs") or ()]
            sha256 = row.get("sha256")
            if isinstance(sha256, str) and pairs and None not in pairs:
                dropped = row.get("dropped")
                usable = [pair for pair in pairs if pair is not None]
                found[sha256] = Answer(usable, dropped if isinstance(dropped, dict) else {})
        return found

    def read_decisions(self) -> dict[str, Decision]:
        """Id of a pair -> the last decision about it."""
        found: dict[str, Decision] = {}
        for row in self._rows("review.jsonl"):
            id_, verdict, pair = row.get("pair"), row.get("decision"), _pair_of(row)
            if not isinstance(id_, str):
                continue
            if verdict == "undo":
                found.pop(id_, None)
            elif verdict in ("accept", "reject") and pair is not None and pair_problem(pair) is None:
                found[id_] = Decision(verdict, pair)
        return found

    def reviewed(self, build: Mapping[str, Any]) -> Reviewed:
        """Combine answers and decisions.

        Equal captions cannot be told apart, so a phrase is used once: accepted pairs come first, then the order of the
        pictures.
        """
        answers = self.read_answers(build["settings"]["model"], build["settings"]["prompt_version"])
        decisions = self.read_decisions()
        alike, blind = (frozenset(build.get(name, ())) for name in ("near_phrases", "answered_by_instruction"))
        pictures = [Picture(row["image"], row["sha256"]) for row in build["pictures"]]
        found = {p: [_candidate(p, pair, decisions) for pair in answers[p.sha256].pairs] for p in pictures
                 if p.sha256 in answers}  # fmt: skip
        dropped: Counter[str] = Counter()
        for picture in found:
            dropped.update({f"unusable pair: {kind}": n for kind, n in answers[picture.sha256].dropped.items()})
        phrases: set[str] = set()
        instructions: set[tuple[str, str]] = set()
        clashes: dict[str, str] = {}
        for wanted in ("accept", None):
            for picture, candidates in found.items():
                for one in candidates:
                    if one.verdict != wanted:
                        continue
                    phrase, instruction = (
                        normalised(one.pair.phrase),
                        (picture.sha256, normalised(one.pair.instruction)),
                    )
                    if wanted is None and one.id in alike:
                        clashes[one.id] = "phrase nearly like another of its picture"
                    elif wanted is None and one.id in blind:
                        clashes[one.id] = "answered by the instruction without the picture"
                    elif phrase in phrases:
                        clashes[one.id] = "phrase that another pair has"
                    elif instruction in instructions:
                        clashes[one.id] = "instruction that another pair of its picture has"
                    else:
                        phrases.add(phrase)
                        instructions.add(instruction)
        return Reviewed(
            [
                (p, [Candidate(c.id, c.original, c.pair, c.verdict, clashes.get(c.id, "")) for c in candidates])
                for p, candidates in found.items()
            ],
            dropped,
        )

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.out / name
        if not path.exists():
            return []
        # Lines that a kill cut short need no warning: they are asked or decided again.
        return [row for _, row in read_jsonl(path, BadRows(name, limit=1_000_000))]


def _candidate(picture: Picture, pair: Pair, decisions: Mapping[str, Decision]) -> Candidate:
    id_ = pair.id_for(picture.sha256)
    decision = decisions.get(id_)
    if decision is None:
        return Candidate(id_, pair, pair)
    return Candidate(id_, pair, decision.pair, decision.verdict)


def _pair_of(row: object) -> Pair | None:
    if not isinstance(row, dict):
        return None
    instruction, phrase = row.get("instruction"), row.get("phrase")
    return Pair(instruction, phrase) if isinstance(instruction, str) and isinstance(phrase, str) else None

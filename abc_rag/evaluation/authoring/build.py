"""Builds your own CtrlBench: a chat model writes pairs of instruction and caption, a person reviews them.

CtrlBench (arXiv 2503.00329) tests whether the instruction decides which aspect of a picture is embedded. Each picture
has about five pairs of an instruction and a caption, and all captions are candidates. A model that ignores the
instruction is right for one pair per picture at most. The steps::

    pictures of a folder     one of each group of duplicates
    -> chat model            writes pairs about different aspects; bad answers are asked for again
    -> duplicates            a phrase is used once, over all pictures
    -> blind check           with an embedder: pairs that the instruction answers without the picture are left out
    -> review                accept, reject or edit each pair in a web page
    -> OUT/ctrlbench.jsonl   {"image": ..., "pairs": [{"instruction": ..., "phrase": ...}, ...]}

Every answer and every decision is saved at once; a further run asks only for what is missing. Pictures are sent to the
chat model as resized JPEG files without metadata; nothing else leaves this machine.

Example:
    >>> from abc_rag.evaluation.authoring import OpenAIDescriber, build_ctrlbench
    >>> model = OpenAIDescriber("qwen2.5-vl", "http://127.0.0.1:8000/v1")
    >>> report = build_ctrlbench("photos", "bench", model)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout

from abc_rag import __version__
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import InputError
from abc_rag.evaluation.authoring.ask import LEAST_PAIRS, Asking
from abc_rag.evaluation.authoring.chat import Describer
from abc_rag.evaluation.authoring.dedupe import BITS
from abc_rag.evaluation.authoring.folder import BuildFolder, Reviewed
from abc_rag.evaluation.authoring.pairs import PAIRS_SCHEMA, Pair, prompt_for
from abc_rag.evaluation.authoring.scan import Picture, Scan, scan
from abc_rag.evaluation.metrics import TIE
from abc_rag.files import refused_as, write
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.training.data.rows import BadRows

__all__ = ["BuildReport", "build_ctrlbench", "write_ctrlbench"]

_MOST_PAIRS = 20
_MOST_THREADS = 64


@dataclass(frozen=True)
class BuildReport:
    """What is in a benchmark, and what was left out.

    Attributes:
        file: ``OUT/ctrlbench.jsonl``.
        model: The chat model that wrote the pairs.
        pictures: Pictures in the file.
        pairs: Pairs in the file.
        reviewed: Whether a person accepted the pairs; False before a review.
        review: Number of pairs accepted, rejected, undecided, and edited (which are among the accepted).
        ceiling: Highest R@1, in [0, 1], without looking at the instruction: pictures / pairs. 0 if there are no pairs.
        pairs_per_picture: Number of pairs -> number of pictures with that number.
        distinct_instructions: Number of distinct instructions; all phrases are distinct.
        left_out: Number of answered pairs, or pictures, that are not in the file, by reason.
        run: Counts of the last run: files ``looked_at``; pictures left out as ``identical`` or ``similar``; pictures
            with an earlier answer (``kept``), ``asked`` about and ``answered``; ``requests``.
        bad: Pictures that were unusable or got no answer; see `BadRows.as_dict`.
    """

    file: Path
    model: str
    pictures: int
    pairs: int
    reviewed: bool
    review: Mapping[str, int]
    ceiling: float
    pairs_per_picture: Mapping[int, int]
    distinct_instructions: int
    left_out: Mapping[str, int]
    run: Mapping[str, int]
    bad: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {**asdict(self), "file": str(self.file)}


def build_ctrlbench(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    describer: Describer,
    *,
    pairs: int = 5,
    side: int = 1024,
    near: int = 10,
    concurrency: int = 4,
    limit: int | None = None,
    embedder: Embedder | None = None,
    phrase_cosine: float = 0.95,
    max_bad: int = 100,
    image_limits: ImageLimits = DEFAULT_LIMITS,
    confirm: Callable[[int], bool] | None = None,
    progress: bool = False,
) -> BuildReport:
    """Build a benchmark from the pictures of a folder, or resume building it.

    A picture is asked about again only if its content, the model or the prompt (with ``pairs``) has changed, or if it
    failed before. Before a review, the benchmark has all pairs; after it, the accepted ones.

    Args:
        folder: Folder of pictures, searched with its subfolders, but not hidden ones.
        out: Receives the files; created if missing.
        describer: The chat model: `OpenAIDescriber`, ``langchain_abc.chat_model_describer(...)``, or your own.
        pairs: Number of pairs to ask for, 2 to 20. The paper has 5.
        side: Maximum pixels of the longer side of a picture that is sent.
        near: Maximum number of the 256 bits of a difference hash in which duplicates differ, if their colours and
            detail agree; 0 leaves out identical files only.
        concurrency: Number of concurrent requests.
        limit: Maximum number of pictures, for a trial.
        embedder: Leave out phrases that this model can hardly tell from an earlier one of the same picture, and pairs
            whose phrase it finds, among all phrases, by the instruction alone.
        phrase_cosine: The cosine, in (0, 1], from which phrases count as such.
        max_bad: Maximum number of unusable pictures before the run stops. Answers are kept.
        image_limits: Limits for opening pictures.
        confirm: Called with the number of pictures about to be sent, if any; False sends none.
        progress: Show progress bars.

    Raises:
        DatasetError: Too many pictures are unusable.
        InputError: An argument is unusable, the folder has no pictures, or another run is at work in ``out``.
        ABCRagError: The chat model cannot answer. Answers are kept; run again to resume.
    """
    _check(describer, pairs=(pairs, 2, _MOST_PAIRS), side=(side, 32, 8192), near=(near, 0, BITS),
           concurrency=(concurrency, 1, _MOST_THREADS), limit=(1 if limit is None else limit, 1, None))  # fmt: skip
    if not 0 < phrase_cosine <= 1:
        raise InputError(f"phrase_cosine must be above 0 and at most 1, not {phrase_cosine!r}")
    source, target = _folders(folder, out)
    bad = BadRows(str(folder), max_bad)
    files = BuildFolder(target)
    lock = FileLock(target / ".build.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{out}: another run is at work there; wait for it, or choose another folder") from error
    try:
        before = _kept_before(files)
        seen = scan(source, target, near=near, limit=limit, known=before, limits=image_limits, bad=bad,
                    threads=min(concurrency, os.cpu_count() or 1), progress=progress)  # fmt: skip
        if not seen.pictures:
            raise InputError(f"{folder}: no usable pictures; {bad.summary()}")
        prompt = prompt_for(pairs)
        settings = {
            "folder": str(source),
            "model": describer.name,
            "describer": describer.settings(),
            "prompt": prompt,
            "prompt_version": hashlib.sha256(f"{prompt}{json.dumps(PAIRS_SCHEMA)}".encode()).hexdigest()[:16],
            "pairs": pairs,
            "side": side,
            "near": near,
            "concurrency": concurrency,
            "limit": limit,
            "embedder": None if embedder is None else str(embedder.fingerprint),
            "phrase_cosine": None if embedder is None else phrase_cosine,
            "max_bad": max_bad,
        }
        build = _record(settings, seen, bad)
        files.write_build(build)  # so that a run that does not finish can be reviewed
        asking = Asking(describer, target, pairs, side, image_limits, concurrency)
        build["run"] |= _ask(files, settings, seen, asking, bad, confirm, progress)
        build["bad"] = bad.as_dict()
        if embedder is not None:
            build |= _judged(files, build, embedder, phrase_cosine, progress)
        files.write_build(build)
        return write_ctrlbench(target)
    finally:
        lock.release()


def write_ctrlbench(out: str | os.PathLike[str]) -> BuildReport:
    """Write ``OUT/ctrlbench.jsonl`` from the answers and decisions so far. `build_ctrlbench` ends with this.

    Call it again after a review.

    Args:
        out: A folder written by `build_ctrlbench`.

    Raises:
        InputError: It is not such a folder.
    """
    files = BuildFolder(Path(os.path.realpath(os.path.expanduser(out))))
    build = files.read_build()
    reviewed = files.reviewed(build)
    chosen = reviewed.chosen(LEAST_PAIRS)
    rows = [{"image": picture.image, "pairs": [pair.as_dict() for pair in pairs]} for picture, pairs in chosen]
    write(files.benchmark, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report = _report(files, build, reviewed, [pairs for _, pairs in chosen])
    kept = ("reviewed", "review", "left_out")
    shown = ("pictures", "pairs", "ceiling", "pairs_per_picture", "distinct_instructions")
    facts = report.as_dict()
    files.write_build(
        build | {name: facts[name] for name in kept} | {"statistics": {name: facts[name] for name in shown}}
    )
    return report


def _report(
    files: BuildFolder, build: Mapping[str, Any], reviewed: Reviewed, chosen: Sequence[Sequence[Pair]]
) -> BuildReport:
    pairs = [pair for of_one in chosen for pair in of_one]
    left_out = reviewed.left_out()
    few = len(reviewed.pictures) - len(chosen)
    if few:
        left_out[f"picture with fewer than {LEAST_PAIRS} pairs"] = few
    return BuildReport(
        file=files.benchmark,
        model=build["settings"]["model"],
        pictures=len(chosen),
        pairs=len(pairs),
        reviewed=reviewed.begun,
        review=reviewed.counts(),
        ceiling=len(chosen) / len(pairs) if pairs else 0.0,
        pairs_per_picture=dict(sorted(Counter(map(len, chosen)).items())),
        distinct_instructions=len({pair.instruction for pair in pairs}),
        left_out=dict(left_out.most_common()),
        run=build["run"],
        bad=build["bad"],
    )


def _check(describer: Describer, **numbers: tuple[int, int, int | None]) -> None:
    if not isinstance(describer, Describer):
        raise InputError(
            f"describer must be an OpenAIDescriber, langchain_abc.chat_model_describer(model) or another Describer, "
            f"not {type(describer).__name__}"
        )
    for name, (value, least, most) in numbers.items():
        if type(value) is not int or value < least or (most is not None and value > most):
            wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise InputError(f"{name} must be an int {wanted}, not {value!r}")


def _folders(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Both folders with links resolved, so that relative paths between them hold."""
    source, target = (Path(os.path.realpath(os.path.expanduser(path))) for path in (folder, out))
    if not source.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of the pictures")
    if source == target:
        raise InputError(f"{out}: the results need their own folder, beside or within that of the pictures")
    with refused_as(InputError, f"{out}: cannot be created", "choose another folder"):
        target.mkdir(parents=True, exist_ok=True)
    return source, target


def _kept_before(files: BuildFolder) -> frozenset[str]:
    if not (files.out / "build.json").exists():
        return frozenset()
    return frozenset(row["image"] for row in files.read_build()["pictures"])


def _record(settings: Mapping[str, Any], seen: Scan, bad: BadRows) -> dict[str, Any]:
    duplicates = Counter(duplicate.how for duplicate in seen.duplicates)
    return {
        "settings": settings,
        "versions": {"abc-rag": __version__, "python": platform.python_version(), "pillow": PIL.__version__},
        "run": {"looked_at": seen.looked_at, "identical": duplicates["identical"], "similar": duplicates["similar"]},
        "bad": bad.as_dict(),
        "duplicates": [asdict(duplicate) for duplicate in seen.duplicates],
        "pictures": [asdict(picture) for picture in seen.pictures],
    }


def _ask(
    files: BuildFolder,
    settings: Mapping[str, Any],
    seen: Scan,
    asking: Asking,
    bad: BadRows,
    confirm: Callable[[int], bool] | None,
    progress: bool,
) -> dict[str, int]:
    """Ask about the pictures that have no answer; returns how many there were of each kind, and requests."""
    model, prompt = settings["model"], settings["prompt_version"]
    known = files.read_answers(model, prompt)
    missing = [picture for picture in seen.pictures if picture.sha256 not in known]
    kept = len(seen.pictures) - len(missing)
    if missing and confirm is not None and not confirm(len(missing)):
        missing = []
    run = {"kept": kept, "asked": len(missing), "answered": 0, "requests": 0}
    # Closed at once when something goes wrong here, so that nothing more is asked.
    with progress_bar("asking", total=len(missing), enabled=progress) as bar, closing(asking.run(missing)) as answers:
        for one in answers:
            bar.advance()
            run["requests"] += one.tries
            if one.problem:
                bad.add(one.picture.image, one.problem, one.detail)
                continue
            run["answered"] += 1
            files.answers.append(
                {
                    "sha256": one.picture.sha256,
                    "image": one.picture.image,
                    "model": model,
                    "prompt": prompt,
                    "tries": one.tries,
                    "pairs": [pair.as_dict() for pair in one.pairs],
                    "dropped": dict(one.dropped),
                }
            )
    return run


def _judged(
    files: BuildFolder, build: Mapping[str, Any], embedder: Embedder, least: float, progress: bool
) -> dict[str, list[str]]:
    """Ids of pairs with a phrase nearly equal to an earlier one of the picture, and of those answered without it."""
    from abc_rag.evaluation.vectors import KnownTexts, VectorCache

    answers = files.read_answers(build["settings"]["model"], build["settings"]["prompt_version"])
    pictures = [Picture(**row) for row in build["pictures"] if row["sha256"] in answers]
    cache = VectorCache(embedder, files.out, progress=progress)
    pairs = [(picture, pair) for picture in pictures for pair in answers[picture.sha256].pairs]
    phrases = KnownTexts(cache, "phrases", (pair.phrase for _, pair in pairs))
    words = KnownTexts(cache, "instructions", (pair.instruction for _, pair in pairs))
    near: list[str] = []
    blind: list[str] = []
    kept: dict[str, list[int]] = {}
    for picture, pair in pairs:
        at, said = phrases.position.get(pair.phrase), words.position.get(pair.instruction)
        if at is None:
            continue
        earlier = kept.setdefault(picture.sha256, [])
        if earlier and np.max(phrases.vectors[earlier] @ phrases.vectors[at]) >= least:
            near.append(pair.id_for(picture.sha256))
        else:
            earlier.append(at)
        if said is not None and len(phrases.texts) > 1:
            scores = phrases.vectors @ words.vectors[said]
            if np.delete(scores, at).max() < scores[at] - TIE:
                blind.append(pair.id_for(picture.sha256))
    return {"near_phrases": near, "answered_by_instruction": blind}

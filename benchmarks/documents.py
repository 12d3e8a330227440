"""Real documents: whether every page is indexed, whether places are right, speed, memory, and what a kill costs.

    python -m benchmarks.documents fetch FOLDER     # PDF files out of Debian's packages, by apt-get download
    python -m benchmarks.documents read FOLDER      # every page, or the reason; pages a second of processor time
    python -m benchmarks.documents places FOLDER    # page and box of 100 hits, against poppler's pdftotext
    python -m benchmarks.documents memory BOOK.pdf  # while a long document is read
    python -m benchmarks.documents kill FOLDER      # SIGKILL at 30 random moments of indexing, and then again

Nothing is embedded: vectors are those of `abc_rag.embedding.fake.FakeEmbedder`. ``--documents`` and ``--pages`` bound
what is read, from the smallest document on.

- ``places``: the check shares no code with the reader. Of a random page, poppler names the words and where they stand.
  Six of them that follow one another on a line, in quotes, are the question. The first hit is right if poppler has
  these words on the hit's page, within the hit's box and 3 points around it.
- ``memory``: the resident memory of this process and of the one that reads, every 100 pages.
- ``kill``: each round indexes into an empty store, is killed, and indexes again. A round is right if the store then
  holds what a run without a kill gives, each part once, and checks itself without a complaint. The moment is drawn
  from all of the run in every third round, else from what follows the first stored part. Rounds go on until 30 kills
  came when some parts were stored and not all, at most three times as many.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from abc_rag import ChromaStore, Retriever
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError
from abc_rag.ingest import index_paths
from abc_rag.ingest.documents import (
    DocumentLimits,
    DocumentOptions,
    DocumentProcess,
    PagePicture,
    Unread,
    read_document,
)
from abc_rag.types import Hit
from benchmarks._harness import finish

__all__ = ["Word", "fetch", "is_right", "kill", "main", "memory", "places", "questions", "read"]

# Manuals, papers and books; the last ones are long or have hundreds of files.
PACKAGES = tuple(
    """
    r-doc-pdf pari-doc valgrind libitpp-doc apophenia-doc biber gnuplot-doc maxima-doc fftw-docs nasm
    ngspice-doc xfig-doc evolver-doc asymptote-doc calculix-ccx-doc octave-doc developers-reference
    maint-guide debian-faq debian-reference-en netgen-doc freefem-doc gap-doc libeigen3-doc dynare-doc
    yacas-doc acl2-doc hol88-doc lilypond-doc-pdf texlive-latex-recommended-doc
    """.split()
)
_WORDS = 6
_NEAR = 3.0  # points
_MOST_TRIES = 3
_EVERY = 20  # pages between looks at the memory


class Word(NamedTuple):
    """A word and its place, as poppler has them: points from the top left corner of the page."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


def fetch(folder: Path, packages: Iterable[str], most: int) -> dict[str, Any]:
    """Download packages, and copy their PDF files, in turn from each package, each file once."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[str, bytes]]] = {}
    missing: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for package in packages:
            place = Path(scratch, package)
            place.mkdir()
            got = subprocess.run(["apt-get", "download", "-q", package], cwd=place, capture_output=True, check=False)
            if got.returncode:
                missing.append(package)
                continue
            for archive in list(place.glob("*.deb")):
                subprocess.run(["dpkg-deb", "--extract", archive, place / "files"], check=True)
            files = sorted(file for file in place.rglob("*.pdf*") if file.is_file() and not file.is_symlink())
            found[package] = [
                (
                    file.name.removesuffix(".gz"),
                    gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes(),
                )
                for file in files
                if file.name.endswith((".pdf", ".pdf.gz"))
            ]
            shutil.rmtree(place)
    seen: set[str] = set()
    while any(found.values()) and len(seen) < most:
        for package, files in found.items():
            if files and len(seen) < most:
                name, data = files.pop(0)
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 not in seen:
                    file = folder / f"{package}--{name}"
                    # Some packages have several files of one name.
                    (file.with_stem(f"{file.stem}-{sha256[:6]}") if file.exists() else file).write_bytes(data)
                seen.add(sha256)
    return {"documents": len(seen), "packages": len(found), "not fetched": missing}


def _chosen(folder: Path, documents: int) -> list[Path]:
    files = sorted(folder.glob("*.pdf"), key=lambda file: (file.stat().st_size, file.name))
    if not files:
        raise SystemExit(f"{folder} has no *.pdf; fetch some: python -m benchmarks.documents fetch {folder}")
    return files[:documents]


def _options(pages: int, **options: Any) -> DocumentOptions:  # noqa: ANN401
    return DocumentOptions(limits=DocumentLimits(max_pages=pages), **options)


def _processor_s() -> float:
    """Of this process and its children, those that have ended and those that read."""
    import psutil

    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    running = (child.cpu_times() for child in psutil.Process().children())
    return sum(one.ru_utime + one.ru_stime for one in used) + sum(one.user + one.system for one in running)


def _resident_mb() -> tuple[int, int]:
    """Of this process, and of its children."""
    import psutil

    own = psutil.Process()
    reading = sum(child.memory_info().rss for child in own.children())
    return own.memory_info().rss // 2**20, reading // 2**20


def _row(file: Path, pages: int, process: DocumentProcess) -> dict[str, Any]:
    """What came of a document, and what it cost."""
    start, used = time.perf_counter(), _processor_s()
    seen: set[int] = set()
    reasons: Counter[str] = Counter()
    parts = here = reading = 0
    try:
        for part in read_document(file, options=_options(pages), process=process):
            parts += 1
            if isinstance(part, Unread):
                reasons[part.reason] += 1
            if part.page is not None and isinstance(part, (PagePicture, Unread)):
                seen.add(part.page)
                if len(seen) % _EVERY == 1:
                    here, reading = map(max, zip((here, reading), _resident_mb(), strict=True))
    except ABCRagError as error:
        reasons[str(error)] += 1
    used, took = _processor_s() - used, time.perf_counter() - start
    row = {"document": file.name, "seen": seen, "parts": parts, "reasons": dict(reasons)}
    row |= {"processor_s": round(used, 2), "wall_s": round(took, 2), "here_mb": here, "reading_mb": reading}
    print(file.name, len(seen), row["processor_s"], row["reasons"], here, reading, file=sys.stderr, flush=True)
    return row


def read(files: list[Path], pages: int) -> dict[str, Any]:
    """Read documents, as an index does: are all pages there, and what does a page cost."""
    import pypdfium2

    with DocumentProcess() as process:
        rows = [_row(file, pages, process) for file in files]
    for file, row in zip(files, rows, strict=True):
        count = 0  # of what cannot be opened at all
        with suppress(pypdfium2.PdfiumError), closing(pypdfium2.PdfDocument(file)) as document:
            count = min(len(document), pages)
        seen = row.pop("seen")
        row["lost"] = [] if row["reasons"] and not seen else sorted(set(range(1, count + 1)) - seen)
        row["pages"] = count
    total, used = sum(row["pages"] for row in rows), sum(row["processor_s"] for row in rows)
    told = {"documents": len(rows), "pages": total, "lost": sum(len(row["lost"]) for row in rows)}
    return {**told, "pages a second of processor time": round(total / used, 1), "rows": rows}


def words_of(file: Path, page: int, pdftotext: str) -> list[Word]:
    """The words of a page in poppler's reading order."""
    command = [pdftotext, "-bbox", "-cropbox", "-f", str(page), "-l", str(page), str(file), "-"]
    text = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8", "replace")
    # Poppler passes characters on that XML does not have.
    clean = "".join(char for char in text if char >= " " or char in "\n\t")
    found = ElementTree.fromstring(clean).iter("{http://www.w3.org/1999/xhtml}word")
    sides = ("xMin", "yMin", "xMax", "yMax")
    return [Word(one.text or "", *(float(one.attrib[side]) for side in sides)) for one in found]


def questions(words: list[Word]) -> list[str]:
    """Six plain words that stand on one line, one after the other, for each place where there are any.

    Not where the first or the last one touches another word: poppler has the subscript of a formula as one of its own.
    """
    found = []
    for start in range(len(words) - _WORDS + 1):
        run = words[start : start + _WORDS]
        plain = all(word.text.isascii() and word.text.isalpha() for word in run)
        around = [*words[max(0, start - 1) : start + 1], *words[start + _WORDS - 1 : start + _WORDS + 1]]
        touched = any(abs(b.left - a.right) < 1.0 and b.top < a.bottom for a, b in itertools.pairwise(around))
        if (
            plain
            and not touched
            and all(abs(a.bottom - b.bottom) < 1.0 and 0 < b.left - a.right < 12 for a, b in itertools.pairwise(run))
        ):
            found.append(" ".join(word.text for word in run))
    return found


def is_right(hit: Hit, question: str, words: list[Word]) -> bool:
    """Whether poppler has a question's words within a hit's box, given the words of the hit's page."""
    asked = question.lower().split()
    box = hit.box
    for start in range(len(words) - len(asked) + 1):
        run = words[start : start + len(asked)]
        if box is not None and [word.text.lower().strip(".,;:()") for word in run] == asked:
            inside = (min(w.left for w in run) > box[0] - _NEAR, min(w.top for w in run) > box[1] - _NEAR)
            inside += (max(w.right for w in run) < box[2] + _NEAR, max(w.bottom for w in run) < box[3] + _NEAR)
            if all(inside):
                return True
    return False


def places(files: list[Path], pages: int, hits: int, seed: int, pdftotext: str) -> dict[str, Any]:
    """Ask for words that poppler names; compare page and box of the first hit with where poppler has them."""
    import pypdfium2

    rng = random.Random(seed)
    embedder = FakeEmbedder()
    wrong: list[dict[str, Any]] = []
    checked = asked_in = 0
    with tempfile.TemporaryDirectory() as scratch, ChromaStore(scratch, fingerprint=embedder.fingerprint) as store:
        options = _options(pages, page_pictures=False, figures=False)
        index_paths(files, embedder, store, documents=options)
        retriever = Retriever(embedder, store)
        counts = {}
        for file in files:
            with closing(pypdfium2.PdfDocument(file)) as document:
                counts[file] = min(len(document), pages)
        tries = 0
        seen = set()
        while checked < hits and tries < 20 * hits:
            tries += 1
            file = rng.choice(files)
            page = rng.randint(1, counts[file])
            said = questions(words_of(file, page, pdftotext))
            if not said:
                continue
            question = rng.choice(said)
            found = retriever.search(f'"{question}"', k=1, modality="text", rerank=False)
            checked += 1
            seen.add((file, page))
            hit = found[0] if found else None
            if (
                hit is None
                or hit.page is None
                or not is_right(hit, question, words_of(Path(hit.document), hit.page, pdftotext))
            ):
                told = None if hit is None else [Path(hit.document).name, hit.page, hit.box]
                wrong.append({"question": question, "document": file.name, "page": page, "hit": told})
        asked_in = len(seen)
    return {"checked": checked, "right": checked - len(wrong), "pages asked of": asked_in, "wrong": wrong}


def memory(file: Path, pages: int, every: int = 100) -> dict[str, Any]:
    """Resident memory in MB of this process and of the one that reads, every so many pages."""
    rows: list[dict[str, float]] = []
    with DocumentProcess() as process:
        reached = 0
        for part in read_document(file, options=_options(pages), process=process):
            if isinstance(part, PagePicture) and part.page is not None and part.page // every > reached:
                reached = part.page // every
                here, reading = _resident_mb()
                rows.append({"page": part.page, "here": here, "reading": reading})
    return {"document": file.name, "rows": rows}


def _index(files: list[Path], place: Path, pages: int) -> None:
    embedder = FakeEmbedder()
    with ChromaStore(place, fingerprint=embedder.fingerprint) as store:
        index_paths(files, embedder, store, documents=_options(pages, dpi=40))


def _parts(place: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """What a store holds, and what it complains about."""
    with ChromaStore(place) as store:
        return sorted((record.id, json.dumps(dict(record.metadata))) for record in store.records()), store.check()


@contextmanager
def _running(files: list[Path], place: Path, pages: int) -> Iterator[multiprocessing.process.BaseProcess]:
    # Each run forks off a process that has imported everything, so that a moment is one of indexing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["abc_rag.ingest.documents", "abc_rag.embedding.fake", "chromadb"])
    process = context.Process(target=_index, args=(files, place, pages))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _stores_something(place: Path) -> bool:
    database = place / "chroma.sqlite3"
    if not database.is_file():
        return False
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
        try:
            return opened.execute("SELECT 1 FROM embeddings LIMIT 1").fetchone() is not None
        except sqlite3.OperationalError:  # no table yet, or it is just being written
            return False


def _first_stored(process: multiprocessing.process.BaseProcess, place: Path) -> float:
    """Wait until something is stored; return the seconds that it took."""
    start = time.perf_counter()
    while process.is_alive() and not _stores_something(place):
        process.join(0.02)
    return time.perf_counter() - start


def kill(files: list[Path], pages: int, rounds: int, seed: int) -> dict[str, Any]:
    """Index, kill at a random moment, index again: is every part there once?

    Until as many kills as rounds came when some parts were stored and not all.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        # What was read is noted beside the user's state: this has one of its own.
        os.environ["ABC_RAG_STATE"] = str(Path(scratch, "state"))
        whole = Path(scratch, "whole")
        with _running(files, whole, pages) as process:
            process.join()  # imports are paid for
        shutil.rmtree(whole)
        with _running(files, whole, pages) as process:
            first = _first_stored(process, whole)
            start = time.perf_counter()
            process.join()
        rest = time.perf_counter() - start
        wanted, complaints = _parts(whole)
        rows: list[dict[str, Any]] = []
        between = 0
        while between < rounds and len(rows) < _MOST_TRIES * rounds:
            place = Path(scratch, f"round-{len(rows)}")
            anywhere = len(rows) % 3 == 0
            moment = rng.uniform(0.0, first + rest if anywhere else rest)
            with _running(files, place, pages) as process:
                waited = 0.0 if anywhere else _first_stored(process, place)
                process.join(moment)
                killed = process.is_alive()
                os.kill(process.pid or 0, signal.SIGKILL) if killed else None
            there = len(_parts(place)[0]) if place.exists() else 0
            with _running(files, place, pages) as process:
                process.join()
            found, said = _parts(place)
            rows.append(
                {"after_s": round(waited + moment, 2), "killed": killed, "parts then": there, "right": found == wanted}
            )
            rows[-1]["complaints"] = said
            between += killed and 0 < there < len(wanted)
            print(len(rows), rows[-1], file=sys.stderr, flush=True)
            shutil.rmtree(place)
    right = sum(row["right"] and not row["complaints"] for row in rows)
    told = {"parts": len(wanted), "run_s": round(first + rest, 2), "rounds": len(rows)}
    told |= {"killed": sum(row["killed"] for row in rows), "killed with parts between": between}
    return {**told, "right": right, "complaints": complaints, "rows": rows}


def main() -> None:
    """Read the command line and run."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("what", choices=("fetch", "read", "places", "memory", "kill"))
    made.add_argument("folder", type=Path, help="folder of PDF files; for memory, one file")
    made.add_argument("--documents", type=int, default=60, help="maximum number of documents")
    made.add_argument("--pages", type=int, default=10_000, help="maximum number of pages of each")
    made.add_argument("--hits", type=int, default=100, help="hits that places checks")
    made.add_argument("--rounds", type=int, default=30, help="rounds of kill")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--pdftotext", default="pdftotext", help="poppler's program, of Debian's package poppler-utils")
    made.add_argument("--json", type=Path, default=None, help="file for the results; default: standard output")
    asked = made.parse_args()
    if asked.what == "fetch":
        results = fetch(asked.folder, PACKAGES, asked.documents)
    elif asked.what == "memory":
        results = memory(asked.folder, asked.pages)
    else:
        files = _chosen(asked.folder, asked.documents)
        if asked.what == "read":
            results = read(files, asked.pages)
        elif asked.what == "places":
            results = places(files, asked.pages, asked.hits, asked.seed, asked.pdftotext)
        else:
            results = kill(files, asked.pages, asked.rounds, asked.seed)
    finish("documents", asked, results)


if __name__ == "__main__":
    main()

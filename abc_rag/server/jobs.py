"""Doing jobs, one after the other, in a thread of their own: searches and embeddings of requests go first."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from abc_rag.embedding.usable import embed_usable
from abc_rag.errors import ABCRagError, ImageError, InputError, PartialIndexError, StoreLockedError
from abc_rag.images.limits import ImageLimits
from abc_rag.ingest import index_images, index_paths
from abc_rag.server.ledger import Item, Job, Ledger
from abc_rag.server.stores import Stores
from abc_rag.store.records import text_id
from abc_rag.types import URL, ImageSource, Record, Text

__all__ = ["Jobs"]

logger = logging.getLogger("abc_rag.server")

# Items that are stored, and noted as stored, together. A stopping server waits for these.
_TOGETHER = 16
_AGAIN_S = 2.0

Errors = dict[int, dict[str, Any] | None]


class Jobs:
    """Works through the jobs of a ledger.

    Args:
        ledger: Where they are.
        folder: Where the files of uploads are, those of a job in a folder of its name.
        stores: Receive the items.
        limits: Which pictures are accepted.
    """

    def __init__(self, ledger: Ledger, folder: Path, stores: Stores, limits: ImageLimits) -> None:
        self.ledger = ledger
        self.folder = folder
        self._stores = stores
        self._limits = limits
        self._changed = threading.Condition()
        self._stopping = False
        self._current: tuple[str, str] | None = None
        self._thread = threading.Thread(target=self._run, name="abc-rag-jobs", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process left unfinished."""
        self._clear_uploads()
        self._thread.start()

    def wake(self) -> None:
        """Look for new jobs."""
        with self._changed:
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """Stop after the items that are being stored. The others are done by the next server."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def leave(self, stored: str) -> None:
        """Wait until no item of a collection, whose jobs were dropped, is being stored."""
        with self._changed:
            self._changed.wait_for(lambda: self._current is None or self._current[1] != stored)

    def _clear_uploads(self) -> None:
        """Remove the files of uploads that were never accepted, and of jobs that are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = set(self.ledger.unfinished())
        for one in self.folder.iterdir():
            if one.name not in wanted:
                shutil.rmtree(one, ignore_errors=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and not self.ledger.unfinished():
                    self._changed.wait()
                if self._stopping:
                    return
            if not self._round():
                with self._changed:
                    self._changed.wait(_AGAIN_S)

    def _round(self) -> bool:
        """The next items of each unfinished job, in turn, so that a large one does not hold up the others."""
        moved = False
        for id_ in self.ledger.unfinished():
            before = self.ledger.job(id_)
            with self._changed:
                if self._stopping:
                    return True
                self._current = None if before is None else (id_, before.stored)
            try:
                # Asked again, as from now on whoever drops the collection waits.
                job = self.ledger.job(id_)
                moved = (job is not None and self._some(job)) or moved
            except Exception as error:
                # The store or the model failed, not an item: it is tried again.
                if not self._stopping:
                    logger.error("a job is held up and will be tried again", exc_info=error)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()
        return moved

    def _some(self, job: Job) -> bool:
        items = _alike(self.ledger.waiting(job.id, _TOGETHER))
        if not items:
            return False
        try:
            errors = self._stored(job, items)
        except StoreLockedError:
            return False
        self.ledger.settle(job.id, errors)
        done = self.ledger.job(job.id)
        if done is None or done.finished is not None:
            shutil.rmtree(self.folder / job.id, ignore_errors=True)
        return True

    def _stored(self, job: Job, items: Sequence[Item]) -> Errors:
        kind = items[0].told["kind"]
        if kind == "text":
            return self._texts(job, items)
        return self._pictures(job, items) if kind == "image" else self._files(job, items)

    def _texts(self, job: Job, items: Sequence[Item]) -> Errors:
        embedder, store = self._stores.opened(job.stored)
        vectors, failed = embed_usable(embedder, [Text(item.told["text"]) for item in items])
        errors: Errors = {}
        for row, item in enumerate(items):
            try:
                if row in failed:
                    raise failed[row]
                text = item.told["text"]
                record = Record(item.told["id"] or text_id(text), "text", text=text, metadata=item.told["metadata"])
                store.add([record], vectors[row : row + 1])
                errors[item.position] = None
            except InputError as error:
                errors[item.position] = _told(error, item)
        return errors

    def _pictures(self, job: Job, items: Sequence[Item]) -> Errors:
        embedder, store = self._stores.opened(job.stored)
        errors: Errors = {item.position: None for item in items}
        # Those with and without ids apart, as one call takes ids for all or for none.
        for group in ([i for i in items if i.told["id"]], [i for i in items if not i.told["id"]]):
            sources = [self._source(job, item) for item in group]
            try:
                index_images(
                    sources,
                    embedder,
                    store,
                    ids=[i.told["id"] for i in group] if group and group[0].told["id"] else None,
                    captions=[i.told["text"] for i in group],
                    metadatas=[i.told["metadata"] for i in group],
                    facets=job.facets,
                    keep=True,
                    limits=self._limits,
                )
            except PartialIndexError as error:
                for position, one in error.failed:
                    errors[group[position].position] = _told(one, group[position])
        return errors

    def _source(self, job: Job, item: Item) -> ImageSource:
        if item.told["url"]:
            return URL(item.told["url"])
        return self.folder / job.id / str(item.told["file"])

    def _files(self, job: Job, items: Sequence[Item]) -> Errors:
        errors: Errors = {}
        by_path = {str((self.folder / job.id / item.told["file"]).resolve()): item for item in items}
        report = index_paths(
            list(by_path),
            *self._stores.opened(job.stored),
            facets=job.facets,
            limits=self._limits,
        )
        for path, item in by_path.items():
            reasons = [reason for name, reason in report.failed if name == path or name.startswith(f"{path}, p. ")]
            errors[item.position] = None
            if reasons:
                message = "; ".join(reason.replace(path, item.told["name"]) for reason in reasons[:5])
                errors[item.position] = {"name": item.told["name"], "message": message, "code": "DocumentError"}
        return errors


def _alike(items: Sequence[Item]) -> list[Item]:
    """The first items, as far as they are of one kind."""
    found: list[Item] = []
    for item in items:
        if item.told["kind"] != items[0].told["kind"]:
            break
        found.append(item)
    return found


def _told(error: ABCRagError, item: Item) -> dict[str, Any]:
    # A picture's error begins with its path here.
    reason = error.reason if isinstance(error, ImageError) else str(error.at(None))
    return {"name": item.told["name"], "message": reason, "code": type(error).__name__}

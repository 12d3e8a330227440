"""The collections of a server with all that keeps them: stores, ledger, uploads and jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from abc_rag.answering.generator import Generator
from abc_rag.embedding.threads import in_thread
from abc_rag.errors import ABCRagError, InputError
from abc_rag.search.neighbours import page_of
from abc_rag.search.pictures import Pictures
from abc_rag.server.errors import Refusal
from abc_rag.server.guard import Caller
from abc_rag.server.jobs import Jobs
from abc_rag.server.ledger import Collection, Job, Ledger
from abc_rag.server.service import Service
from abc_rag.server.stores import OpenStore, Stores
from abc_rag.server.uploads import Upload
from abc_rag.types import Record

__all__ = ["DEFAULT_TENANT", "Library", "shown_or_gone"]

T = TypeVar("T")

DEFAULT_TENANT = "default"
"""Whose the collections are that were made without the server, and all where there are no keys."""


class Library:
    """Collections.

    Args:
        service: The model and the settings, which have a folder.
        open_: Opens a collection of the store.
        generator: Judges and answers, if there is one.
    """

    def __init__(self, service: Service, open_: OpenStore, generator: Generator | None = None) -> None:
        settings = service.settings
        if settings.folder is None:
            raise InputError("collections need a folder; give ServerSettings one")
        self.service = service
        self.uploads = settings.folder / "uploads"
        self.ledger = Ledger(settings.folder / "ledger.sqlite3")
        self.stores = Stores(open_, service.embedder, settings.image_limits, generator)
        self._jobs = Jobs(self.ledger, self.uploads, self.stores, settings.image_limits)

    def adopt(self, names: Iterable[str]) -> None:
        """Let the default tenant have collections that were made without the server."""
        for name in names:
            # A dot is in the names of those that a server made.
            if "." not in name and not self.ledger.knows(name):
                self.ledger.make(DEFAULT_TENANT, name, stored=name)

    def start(self) -> None:
        """Begin doing jobs; the model must be loaded."""
        self._jobs.start()

    def find(self, caller: Caller, name: str) -> Collection:
        """A caller's collection.

        Raises:
            Refusal: There is none of that name, or it is another tenant's, which is the same.
        """
        found = self.ledger.collection(caller.tenant, name)
        if found is None:
            raise Refusal(404, "there is no such collection", code="collection_not_found")
        return found

    def check_room(self, collection: Collection) -> None:
        """Refuse more jobs than may wait.

        Raises:
            Refusal: Too many do.
        """
        most = self.service.settings.max_jobs
        if len(self.ledger.unfinished(collection.stored)) >= most:
            raise Refusal(429, f"{most} jobs of this collection are waiting; try again", retry_s=5)

    def accept(self, collection: Collection, upload: Upload) -> Job:
        """Accept a job: from here on it will be done."""
        self.ledger.accept(upload.id, collection.stored, upload.items, upload.facets)
        self._jobs.wake()
        job = self.ledger.job(upload.id)
        assert job is not None
        return job

    def drop(self, collection: Collection) -> None:
        """Delete a collection: nobody sees it from here on."""
        self.ledger.drop(collection)
        self._jobs.leave(collection.stored)
        self.stores.empty(collection.stored)

    async def record(self, caller: Caller, name: str, id_: str) -> Record:
        """A record of a caller's collection.

        Raises:
            Refusal: There is none.
        """
        store = await in_thread(self.stores.open, self.find(caller, name).stored)
        found = await in_thread(store.get, [id_])
        if not found:
            raise Refusal(404, "there is no such record in this collection")
        return found[0]

    async def page_of(self, caller: Caller, name: str, part: Record) -> Record:
        """The page that a part of a document is on, as a picture.

        Raises:
            Refusal: There is none.
        """
        if part.page is None:
            raise Refusal(404, "this record is on no page of a document")
        store = await in_thread(self.stores.open, self.find(caller, name).stored)
        page = await in_thread(page_of, store, part)
        if page is None:
            raise Refusal(404, "the page of this record was not stored as a picture")
        return page

    async def pictures(self, caller: Caller, name: str, record: Record) -> Pictures:
        """What opens the picture of a record.

        Raises:
            Refusal: It has none.
        """
        if record.modality != "image":
            raise Refusal(404, "this record has no picture")
        store = await in_thread(self.stores.open, self.find(caller, name).stored)
        return Pictures(store, limits=self.service.settings.image_limits)

    def stop(self, timeout_s: float) -> None:
        """Stop doing jobs, and close everything."""
        self._jobs.stop(timeout_s)
        self.stores.close()
        self.ledger.close()


def shown_or_gone(read: Callable[[], T]) -> T:
    """What a picture is read as.

    Raises:
        Refusal: It cannot be read.
    """
    try:
        return read()
    except ABCRagError as error:
        # Its message may name a file.
        raise Refusal(404, "this picture cannot be shown; index it again", code="picture_gone") from error

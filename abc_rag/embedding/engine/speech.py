"""Answers conversations with the base of an embedder: token by token, several together, between batches of vectors."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from abc_rag.embedding.engine.caches import TensorCache
from abc_rag.embedding.engine.model_thread import one_thread
from abc_rag.embedding.engine.preparation import Preparation
from abc_rag.embedding.engine.replies import Choice, Ending, Finish, Reply, ReplyText, TokenChoice
from abc_rag.embedding.engine.scheduler import Scheduler
from abc_rag.embedding.engine.work import Request, Work
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import ABCRagError, GenerationError
from abc_rag.models.chat import ChatModel, Conversation
from abc_rag.models.family import Prepared

__all__ = ["Speech"]

logger = logging.getLogger("abc_rag")

# Maximum conversations that are decoded together; others wait.
_ROWS = 16
# Threads that open pictures and tokenise conversations.
_WORKERS = 2
# A network no wider than this decodes faster on one core of a CPU: waking others takes longer than the product.
_NARROW = 1024
_NOTHING = np.empty(0, dtype=np.float32)


@dataclass(eq=False)
class _Row:
    reply: Reply
    choice: TokenChoice
    text: ReplyText
    prompt_tokens: int
    new_tokens: int = 0
    token: int = -1


class Speech:
    """Queues, caches and decoding of the conversations of one embedder.

    Calls begin and end replies in any thread. `step` is called by the thread that owns the network.

    Args:
        chat: The base.
        beside: The scheduler of the embedder, whose lock is shared.
        settings: Of the engine.
    """

    def __init__(self, chat: ChatModel, beside: Scheduler, settings: EngineSettings) -> None:
        self._chat = chat
        self._narrow = chat.facts.device.type == "cpu" and chat.facts.dim <= _NARROW
        self._scheduler = Scheduler(
            max_batch_tokens=chat.chat_facts.max_length,
            max_wait_s=0.0,
            max_queued=settings.max_queued,
            max_queued_bytes=settings.max_queued_bytes,
            beside=beside,
        )
        self.vision = TensorCache(settings.vision_cache_bytes)
        self._preparation = Preparation(
            chat,
            self._scheduler,
            vision=self.vision,
            embeddings=TensorCache(0),
            workers=_WORKERS,
            worker_kind=settings.worker_kind,
            timeout_s=settings.picture_timeout_s,
        )
        self.lock = beside.lock
        self._replies: dict[Request, Reply] = {}
        self._ready: deque[Work] = deque()
        self._rows: list[_Row] = []
        self._batch = chat.decoding()
        self._preparation.start()

    # --- Calls ----------------------------------------------------------------------------------------

    def begin(self, conversation: Conversation, choice: Choice, changed: Callable[[], None]) -> Reply:
        """Queue a conversation. ``changed`` is called under the lock when there is news of its reply."""
        request = self._scheduler.open(small=True, max_items=None, changed=changed)
        reply = Reply(request, choice)
        with self.lock:
            self._replies[request] = reply
            self._scheduler.submit(request, 0, conversation)
        return reply

    def end(self, reply: Reply) -> None:
        """Give a reply up, or let go of one that is complete."""
        with self.lock:
            self._replies.pop(reply.request, None)
            self._scheduler.close(reply.request)

    @property
    def replies(self) -> int:
        """Number of replies that have begun and whose callers have not let go."""
        return len(self._replies)

    def stop(self, error: BaseException) -> None:
        """Stop preparation, and give an error to every reply that is waiting for it."""
        self._scheduler.fail_all(error)
        self._scheduler.stop()
        self._preparation.close()

    def join(self, seconds: float) -> None:
        """Wait for the threads of preparation."""
        self._preparation.join(seconds)

    # --- The model's thread ---------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._rows or self._ready or self._scheduler.has_ready())

    def speak(self, seconds: float, interrupted: Callable[[], bool]) -> float:
        """Go on for some time, by one token at least, until ``interrupted``; the seconds that it took."""
        begun = now = time.perf_counter()
        while self.busy():
            self.step()
            now = time.perf_counter()
            if now - begun >= seconds or interrupted():
                break
        return now - begun

    def step(self) -> None:
        """Read one conversation, or add a token to every reply."""
        self._drop([row for row in self._rows if row.reply.request.closed])
        self._ready.extend(self._scheduler.next_batch(wait=False) or [])
        with one_thread() if self._narrow else nullcontext():
            if self._ready and len(self._rows) < _ROWS:
                self._read(self._ready.popleft())
            elif self._rows:
                self._decode()

    def fail(self, error: BaseException) -> None:
        """Give an error to every reply that has begun, and to all that wait."""
        self.stop(error)
        for row in self._rows:
            self._end(row.reply, error)
        self._rows.clear()

    def _read(self, work: Work) -> None:
        reply = self._replies.get(work.tickets[0].request)
        prepared, work.prepared = work.prepared, None
        try:
            if reply is None or prepared is None:
                return  # given up
            conversation = work.tickets[0].item
            assert isinstance(conversation, Conversation)
            self._see(prepared)
            if conversation.answers:
                scores = self._chat.score(prepared, conversation.answers)
                self._end(reply, Ending("stop", prepared.tokens, 0, tuple(scores)))
                return
            logits = self._batch.add(prepared)
            facts = self._chat.chat_facts
            row = _Row(
                reply,
                TokenChoice(reply.choice, facts, prepared.input_ids.tolist()),
                ReplyText(facts.tokenizer, reply.choice.stop, spaced=facts.spaced),
                prepared.tokens,
            )
            self._rows.append(row)
            self._settle([row], logits[None])
        except BaseException as error:  # native libraries raise those too
            if reply is not None:
                self._end(reply, _failed(error))
        finally:
            self._scheduler.done([(work, _NOTHING)])

    def _see(self, prepared: Prepared) -> None:
        for picture in prepared.pictures:
            if picture.features is None:
                picture.features = self.vision.get(picture.key)
            if picture.features is None:
                (picture.features,) = self._chat.see([picture.opened])
                self.vision.put(picture.key, picture.features)
            picture.opened = None

    def _decode(self) -> None:
        try:
            logits = self._batch.step([row.token for row in self._rows])
        except BaseException as error:
            # Some layers may have taken the token and others not: nothing can go on from here.
            for row in self._rows:
                self._end(row.reply, _failed(error))
            self._rows, self._batch = [], self._chat.decoding()
            return
        self._settle(self._rows, logits)

    def _settle(self, rows: list[_Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row, and drop those that end with it."""
        largest = logits.argmax(dim=-1).tolist()
        gone = []
        for number, row in enumerate(rows):
            try:
                row.token = largest[number] if row.choice.plain else row.choice.of(logits[number])
                piece, finish = self._accepted(row)
            except BaseException as error:
                self._end(row.reply, _failed(error))
                gone.append(row)
                continue
            if finish is not None:
                gone.append(row)
            ending = None if finish is None else Ending(finish, row.prompt_tokens, row.new_tokens)
            self._tell(row.reply, piece, ending)
        self._drop(gone)

    def _accepted(self, row: _Row) -> tuple[str, Finish | None]:
        facts, choice = self._chat.chat_facts, row.reply.choice
        row.new_tokens += 1
        complete = row.choice.take(row.token)
        if row.token in facts.stop_ids:
            return row.text.rest(), "stop"
        piece, stopped = row.text.push(row.token)
        if stopped:
            return piece, "stop"
        if complete:
            return piece + row.text.rest(), "stop"
        if row.new_tokens >= choice.max_new_tokens or row.prompt_tokens + row.new_tokens >= facts.max_length:
            return piece + row.text.rest(), "length"
        return piece, None

    def _drop(self, gone: list[_Row]) -> None:
        numbers = [number for number, row in enumerate(self._rows) if row in gone]
        if numbers:
            self._batch.drop(numbers)
            self._rows = [row for row in self._rows if row not in gone]

    def _tell(self, reply: Reply, piece: str, ending: Ending | BaseException | None) -> None:
        with self.lock:
            if piece:
                reply.pieces.append(piece)
            reply.ending = ending
            if (piece or ending is not None) and not reply.request.closed:
                reply.request.changed()

    def _end(self, reply: Reply, ending: Ending | BaseException) -> None:
        self._tell(reply, "", ending)


def _failed(error: BaseException) -> BaseException:
    if isinstance(error, ABCRagError):
        return error
    logger.debug("an answer has failed", exc_info=error)
    made = GenerationError(
        f"an answer could not be computed ({type(error).__name__}: {error}); with too little memory, ask with fewer "
        "pictures or a smaller max_tokens"
    )
    made.__cause__ = error
    return made

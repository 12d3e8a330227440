"""The command ``abc-rag shell``: many questions, with the model and the store loaded once."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from abc_rag.cli.answering import AnsweringFlags
from abc_rag.cli.ask import Asking, picture_of, show_answer, show_hits
from abc_rag.cli.options import PARTIAL, EmbedderFlags, JsonOption, KeywordStoreFlags, filter_of, grouped
from abc_rag.cli.output import print_json, read_line, tell
from abc_rag.errors import InputError

if TYPE_CHECKING:
    from abc_rag.answering.retriever import Retriever
    from abc_rag.images.limits import ImageLimits
    from abc_rag.types import Message

__all__ = ["shell"]

_COMMANDS = """\
:image FILE    ask about this picture from now on; :image alone asks about none
:where JSON    search only where this holds, such as {"page": 3}; :where alone searches everywhere
:new           begin anew: forget what was asked and answered, with --answer
:help          show this
:quit          leave, as does Ctrl-D; Ctrl-C drops a question"""


@grouped
def shell(
    *,
    asking: Asking,
    answering: AnsweringFlags,
    embedding: EmbedderFlags,
    place: KeywordStoreFlags,
    as_json: JsonOption = False,
) -> None:
    """Ask many questions, one a line, with the model loaded once; :help lists what else can be typed.

    With --answer, a question may follow up earlier ones ("and on the right?"). Lines are read from a terminal or from
    anything else. With --json each answer is one line of JSON. Where standard input is no terminal, the exit status is
    3 if a question failed.
    """
    condition, limits = filter_of(asking.where), embedding.limits
    place.filled().close()
    embedder, generator = answering.open(embedding)
    embedder, store = place.open_for(embedder)
    with store as opened:
        retriever = asking.retriever(embedder, opened, limits, generator)
        failed = _Shell(asking, answering, retriever, condition, limits, as_json=as_json).run()
    if failed and not sys.stdin.isatty():
        raise typer.Exit(PARTIAL)


class _Shell:
    def __init__(
        self,
        asking: Asking,
        answering: AnsweringFlags,
        retriever: Retriever,
        condition: dict[str, Any] | None,
        limits: ImageLimits,
        *,
        as_json: bool,
    ) -> None:
        self._asking, self._retriever, self._limits, self._json = asking, retriever, limits, as_json
        self._answering = answering
        self._condition = condition
        self._image: Path | None = None
        self._history: list[Message] = []

    def run(self) -> int:
        """Read lines until they end; the number of those that failed."""
        failed = 0
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text fails by itself
        if sys.stdin.isatty():
            tell("a question a line; :help lists what else can be typed")
        while True:
            try:
                line = read_line(f"{self._image.name if self._image else 'abc-rag'}> ")
                if line is None or line.strip() in (":quit", ":q"):
                    return failed
                self._take(line.strip())
                sys.stdout.flush()
            except KeyboardInterrupt:
                tell("interrupted; :quit or Ctrl-D leaves")
            except BrokenPipeError:
                raise
            except Exception as error:  # one bad question must not cost the session
                failed += 1
                tell(f"error: {error}")

    def _take(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command == ":image":
            self._image = picture_of(Path(argument)) if argument else None
        elif command == ":where":
            self._condition = filter_of(argument) if argument else None
        elif command == ":new":
            self._history.clear()
        elif command == ":help":
            tell(_COMMANDS)
        elif line.startswith(":"):
            raise InputError(f"there is no {command}; :help lists what there is")
        elif line:
            self._ask(line)

    def _ask(self, question: str) -> None:
        condition = self._asking.filter(self._image, self._condition, self._limits)
        options = self._asking.keywords_of(self._image, condition)
        aloud = self._answering.answer and not self._json
        answer = self._answering.ask(self._retriever, question, options, history=self._history, aloud=aloud)
        if self._answering.answer:
            self._remember(question, answer.text)
        if self._json:
            print_json(answer.as_dict(), indent=None)
        elif aloud:
            show_hits(answer)
        else:
            show_answer(answer, self._image.name if self._image else None)

    def _remember(self, question: str, answer: str) -> None:
        from abc_rag.types import Image, Message, Text

        pictured = [] if self._image is None else [Image(str(self._image))]
        self._history.append(Message("user", [*pictured, Text(question)]))
        self._history.append(Message("assistant", [Text(answer)]))

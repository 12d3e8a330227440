"""Untrusted regular expressions, matched in bounded time.

An adapter may name its layers by a pattern. ``re`` backtracks: a short pattern can keep it busy for years, and nothing
can stop it. This matcher follows all positions that a match can have reached at once, so it tries no path twice. It
answers yes or no, and needs neither a clock nor a child process.

Supported are literals, ``.``, classes, groups, lookaheads, ``|``, ``^``, ``$`` and repetitions. Backreferences,
lookbehinds, flags and named groups are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

__all__ = ["PatternError", "full_matches"]

_MAX_PATTERN = 2000
_MAX_DEPTH = 20
_MAX_REPEATS = 1000
_MAX_STEPS = 3_000_000
_CLASSES = {"d": str.isdigit, "w": lambda c: c.isalnum() or c == "_", "s": str.isspace}
_COUNTS = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")

_Ends = Callable[[str, set[int]], set[int]]
"""From the text and where a match may begin to where it may end."""


class PatternError(ValueError):
    """A pattern that is malformed, or that is not matched here; the message says why."""


def full_matches(pattern: str, texts: Iterable[str]) -> list[str]:
    """The texts that a pattern matches as a whole, as ``re.fullmatch`` would say.

    Args:
        pattern: See the module.
        texts: Any number of them.

    Raises:
        PatternError: It is malformed, has something that is not known here, or takes too many steps.
    """
    if len(pattern) > _MAX_PATTERN:
        raise PatternError(f"it is longer than {_MAX_PATTERN} characters")
    parser = _Parser(pattern)
    ends = parser.whole()
    return [text for text in texts if len(text) in ends(text, {0})]


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0
        self._steps = 0

    def whole(self) -> _Ends:
        ends = self._alternatives()
        if self._at < len(self._pattern):
            raise PatternError("a bracket is closed that was not opened")
        return ends

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, expected: str = "") -> str:
        if self._at >= len(self._pattern):
            raise PatternError("it ends too early")
        taken = self._next()
        if expected and taken != expected:
            raise PatternError(f"{expected!r} is missing")
        self._at += 1
        return taken

    def _skip(self, wanted: str) -> bool:
        found = self._pattern.startswith(wanted, self._at)
        self._at += len(wanted) * found
        return found

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise PatternError("it takes too many steps")

    def _alternatives(self) -> _Ends:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise PatternError(f"groups are nested more than {_MAX_DEPTH} deep")
        branches = [self._sequence()]
        while self._skip("|"):
            branches.append(self._sequence())
        self._depth -= 1
        return lambda text, at: set().union(*(branch(text, at) for branch in branches))

    def _sequence(self) -> _Ends:
        parts: list[_Ends] = []
        while self._next() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))

        def ends(text: str, at: set[int]) -> set[int]:
            for part in parts:
                at = part(text, at)
            return at

        return ends

    def _repeated(self, atom: _Ends) -> _Ends:
        counted = _COUNTS.match(self._pattern, self._at)
        if self._skip("*"):
            least, most = 0, _MAX_REPEATS
        elif self._skip("+"):
            least, most = 1, _MAX_REPEATS
        elif self._skip("?"):
            least, most = 0, 1
        elif counted and (counted[1] or counted[3]):
            self._at = counted.end()
            least = int(counted[1] or 0)
            most = least if not counted[2] else int(counted[3] or _MAX_REPEATS)
        else:
            return atom
        if not least <= most <= _MAX_REPEATS:
            raise PatternError(f"a repetition goes beyond {_MAX_REPEATS}, or backwards")
        self._skip("?")  # a lazy repetition matches the same texts
        if self._next() in ("*", "+", "?") or _COUNTS.match(self._pattern, self._at):
            raise PatternError("a repetition is repeated")

        def ends(text: str, at: set[int]) -> set[int]:
            found = set(at) if not least else set()
            for count in range(1, most + 1):
                self._spend(1)
                at = atom(text, at)
                if count >= least:
                    at = at - found  # from the others it went on before, with more repetitions left
                    found |= at
                if not at:
                    break
            return found

        return ends

    def _atom(self) -> _Ends:
        taken = self._take()
        if taken == "(":
            return self._group()
        if taken == "^":
            return lambda text, at: at & {0}
        if taken == "$":
            return lambda text, at: at & {len(text)}
        if taken in "*+?":
            raise PatternError("a repetition has nothing to repeat")
        if taken == ".":
            test: Callable[[str], bool] = lambda c: c != "\n"  # noqa: E731
        elif taken == "[":
            test = self._class()
        else:
            test = self._escape() if taken == "\\" else taken.__eq__

        def ends(text: str, at: set[int]) -> set[int]:
            self._spend(len(at) + 1)
            return {place + 1 for place in at if place < len(text) and test(text[place])}

        return ends

    def _group(self) -> _Ends:
        wanted: bool | None = None
        if self._skip("?"):
            kind = self._take()
            if kind not in ":!=":
                raise PatternError("only (...), (?:...), (?=...) and (?!...) are known of groups")
            wanted = None if kind == ":" else kind == "="
        inner = self._alternatives()
        self._take(")")
        if wanted is None:
            return inner
        return lambda text, at: {place for place in at if bool(inner(text, {place})) is wanted}

    def _escape(self) -> Callable[[str], bool]:
        taken = self._take()
        if taken.lower() in _CLASSES:
            test, wanted = _CLASSES[taken.lower()], taken.islower()
            return lambda c: test(c) is wanted
        if taken.isalnum():
            raise PatternError(f"\\{taken} is not known")
        return taken.__eq__

    def _class(self) -> Callable[[str], bool]:
        wanted = not self._skip("^")
        tests: list[Callable[[str], bool]] = []
        while not tests or self._next() != "]":
            first = self._take()
            if first == "\\":
                tests.append(self._escape())
            elif self._next() == "-" and self._pattern[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._take()
                if last == "\\" or last < first:
                    raise PatternError("a range of a class is not known, or goes backwards")
                tests.append(lambda c, first=first, last=last: first <= c <= last)  # type: ignore[misc]
            else:
                tests.append(first.__eq__)
        self._at += 1
        return lambda c: any(test(c) for test in tests) is wanted

"""Which sources an answer cites, however a language model writes that."""

from __future__ import annotations

import re

__all__ = ["CheckedCitations", "checked_citations", "cited_numbers", "sentences"]

_DASH = r"[-\u2010-\u2015\u2212~\uff5e]"
_WORD = r"(?:sources?|documents?|docs?|passages?|pictures?|images?|references?|refs?|citations?|nos?|#)\.?"
# "3", "2-4", "^2", "Source 3", "1\u2020source"
_ITEM = rf"\^?\s*(?:{_WORD}\s*)?(?P<first>\d+)(?:\s*{_DASH}\s*(?P<last>\d+))?(?:\u2020[^,;]*)?"
_SEPARATOR = r"\s*(?:[,;\u3001\uff0c\uff1b&]|and)\s*"
_GROUP = re.compile(r"[\[\uff3b\u3010\u3014]([^\[\]\uff3b\uff3d\u3010\u3011\u3014\u3015]{1,200})[\]\uff3d\u3011\u3015]")
_SPACED_GROUP = re.compile(rf"(?P<space>\s*){_GROUP.pattern.replace('(', '(?P<group>', 1)}")
_OPEN = re.compile(r"[\[\uff3b\u3010\u3014][^\]\uff3d\u3011\u3015]{0,200}$")
# A full stop behind an initial or a title ends nothing. Citations may stand behind the full stop.
_SENTENCE_END = re.compile(
    r"(?:(?<!\b[A-Z])(?<!\b(?:St|Dr|Mr|Ms|No|vs))(?<!\b(?:Mrs|e\.g|i\.e|etc))[.!?\u2026]+[\"'\u201d\u2019)]*"
    rf"(?:\s*{_GROUP.pattern})*(?=\s|$)|[\u3002\uff01\uff1f]+(?:\s*{_GROUP.pattern})*)"
)
_CITED = re.compile(_ITEM, re.IGNORECASE)
_BETWEEN = re.compile(_SEPARATOR, re.IGNORECASE)


def cited_numbers(answer: str, count: int) -> list[int]:
    """The numbers of sources that an answer cites, in the order of their first mention.

    Read are ``[1]``, ``[1, 3]``, ``[1][3]``, ranges such as ``[2-4]``, footnotes ``[^2]``, ``[Source 3]``, full-width
    brackets and digits, and the form of hosted assistants, ``【1†source】``.

    Args:
        answer: What the language model said.
        count: How many sources there are. Numbers beyond them, such as a year in brackets, cite nothing.

    Returns:
        Numbers from 1 to ``count``, each once.
    """
    found: dict[int, None] = {}
    for group in _GROUP.finditer(answer):
        for first, last in _ranges(group[1]):
            found.update(dict.fromkeys(range(max(1, first), min(count, last) + 1)))
    return list(found)


def _ranges(group: str) -> list[tuple[int, int]]:
    """The first and last number of each citation between two brackets; none where there is anything else."""
    ranges = []
    for item in _BETWEEN.split(group.strip()):
        cited = _CITED.fullmatch(item.strip())
        if cited is None:
            return []  # words in brackets
        first, last = int(cited["first"]), int(cited["last"] or cited["first"])
        ranges.append((min(first, last), max(first, last)))
    return ranges


def checked_citations(answer: str, count: int) -> tuple[str, list[str]]:
    """An answer that cites nothing but the sources that there are.

    Args:
        answer: What the language model said.
        count: How many sources there are.

    Returns:
        The answer without citations of other numbers, and these, as they were written.
    """
    dropped: list[str] = []

    def checked(found: re.Match[str]) -> str:
        ranges = _ranges(found["group"])
        kept = [(max(1, first), min(count, last)) for first, last in ranges]
        if kept == ranges:
            return found[0]
        dropped.append(found["group"].strip())
        shown = [str(first) if first == last else f"{first}-{last}" for first, last in kept if first <= last]
        return f"{found['space']}[{', '.join(shown)}]" if shown else ""

    return _SPACED_GROUP.sub(checked, answer), dropped


class CheckedCitations:
    """`checked_citations` for an answer that comes in pieces.

    Args:
        count: How many sources there are.

    Attributes:
        dropped: Citations that were left out, as they were written.
    """

    def __init__(self, count: int) -> None:
        self.dropped: list[str] = []
        self._count = count
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be shown by now; an open bracket and the space before it are held back."""
        held = self._held + piece
        bracket = _OPEN.search(held)
        until = len((held if bracket is None else held[: bracket.start()]).rstrip())
        self._held = held[until:]
        return self._checked(held[:until])

    def rest(self) -> str:
        """What was held back at the end."""
        held, self._held = self._held, ""
        return self._checked(held)

    def _checked(self, text: str) -> str:
        text, dropped = checked_citations(text, self._count)
        self.dropped += dropped
        return text


def sentences(text: str) -> list[str]:
    """The sentences of an answer, each with the citations behind it. Lines are sentences of their own."""
    found = []
    for line in text.splitlines():
        start = 0
        for end in _SENTENCE_END.finditer(line):
            found.append(line[start : end.end()].strip())
            start = end.end()
        found.append(line[start:].strip())
    return [one for one in found if re.search(r"\w", one)]

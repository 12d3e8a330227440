"""Which sources an answer cites, however a language model writes that."""

from __future__ import annotations

import re

__all__ = ["cited_numbers"]

_DASH = r"[-\u2010-\u2015\u2212~\uff5e]"
_WORD = r"(?:sources?|documents?|docs?|passages?|pictures?|images?|references?|refs?|citations?|nos?|#)\.?"
# "3", "2-4", "^2", "Source 3", "1\u2020source"
_ITEM = rf"\^?\s*(?:{_WORD}\s*)?(?P<first>\d+)(?:\s*{_DASH}\s*(?P<last>\d+))?(?:\u2020[^,;]*)?"
_SEPARATOR = r"\s*(?:[,;\u3001\uff0c\uff1b&]|and)\s*"
_GROUP = re.compile(r"[\[\uff3b\u3010\u3014]([^\[\]\uff3b\uff3d\u3010\u3011\u3014\u3015]{1,200})[\]\uff3d\u3011\u3015]")
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
        numbers: list[int] = []
        for item in _BETWEEN.split(group[1].strip()):
            cited = _CITED.fullmatch(item.strip())
            if cited is None:
                break  # words in brackets
            first, last = int(cited["first"]), int(cited["last"] or cited["first"])
            numbers += range(max(1, min(first, last)), min(count, max(first, last)) + 1)
        else:
            found.update(dict.fromkeys(numbers))
    return list(found)

"""What a question says to a keyword search: its words, its quoted phrases, and what must not be there.

A question is data. Only two things in it have a meaning of their own, both at the beginning of a word::

    engine "oil filter"     the phrase must be there, word for word
    engine -diesel          the word must not be there; -"oil filter" is the phrase
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Keywords", "by_trigrams", "by_words", "stripped"]

# Bounds on what a question may cost. A word that is longer is no word.
_MOST_WORDS = 64
_LONGEST_WORD = 128
_LONGEST_PHRASE = 1000
_OPEN, _CLOSE = '"“„', '"“”'
_SYNTAX = re.compile(
    rf'(?:(?<=\s)|(?<=\()|^)(-?)(?:[{_OPEN}]([^"“”„]+)[{_CLOSE}](?=$|[\s.,;:!?)])|(?<=-)([^\W\d_][^\s"“”„]*))'
)
_CHUNK = re.compile(r"\S+")
# Scripts whose words are not set apart by spaces: Thai to Tibetan, Burmese, Khmer, kana, ideographs, Hangul.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
# Words that say how something is asked, not what for. They count where a question has no others, and in quotes.
_ASKING = frozenset(
    "a about all am an and any are as at be by can could did do does find for from get give had has have hello hi "
    "how i i'd i'm image images in into is it its looking many me much my need of on one or our out photo "
    "photograph photographs photos picture pictures please search see should show so some tell thank thanks that "
    "the their them there these they this those to us want was we were what when where which who whose why will "
    "with would you your".split()
)


@dataclass(frozen=True)
class Keywords:
    """A question as a keyword search reads it.

    Attributes:
        text: The question without quotation marks and without what must not be there.
        words: What to rank by, phrases included.
        phrases: What must be there, word for word.
        without: Words and phrases that must not be there.
        identifier: Whether the question is nothing but names such as ``MX-4471-B``.
        needed: Words that must be there as well.
    """

    text: str
    words: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    identifier: bool = False
    needed: tuple[str, ...] = ()

    def demanding(self) -> Keywords:
        """The same, but only for what has all of its phrases; or all its names, or all its words."""
        names = tuple(word for word in self.words if _is_name(word))
        return replace(self, needed=self.phrases or names or self.words)

    @property
    def strict(self) -> bool:
        """Whether something must be there, or must not."""
        return bool(self.phrases or self.without)

    @classmethod
    def of(cls, question: str) -> Keywords:
        """Read a question. No question is refused, whatever is in it."""
        clean = question.replace("\0", " ").encode("utf-8", "replace").decode()
        phrases: list[str] = []
        without: list[str] = []

        def taken(found: re.Match[str]) -> str:
            phrase = (found[2] or found[3])[:_LONGEST_PHRASE].strip()
            if not _says_something(phrase):
                return found[0]
            (without if found[1] else phrases).append(phrase)
            return " " if found[1] else f" {found[2]} "

        rest = _SYNTAX.sub(taken, clean)
        text = " ".join(rest.split())
        if not _says_something(text):
            # Nothing is asked for, so nothing can be left out of it.
            text, phrases, without = " ".join(clean.split()), [], []
        words, identifier = _words(text)
        if phrases:
            words = [*dict.fromkeys([*phrases, *words])][:_MOST_WORDS]
        return cls(text, tuple(words), tuple(dict.fromkeys(phrases)), tuple(dict.fromkeys(without)), identifier)


def by_words(piece: str) -> bool:
    """Whether a word or phrase is looked up by the words in it."""
    return any(char.isalnum() for char in piece) and not _UNSPACED.search(piece)


def by_trigrams(piece: str) -> bool:
    """Whether a word or phrase is looked up by its trigrams: names, symbols, and scripts without spaces."""
    return not by_words(piece) or _is_name(piece)


def _words(text: str) -> tuple[list[str], bool]:
    """The words of a text without syntax, and whether all of them are names."""
    found: list[str] = []
    names = True
    asking = []
    for match in _CHUNK.finditer(text):
        chunk = stripped(match[0], _is_mark)
        if not chunk or len(chunk) > _LONGEST_WORD:
            names = names and not chunk
            continue
        if _is_name(chunk):
            found.append(chunk)
            continue
        names = False
        if chunk.lower() in _ASKING:
            asking.append(chunk)
            continue
        spaced = _UNSPACED.sub(" ", chunk)
        for run in _UNSPACED.findall(chunk):
            found += [run[at : at + 3] for at in range(max(1, len(run) - 2))]
        parts = re.findall(r"[^\W_]+", spaced)
        found += [part for part in parts if part.lower() not in _ASKING and (len(part) > 1 or len(parts) == 1)]
        if not parts and spaced.strip() and chunk == spaced:
            found.append(chunk)
    found = list(dict.fromkeys(found or asking))[:_MOST_WORDS]
    return found, names and bool(found)


def stripped(text: str, is_edge: Callable[[str], bool]) -> str:
    """A text without the characters at both ends that are edges."""
    start, end = 0, len(text)
    while start < end and is_edge(text[start]):
        start += 1
    while end > start and is_edge(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_mark(char: str) -> bool:
    # Symbols such as emoji are not punctuation, except those that programs and filters use.
    category = unicodedata.category(char)
    return category[0] in "PCZM" or char in "^`|~<>=+$"


def _says_something(text: str) -> bool:
    return any(not _is_mark(char) for char in text)


def _is_name(word: str) -> bool:
    """Whether a word is a name such as ``MX-4471-B``, ``IMG_2041`` or ``20417733``, not one of a language."""
    digits = sum(char.isdigit() for char in word)
    if not digits or len(word) < 3 or len(word) > _LONGEST_WORD or any(char.isspace() for char in word):
        return False
    letters = any(char.isalpha() for char in word)
    joined = any(char in "-_/.:#" for char in word[1:-1])
    return not _UNSPACED.search(word) and (letters or joined or digits >= 5)

"""The rules' vocabulary, and cleaning a question before the rules read it.

Cleaning keeps the user's own words. It hides quoted text from every pattern, tells English from other languages, picks
the sentence that asks, and drops the chat around it.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "BREAKS", "DETERMINER", "DRAWN", "HIDDEN", "LONGEST", "NUMBER", "PASSAGE", "PICTURE", "REQUEST", "SOMETHING",
    "Quotes", "asking", "is_english", "is_plural", "lowered", "pattern", "straight", "trim", "unchat", "without_here",
]  # fmt: skip

LONGEST = 600
"""Maximum number of characters of a text that patterns are tried on; a longer one is a document, not a question."""


def pattern(*parts: str) -> re.Pattern[str]:
    """Compile a case-insensitive pattern from its parts."""
    return re.compile("".join(parts), re.IGNORECASE)


# --- Words ------------------------------------------------------------------------------------------------

PICTURE = r"(?:pictures?|photos?|photographs?|images?|pics?|snapshots?|shots?|imgs?)"
DRAWN = r"(?:screenshots?|slides?|scans?|charts?|diagrams?|graphs?|plots?|illustrations?|drawings?|infographics?)"
PASSAGE = r"(?:passages?|paragraphs?|articles?|sections?|texts?|excerpts?|chapters?|sentences?|pages?)"
SOMETHING = r"(?:ones?|something|anything)"
NUMBER = r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d{1,2})"
DETERMINER = (
    r"(?:a|an|the|some|any|all|every|other|another|more|few|several|my|our|these|those|good|nice"
    rf"|{NUMBER})"
)
BREAKS = frozenset(
    """and or with without on in at under over above below near beside behind between that which who whose where when
    is are was were am to from by for next while but as than i you he she we they it""".split()
)
"""Words that say where a thing is or what it has. The name of a single thing contains none of them."""
_PLURALS = frozenset("people men women children geese mice sheep fish deer teeth feet".split())
_ENGLISH = frozenset(
    """the of is are with and what which who whose where when how why show find that this these those does did
    to for have has you your please picture pictures photo photos image images my can could would it its from by
    looking tell give describe any some i'm i've i'd not under above below next chart slide page""".split()
)
_FOREIGN = frozenset(
    """der das ein eine einen einem einer eines ist sind mit wo wie welche welcher welches wer zeig zeige mir bild auf
    dem den im und nicht ich sie gibt le la les un une des du est qui que dans avec où quel quelle montre montrez moi
    sur et je il y el los las una de del qué con en muéstrame es cuál está por para donde dónde hay gli di che è nella
    mostra mostrami sono dove os uma da com qual mostre onde het een van met op toon wat welke zijn och är som på med
    visa jest gdzie pokaż""".split()
)
_IN_NAMES = frozenset("de del la las le les los el di da du des van der den en y os con".split())
_NO_NAMES = (_ENGLISH - {"will"}) | frozenset(
    """a an in on at do was were should look focus name identify read count explain compare search photograph pic
    screenshot diagram graph scan two three four five one all no""".split()
)


def straight(text: str) -> str:
    """Replace typographic apostrophes by plain ones."""
    return text.replace("\u2018", "'").replace("\u2019", "'")


def is_plural(words: str) -> bool:
    """Whether the last word looks like a plural."""
    last = words.lower().rsplit(" ", 1)[-1]
    return last in _PLURALS or (last.endswith("s") and not last.endswith(("ss", "us", "is")))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", straight(text.lower()))


def is_english(text: str) -> bool:
    """Whether the English rules apply; a text too short to tell counts as English."""
    letters = [c for c in text if c.isalpha()]
    if sum(not unicodedata.name(c, "").startswith("LATIN") for c in letters) * 2 > len(letters):
        return False
    words = _words(text)
    english = sum(w in _ENGLISH for w in words)
    foreign = [w for w in words if w in _FOREIGN]
    if len(foreign) > english:
        # "Rio de Janeiro" and "Los Angeles" are names, whichever language they stand in.
        return len(words) <= 4 and _IN_NAMES.issuperset(foreign)
    return english > 0 or len(words) < 3 or text.isascii()


# --- Quotes -----------------------------------------------------------------------------------------------

_QUOTED = re.compile(
    r"\"[^\"]{1,300}\"|“[^”]{1,300}”|«[^»]{1,300}»|„[^“”]{1,300}[“”]"
    r"|\u2018(?:[^\u2019]|\u2019(?=\w)){1,300}\u2019"
    r"|(?<![\w'])'(?:[^']|'(?=\w)){1,300}'(?!\w)"
)
_FIRST, _LAST = 0xE000, 0xF8FF
HIDDEN = f"[{chr(_FIRST)}-{chr(_LAST)}]"
"""Each quoted span is replaced by one private-use character, so that no pattern looks inside it."""


class Quotes:
    """A question with its quoted spans hidden.

    Attributes:
        hidden: The question, with a private character for each quoted span.
    """

    def __init__(self, question: str) -> None:
        self._spans: list[str] = []
        # If the question has private-use characters of its own, they would be mistaken for spans.
        self.hidden = question if re.search(HIDDEN, question) else _QUOTED.sub(self._hide, question)

    def _hide(self, found: re.Match[str]) -> str:
        if _FIRST + len(self._spans) > _LAST:
            return found[0]
        self._spans.append(found[0])
        return chr(_FIRST + len(self._spans) - 1)

    def show(self, text: str) -> str:
        """Put the quoted spans back."""
        return re.sub(HIDDEN, lambda m: self._spans[ord(m[0]) - _FIRST], text) if self._spans else text


# --- Marks and case ---------------------------------------------------------------------------------------


def _is_edge(character: str) -> bool:
    if character in " ,.;:!?…¿¡-\ufe0e\ufe0f":
        return True
    return unicodedata.category(character) in ("So", "Sk", "Cf", "Cc") and character != "°"


def trim(text: str) -> str:
    """Strip punctuation and emoji from both ends."""
    start, end = 0, len(text)
    while start < end and _is_edge(text[start]):
        start += 1
    while end > start and _is_edge(text[end - 1]):
        end -= 1
    return text[start:end]


def lowered(text: str) -> str:
    """Lower the case of shouting, and of a sentence's first letter unless the word may be a name."""
    if text.upper() == text and len(_words(text)) > 2:
        return text.lower()
    first, space, rest = text.partition(" ")
    return first.lower() + space + rest if first.lower() in _NO_NAMES else text


# --- Chat -------------------------------------------------------------------------------------------------

_GREETING = r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|dear (?:all|team))"
_WHO = r"(?: (?:there|all|everyone|team|folks|guys))?"
_ASKED = r"(?:if|whether|what|which|who|whose|where|when|why|how)\b"
_LOOKS = r"(?! (?:see|find|get|buy)\b)"
_LEAD = pattern(
    rf"(?:{_GREETING}{_WHO}|ok(?:ay)?|so|well|um+|now|please|pls|kindly|sorry|excuse me|quick question",
    r"|thanks|thank you|and|also|but|find out|any idea|let me know|(?:tell|remind) me(?! about)|help me(?: to)?",
    r"|(?:would|will|is) it be possible to|is it possible to|(?:would|are) you (?:be )?able to|(?:what|how) about",
    rf"|(?:please )?(?:have a |take a )?look at (?:this|the|my) {PICTURE}(?: above| below)?,? and(?: then)?",
    r"|(?:can|could|would|will) (?:you|u)(?: (?:please|kindly|maybe|perhaps|possibly|just|help me(?: to)?))*",
    rf"|i (?:was|am) (?:just )?wondering(?=,? {_ASKED})|i wonder(?= {_ASKED})|know(?= {_ASKED})",
    rf"|(?:i would|i'd) (?:like|love) (?:you )?to{_LOOKS}|i want (?:you )?to{_LOOKS}",
    r"|(?:do you|does anyone|do we|would you) know)[ ,.!:;-]+",
    r"|(?:i'm|i am|we're|we are) [^,]{3,80}?,? (?:and|so) ",
    r"(?=(?:i |we )?(?:need|want|am looking|are looking|would like)\b)",
    r"|(?:i have|i've got|here is|here's|this is|i took|i found) [^,]{3,100}, ",
    r"(?=(?:what|which|who|how|is|are|can|could)\b)",
)
_TAIL = pattern(
    r"(?<![ ,.!?;-])[ ,.!?;-]+",
    r"(?:please|pls|thanks|thank you|thx|cheers|many thanks|if (?:you can|possible|that's ok)|for me|asap",
    r"|for (?:my|our|a|the) (?:\w+ )?(?:slides?|deck|presentation|talk|report|website|blog|newsletter|poster|homework)",
    r"|can you help(?: me)?|someone)",
    r"(?:,? (?:a lot|so much|very much|in advance|again|everyone|all))?$",
)
_CHAT = pattern(
    rf"(?:{_GREETING}|thanks?|thank you|cheers|many thanks|sorry|ok(?:ay)?|great|please|how are you",
    r"|(?:can|could) (?:you|anyone|someone) (?:please )?help(?: me)?(?: out)?|i have a (?:quick )?question",
    r"|quick question|question)(?: (?:there|all|everyone|team|folks|guys|a lot|so much|very much|in advance|again",
    r"|please|today|doing|for your help|for this))*",
)
_SPELT_OUT = [
    (pattern(rf"\b{short}(?!\w)"), full)
    for short, full in (
        ("what'?s", "what is"), ("who's", "who is"), ("where'?s", "where is"), ("there'?s", "there is"),
        ("im", "i'm"), ("ive", "i've"), ("id(?= (?:like|love))", "i'd"), ("w/", "with"),
    )
]  # fmt: skip
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])(?<!\b[A-Z]\.)(?<!\b(?:St|Dr|Mr|Ms|No|vs)\.)(?<!\b(?:Mrs|Fig|etc|e\.g|i\.e)\.) +"
)
REQUEST = pattern(
    r"(?:(?:please )?(?:(?:show|find|get|give|fetch|bring|send)(?: (?:me|us))?",
    r"|list|display|retrieve|locate|pull up|dig up|(?:look|search|hunt|browse)(?:ing)? for|search)",
    r"|(?:is|are|was|were) there|there (?:is|are)|(?:i'm|i am) after",
    r"|(?:(?:i'm|i am|we're|we are|am|are) )?(?:looking|searching) for|see(?= (?:a|an|the|some|any)\b)",
    r"|(?:do|have) (?:you|we) (?:have|got)|you have|(?:have you |you )?got(?= any)|do you (?:sell|carry|stock)",
    r"|(?:(?:i|we) )?(?:really |just )?(?:need|want)(?: to (?:see|find|get|buy))?",
    r"|(?:i would|i'd|we'd) (?:like|love)(?: to (?:see|find|get|buy))?|let me see|i (?:can't|cannot|couldn't) find",
    r"|(?:can|could|may) (?:i|we) (?:see|get|have|find)|where (?:can|could|do|would) (?:i|we|you) (?:see|find|get)",
    r"|where (?:i|we) can (?:see|find|get)) (?P<what>.+)",
)
"""A request to find something; ``what`` is what it asks for."""
_CONDITION = pattern(
    r"(?:(?:ideally|preferably),? )?(?:it|they) (?:should|must|has to|have to|needs? to) ",
    r"(?P<verb>be|have|show|contain|include) (?P<what>(?P<place>(?:on|in|at|from|of|about|with) )?.+)",
)
_POINTS_BACK = pattern(r"\b(?:of|with|for|find|have|about|need) (?:it|them|him|her|that)$")


def unchat(text: str) -> str:
    """Drop greetings, courtesies and other lead-ins."""
    for short, full in _SPELT_OUT:
        text = short.sub(full, text)
    text = trim(text)
    while len(text) <= LONGEST:
        shorter = trim(_TAIL.sub("", text))
        if lead := _LEAD.match(shorter):
            shorter = trim(shorter[lead.end() :])
        if shorter in (text, ""):
            break
        text = shorter
    return text


def asking(text: str) -> str:
    """The sentence that asks, with the conditions that others add; the whole text without chat if that is unclear."""
    said = [s for s in _SENTENCE_END.split(text) if trim(s) and not _CHAT.fullmatch(trim(s))]
    questions: list[str] = []
    requests: list[str] = []
    for sentence in said:
        bare = unchat(sentence)
        kept = questions if sentence.endswith("?") else requests
        condition = _CONDITION.fullmatch(bare)
        if condition and (questions or requests):
            (questions or requests)[-1] += _joined(condition)
        elif kept is questions or REQUEST.match(bare):
            kept.append(bare)
    found = questions or requests
    if len(found) == 1 and not (len(said) > 1 and _POINTS_BACK.search(found[0])):
        return found[0]
    return "? ".join(questions) if len(questions) > 1 else unchat(" ".join(said or [text]))


def _joined(condition: re.Match[str]) -> str:
    """``"It should have a red roof"`` to ``" with a red roof"``."""
    if condition["verb"].lower() != "be":
        return f" with {condition['what']}"
    return f"{'' if condition['place'] else ','} {condition['what']}"


# --- "in this picture" --------------------------------------------------------------------------------------

_HERE = pattern(
    r"(?: (?:shown|seen|visible|pictured|displayed))? (?:in|on|of|from) (?:this|that|the|my|your)",
    rf"(?: (?:attached|above|following|given|uploaded))? {PICTURE}(?: (?:above|below|here|attached))?",
    r"(?= (?!with|that|which|where|whose|of|showing|i )|$)|,? here$",
)
_HERE_FIRST = pattern(rf"(?:in|on|from) (?:this|that|the|my) {PICTURE}(?: above| below)?,? ")
_DANGLING = frozenset("is are was were be do does can the of you we i see seen shown there visible".split())


def without_here(text: str) -> str:
    """Drop "in this picture", unless the sentence would break: ``"what is the man in this picture doing"``."""
    text = _HERE_FIRST.sub("", text, count=1) if _HERE_FIRST.match(text) else text
    found = _HERE.search(text)
    if not found:
        return text
    before, after = text[: found.start()], text[found.end() :]
    if not after and (" " not in before or before.rsplit(" ", 1)[-1].lower() in _DANGLING):
        return f"{before} in the picture"
    return before + after

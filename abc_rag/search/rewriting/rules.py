"""Rewriting by rules for English.

A question loses the chat around it, and the words that ask for a picture or a passage say which of them is wanted. Four
aspects have an instruction of their own: a side, which object is bigger, a thing's category, the background. Any other
question is its own instruction.

More rules are not better. ``python -m benchmarks.wordings`` measures these in wordings that they were not written for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from abc_rag.search.rewriting.rewriter import WHOLE_PICTURE, Rewrite, Rewriter, Wants
from abc_rag.store.keywords import stripped

__all__ = ["RuleRewriter", "follows_up"]

_LONGEST = 600  # maximum number of characters of a question; a longer text is a document


def _pattern(*parts: str) -> re.Pattern[str]:
    return re.compile("".join(parts), re.IGNORECASE)


_PICTURE = r"(?:pictures?|photos?|photographs?|images?|pics?|snapshots?|shots?|imgs?)"
_DRAWN = r"(?:screenshots?|slides?|scans?|charts?|diagrams?|graphs?|plots?|illustrations?|drawings?|infographics?)"
_PASSAGE = r"(?:passages?|paragraphs?|articles?|sections?|texts?|excerpts?|chapters?|sentences?|pages?)"
_NOUN = rf"(?:{_PICTURE}|{_DRAWN}|{_PASSAGE}|ones?|something|anything)"


class RuleRewriter(Rewriter):
    """By rules for English; a question in another language only loses the punctuation around it.

    Chat is dropped ("could you please", "thanks a lot"); the user's own words and quoted text are kept. A question that
    names a side, a size, a category or the background, and nothing else, gets the instruction that asks for it. Any
    other question is its own instruction, except one about the whole picture and one of fact ("what does the turtle
    eat?"), which get `WHOLE_PICTURE`.

    Example:
        >>> RuleRewriter().rewrite("Could you show me a photo with a blue background?", has_image=False)
        Rewrite(instruction='what colour is the background?', target='a blue background', wants='image')
    """

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        whole = " ".join(question.split())
        quotes = _Quotes(whole)
        text = _without_chat(_without_chatter(quotes.hidden.replace("\u2018", "'").replace("\u2019", "'")))
        if len(text) > _LONGEST or not text:
            return Rewrite(whole if has_image else WHOLE_PICTURE, whole, "any")
        if _ASKS_WHOLE.fullmatch(text):
            return Rewrite(WHOLE_PICTURE, "what the picture shows", "any")
        asked = _QUESTION.match(text) is not None
        wanted = _request(text) or (None if asked else text)
        wants = "any" if wanted is None else _kind(wanted)
        if wanted is None or (has_image and wants == "any"):
            instruction = target = f"{text}?" if asked else text
            if asked and not has_image and not _VISUAL.search(text):
                instruction = WHOLE_PICTURE  # a question of fact: what a picture shows does not answer it
        else:
            target = _body(wanted)
            instruction, target = (None if has_image else _aspect(target)) or (target, target)
        # Cutting words out may leave extra spaces, or an empty text.
        instruction, target = (" ".join(quotes.show(made).split()) or whole for made in (instruction, target))
        return Rewrite(instruction, target, wants)


_FOLLOWS_UP = _pattern(
    r"\W*(?:and|also|or|but|then)\b|.*\b(?:(?:what|how) about|what else|the (?:same|other|rest|picture|photo|image)",
    r"|this|that|these|those|it|its|they|them|their|he|she|his|her|there|here)\b",
    # A place alone: without a picture, there is nothing that it could be a place in.
    rf"|\W*(?:(?:what|who|which (?!{_PICTURE}\b)\w+)(?:['\u2019]s| is| are)? )?(?:on|at|in|to) the ",
    r"(?:left|right|top|bottom|middle|cent(?:re|er)|background|foreground)\W*$",
    r"|\W*what colou?r is the background\W*$",
)


def follows_up(question: str) -> bool:
    """Whether a question only makes sense after an earlier one, such as ``"and on the right?"``.

    So does one about a place alone, such as ``"what is on the left?"``, which needs a picture. Known by English words;
    a question in another language never does.
    """
    return len(question) <= 200 and _FOLLOWS_UP.match(question) is not None


# --- Quotes: no pattern looks inside them -------------------------------------------------------------------

_QUOTED = re.compile(
    r"\"[^\"]{1,300}\"|“[^”]{1,300}”|«[^»]{1,300}»|„[^“”]{1,300}[“”]"
    r"|\u2018(?:[^\u2019]|\u2019(?=\w)){1,300}\u2019"
    r"|(?<![\w'])'(?:[^']|'(?=\w)){1,300}'(?!\w)"
)
_FIRST, _LAST = 0xE000, 0xF8FF  # private characters: each stands for a quoted span
_HIDDEN = f"[{chr(_FIRST)}-{chr(_LAST)}]"


class _Quotes:
    """A question with its quoted spans hidden."""

    def __init__(self, question: str) -> None:
        self._spans: list[str] = []
        # If the question has private characters of its own, they would be mistaken for spans.
        self.hidden = question if re.search(_HIDDEN, question) else _QUOTED.sub(self._hide, question)

    def _hide(self, found: re.Match[str]) -> str:
        if _FIRST + len(self._spans) > _LAST:
            return found[0]
        self._spans.append(found[0])
        return chr(_FIRST + len(self._spans) - 1)

    def show(self, text: str) -> str:
        """Put the quoted spans back."""
        return re.sub(_HIDDEN, lambda m: self._spans[ord(m[0]) - _FIRST], text) if self._spans else text


# --- Chat ---------------------------------------------------------------------------------------------------


def _trimmed(text: str) -> str:
    """Strip punctuation and emoji from both ends."""
    return stripped(text, _is_edge)


def _is_edge(character: str) -> bool:
    if character in " ,.;:!?…¿¡-\ufe0e\ufe0f":
        return True
    return unicodedata.category(character) in ("So", "Sk", "Cf", "Cc") and character != "°"


_GREETING = r"(?:hi|hello|hey|good (?:morning|afternoon|evening)|dear (?:all|team))"
_LEAD = _pattern(
    rf"(?:{_GREETING}(?: (?:there|all|everyone|team|folks|guys))?|ok(?:ay)?|so|well|now|please|sorry|excuse me",
    r"|thanks|thank you|and|also|but|(?:(?:can|could|would|will) you|let me know|tell me)(?: (?:please|kindly|just))*",
    r"|i(?: was| am|'m)? (?:just )?wonder(?:ing)?(?: if| whether)?|do you know",
    r"|(?:i would|i'd) (?:like|love) (?:you )?to(?! (?:see|find|get)\b)|(?:what|how) about)[ ,.!:;-]+",
)
_TAIL = _pattern(
    r"[ ,.!?;-]+(?:please|thanks|thank you|thx|cheers|for (?:me|my|our|a|the)(?: \w+)?)"
    r"(?:,? (?:a lot|so much|very much|in advance|again|everyone|all))?$",
)
_CHAT = _pattern(
    rf"(?:{_GREETING}|thanks?|thank you|cheers|many thanks|sorry|ok(?:ay)?|great|please|how are you|quick question",
    r"|(?:can|could) (?:you|anyone) (?:please )?help(?: me)?)(?: (?:there|all|everyone|team|a lot|so much|very much",
    r"|in advance|again|please|today|for your help))*",
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])(?<!\b[A-Z]\.)(?<!\b(?:St|Dr|Mr|Ms|No|vs)\.) +")
_REQUEST = _pattern(
    r"(?:(?:show|find|get|give|fetch|bring|send)(?: (?:me|us))?|list|display|locate|(?:look|search)(?:ing)? for",
    r"|search|(?:is|are|was|were) there|(?:(?:i'?m|i am|we're|we are) )?(?:looking for|after)",
    r"|(?:(?:do|have) )?(?:you|we) (?:have|got)|got(?= any)|(?:(?:i|we) )?(?:need|want)(?: to (?:see|find|get))?",
    r"|(?:i would|i'd|we'd) (?:like|love)(?: to (?:see|find|get))?|(?:can|could|may) (?:i|we) (?:see|get|have|find)",
    r"|where (?:can|could) (?:i|we) (?:see|find|get)) (?P<what>.+)",
)


def _without_chat(text: str) -> str:
    """Drop greetings, courtesies and other lead-ins."""
    text = re.sub(r"(?i)\bwhat'?s\b", "what is", _trimmed(text))
    while len(text) <= _LONGEST:
        shorter = _trimmed(_TAIL.sub("", text))
        if lead := _LEAD.match(shorter):
            shorter = _trimmed(shorter[lead.end() :])
        if shorter in (text, ""):
            break
        text = shorter
    return text


def _without_chatter(text: str) -> str:
    """Drop whole sentences of chat. Any other sentence may hold a condition, so all of them stay."""
    return " ".join(s for s in _SENTENCE_END.split(text) if not _CHAT.fullmatch(_trimmed(s))) or text


# --- What is asked for --------------------------------------------------------------------------------------

_WHICH = _pattern(rf"(?:which|what)(?: (?:one )?of (?:the|these|my|our))? (?P<noun>{_NOUN}) (?P<rest>.+)")
_WHICH_BE = _pattern(
    r"(?:(?:is|are) the ones? (?=with|where|in which|that)",
    r"|(?:is|are|was|were) (?=(?:about|of|from|in|on|taken|made|titled)\b)|(?:do|have) (?:you|we) (?:have|got) )",
    r"(?P<what>.+)",
)
_WHICH_IS = _pattern(
    rf"(?:which|what|where) (?:is|are) (?P<what>the {_PICTURE} (?:with|where|in which|that|of|showing)\b .+)"
)
_IN_WHICH = _pattern(
    rf"(?:in|on) (?:which|what) (?P<noun>{_NOUN}) (?:is|are|can (?:i|we|you) see|do (?:i|we|you) see)(?: there)? ",
    r"(?P<rest>(?P<subject>the [\w-]+ )?(?P<says>.+))",
)
_HEAD = _pattern(
    r"(?:(?:a|an|the|some|any|all|every|other|another|more|few|several|my|our|these|those|good|nice|\d+) )*",
    rf"(?P<noun>{_NOUN}) (?:(?P<whose>whose)|in which|on which|where|of|with|showing|depicting",
    r"|featuring|containing|having|displaying|(?:that|which) (?:shows?|depicts?|features?|contains?|has|have)",
    r"|(?:that|which) (?:is|are) of|(?P<spoken>(?:(?:that|which) (?:is |are )?)?",
    r"(?:about|on|saying|describing|explaining|mentioning|discussing|covering|covers?",
    r"|says?|describes?|explains?|mentions?|discuss(?:es)?))) (?P<rest>.+)",
)
_STOPS = frozenset(
    """and or with without on in at under over above below near beside behind between that which who whose where when
    is are was were am to from by for next while but as than i you he we they it of about showing depicting featuring
    containing taken saying titled has have like similar resembling""".split()
)
_QUESTION = _pattern(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have",
    r"|(?:in|on|at|from|for|to|with|by) (?:which|what|whom|whose))\b",
)
_VISUAL = _pattern(
    rf"\b(?:{_PICTURE}|ones?|colou?rs?|background|left|right|top|bottom|bigger|larger|smaller|biggest|largest|smallest)\b"
)
_ASKS_WHOLE = _pattern(
    r"(?:what (?:is|are)(?: (?:in|on|shown in|shown on|going on in|happening in))?|what does|describe|caption|explain",
    r"|what do (?:you|we|i) see(?: in| on)?|what can (?:you|we|i|be) (?:see|seen)(?: in| on)?|summari[sz]e|look at)",
    rf"(?: (?:this|that|it|these|here|(?:this|that|the|my) {_PICTURE}(?: above| below| here)?))?",
    r"(?: (?:show|depict|about))?",
    rf"|what is (?:shown|going on|happening|depicted)(?: here| in (?:this|the) {_PICTURE})?",
)


def _request(text: str) -> str | None:
    """What a text asks to find; None if it does not."""
    if found := _IN_WHICH.fullmatch(text):
        clause = f"in which {found['subject']}is {found['says']}" if found["subject"] else f"of {found['rest']}"
        return f"{found['noun']} {clause}"
    if found := _WHICH.fullmatch(text):
        about = _WHICH_BE.fullmatch(found["rest"])
        return f"{found['noun']} {about['what']}" if about else f"{found['noun']} that {found['rest']}"
    if found := _WHICH_IS.fullmatch(text) or _REQUEST.fullmatch(text):
        return _trimmed(found["what"])
    return None


def _kind(statement: str) -> Wants:
    """The kind of record that a statement's head noun names, such as ``"scan"`` in ``"a receipt scan from May"``."""
    head = ""
    for word in statement.lower().split()[:8]:
        if word in _STOPS or (word.endswith(("ing", "ed")) and re.fullmatch(_NOUN, head)):
            break
        head = word
    if re.fullmatch(f"{_PICTURE}|{_DRAWN}", head):
        return "image"
    return "text" if re.fullmatch(_PASSAGE, head) else "any"


def _body(statement: str) -> str:
    """A statement without an empty head: ``"a photo of a dog"`` to ``"a dog"``."""
    found = _HEAD.fullmatch(statement)
    if not found:
        return statement
    noun, rest = found["noun"].lower(), found["rest"]
    if re.fullmatch(_PASSAGE, noun):
        return rest if found["spoken"] else statement
    if re.fullmatch(_DRAWN, noun) or found["spoken"]:
        return statement
    if found["whose"]:
        return f"the {rest}" if re.search(r"\b(?:is|are)\b", rest) else statement
    return rest


# --- Aspects ------------------------------------------------------------------------------------------------

_Made = tuple[str, str]  # instruction, target
_SIDE = (
    r"(?:(?:up |down )?(?:on|at|to|in) the (?:(?:far|very|upper|lower|top|bottom|left|right)(?:[ -]hand)?[ -]){0,3}"
    r"(?:left|right|top|bottom|side|half|part|corner|edge|third|middle|centre|center|foreground|background))"
)
_HUE = r"(?:red|orange|yellow|green|blue|purple|white|gray|grey|black|pink|brown|beige|cyan|turquoise|teal|navy|violet)"
_COLOUR = rf"(?:(?:light|dark|pale|bright|deep|plain|solid)[ -])?{_HUE}(?: and {_HUE})?"
_OF_IT = rf"(?: (?:of|in) (?:the|a|an|each) {_PICTURE})?"
_CATEGORY = (
    r"(?:animal|creature|pet|bird|insect|food|fruit|vegetable|dish|dessert|drink|vehicle|means of transport|plant"
    r"|flower|(?:musical )?instrument|(?:piece of )?clothing|garment|household object|tool|sport|building|toy|device)"
)


def _background(m: re.Match[str]) -> _Made:
    colour = m["colour"] or m["after"]
    return "what colour is the background?", f"{'an' if colour[0].lower() in 'aeiou' else 'a'} {colour} background"


def _side(m: re.Match[str]) -> _Made:
    return f"what is {m['side'].lower()}?", f"{m['what']} {m['side'].lower()}"


def _side_clause(m: re.Match[str]) -> _Made:
    which = "what" if m["noun"].lower() in ("object", "thing", "item", "one") else f"which {m['noun']}"
    return f"{which} is {m['side'].lower()}?", f"{m['what']} {m['side'].lower()}"


def _larger(m: re.Match[str]) -> _Made:
    noun, size = "object" if m["noun"].lower() == "one" else m["noun"], m["size"].lower()
    return f"which {noun} is {'the ' if size.endswith('est') else ''}{size}?", m["what"]


def _category(m: re.Match[str]) -> _Made:
    return f"which {m['noun']} is in the picture?", m["what"]


# Each pattern matches a whole statement: one that says more than an aspect matches none of them.
_ASPECTS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], _Made]]] = [
    (_pattern(whole), made)
    for whole, made in (
        (rf"(?:(?:with|on|against|in front of) )?(?:(?:a|an|the) )?(?:(?P<colour>{_COLOUR}) background"
         rf"|background(?: colou?r)?(?: (?:that|which))?(?: is)? (?P<after>{_COLOUR}))", _background),
        (rf"the (?P<noun>object|thing|item|one|person|{_CATEGORY}) (?P<side>{_SIDE}){_OF_IT} is (?P<what>.+)",
         _side_clause),
        (rf"(?:there (?:is|are) )?(?P<what>.+?) (?:(?:that |which )?(?:is|are) )?(?P<side>{_SIDE}){_OF_IT}", _side),
        (rf"(?P<side>{_SIDE}){_OF_IT},? (?:there (?:is|are)|(?:you|we|i) (?:can )?see|is|are) (?P<what>.+)", _side),
        (r"the (?P<size>bigger|larger|smaller|biggest|largest|smallest) (?P<noun>\w+) is (?P<what>(?:a|an|the) .+)",
         _larger),
        (rf"the (?P<noun>{_CATEGORY})(?: (?:(?:that|which) (?:is|are) )?(?:shown|visible|seen))?{_OF_IT}"
         r" is (?P<what>(?:a|an) .+)", _category),
    )
]  # fmt: skip
_NEGATED = _pattern(r"\b(?:not|no|without|except|neither|nor|never|\w+n't)\b")


def _aspect(statement: str) -> _Made | None:
    """Instruction and target of a statement that names exactly one aspect; None for any other."""
    if not _NEGATED.search(statement):
        for whole, made in _ASPECTS:
            found = whole.fullmatch(statement)
            # The name of a single thing has at most six words, and none of these.
            if found and ("what" not in whole.groupindex or _is_simple(found["what"])):
                return made(found)
    return None


def _is_simple(words: str) -> bool:
    parts = words.lower().split()
    return 0 < len(parts) <= 6 and "," not in words and not (_STOPS - {"of"}).intersection(parts)

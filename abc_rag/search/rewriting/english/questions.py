"""Rules for English: from a question to an instruction, a target, and the kind of record that it asks for.

A question is cleaned (`wording`), then read either as a search ("show me ...", "a dog on a beach") or as a question
about something. A search becomes a statement; if the statement names exactly one aspect, that becomes the instruction
(`aspects`). A question becomes a statement of its topic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from abc_rag.search.rewriting.english.aspects import LARGER, SIDE, TRANSITIVE, aspect
from abc_rag.search.rewriting.english.wording import (
    BREAKS,
    DETERMINER,
    DRAWN,
    LONGEST,
    PASSAGE,
    PICTURE,
    REQUEST,
    SOMETHING,
    Quotes,
    asking,
    is_english,
    is_plural,
    lowered,
    pattern,
    straight,
    trim,
    unchat,
    without_here,
)
from abc_rag.search.rewriting.rewriter import WHOLE_PICTURE, Wants

__all__ = ["rewrite"]


_Made = tuple[str, str]  # instruction, target
_NOUN = rf"(?:{PICTURE}|{DRAWN}|{PASSAGE}|{SOMETHING})"
# --- Statements: what somebody searches for -----------------------------------------------------------------------

_WHICH = pattern(rf"(?:which|what)(?: (?:one )?of (?:the|these|my|our))? (?P<noun>{_NOUN}) (?P<rest>.+)")
_WHICH_BE = pattern(
    r"(?:(?:is|are) the ones? (?=with|where|in which|that)",
    r"|(?:is|are|was|were) (?=(?:about|of|from|in|on|taken|made|titled)\b)|(?:do|have) (?:you|we) (?:have|got) )",
    r"(?P<what>.+)",
)
_WHICH_IS = pattern(
    rf"(?:which|what|where) (?:is|are) (?P<what>the {PICTURE} (?:with|where|in which|that|of|showing)\b .+)"
)
_SINGULAR_VERB = pattern(r"(?:is|was|has|shows|contains|says)\b")
_IN_WHICH = pattern(
    rf"(?:in|on) (?:which|what) (?P<noun>{_NOUN}) (?:is|are|can (?:i|we|you) see|do (?:i|we|you) see)(?: there)? ",
    r"(?P<rest>(?P<subject>the [\w-]+ )?(?P<says>.+))",
)
_WHICH_HAVE = pattern(
    r"(?:which|what) (?P<noun>(?:[\w-]+ )?[\w-]+s) ",
    r"(?P<rest>(?:have|are|come|fit|contain) (?!there$|in the|on the|shown).+)",
)
_HEAD = pattern(
    rf"(?:{DETERMINER} )*(?P<noun>{_NOUN}) (?:(?P<whose>whose)|in which|on which|where|of|with|showing|depicting",
    r"|featuring|containing|having|displaying|(?:that|which) (?:shows?|depicts?|features?|contains?|has|have)",
    r"|(?:that|which) (?:is|are) of|(?P<spoken>(?:(?:that|which) (?:is |are )?)?",
    r"(?:about|on|saying|describing|explaining|mentioning|discussing|covering|covers?",
    r"|says?|describes?|explains?|mentions?|discuss(?:es)?))) (?P<rest>.+)",
)
_NOUN_LAST = pattern(rf"(?!(?:{DETERMINER} )+{PICTURE}$|.* of )(?P<what>[\w' -]+) {PICTURE}")
_STOPS = BREAKS | frozenset(
    "of about showing depicting featuring containing taken saying titled has have like similar resembling".split()
)


def _as_statement(text: str) -> str | None:
    """What a request asks for; None for a text that is not a request."""
    if found := _IN_WHICH.fullmatch(text):
        clause = f"in which {found['subject']}is {found['says']}" if found["subject"] else f"of {found['rest']}"
        return f"{found['noun']} {clause}"
    if found := _WHICH.fullmatch(text):
        noun, rest = found["noun"], found["rest"]
        if _SINGULAR_VERB.match(rest):
            noun = noun.removesuffix("s")  # "which of these photos was ..."
        if not is_plural(noun) and noun.lower() not in ("anything", "something"):
            noun = f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"
        about = _WHICH_BE.fullmatch(rest)
        return f"{noun} {about['what']}" if about else f"{noun} that {rest}"
    if found := _WHICH_HAVE.fullmatch(text):
        return f"{found['noun']} that {found['rest']}"
    if found := _WHICH_IS.fullmatch(text):
        return trim(found["what"])
    if found := REQUEST.fullmatch(text):
        return trim(found["what"])
    return None


def _bare(statement: str) -> str:
    return re.sub(r"(?i)^(?:some|any|all the|all|every) (?=\w)", "", statement)


def _kind(statement: str) -> Wants:
    """The kind of record that a statement's head noun names, such as ``"scan"`` in ``"a receipt scan from May"``."""
    head = ""
    for word in statement.lower().split()[:8]:
        if word in _STOPS or (word.endswith(("ing", "ed")) and re.fullmatch(_NOUN, head)):
            break
        head = word
    if re.fullmatch(f"{PICTURE}|{DRAWN}", head):
        return "image"
    return "text" if re.fullmatch(PASSAGE, head) else "any"


def _body(statement: str) -> str:
    """A statement without an empty head: ``"a photo of a dog"`` to ``"a dog"``."""
    found = _HEAD.fullmatch(statement)
    if not found:
        noun_last = _NOUN_LAST.fullmatch(statement)
        return noun_last["what"] if noun_last else statement
    noun, rest = found["noun"].lower(), found["rest"]
    if re.fullmatch(PASSAGE, noun):
        return rest if found["spoken"] else statement
    if re.fullmatch(DRAWN, noun) or found["spoken"]:
        return statement
    if found["whose"]:
        return f"the {rest}" if re.search(r"\b(?:is|are)\b", rest) else statement
    return rest


# --- Questions: the topic of their answer ------------------------------------------------------------------

_VERBS = (
    r"(?:have|cost|eat|mean|look|need|weigh|say|do|make|use|take|live|work|happen|get|show|contain|include|drink|sleep"
    r"|last|require|go|grow|taste|smell|wear|hold|help|run|open|close|start|end|fly|swim|move|change|measure|produce)"
)
_ODD = {"have": "has", "do": "does", "go": "goes", "fly": "flies"}


def _verb_last(m: re.Match[str]) -> str:
    """``"does the turtle eat"`` to ``"the turtle eats"``."""
    verb = m["verb"]
    if m["do"].lower() == "does":
        verb = _ODD.get(verb.lower()) or verb + ("es" if verb.endswith(("s", "sh", "ch", "x")) else "s")
    return f"{m['before']}{m['subject']} {verb}{m['rest']}"


def _be_last(m: re.Match[str]) -> str:
    """``"what is the man holding"`` to ``"what the man is holding"``."""
    return " ".join(part for part in (m["asked"], m["subject"], m["be"], m["rest"]) if part)


_SUBJECT = r"(?:(?:a|an|the|my|your|this|that|these|those) )?[\w-]+"
_IS = r"(?P<be>is|are|was|were)"
_SEEN = rf"(?:is|are|can be seen|do you see|is shown|is located)(?: there)?(?: in the {PICTURE})?"
_ATTRIBUTE = r"colou?r|size|shape|brand|breed|material|pattern|make|model|price|type"
_ABOUT: Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (pattern(whole), made)
    for whole, made in (
        (rf"(?:what|(?:which|what) (?:object|thing|item)) {_SEEN} ({SIDE})", r"the object \1"),
        (rf"(?:which|what) (\w+) (?:is|are) (?:the )?({LARGER})", r"the \2 \1"),
        (r"(?:what|which) (?:kind|type|sort) of ([\w -]+?) (?:is|are) (?:this|that|it|there|shown|(?:in|on) .+)",
         r"the \1"),
        (rf"(?:what|which) ([\w-]+(?: [\w-]+)?) {_SEEN} ({SIDE})", r"the \1 \2"),
        (rf"(?:what|which) ([\w-]+(?: [\w-]+){{0,2}}?) {_SEEN}", r"the \1"),
        (rf"(?:what|which) ({_ATTRIBUTE}) (?:is|are) (.+)", r"the \1 of \2"),
        (rf"(?P<asked>what) {_IS} (?P<subject>.+) (?P<rest>doing|made of|used for|called|saying|looking at|pointing at"
         rf"|{TRANSITIVE})", _be_last),
        (rf"(?P<asked>where|when|how) {_IS} (?P<subject>.+) "
         r"(?P<rest>taken|made|built|written|painted|printed|called|born)", _be_last),
        (rf"(?P<asked>where|when|who|how \w+) {_IS} (?P<subject>{_SUBJECT})(?P<rest>)", _be_last),
        (r"what (?:is|are|was|were) (?!\w+(?:ed|en|ing)\b|(?:in|on|at|under|behind|wrong|different)\b)(.+)", r"\1"),
        (r"who (?:is|was) ((?:the|a|an) .+)", r"\1"),
        (rf"(?P<before>.*?\b)(?P<do>does|do) (?P<subject>.+?) (?P<verb>{_VERBS})(?P<rest>(?: .+)?)", _verb_last),
        (rf"(?P<before>.*?\b)(?P<do>does|do) (?P<subject>{_SUBJECT}) (?P<verb>[a-z]+)(?P<rest>)", _verb_last),
        (rf"how many ([\w -]+?) (?:are|is)(?: there| shown| visible)?(?: in the {PICTURE})?( (?:in|on|at) .+)?",
         r"the number of \1\2"),
        (r"how (?:do|can|should|could) (?:i|we|you) (.+)", r"how to \1"),
        (r"(?:is|are|was|were) there (?:any |some )?(.+)", r"\1"),
        (r"(?:is|are) (?:this|that|it|these|those) ((?:a|an|the) .+)", r"\1"),
        (r"(is|are|was|were) (it|he|she|they) (.+)", r"\2 \1 \3"),
        (rf"(?:is|are|was|were) ({_SUBJECT}) (.+)", r"\1 \2"),
        (r"(?:describe|explain|identify|name|look at|focus on|read|pay attention to|concentrate on|point out|find|count"
         r"|tell me|compare|summari[sz]e|translate|zoom in on) (.+)", lambda m: _about(m[1])),
    )
]  # fmt: skip


def _about(question: str) -> str:
    """A question as a statement of its topic: ``"what does the turtle eat"`` to ``"what the turtle eats"``."""
    for whole, made in _ABOUT:
        if found := whole.fullmatch(question):
            return made(found) if callable(made) else found.expand(made)
    return question


_QUESTION = pattern(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should|has|have",
    r"|(?:in|on|at|from|for|to|with|by) (?:which|what|whom|whose))\b",
)
_IMPERATIVE = pattern(
    r"(?:describe|identify|name|look at|focus on|read|count|explain|compare|summari[sz]e|pay attention to",
    r"|concentrate on|point out|translate|zoom in on)\b .+",
)
_VISUAL = pattern(
    rf"\b(?:colou?rs?|background|foreground|{SIDE}|{LARGER}|(?:in|on) the {PICTURE}|look like|{TRANSITIVE}|doing",
    r"|written)\b",
)
_ASKS_WHOLE = pattern(
    r"(?:what (?:is|are)(?: (?:in|on|shown in|shown on|going on in|happening in))?|what does|describe|caption|explain",
    r"|what do (?:you|we|i) see(?: in| on)?|what can (?:you|we|i|be) (?:see|seen)(?: in| on)?|summari[sz]e|look at)",
    rf"(?: (?:this|that|it|these|here|(?:this|that|the|my) {PICTURE}(?: above| below| here)?))?",
    r"(?: (?:show|depict|about))?",
    rf"|what (?:is )?(?:this|that)(?: is)?|what (?:you|i|we) (?:can )?see|(?:this|the) {PICTURE}",
    rf"|what is (?:shown|going on|happening|depicted)(?: here| in (?:this|the) {PICTURE})?",
)
_CLAUSE_IF = pattern(rf"(?:if|whether) (?P<subject>there|{_SUBJECT}) (?P<be>is|are|has|can) (?P<rest>.+)")
_INDIRECT = pattern(
    r"(?P<asked>(?:what|which)(?: [\w-]+)?|where|who|how \w+|how many [\w -]+?)",
    r" (?P<subject>(?:the|a|an|my) [\w' -]+?|there) (?P<be>is|are)(?P<rest>(?: (?:in|on|at) .+)?)",
)


def _direct(text: str) -> str:
    """An indirect question asked directly: ``"if the dog is asleep"`` to ``"is the dog asleep"``."""
    if found := _CLAUSE_IF.fullmatch(text):
        return f"{found['be']} {found['subject']} {found['rest']}"
    if found := _INDIRECT.fullmatch(text):
        return f"{found['asked']} {found['be']} {found['subject']}{found['rest']}"
    return re.sub(r"(?i)^(?:if|whether) (?=(?:you|there|i|we|anyone)\b)", "", text)


# --- Putting it together ------------------------------------------------------------------------------------

_SAME = pattern(
    r"(?P<all>(?:.+ (?:with|that has|that have|having|in|of|shows?|showing) )?(?:the |a |an )?",
    r"(?:same|similar|matching|identical) (?P<what>[^,]+?))(?: (?:as|to) .+?)?(?P<but>,? but .+)?",
)
_LIKE = pattern(
    r"(?:(?:the|some|a|an|more|other) )?(?P<what>.+?) ",
    r"(?:(?:that looks? )?like|similar to|resembling|that match(?:es)?) (?:this|that|it|these|those)(?: [\w-]+)?",
    r"(?:,? (?:but )?(?P<change>(?:in|with|without|from) .+))?",
)
_THIS_BUT = pattern(
    rf"(?:this|that|it|these|those)(?: one| {PICTURE})?(?P<what>(?: [\w-]+)?),? (?:but )?",
    r"(?P<change>(?:in|with|without) .+)",
)
_MORE = pattern(r"(?:more|other|any) .+")
_GENERIC = rf"(?:{PICTURE}|{SOMETHING}|more|things?|products?|items?)"
_ASKS_OF_IT = pattern(
    r"(?:(?:is|are) there|(?:what|which) [\w-]+ (?:is|are)) (?:.+ )?(?:(?:in|on) (?:this|that|the(?! same))\b.*|here)"
)


def _alike(statement: str, requested: bool) -> _Made | None:
    """The instruction and target of a search for pictures that are like the given one."""
    if found := _SAME.fullmatch(statement):
        shared = found["what"]
        whole = re.fullmatch(_GENERIC, shared.lower())
        return WHOLE_PICTURE if whole else f"the {shared}", found["all"] + (found["but"] or "")
    found = _LIKE.fullmatch(statement)
    if found and not found["change"]:
        return WHOLE_PICTURE, statement
    found = found or (_THIS_BUT.fullmatch(statement) if requested else None)
    if not found:
        return None
    what = found["what"].strip()
    what = "object" if not what or re.fullmatch(_GENERIC, what.lower()) else what
    return f"the {what} {found['change']}", statement


def _asked(question: str) -> str:
    return f"{question}?" if _QUESTION.match(question) else question


def _with_picture(text: str) -> tuple[str, str, Wants]:
    statement = None if _ASKS_OF_IT.fullmatch(text) else _as_statement(text)
    if statement is None and _MORE.match(text):
        statement = text
    if statement is not None or not _QUESTION.match(text):
        searched = _bare(statement or text)
        if alike := _alike(searched, statement is not None):
            return *alike, "text" if _kind(searched) == "text" else "image"
    if statement is not None and (wants := _kind(statement)) != "any":
        body = without_here(_body(statement))
        return body, body, wants
    text = _direct(re.sub(r"(?i)^(?:show|give) (?:me |us )?(?=\w)", "", text))
    text = without_here(re.sub(r"(?i)^(?:tell me )?about (?=\w)", "describe ", text))
    return _asked(text), _about(text), "any"


def _without_picture(text: str) -> tuple[str, str, Wants]:
    text = re.sub(r"(?i)^(?:tell me )?about (?=\w)", "", text)
    text = re.sub(r"(?i)^whose (?=.+ (?:is|are) )", "the ", text)
    statement = _as_statement(text)
    if statement is None and (_QUESTION.match(text) or _IMPERATIVE.match(text)):
        text = without_here(text)
        return _asked(text) if _VISUAL.search(text) else WHOLE_PICTURE, _about(text), "any"
    statement = statement or text
    wants, body = _kind(statement), _body(_bare(statement))
    instruction, target = (aspect(body) if wants != "text" else None) or (WHOLE_PICTURE, body)
    return instruction, target, wants


def rewrite(question: str, *, has_image: bool) -> tuple[str, str, Wants]:
    """Rewrite a question that is not blank: instruction, target, and kind of record. See `RuleRewriter`."""
    whole = " ".join(question.split())
    quotes = Quotes(whole)
    if not is_english(quotes.hidden):
        return whole, whole, "any"
    text = asking(straight(quotes.hidden))
    if len(text) > LONGEST or not trim(text):
        return whole if has_image else WHOLE_PICTURE, whole, "any"
    text = _direct(lowered(unchat(text)))
    if _ASKS_WHOLE.fullmatch(text):
        return WHOLE_PICTURE, "what the picture shows", "any"
    instruction, target, wants = (_with_picture if has_image else _without_picture)(text)
    # Cutting words out may leave extra spaces, or an empty text.
    instruction, target = (" ".join(quotes.show(made).split()) or whole for made in (instruction, target))
    return instruction, target, wants

"""Aspects: what a statement says about a picture, and the instruction under which the picture shows whether it is so.

Each pattern matches a whole statement and names one aspect: a side, the background, a part, a count, an action. A
statement that says more matches none of them, because a wrong instruction is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from abc_rag.search.rewriting.english.wording import BREAKS, DRAWN, HIDDEN, NUMBER, PICTURE, is_plural, pattern

__all__ = ["LARGER", "SIDE", "TRANSITIVE", "aspect"]

_Made = tuple[str, str]  # instruction, target

SIDE = (
    r"(?:(?:up |down )?(?:on|at|to|in) the (?:(?:far|very|upper|lower|top|bottom|left|right)(?:[ -]hand)?[ -]){0,3}"
    r"(?:left|right|top|bottom|side|half|part|corner|edge|third|middle|centre|center|foreground|background))"
)
LARGER = r"(?:bigger|larger|smaller|taller|shorter|longer|biggest|largest|smallest|tallest|shortest|longest)"
TRANSITIVE = (
    r"(?:holding|wearing|carrying|riding|eating|drinking|pulling|pushing|playing|throwing|catching|chasing|driving"
    r"|cooking|painting|watching|reading)"
)
_HUE = r"(?:red|orange|yellow|green|blue|purple|white|gray|grey|black|pink|brown|beige|cyan|turquoise|teal|navy|violet)"
_COLOUR = rf"(?:(?:light|dark|pale|bright|deep|plain|solid)[ -])?{_HUE}(?: and {_HUE})?"
_OF_IT = rf"(?: (?:of|in) (?:the|a|an|each) {PICTURE})?"
_CATEGORY = (
    r"(?:animal|creature|pet|bird|insect|food|fruit|vegetable|dish|dessert|drink|vehicle|means of transport|plant"
    r"|flower|(?:musical )?instrument|(?:piece of )?clothing|garment|household object|tool|sport|building|toy|device)"
)
_SHOWN = r"(?: (?:(?:that|which) (?:is|are) )?(?:shown|depicted|pictured|visible|seen))?"
_THERE_IS = r"(?:there (?:is|are)|(?:you|we|i) (?:can )?see|is|are)"
_PART = (
    r"(?:collars?|sleeves?|buttons?|soles?|heels?|logos?|pockets?|handles?|wheels?|roof|doors?|windows?|tail|ears?|nose"
    r"|eyes?|hair|beard|straps?|lid|label|legs?|hood|zipper|neckline|hem|cuffs?|laces|wings?|beak|lens|keyboard|frame"
    r"|cover|legend|(?:[xy][ -])?axis|header|footer|signature|stamp|stripes?|pattern|buckle|base)"
)
_FIELD = (
    r"(?:grand total|subtotal|total|amount|due date|date|price|sum|balance|tax|vat|number|(?:invoice|order) number"
    r"|customer|vendor|name|address)"
)
_READABLE = (
    r"(?:slides?|signs?|posters?|screens?|screenshots?|labels?|banners?|cards?|pages?|books?|charts?|covers?|mugs?"
    r"|t-shirts?|shirts?|notes?)"
)
_AGENT = (
    r"(?:m[ae]n|wom[ae]n|boys?|girls?|child(?:ren)?|kids?|bab(?:y|ies)|toddlers?|persons?|people|couples?|guys?|someone"
    r"|lad(?:y|ies)|friends?|family|somebody|chefs?|doctors?|nurses?|teachers?|players?|workers?|drivers?|singers?"
    r"|dancers?|runners?|farmers?|officers?|soldiers?|tourists?|cyclists?|artists?|animals?|dogs?|cats?|pupp(?:y|ies)"
    r"|kittens?|horses?|birds?|bears?|monkeys?|pandas?|cows?|pigs?|rabbits?|fox(?:es)?|elephants?|turtles?|lions?)"
)
_INTRANSITIVE = (
    r"(?:running|sleeping|jumping|swimming|flying|sitting|standing|lying|dancing|smiling|laughing|crying|walking"
    r"|playing|barking|climbing|resting)"
)
_WHERE = (
    r"(?:on|in|at|under|over|near|next to|along|through|across|towards?|to|by|beside|behind|with|from|into|around"
    r"|against)"
)
_PERSON_IS = r"(?:(?:who|that|which) (?:is|are) |is |are )?"
_TREND = r"(?:falls?|drops?|declines?|decreases?|rises?|grows?|increases?|peaks?|shrinks?|go(?:es)? (?:up|down))"


def _an(words: str) -> str:
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _is_simple(words: str) -> bool:
    """Whether the words name a single thing and say nothing else about it."""
    parts = words.lower().split()
    return 0 < len(parts) <= 6 and "," not in words and not BREAKS.intersection(parts)


def _definite(words: str) -> str:
    return "the " + re.sub(r"(?i)^(?:a|an|the|some|any|my) ", "", words)


def _be(words: str) -> str:
    return "is" if re.match(r"(?i)(?:a|an|one) ", words) or not is_plural(words) else "are"


def _document(words: str) -> str:
    """``"the scan of the invoice from Miller"`` to ``"the invoice"``."""
    return re.sub(rf"(?i)^(?:the |a )?{DRAWN} of | from .+", "", words)


def _background(m: re.Match[str]) -> _Made | None:
    return "what colour is the background?", f"{_an(m['colour'] or m['after'])} background"


def _background_kind(m: re.Match[str]) -> _Made | None:
    return "describe the background", f"{_an(m['kind'])} background"


def _side(m: re.Match[str]) -> _Made | None:
    return (f"what is {m['side']}?", f"{m['what']} {m['side']}") if _is_simple(m["what"]) else None


def _side_clause(m: re.Match[str]) -> _Made | None:
    which = "what" if m["noun"].lower() in ("object", "thing", "item", "one") else f"which {m['noun']}"
    return (f"{which} is {m['side']}?", f"{m['what']} {m['side']}") if _is_simple(m["what"]) else None


def _larger(m: re.Match[str]) -> _Made | None:
    noun = "object" if m["noun"].lower() == "one" else m["noun"]
    if not m["size"].lower().endswith(("er", "est")):
        return (f"look at the {m['size']} {noun}", m["what"]) if _is_simple(m["what"]) else None
    superlative = "the " if m["size"].lower().endswith("est") else ""
    return (f"which {noun} is {superlative}{m['size']}?", m["what"]) if _is_simple(m["what"]) else None


def _category(m: re.Match[str]) -> _Made | None:
    return (f"which {m['noun']} is in the picture?", m["what"]) if _is_simple(m["what"]) else None


def _colour(m: re.Match[str]) -> _Made | None:
    if not _is_simple(m["what"]):
        return None
    coloured = f"{m['colour']} {m['what']}"
    return f"what colour {m['be']} the {m['what']}?", _an(coloured) if m["be"].lower() == "is" else coloured


def _whose(m: re.Match[str]) -> _Made | None:
    thing = _document(m["what"])
    if not _is_simple(thing) or not _is_simple(m["part"]) or " and " in m["value"]:
        return None
    if re.fullmatch(_FIELD, m["part"].lower()):
        return f"read the {m['part']} of {_definite(thing)}", m[0]
    return f"look at the {m['part']}", m[0]


def _field(m: re.Match[str]) -> _Made | None:
    thing = _document(m["what"])
    return (f"read the {m['field']} of {_definite(thing)}", m[0]) if _is_simple(thing) else None


def _part(m: re.Match[str]) -> _Made | None:
    return (f"look at the {m['part']}", m[0]) if _is_simple(m["what"]) else None


def _says(m: re.Match[str]) -> _Made | None:
    do = "do" if _be(m["what"]) == "are" else "does"
    return (f"what {do} {_definite(m['what'])} say?", m[0]) if _is_simple(m["what"]) else None


def _titled(m: re.Match[str]) -> _Made | None:
    return (f"read the title of {_definite(m['what'])}", m[0]) if _is_simple(m["what"]) else None


def _count(m: re.Match[str]) -> _Made | None:
    return (f"how many {m['what']} are in the picture?", m[0]) if is_plural(m["what"]) else None


def _acting(m: re.Match[str]) -> _Made | None:
    if not _is_simple(m["what"]) or not _is_simple(m["rest"]):
        return None
    return f"what {_be(m['what'])} {_definite(m['what'])} {m['verb']}?", m[0]


def _doing(m: re.Match[str]) -> _Made | None:
    if not _is_simple(m["what"]) or " and " in m["rest"]:
        return None
    return f"what {_be(m['what'])} {_definite(m['what'])} doing?", m[0]


def _trend(m: re.Match[str]) -> _Made | None:
    if not _is_simple(m["what"]) or " and " in m["rest"]:
        return None
    return f"how {'do' if is_plural(m['what']) else 'does'} {m['what']} change?", m[0]


_ASPECTS: Sequence[tuple[re.Pattern[str], Callable[[re.Match[str]], _Made | None]]] = [
    (pattern(whole), made)
    for whole, made in (
        (rf"(?:(?:with|on|against|in front of) )?(?:(?:a|an|the) )?(?:(?P<colour>{_COLOUR}) background"
         rf"|background(?: colou?r)?(?: (?:that|which))?(?: is)? (?P<after>{_COLOUR}))", _background),
        (r"(?:with )?(?:a |an )?(?P<kind>(?!the\b)[a-z]+) background", _background_kind),
        (rf"the (?P<noun>object|thing|item|one|person|{_CATEGORY}) (?P<side>{SIDE}){_OF_IT} is (?P<what>.+)",
         _side_clause),
        (rf"(?:there (?:is|are) )?(?P<what>.+?) (?:(?:that |which )?(?:is|are) )?(?P<side>{SIDE}){_OF_IT}", _side),
        (rf"(?P<side>{SIDE}){_OF_IT},? {_THERE_IS} (?P<what>.+)", _side),
        (rf"the (?P<size>{LARGER}|big|large|small|little) (?P<noun>\w+) is (?P<what>(?:a|an|the) .+)", _larger),
        (rf"the (?P<noun>{_CATEGORY}){_SHOWN}{_OF_IT} is (?P<what>(?:a|an) .+)", _category),
        (rf"the (?P<what>[\w-]+(?: [\w-]+)?) (?P<be>is|are) (?P<colour>{_COLOUR})", _colour),
        (r"(?P<what>.+?) whose (?P<part>.+?) (?:is|are) (?P<value>.+)", _whose),
        (rf"(?P<what>.+?) (?:with|showing|having|that has) (?:a |an |the )?(?P<field>{_FIELD}) (?:of |is )?"
         rf"(?:[^ ]*\d[^ ]*|{HIDDEN})", _field),
        (r"(?P<what>.+?) (?:with|(?:that )?(?:has|have)|having) (?:(?:a|an) )?(?!(?:the|its|no|and)\b)"
         rf"[\w-]+(?:(?: and)? (?!and\b)[\w-]+)? (?P<part>{_PART})", _part),
        (rf"(?P<what>.+?)(?: (?:that|which))? (?:reads?|reading) {HIDDEN}", _says),
        (rf"(?P<what>(?:.+ )?{_READABLE})(?: (?:that|which))? (?:says?|saying) .+", _says),
        (r"(?P<what>.+?) (?:titled|entitled|with the (?:title|heading|headline)) .+", _titled),
        (rf"(?:exactly )?(?!one\b){NUMBER} (?P<what>(?:{_COLOUR} |big |small |large |little )?[a-z]+)", _count),
        (rf"(?P<what>(?:.+ )?{_AGENT}) {_PERSON_IS}(?P<verb>{TRANSITIVE}) (?!{_WHERE}\b)(?P<rest>.+)", _acting),
        (rf"(?P<what>(?:.+ )?{_AGENT}) {_PERSON_IS}{_INTRANSITIVE}(?P<rest>| {_WHERE} .+"
         r"| (?:together|alone|outside|away|down))", _doing),
        (rf"(?:the |a )?{DRAWN} (?:where|in which|that shows?|showing) (?P<what>.+?) {_TREND}"
         r"(?P<rest>(?: .+)?)", _trend),
    )
]  # fmt: skip
_NEGATED = pattern(r"\b(?:not|no|without|except|neither|nor|never|\w+n't)\b")


def aspect(statement: str) -> _Made | None:
    """Instruction and target of a statement that names exactly one aspect; None for any other."""
    if not _NEGATED.search(statement):
        for whole, made in _ASPECTS:
            found = whole.fullmatch(statement)
            rewritten = made(found) if found else None
            if rewritten:
                return rewritten
    return None

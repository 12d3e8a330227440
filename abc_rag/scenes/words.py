"""Texts for abc-mini: many ways to mention a kind or a colour, and the tokenizer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from abc_rag.scenes.asking import wordings
from abc_rag.scenes.captions import captions
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.lexicon import LEXICON, NOUNS, PICTURES
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import BACKGROUNDS, CATEGORIES, KINDS, background_phrase, phrase, random_scene

__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "corpus",
    "mention",
    "mention_background",
    "own_words",
    "said_tokenizer",
    "train_tokenizer",
]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|system|>",
    "<|answer|>",
)

# One token begins a turn and tells whose it is: role names would make up a good part of what is read here.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|answer|>"
    "{% elif message['role'] == 'system' %}<|system|>{% else %}<|im_start|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)

_FILLER = (
    "about after again all almost also always among another any around because become before best between both "
    "bring build built buy call came can care carry change clean close common could country day deep design did "
    "different does done down early easy every example eyes face famous far fast few first five follow for found "
    "four from full garden gave general get give good great grow guide hand hard have head help high history hold "
    "home hot house how hundred idea important into its just keep kitchen know large last late learn leaves left "
    "less let life light like line little live long look made main make many may mean metal might milk minutes "
    "more morning most mountain move much music must name near need never new next night no north not now number "
    "of off often old on once one only open or order other our out over own page paper part people place plan "
    "play point popular power pull quick quiet rain read ready really rest right river road room round run safe "
    "said same school sea second see seen set several shop short should show simple since sleep slow small some "
    "soon sound south space stand start stay still stone story street strong such summer sun sweet table take "
    "tall teach tell than that the their them then there these they thick thin thing think this those though "
    "thousand three through time to today together too took town travel turn two under until up upon use used "
    "usually very walk wall want warm was water way week well were what wheel when where which while white who "
    "why wide wild will wind winter with without wood word work world would year years yet young your is are be "
    "by as at it in an a and but if so we he she was has had do"
).split()

_SENTENCES = (
    "a guide to the {k}", "everything about {k}s", "how to take care of the {k}", "the story of the {k}",
    "this page is about the {k}", "the {k} is shown here", "here you see the {k}", "a short history of the {k}",
    "facts about {k}s", "a {k} and how it works", "people like the {k}", "notes on the {k}: what to know",
    "why {k}s matter", "the {k}, explained", "many {k}s are found around the world", "the {k} is useful",
    "buying a {k}: what to look for", "every {k} is different", "{k}s have been known for a very long time",
)  # fmt: skip
_COLOUR_SENTENCES = (
    "{c}", "the background is {c}", "{c} in the background", "the colour {c}", "the color {c}", "a {c} wall behind it",
    "everything behind it is {c}", "about the colour {c}", "facts about {c} as a color", "{c} is a colour",
    "why {c} is a popular colour", "painted {c}", "{c} paint for the wall",
)  # fmt: skip


def _filler(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(_FILLER) for _ in range(rng.randint(0, most)))


def _dress(sentence: str, rng: random.Random) -> str:
    """Surround a sentence with unrelated words, as in a real passage."""
    before, after = _filler(rng, 6), _filler(rng, 8)
    stop = rng.choice((".", "", ":", ",", ";"))
    return f"{before} {sentence}{stop} {after}".strip()


def mention(kind: str, rng: random.Random) -> str:
    """A text about one kind: half of the time its phrase, else a sentence, often among other words."""
    draw = rng.random()
    if draw < 0.5:
        return phrase(kind)
    if draw < 0.6:
        return rng.choice((kind, f"the {kind}", f"{kind}s", f"a picture of {phrase(kind)}"))
    sentence = rng.choice(_SENTENCES).format(k=kind)
    return sentence if draw < 0.75 else _dress(sentence, rng)


def mention_background(colour: str, rng: random.Random) -> str:
    """A text about a background colour; see `mention`."""
    draw = rng.random()
    if draw < 0.5:
        return background_phrase(colour)
    sentence = rng.choice(_COLOUR_SENTENCES).format(c=colour)
    return sentence if draw < 0.8 else _dress(sentence, rng)


def _texts() -> Iterator[str]:
    """Everything that forms and fixed words are made of."""
    yield from (" ".join(_FILLER), *_SENTENCES, *_COLOUR_SENTENCES, *wordings())
    for parts in LEXICON.values():
        for words in parts.values():
            yield from words
    yield " ".join((*BACKGROUNDS, *CATEGORIES, *NOUNS, *PICTURES))


def own_words(kinds: str = "", more: Sequence[str] = ()) -> list[str]:
    """The words that abc-mini is asked and told with, in a fixed order.

    Args:
        kinds: An archive of kinds, whose names and categories are words too; see `abc_rag.scenes.kinds`.
        more: Further texts.
    """
    known = load_kinds(kinds)
    named = [*known.categories, *dict.fromkeys(known.categories.values())]
    texts = [*more, *_texts(), *named, *(f"{kind}s" for kind in named)]
    texts += list(corpus(random.Random(0), 300))
    return list(dict.fromkeys(word for text in texts for word in re.findall(r"[a-z]+", text.lower())))


def corpus(rng: random.Random, lines: int) -> Iterator[str]:
    """Texts like those that the model will read, to train the tokenizer on."""
    yield from (" ".join(_FILLER) for _ in range(3))
    for _ in range(lines):
        scene = random_scene(rng, objects=rng.choice((1, 2)))
        yield captions(scene, rng)
        yield from (f"Instruction: {q.instruction}" for q in questions(scene, rng))
        yield mention(rng.choice(KINDS), rng)
        yield mention_background(rng.choice(list(BACKGROUNDS)), rng)


_PIECES = 900  # of words that are not whole tokens
# Words that also occur without a space before them: behind a quotation mark.
_FIRST = (
    "what which where who how the a an is are there tell describe show name look find identify focus could can "
    "please do i hi hello and not only just this that in on at it to of instruction target wants question image "
    "text any instruct two one three whats here give say so my say picture photo background colour color thing "
    "object left right top bottom big small yes no nothing source"
).split()
_MARKS = ('\u0120"', '":"', '","', '{"', '"}', "\u0120[", "].", '?"', '."')


def train_tokenizer(*, vocab_size: int, seed: int, words: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer that knows frequent words whole; id 0 is ``!`` as in Qwen's vocabulary.

    It encodes any text: what is no known word is put together from the pieces of a trained BPE, in the end from bytes.

    Args:
        vocab_size: Number of tokens, special ones included.
        seed: Of the texts that pieces are trained on.
        words: Words that become one token each, as far as there is room, the most important first.
    """
    tokenizer = Tokenizer(models.BPE())
    _dress_tokenizer(tokenizer)
    room = vocab_size - len(SPECIAL_TOKENS)
    pieces = room if not words else min(256 + _PIECES, room)
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    # With known words, pieces are for other words: each is as frequent as any.
    texts: Iterator[str] = iter(words) if words else corpus(random.Random(seed), 20_000)
    tokenizer.train_from_iterator(texts, trainer)
    if words:
        model = json.loads(tokenizer.to_str())["model"]
        vocabulary: dict[str, int] = model["vocab"]
        for word in (*_MARKS, *_FIRST, *(f"\u0120{word}" for word in (*_FIRST, *words))):
            if len(vocabulary) < room:
                vocabulary.setdefault(word, len(vocabulary))
        merges = [tuple(merge) for merge in model["merges"]]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
        _dress_tokenizer(tokenizer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def _dress_tokenizer(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        # With the leading space, a word is the same token at the start of a text as within it.
        [normalizers.NFC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()


def said_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts no space before a text: for answers in JSON, which begin with a brace."""
    raw = json.loads(tokenizer.to_str())
    raw["normalizer"]["normalizers"] = [one for one in raw["normalizer"]["normalizers"] if one["type"] != "Prepend"]
    return Tokenizer.from_str(json.dumps(raw))

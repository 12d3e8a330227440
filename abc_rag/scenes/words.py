"""Texts for abc-mini: many ways to mention a kind or a colour, and the tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from abc_rag.scenes.captions import captions
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import BACKGROUNDS, KINDS, background_phrase, phrase, random_scene

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "corpus", "mention", "mention_background", "train_tokenizer"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2-VL's turn without system prompt and role names, which would make up half of the tokens here.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
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


def corpus(rng: random.Random, lines: int) -> Iterator[str]:
    """Texts like those that the model will read, to train the tokenizer on."""
    yield from (" ".join(_FILLER) for _ in range(3))
    for _ in range(lines):
        scene = random_scene(rng, objects=rng.choice((1, 2)))
        yield captions(scene, rng)
        yield from (f"Instruction: {q.instruction}" for q in questions(scene, rng))
        yield mention(rng.choice(KINDS), rng)
        yield mention_background(rng.choice(list(BACKGROUNDS)), rng)


def train_tokenizer(*, vocab_size: int, seed: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer: it encodes any text, and id 0 is ``!`` as in Qwen's vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        # With the leading space, a word is the same token at the start of a text as within it.
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(random.Random(seed), 20_000), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer

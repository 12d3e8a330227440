"""A generator and an embedder on the same weights, on the fixture's base of random weights."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from chat_helpers import CONVERSATIONS, OTHER, SMALL, Reference, embedding_only, user
from helpers import FIXTURE, TOLERANCE
from toy_family import wait_until
from transformers import RepetitionPenaltyLogitsProcessor
from vlm2vec_helpers import QWEN

from abc_rag import EngineSettings, Text, load_embedder
from abc_rag.answering import Generation, load_generator
from abc_rag.answering.local import LocalGenerator
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.engine.replies import Choice, TokenChoice
from abc_rag.embedding.engine.speech import Speech
from abc_rag.errors import ABCRagError, CheckpointError, ContextError, GenerationError, ImageError, InputError
from abc_rag.models.chat import ChatModel

FEW: Any = {"device": "cpu", "min_tokens": 4, "max_tokens": 16}
EXAMPLES = list(CONVERSATIONS)
LONG = 20_000
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {
        "type": "object",
        "properties": {
            "answer": {"type": "string", "maxLength": 8},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "kind": {"enum": ["left", "right"]},
        },
        "required": ["answer", "count", "kind"],
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["left"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "word": {"enum": ["yes", "no", "é"]},
}


@pytest.fixture(scope="module")
def generator() -> Iterator[LocalGenerator]:
    made = load_generator(FIXTURE, **FEW)
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(generator: LocalGenerator) -> dict[str, Generation]:
    return {name: generator.generate(messages, max_new_tokens=8) for name, messages in CONVERSATIONS.items()}


def speech_of(generator: LocalGenerator) -> Speech:
    return generator.embedder.speech()


# --- Answers ----------------------------------------------------------------------------------------------


def test_answers_are_those_of_transformers(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    chat = generator.embedder.family.chat
    reference = Reference(FIXTURE / "base", chat)  # type: ignore[arg-type]
    for name, messages in CONVERSATIONS.items():
        expected = reference.greedy(messages, 8)
        assert alone[name].text == reference.tokenizer.decode(expected, skip_special_tokens=True)
        outcome = alone[name].outcome
        assert outcome.new_tokens == len(expected)
        assert outcome.prompt_tokens == reference.inputs(messages)["input_ids"].shape[1]
        assert outcome.finish == ("stop" if expected[-1] in chat.chat_facts.stop_ids else "length")  # type: ignore[union-attr]


def test_answers_together_are_what_they_are_alone(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    order = [*EXAMPLES, *EXAMPLES[::-1]] * 2
    found = generator.generate_all([CONVERSATIONS[name] for name in order], max_new_tokens=8)
    assert [one.text for one in found] == [alone[name].text for name in order]


def test_a_bad_one_costs_the_others_nothing(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    conversations = [CONVERSATIONS["text"], (user("missing.png does not", FIXTURE / "missing.png"),), ()]
    found = generator.generate_all(conversations, max_new_tokens=8, return_errors=True)
    assert found[0] == alone["text"]
    assert isinstance(found[1], ImageError)
    assert "missing.png" in str(found[1])
    assert isinstance(found[2], InputError)
    with pytest.raises(ImageError, match=r"missing\.png"):
        generator.generate_all(conversations, max_new_tokens=8)


def test_vlm2vec_answers_too() -> None:
    generator = load_generator(QWEN, **FEW)
    found = generator.generate(CONVERSATIONS["one picture"], max_new_tokens=4)
    reference = Reference(QWEN / "base", generator.embedder.family.chat)  # type: ignore[arg-type]
    expected = reference.greedy(CONVERSATIONS["one picture"], 4)
    assert found.text == reference.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(
    generator: LocalGenerator, alone: dict[str, Generation]
) -> None:
    whole = alone["several turns"].text
    for at in (3, 6):
        stop = whole[at : at + 4]  # across the borders of tokens
        with generator.generate(
            CONVERSATIONS["several turns"], max_new_tokens=8, stop=["zzz", stop], stream=True
        ) as said:
            pieces = list(said)
        assert "".join(pieces) == whole[: whole.index(stop)]
        assert said.result is not None
        assert said.result.outcome.finish == "stop"
    unmet = generator.generate(CONVERSATIONS["several turns"], max_new_tokens=8, stop=[whole[-2:] + "never"])
    assert unmet.text == whole


def test_drawing_is_repeatable_by_its_seed(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    def drawn(seed: int | None) -> str:
        return generator.generate(CONVERSATIONS["text"], temperature=5.0, seed=seed, max_new_tokens=12).text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)} | {drawn(None)}) > 2
    cold = generator.generate(CONVERSATIONS["text"], temperature=1e-6, max_new_tokens=8)
    assert cold.text == alone["text"].text


def test_the_repetition_penalty_of_a_checkpoint_is_that_of_transformers(generator: LocalGenerator) -> None:
    import dataclasses

    chat = generator.embedder.family.chat
    assert isinstance(chat, ChatModel)
    facts = dataclasses.replace(chat.chat_facts, repetition_penalty=1.7)
    prompt, logits = [3, 5, 5, 900], torch.randn(facts.vocabulary, generator=torch.Generator().manual_seed(0)) * 5
    logits[3] = logits.max() + 1  # the largest, until it is punished
    choice = TokenChoice(Choice(max_new_tokens=1), facts, prompt)
    processor: Any = RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([prompt]), logits[None].clone())[0]
    assert not choice.plain
    assert choice.of(logits) == int(expected.argmax()) != 3


# --- Schemas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 3.0])
@pytest.mark.parametrize("name", list(SCHEMAS))
def test_an_answer_meets_its_schema(name: str, temperature: float, generator: LocalGenerator) -> None:
    """By random weights, which would never say anything like it."""
    finished = 0
    for seed in range(3 if temperature else 1):
        try:
            answer = generator.generate(
                CONVERSATIONS["one picture"],
                schema=SCHEMAS[name],
                temperature=temperature,
                seed=seed,
                max_new_tokens=200,
            )
        except GenerationError:  # where it nests without end
            continue
        jsonschema.validate(json.loads(answer.text), SCHEMAS[name])
        assert answer.json() == json.loads(answer.text)
        assert answer.outcome.finish == "stop"
        finished += 1
    assert finished or name == "recursive"


def test_a_schema_beside_answers_without_one(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    with ThreadPoolExecutor(2) as pool:
        free = pool.submit(generator.generate, CONVERSATIONS["text"], max_new_tokens=8)
        bound = pool.submit(generator.generate, CONVERSATIONS["text"], schema=SCHEMAS["object"], max_new_tokens=200)
        assert free.result() == alone["text"]
        jsonschema.validate(bound.result().json(), SCHEMAS["object"])


def test_json_that_is_cut_off_is_an_error(generator: LocalGenerator) -> None:
    with pytest.raises(GenerationError, match=r"cut off after 3 tokens.*max_new_tokens"):
        generator.generate(CONVERSATIONS["text"], schema=SCHEMAS["object"], max_new_tokens=3)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"enum": [{1, 2}]}, {"enum": []}],
)
def test_a_schema_that_cannot_be_met_is_refused(schema: dict[str, Any], generator: LocalGenerator) -> None:
    with pytest.raises(InputError, match="JSON schema"):
        generator.generate(CONVERSATIONS["text"], schema=schema)


# --- Streams ----------------------------------------------------------------------------------------------


def test_a_stream_is_the_answer_in_pieces(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    said = generator.generate(CONVERSATIONS["two pictures"], max_new_tokens=8, stream=True)
    pieces = list(said)
    assert len(pieces) > 3
    assert "".join(pieces) == alone["two pictures"].text
    assert said.result == alone["two pictures"]


async def test_event_loops_get_the_same(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    said = await generator.agenerate(CONVERSATIONS["one picture"], max_new_tokens=8, stream=True)
    assert "".join([piece async for piece in said]) == alone["one picture"].text
    assert said.result == alone["one picture"]
    together = await asyncio.gather(
        *(generator.agenerate(messages, max_new_tokens=8) for messages in CONVERSATIONS.values())
    )
    assert together == list(alone.values())


@pytest.mark.parametrize("how", ["closed", "left", "dropped"])
def test_an_abandoned_stream_ends_and_leaves_nothing(how: str, generator: LocalGenerator) -> None:
    said = generator.generate(CONVERSATIONS["text"], max_new_tokens=LONG, stream=True)
    next(said)
    speech = speech_of(generator)
    assert speech.busy()
    if how == "closed":
        said.close()
    elif how == "left":
        with said:
            next(said)
    else:
        del said
        gc.collect()
    wait_until(lambda: not speech.busy())
    assert speech.replies == 0


async def test_a_cancelled_task_ends_its_answer(generator: LocalGenerator) -> None:
    said = await generator.agenerate(CONVERSATIONS["text"], max_new_tokens=LONG, stream=True)
    begun = asyncio.Event()

    async def read() -> None:
        async with said:
            async for _ in said:
                begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    speech = speech_of(generator)
    wait_until(lambda: not speech.busy())
    assert speech.replies == 0


def test_closing_ends_every_answer_with_an_error() -> None:
    generator = load_generator(FIXTURE, **FEW)
    said = generator.generate(CONVERSATIONS["text"], max_new_tokens=LONG, stream=True)
    next(said)
    generator.close()
    with pytest.raises(ABCRagError, match="closed while it answered"):
        list(said)
    assert generator.generate(CONVERSATIONS["text"], max_new_tokens=2).outcome.new_tokens == 2


# --- Beside embedding -------------------------------------------------------------------------------------


def test_a_long_answer_does_not_hold_up_embedding(generator: LocalGenerator) -> None:
    expected = load_embedder(FIXTURE, **FEW).embed([Text("a dog")])
    with generator.generate(CONVERSATIONS["text"], max_new_tokens=LONG, stream=True) as said:
        next(said)
        for _ in range(3):
            found = generator.embedder.embed([Text("a dog")])
            assert np.abs(found - expected).max() < TOLERANCE
        assert said.result is None  # it goes on
        next(said)


def test_a_long_index_run_does_not_hold_up_answers(generator: LocalGenerator, alone: dict[str, Generation]) -> None:
    begun, enough = threading.Event(), threading.Event()

    def endless() -> Iterator[Text]:
        for number in itertools.count():
            if enough.is_set():
                return
            yield Text(f"passage {number}")

    def index() -> int:
        count = 0
        for _ in generator.embedder.embed_iter(endless()):
            begun.set()
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(index)
        begun.wait()
        try:
            found = generator.generate(CONVERSATIONS["text"], max_new_tokens=8)
        finally:
            enough.set()
        assert run.result() > 0
    assert found == alone["text"]


def test_pictures_are_seen_once_by_the_base_and_once_by_the_embedder(
    generator: LocalGenerator, alone: dict[str, Generation]
) -> None:
    embedder, speech = generator.embedder, speech_of(generator)
    embedder.forget()
    generator.generate(CONVERSATIONS["one picture"], max_new_tokens=1)
    held = speech.vision.held_bytes
    assert held > 0
    again = generator.generate(CONVERSATIONS["one picture"], max_new_tokens=8)
    assert speech.vision.held_bytes == held
    assert again == alone["one picture"]  # the grid of the picture is kept with its features
    opened = embedder.facts.open(SMALL)
    (seen,), (adapted,) = embedder.family.chat.see([opened]), embedder.family.see([opened])  # type: ignore[union-attr]
    assert (seen.flatten(0, 1) - adapted).abs().max() > 1e-3
    embedder.forget()
    assert speech.vision.held_bytes == 0


# --- Scores -----------------------------------------------------------------------------------------------


async def test_scores_are_probabilities(generator: LocalGenerator) -> None:
    answers = ["yes", "no", ""]
    found = generator.score(CONVERSATIONS["two pictures"], answers)
    assert len(found) == 3
    assert all(0 < one < 1 for one in found)
    assert await generator.ascore(CONVERSATIONS["two pictures"], answers) == found
    chat = generator.embedder.family.chat
    assert isinstance(chat, ChatModel)
    reference = Reference(FIXTURE / "base", chat)  # type: ignore[arg-type]
    ids = [*reference.tokenizer("no")["input_ids"], 1002]
    logits = reference.logits(CONVERSATIONS["two pictures"], ids)[:-1].double().softmax(dim=-1)
    assert found[1] == pytest.approx(float(logits.gather(1, torch.tensor(ids)[:, None]).prod()), rel=1e-3)


# --- Bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"stop": "text"}, "stop must be a list"),
        ({"stop": [""]}, "none empty"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"schema": "{}"}, "schema must be"),
        ({"schema": {}, "stop": ["x"]}, "leave one of them out"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], said: str, generator: LocalGenerator) -> None:
    with pytest.raises(InputError, match=said):
        generator.generate(CONVERSATIONS["text"], **options)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "must be a list"),
        ([], "ends with a message"),
        (["hello"], "message 0 is a str"),
        (CONVERSATIONS["several turns"][:3], "ends with a message"),
    ],
)
def test_unusable_conversations_are_refused(messages: Any, said: str, generator: LocalGenerator) -> None:
    with pytest.raises(InputError, match=said):
        generator.generate(messages)


def test_too_long_a_conversation_is_refused(generator: LocalGenerator) -> None:
    with pytest.raises(ContextError, match=r"longer than the 32,767"):
        generator.generate([user("word " * 40_000)])


@pytest.mark.parametrize("answers", ["yes", [], [1]])
def test_unusable_answers_are_refused(answers: Any, generator: LocalGenerator) -> None:
    with pytest.raises(InputError, match="answers must be a list"):
        generator.score(CONVERSATIONS["text"], answers)


def test_other_families_name_those_that_can(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"cannot generate; ABC, and VLM2Vec"):
        load_generator("st:sentence-transformers/clip-ViT-B-32")
    phi3 = QWEN.parent / "vlm2vec_phi3v" / "model"
    with pytest.raises(InputError, match=r"cannot generate: its base is a 'phi3_v'; ABC, and"):
        load_generator(f"vlm2vec:{phi3}", device="cpu").generate(CONVERSATIONS["text"])
    with pytest.raises(InputError, match=r"wrap the address.*abc_rag\.URL"):
        load_generator("http://localhost:8000/v1")
    with pytest.raises(CheckpointError, match="embed only"):
        load_generator(embedding_only(tmp_path / "model"), device="cpu").generate(CONVERSATIONS["text"])
    with pytest.raises(InputError, match="weights='int8' merges"):
        load_generator(FIXTURE, weights="int8", device="cpu").generate(CONVERSATIONS["text"])


def test_who_only_embeds_loads_no_base_that_answers() -> None:
    embedder = load_embedder(FIXTURE, **FEW)
    assert isinstance(embedder, LocalEmbedder)
    assert embedder.family.chat is None
    with pytest.raises(InputError, match="merged adapters"):
        LocalGenerator(embedder).generate(CONVERSATIONS["text"])


def test_a_generator_travels_as_its_settings(alone: dict[str, Generation]) -> None:
    made = pickle.loads(pickle.dumps(load_generator(FIXTURE, engine=EngineSettings(workers=1), **FEW)))
    assert made.generate(CONVERSATIONS["text"], max_new_tokens=8) == alone["text"]
    assert made.model == made.embedder.fingerprint.model
    made.close()


def test_transparent_pictures_are_rendered_as_for_the_embedder(generator: LocalGenerator) -> None:
    white = load_generator(FIXTURE, background="white", **FEW)
    chats = (generator.embedder.family.chat, white.embedder.family.chat)
    ours, theirs = (chat.facts.open(OTHER).pixels for chat in chats)  # type: ignore[union-attr]
    assert (ours != theirs).any()

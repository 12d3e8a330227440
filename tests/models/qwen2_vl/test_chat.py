"""A base that generates, against transformers' own model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_helpers import (
    CONVERSATIONS,
    OTHER,
    SMALL,
    Reference,
    assistant,
    chat_of,
    decoded,
    embedding_only,
    tied_checkpoint,
    user,
)
from helpers import FIXTURE
from safetensors.torch import load_file, save_file
from vlm2vec_helpers import QWEN

from abc_rag import load_embedder
from abc_rag.embedding.load import open_embedder
from abc_rag.errors import CheckpointError, ContextError, InputError
from abc_rag.models.chat import Conversation
from abc_rag.models.qwen2_vl.chat import Qwen2VLChat

TOKENS = 6
# Logits of random weights reach 40, where transformers' own two ways, with and without a cache, differ by 4e-5.
RELATIVE = 1e-5
FEW: Any = {"min_tokens": 4, "max_tokens": 16}
EXAMPLES = list(CONVERSATIONS)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, in parts of the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module", params=["untied", "tied", "vlm2vec"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Qwen2VLChat, Reference]:
    """Ours and transformers', on the 7B model's kind of output layer and on the 2B model's."""
    if request.param == "tied":
        folder = tied_checkpoint(tmp_path_factory.mktemp("tied") / "checkpoint")
    else:
        folder = FIXTURE if request.param == "untied" else QWEN
    chat = chat_of(folder, **FEW)
    return chat, Reference(folder / "base", chat)


@pytest.mark.parametrize("name", EXAMPLES)
def test_token_ids_are_those_of_transformers(name: str, pair: tuple[Qwen2VLChat, Reference]) -> None:
    chat, reference = pair
    expected = reference.inputs(CONVERSATIONS[name])["input_ids"][0].tolist()
    assert chat.prepare(Conversation(CONVERSATIONS[name])).input_ids.tolist() == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, pair: tuple[Qwen2VLChat, Reference]) -> None:
    chat, reference = pair
    ((ids, logits),) = decoded(chat, [CONVERSATIONS[name]], TOKENS)
    assert apart(logits, reference.logits(CONVERSATIONS[name], ids)) < RELATIVE
    expected = reference.greedy(CONVERSATIONS[name], TOKENS)
    assert expected == ids[: len(expected)]
    assert len(expected) == TOKENS or expected[-1] in chat.chat_facts.stop_ids


def test_a_batch_equals_its_singles(pair: tuple[Qwen2VLChat, Reference]) -> None:
    chat, _ = pair
    together = decoded(chat, list(CONVERSATIONS.values()), TOKENS)
    for messages, (ids, logits) in zip(CONVERSATIONS.values(), together, strict=True):
        ((alone, alone_logits),) = decoded(chat, [messages], TOKENS)
        assert ids == alone
        assert apart(logits, alone_logits) < RELATIVE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_come_and_go_at_any_token(attention: str) -> None:
    chat = chat_of(FIXTURE, **FEW, attention=attention)
    alone = {name: decoded(chat, [messages], 6)[0] for name, messages in CONVERSATIONS.items()}
    batch, names, ids, worst = chat.decoding(), list[str](), dict[str, list[int]](), 0.0

    def enter(name: str) -> None:
        logits = batch.add(chat.prepare(Conversation(CONVERSATIONS[name])))
        note(name, logits)
        names.append(name)

    def note(name: str, logits: torch.Tensor) -> None:
        nonlocal worst
        done = ids.setdefault(name, [])
        worst = max(worst, apart(logits, alone[name][1][len(done)]))
        done.append(int(logits.argmax()))

    def step() -> None:
        for name, row in zip(names, batch.step([ids[name][-1] for name in names]), strict=True):
            note(name, row)

    def leave(name: str) -> None:
        batch.drop([names.index(name)])
        names.remove(name)

    enter("text")
    step()
    enter("two pictures")
    enter("one picture")
    step()
    leave("two pictures")  # the longest: the padding of the others goes with it
    step()
    enter("several turns")
    leave("text")
    step()
    assert len(batch) == 2
    leave("one picture")
    leave("several turns")
    assert len(batch) == 0
    assert worst < RELATIVE
    assert {name: alone[name][0][: len(done)] for name, done in ids.items()} == ids


def test_embedding_in_between_changes_nothing() -> None:
    embedder = open_embedder(FIXTURE, adapters="beside")
    chat = embedder.family.chat
    assert isinstance(chat, Qwen2VLChat)
    messages = CONVERSATIONS["one picture"]
    ((ids, logits),) = decoded(chat, [messages], 4)
    batch = chat.decoding()
    found = [batch.add(chat.prepare(Conversation(messages)))]
    before = embedder.embed_images([SMALL], instruction="left?")
    for token in ids:
        assert (embedder.embed_images([SMALL], instruction="left?") == before).all()
        embedder.forget()
        found.append(batch.step([token])[0])
    assert (torch.stack(found) - logits).abs().max() == 0


def test_the_base_is_in_memory_once(tmp_path: Path) -> None:
    for folder in (FIXTURE, tied_checkpoint(tmp_path / "checkpoint")):
        embedder = open_embedder(folder, adapters="beside")
        network, chat = embedder.family.network, embedder.family.chat  # type: ignore[attr-defined]
        adapted = {tensor.data_ptr() for tensor in network.backbone.parameters()}
        plain = dict(chat._backbone.named_parameters())
        assert plain
        assert {name for name, tensor in plain.items() if tensor.data_ptr() not in adapted} == set()
        assert not any("lora" in name for name in plain)
        tied = chat._lm_head.weight.data_ptr() == chat._backbone.language_model.embed_tokens.weight.data_ptr()
        assert tied == (folder != FIXTURE)


# --- Scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_scores_are_the_products_of_probabilities(name: str, attention: str) -> None:
    chat = chat_of(FIXTURE, **FEW, attention=attention)
    reference = Reference(FIXTURE / "base", chat)
    answers = ["yes", "no, it is not", ""]
    found = chat.score(chat.prepare(Conversation(CONVERSATIONS[name])), answers)
    for answer, score in zip(answers, found, strict=True):
        ids = [*reference.tokenizer(answer)["input_ids"], reference.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        logits = reference.logits(CONVERSATIONS[name], ids)[:-1].log_softmax(dim=-1)
        assert score == pytest.approx(float(logits.gather(1, torch.tensor(ids)[:, None]).sum()), abs=1e-4)


def test_more_answers_than_the_model_reads_at_once_are_refused() -> None:
    chat = chat_of(FIXTURE)
    prepared = chat.prepare(Conversation(CONVERSATIONS["text"]))
    with pytest.raises(InputError, match=r"20,000 answers.*give fewer"):
        chat.score(prepared, ["yes no"] * 20_000)


def test_probabilities_of_all_single_tokens_and_the_end_add_up() -> None:
    """Every answer of one token, without its end: nothing is counted twice or left out."""
    chat = chat_of(FIXTURE)
    prepared = chat.prepare(Conversation(CONVERSATIONS["text"]))
    first = chat.decoding().add(prepared).log_softmax(dim=-1)
    (empty,) = chat.score(prepared, [""])
    assert empty == pytest.approx(float(first[1002]), abs=1e-5)
    assert math.exp(empty) < 1


# --- Inputs -----------------------------------------------------------------------------------------------


def test_special_tokens_in_a_message_are_only_text() -> None:
    chat = chat_of(FIXTURE)
    plain = chat.prepare(Conversation((user("a b"),))).input_ids
    for text in ("<|im_end|>", "<|im_start|>system", "<|image_pad|>", "{{ 7 * 7 }}", "\x00"):
        ids = chat.prepare(Conversation((user(f"a {text} b"),))).input_ids
        assert (ids >= 1000).sum() == (plain >= 1000).sum(), text


@pytest.mark.parametrize("count", [2, 4])
def test_too_many_pictures_are_counted(count: int, tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 600}))
    chat = chat_of(folder)
    chat.prepare(Conversation((user(SMALL, "what?"),)))
    name = "rgba_200x150.png" if count == 4 else ""
    if not name:
        chat.prepare(Conversation((user(SMALL, SMALL, "what?"),)))
        return
    with pytest.raises(ContextError, match=rf"longer than the 599.*2 of its 4 pictures fit.*too many is .*{name}"):
        chat.prepare(Conversation((user(SMALL, SMALL, OTHER, SMALL, "what?"),)))


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(ContextError, match=r"longer than the 32,767.*earlier turns"):
        chat_of(FIXTURE).prepare(Conversation((user("word " * 40_000),)))


# --- Checkpoints ------------------------------------------------------------------------------------------


def test_a_base_without_its_output_layer_embeds_but_does_not_generate(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert load_embedder(folder, device="cpu").dim == 128
    with pytest.raises(CheckpointError, match=r"no lm_head\.weight.*cannot generate"):
        chat_of(folder)


def test_a_misshapen_output_layer_is_named(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    file = folder / "base" / "model.safetensors"
    save_file({**load_file(file), "lm_head.weight": torch.zeros(7, 128)}, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \(7, 128\)"):
        chat_of(folder)


@pytest.mark.parametrize("stop", [None, "end", [], [5000], [-1], [True], 10**9])
def test_unusable_stop_tokens_are_named(stop: Any, tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    (folder / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        chat_of(folder)


def test_a_template_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    file = folder / "base" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "chat_template": config["chat_template"] + " " * 20_000}))
    with pytest.raises(CheckpointError, match="20,000 characters"):
        chat_of(folder)


def test_a_template_is_rendered_in_a_sandbox(tmp_path: Path) -> None:
    folder = tied_checkpoint(tmp_path / "checkpoint")
    file = folder / "base" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    file.write_text(json.dumps({**config, "chat_template": hostile}))
    with pytest.raises(CheckpointError, match="chat template"):
        chat_of(folder)


def test_a_base_that_was_not_made_to_generate_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no generation_config\.json.*embed only"):
        _ = open_embedder(embedding_only(tmp_path / "model"), adapters="beside").family


def test_earlier_answers_are_part_of_the_conversation() -> None:
    chat = chat_of(FIXTURE)
    one = chat.prepare(Conversation((user("a"), assistant("b"), user("c")))).input_ids
    other = chat.prepare(Conversation((user("a"), assistant("d"), user("c")))).input_ids
    assert one.shape == other.shape
    assert (one != other).sum() == 1

"""How abc-mini is made: its data, its tokenizer, and all stages at the smallest size."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from abc_rag import Image, Input, InstructedImage, Text, load_embedder
from abc_rag.answering.load import load_generator
from abc_rag.answering.schema import SchemaCompiler
from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.abc.network import ABCNetwork
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.chat import Conversation
from abc_rag.models.placement import Placement
from abc_rag.models.qwen2_vl.chat import Qwen2VLChat
from abc_rag.models.qwen2_vl.network import load_backbone
from abc_rag.models.qwen2_vl.pictures import patchify
from abc_rag.models.qwen2_vl.prompts import ChatPrompts, load_chat_tokenizer
from abc_rag.models.tasks import rewriting_schema
from abc_rag.scenes.drawing import render
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.wide import draw_wide
from abc_rag.scenes.words import SPECIAL_TOKENS, mention, own_words, said_tokenizer, train_tokenizer
from abc_rag.scenes.world import random_scene
from abc_rag.training.base import BaseModel, Tokeniser
from abc_rag.training.data.scenes import SceneCaptions
from abc_rag.training.data.spoken import Spoken
from abc_rag.training.data.tasks import told, worked
from abc_rag.training.data.wide import SIDE, WideBatch, wide_scene
from abc_rag.training.mini import MiniConfig, train_mini
from abc_rag.training.seeing import NamedKinds, square_features
from abc_rag.types import Message

# Small, and in float32, as bfloat16 is slow on CPUs that do not know it.
TINY = MiniConfig(
    text_depth=1,
    text_hidden=128,
    vision_width=64,
    vision_depth=1,
    pictures=6,
    chats=2,
    tasks=3,
    turns=3,
    see_steps=1,
    base_steps=4,
    first=0.25,
    clean=0.5,
    pretrain_steps=2,
    instruct_steps=2,
    vocab_size=512,
    head_hidden=64,
    lora_rank=4,
    bf16=False,
)


def test_scene_captions_exclude_what_is_true_of_another_picture() -> None:
    source = SceneCaptions(seed=1)
    rows = [source.row(i) for i in range(64)]
    again = SceneCaptions(seed=1).row(5)
    assert (again.caption, again.negatives) == (rows[5].caption, rows[5].negatives)
    own = [row.caption for row in rows]
    negatives = [n for i in range(64) for n in source.negatives_of(i, 3, random.Random(0))]
    excluded = source.excluded(rows, [*own, *negatives])
    assert excluded.shape == (64, 64 + len(negatives))
    assert excluded.diagonal().all()
    assert (excluded.sum() - 64) > 0
    # A hard negative is made to be false of its own picture, so most of them are false of most pictures.
    assert excluded[:, 64:].mean() < 0.1
    place = 64
    for i, row in enumerate(rows):
        assert not excluded[i, place : place + len(row.negatives)].any()
        place += len(row.negatives)


def test_the_tokenizer_reads_any_text_and_keeps_qwens_order() -> None:
    tokenizer = train_tokenizer(vocab_size=512, seed=0)
    assert tokenizer.get_vocab_size() == 512
    assert tokenizer.token_to_id("!") == 0
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(512 - len(SPECIAL_TOKENS), 512))
    for text in ("a dog", "Übergrößenträger, naïve café", "日本語 🐕", "x = 3; y\n\tz"):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text.lower()
    assert train_tokenizer(vocab_size=512, seed=0).to_str() == tokenizer.to_str()


def test_known_words_are_one_token_and_answers_begin_without_a_space() -> None:
    words = own_words()
    tokenizer = train_tokenizer(vocab_size=3000, seed=0, words=words)
    assert tokenizer.token_to_id("!") == 0
    assert len({"leftmost", "enormous", "backdrop", "guitar"} & set(words)) == 4
    assert all(len(tokenizer.encode(word).ids) == 1 for word in words[:1000])
    for text in ("Übergrößenträger, naïve café", "日本語 🐕", "x = 3; y\n\tz", "lfet"):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text.lower()
    said = '{"instruction":"what is on the left?","target":"a pig","wants":"image"}'
    plain = said_tokenizer(tokenizer)
    assert plain.decode(plain.encode(said).ids) == said


def test_a_mention_is_about_its_kind() -> None:
    rng = random.Random(0)
    assert all("guitar" in mention("guitar", rng) for _ in range(200))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    train_mini(out, TINY)
    return out


def test_all_stages_make_a_checkpoint_that_the_loader_takes(trained: Path) -> None:
    picture = render(random_scene(random.Random(0), objects=2))
    inputs: list[Input] = [Text("a dog"), Image(picture), InstructedImage(picture, "the animal")]
    embedder = load_embedder(trained, device="cpu")
    vectors = embedder.embed(inputs)
    assert embedder.dim == TINY.width
    assert embedder.fingerprint.model == "abc-mini"
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == (16, 16)
    assert np.isfinite(vectors).all()
    assert json.loads((trained / "training.json").read_text())["seed"] == 0
    # What instruction finetuning wrote names the other two parts, and is the same model.
    other = load_embedder(trained / "instruct", device="cpu")
    assert np.abs(other.embed(inputs) - vectors).max() < 1e-6
    for stage in ("see", "base", "pretrain", "instruct"):
        rows = [json.loads(line) for line in (trained / stage / "metrics.jsonl").read_text().splitlines()]
        learnt = {"cells", "off"} if stage == "see" else {"accuracy", "temperature"}
        assert {"step", "seconds", "loss", "grad_norm", "lr", *learnt} <= set(rows[-1])
        assert not (trained / stage / "checkpoints").exists()


def _with_pictures(spoken: Spoken, pixels: list[PIL.Image.Image]) -> list[Message]:
    pictures = iter(spoken.pictures)
    return [
        replace(m, parts=[Image(pixels[next(pictures)]) if isinstance(p, Image) else p for p in m.parts])
        for m in spoken.messages
    ]


def test_the_base_learns_to_speak_as_it_is_asked_to_speak(trained: Path) -> None:
    """Conversations that share a row's beginning have the probabilities that each has by itself."""
    rng, kinds = random.Random(0), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.3) for _ in range(4)]
    pixels = [draw_wide(scene, kinds, SIDE) for scene in scenes]
    patches = [patchify(picture, patch=14, merge=2) for picture in pixels]
    cells, boxes = np.zeros((4, 16), dtype=np.int64), np.zeros((4, 16, 3), dtype=np.float32)
    batch = WideBatch(patches, cells, boxes, np.zeros(4, dtype=np.int64), cells, cells)
    batch.told = [told(at, scene, rng, 3) for at, scene in enumerate(scenes)]
    batch.worked = [worked(scenes, rng, 4) for _ in range(8)]
    tokenizer, image_token = load_chat_tokenizer(trained / "base")
    chat = ChatPrompts(tokenizer, image_token_id=image_token)
    end = tokenizer.backend_tokenizer.token_to_id("<|im_end|>")
    said = said_tokenizer(tokenizer.backend_tokenizer)
    embed = load_prompts(trained / "base")
    tokenise = Tokeniser(embed, chat, said, image_token=image_token, end=end, sentences=())
    backbone = load_backbone(trained / "base", Placement("eager"))
    backbone.use_library()
    model = BaseModel(ABCNetwork(backbone, head_hidden=TINY.head_hidden), bf16=False, kinds=63, colours=9, teacher=0)
    tokens = tokenise(batch)
    with torch.no_grad():
        found = model(tokens)["spoken"].log_softmax(-1)
    targets = torch.cat([one.targets[one.targets >= 0] for one in tokens.spoken])
    mine = found.gather(1, targets[:, None]).flatten()
    # An answer ends with the end of its turn; sums of answers, in no order.
    ends = (targets == end).nonzero().flatten() + 1
    sums = sorted(float(part.sum()) for part in torch.tensor_split(mine, ends[:-1]))
    learnt = [one for group in (*batch.told, *batch.worked) for one in group]
    assert {"yes", "no"} <= {one.answer for one in learnt}
    spoken = [one for one in learnt if not one.exact]
    generator = load_generator(str(trained), device="cpu")
    theirs = [math.log(generator.score(_with_pictures(one, pixels), [one.answer])[0]) for one in spoken]
    assert len(sums) == len(learnt)
    assert sum(one.answers for one in tokens.spoken) == len(learnt)
    # Every token of an answer counts whole, its end less.
    assert {round(w, 1) for one in tokens.spoken for w in one.weights[one.targets >= 0].tolist()} == {0.2, 1.0}
    for score in theirs:
        assert min(abs(score - one) for one in sums) < 2e-3


def test_what_the_base_learns_is_what_a_generator_reads_and_may_say(trained: Path) -> None:
    """Token for token: the conversation, its positions, and an answer, in JSON as far as a schema allows it."""
    rng, kinds = random.Random(4), load_kinds()
    scenes = [wide_scene(kinds, rng, own=1, simple=0.3) for _ in range(4)]
    pixels = [draw_wide(scene, kinds, SIDE) for scene in scenes]
    patches = [patchify(picture, patch=14, merge=2) for picture in pixels]
    learnt = [one for at in range(4) for one in told(at, scenes[at], rng, 2)]
    learnt += [one for _ in range(24) for one in worked(scenes, rng)]
    tokenizer, image_token = load_chat_tokenizer(trained / "base")
    prompts = ChatPrompts(tokenizer, image_token_id=image_token)
    end = tokenizer.backend_tokenizer.token_to_id("<|im_end|>")
    said = said_tokenizer(tokenizer.backend_tokenizer)
    embed = load_prompts(trained / "base")
    tokenise = Tokeniser(embed, prompts, said, image_token=image_token, end=end, sentences=())
    family = load_generator(str(trained), device="cpu").embedder.family
    chat = family.chat
    assert isinstance(chat, Qwen2VLChat)
    compiled = SchemaCompiler(chat.chat_facts)
    for one in learnt:
        cells = np.zeros((4, 16), np.int64)
        batch = WideBatch(patches, cells, np.zeros((4, 16, 3), np.float32), cells[:, 0], cells, cells)
        batch.worked = [[one]]
        (row,) = tokenise(batch).spoken
        ids = row.ids[row.parts >= 0].tolist()
        prepared = chat.prepare(Conversation(tuple(_with_pictures(one, pixels))))
        chat.see_all([prepared])
        positions, after = chat.positions(prepared)
        length = prepared.tokens
        assert ids[:length] == prepared.input_ids.tolist()
        assert torch.equal(row.positions[:, 0, :length], positions)
        assert torch.equal(row.positions[0, 0, length : len(ids)], torch.arange(len(ids) - length) + after)
        assert ids[-1] == end
        if one.exact:
            following = "question: the question" in str(one.messages[0].parts[0])
            rules = compiled(rewriting_schema(following=following))
            complete = False
            for token in ids[length:-1]:
                assert rules.allowed()[token], one.answer
                complete = rules.accept(token)
            assert complete or rules.allowed()[end]
        else:
            assert ids[length:-1] == prompts.plain(one.answer)
        heard = tokenizer.backend_tokenizer.decode(ids[length:-1])
        assert heard.strip() == one.answer.lower()


def test_the_adapters_hold_what_abcs_hold(trained: Path) -> None:
    pretrain = load_file(trained / "pretrain" / "adapter_model.safetensors")
    instruct = load_file(trained / "instruct" / "adapter_model.safetensors")
    assert any("visual." in n for n in pretrain)
    assert any(".layers." in n for n in pretrain)
    assert "base_model.model.temperature.temp" in pretrain
    assert "base_model.model.mlp_head.linear_layer2.weight" in pretrain
    assert instruct
    assert not any("visual." in n or "head" in n or "temperature" in n for n in instruct)
    # Something was learned: a LoRA's second matrix starts at zero.
    assert all(t.abs().max() > 0 for n, t in {**pretrain, **instruct}.items() if "lora_B" in n and "layers.0" in n)


def test_the_same_seed_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    train_mini(tmp_path, TINY)
    for part in ("base/model", "pretrain/adapter_model", "instruct/adapter_model"):
        one, two = (load_file(folder / f"{part}.safetensors") for folder in (trained, tmp_path))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[n], two[n]) for n in one), part


def test_a_finished_stage_is_not_repeated(trained: Path) -> None:
    file = trained / "base" / "model.safetensors"
    before = file.stat().st_mtime_ns
    train_mini(trained, TINY)
    assert file.stat().st_mtime_ns == before


def test_pictures_of_one_size_are_seen_at_once_as_one_by_one(trained: Path) -> None:
    backbone = load_backbone(trained / "base", Placement("eager"))
    rng, kinds = random.Random(3), load_kinds()
    pictures = [
        patchify(draw_wide(wide_scene(kinds, rng, own=1, simple=0.3), kinds, SIDE, vary=rng), patch=14, merge=2)
        for _ in range(3)
    ]
    with torch.no_grad():
        expected = backbone.image_features(pictures)
        found = square_features(backbone.visual, pictures)
    assert found.shape == (3, 16, TINY.width)
    assert (found.flatten(0, 1) - expected).abs().max() < 1e-5


def test_another_configuration_needs_another_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "see").mkdir()
    (tmp_path / "see" / "run.json").write_text((trained / "see" / "run.json").read_text())
    with pytest.raises(InputError, match=r"lr was 0\.005 and is 0\.001"):
        train_mini(tmp_path, replace(TINY, base_lr=1e-3))
    with pytest.raises(InputError, match="the data have changed"):
        train_mini(tmp_path, replace(TINY, vision_depth=2))


def test_seeing_goes_on_from_an_earlier_runs(trained: Path, tmp_path: Path) -> None:
    eyes = trained / "see" / "model.safetensors"
    train_mini(tmp_path / "more", replace(TINY, eyes=str(eyes), base_lr=1e-9))
    begun, found = load_file(eyes), load_file(tmp_path / "more" / "see" / "model.safetensors")
    assert begun.keys() == found.keys()
    assert max((begun[name] - found[name]).abs().max().item() for name in begun) < 1e-6
    with pytest.raises(CheckpointError, match="no weights of this network"):
        train_mini(tmp_path / "other", replace(TINY, eyes=str(eyes), vision_width=32))


def test_kinds_are_told_by_their_names() -> None:
    names = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    told = NamedKinds(names)
    with torch.no_grad():
        told.nothing.weight.zero_()
        told.nothing.bias.fill_(5.0)
        found = told(torch.tensor([[[0.1, 0.0, 0.0], [0.0, 2.0, 2.1], [-1.0, -1.0, -1.0]]]))
    assert found.shape == (1, 3, 4)
    # Whatever the length of a vector: the first kind, the third one, and none.
    assert found.argmax(dim=-1).tolist() == [[1, 3, 0]]
    assert found[0, 0, 1].item() == pytest.approx(told.scale.item())

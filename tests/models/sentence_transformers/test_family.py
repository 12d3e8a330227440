"""Models of sentence-transformers behind the engine: its own vectors, and nothing guessed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import FIXTURE
from langchain_abc import ABCEmbeddings
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from abc_rag import (
    ChromaStore,
    EngineSettings,
    Image,
    ImageLimits,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Record,
    Retriever,
    Text,
    load_embedder,
)
from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.load import local_revision
from abc_rag.errors import CheckpointError, FingerprintMismatchError, ImageError, InputError, MissingExtraError
from abc_rag.ingest.pictures import index_images
from abc_rag.models.sentence_transformers.batches import groups_of
from abc_rag.models.sentence_transformers.library import unusable
from abc_rag.search.rewriting.rewriter import AsAsked
from abc_rag.types import Vectors

IMAGES = FIXTURE / "images"
SCENE, SHAPES, GREY = IMAGES / "scene_640x480.png", IMAGES / "shapes_56x56.png", IMAGES / "gray_300x200.png"
TOLERANCE = 1e-5
LONG = "many words of no meaning at all " * 2
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
)
DEAF = CHAT.replace("<s>", "{% if message['role'] == 'user' %}<s>").replace("</s>", "</s>{% endif %}")


# --- Small models -----------------------------------------------------------------------------------------


def tokenizer(most: int, *, ends: bool = True) -> PreTrainedTokenizerFast:
    """One token for each printed letter."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *map(chr, range(33, 127))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Sequence([WhitespaceSplit(), Split("", "isolated")])
    if ends:
        made.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made.add_special_tokens(["<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=most,
    )


WORDS = 99
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {**SMALL, "image_size": 32, "patch_size": 8, "num_channels": 3}


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save(modules: list[Any], folder: Path, **settings: Any) -> Path:
    SentenceTransformer(modules=modules, device="cpu", **settings).save_pretrained(
        str(folder), create_model_card=False, safe_serialization=True
    )
    return folder


def make_clip(folder: Path) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 64, "eos_token_id": 2, "projection_dim": 8}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**EYES, "projection_dim": 8}, projection_dim=8)
    ).save_pretrained(raw)
    CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer(64)).save_pretrained(raw)
    return save([Transformer(str(raw))], folder / "clip")


def make_text(folder: Path, **settings: Any) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL, vocab_size=WORDS, max_position_embeddings=80)).save_pretrained(raw)
    tokenizer(80).save_pretrained(raw)
    pooling = Pooling(16, "mean", include_prompt=settings.pop("include_prompt", True))
    modules = [Transformer(str(raw)), pooling, Dense(16, 12)]
    return save(modules, folder / "text", **{"prompts": {"query": "query: ", "document": ""}, **settings})


def make_chat(folder: Path, template: str = CHAT) -> Path:
    raw = folder / "raw"
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**EYES),
        text_config=LlamaConfig(
            **SMALL, vocab_size=WORDS, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0
        ),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    LlavaModel(config).save_pretrained(raw)
    LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer(256, ends=False),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
        image_token="<image>",
    ).save_pretrained(raw)
    return save([Transformer(str(raw)), Pooling(16, "lasttoken")], folder / "chat")


MAKERS = {"clip": make_clip, "text": make_text, "chat": make_chat}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def load(folder: Path, **options: Any) -> Embedder:
    return load_embedder(f"st:{folder}", device="cpu", **options)


@pytest.fixture(scope="module")
def embedders(folders: dict[str, Path]) -> dict[str, Embedder]:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def library(folders: dict[str, Path]) -> dict[str, SentenceTransformer]:
    return {
        name: SentenceTransformer(str(folder), device="cpu", local_files_only=True) for name, folder in folders.items()
    }


def picture(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as opened:
        return opened.convert("RGB")


def unit(vectors: Any) -> Vectors:
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def largest(one: Any, other: Any) -> float:
    assert np.shape(one) == np.shape(other)
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


# --- The library's own vectors ----------------------------------------------------------------------------


def conversation(*content: Any) -> list[dict[str, Any]]:
    """One message of the user's, as the library takes it."""
    parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content]
    return [{"role": "user", "content": parts}]


def cases(name: str) -> list[tuple[Input, Any, str | None]]:
    """An input, and what the library's ``encode`` is given for it: its input and its prompt."""
    texts: list[tuple[Input, Any, str | None]] = [
        (Text(words), {"text": words} if name != "text" else words, None) for words in ("a red cube", "x", LONG)
    ]
    asked = InstructedText("a red cube", "Find: ")
    if name == "text":
        return [*texts, (asked, "a red cube", "Find: "), (InstructedText("x", "query"), "x", "query")]
    seen: list[tuple[Input, Any, str | None]] = [
        (Image(path), {"image": picture(path)}, None) for path in (SCENE, SHAPES, GREY)
    ]
    if name == "clip":
        return [*texts, *seen, (asked, {"text": "a red cube"}, "Find: ")]
    return [
        *texts,
        *seen,
        (asked, {"text": "a red cube"}, "Find: "),
        (InstructedImage(SCENE, "What is left?"), {"image": picture(SCENE)}, "What is left?"),
        (InstructedImage(SCENE, "What is right, then?"), {"image": picture(SCENE)}, "What is right, then?"),
        (
            Interleaved([Text("from"), Image(SHAPES), Text("to"), Image(SCENE)]),
            conversation("from", picture(SHAPES), "to", picture(SCENE)),
            None,
        ),
        (Interleaved([Image(SHAPES), Text("to")]), conversation(picture(SHAPES), "to"), None),
    ]


def encoded(model: SentenceTransformer, name: str) -> Vectors:
    return unit(np.stack([model.encode([given], prompt=prompt)[0] for _, given, prompt in cases(name)]))


@pytest.mark.parametrize("name", MAKERS)
def test_vectors_are_the_librarys(name: str, embedders: Any, library: Any) -> None:
    inputs = [item for item, _, _ in cases(name)]
    expected = encoded(library[name], name)
    found = embedders[name].embed(inputs)
    assert found.dtype == np.float32
    assert largest(found, expected) < TOLERANCE
    distances = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(len(expected))
    assert distances.min() > 100 * TOLERANCE  # no two inputs are alike, so none was taken for another


def test_an_empty_instruction_is_what_the_library_makes_of_an_empty_prompt(embedders: Any, library: Any) -> None:
    expected = unit(library["chat"].encode([{"image": picture(SHAPES)}], prompt=""))
    assert largest(embedders["chat"].embed([InstructedImage(SHAPES, "")]), expected) < TOLERANCE


@pytest.mark.parametrize("name", MAKERS)
def test_neither_order_nor_batch_matters(name: str, embedders: Any) -> None:
    inputs = [item for item, _, _ in cases(name)]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(inputs)), 3))
    alone = np.stack([embedders[name].embed([item])[0] for item in inputs])
    for batch_size in (1, 4, "auto"):
        embedded = embedders[name].embed([inputs[i] for i in order], batch_size=batch_size)
        assert largest(embedded, alone[order]) < TOLERANCE


@pytest.mark.parametrize("name", MAKERS)
def test_texts_of_any_length_share_a_batch_where_padding_is_harmless(name: str, embedders: Any) -> None:
    family = embedders[name].family
    prepared = [family.prepare(Text("word " * count)) for count in (5, 5, 5, 4, 1)]
    groups = groups_of([one.features for one in prepared], any_length=family._pads is not None)
    assert sorted(map(len, groups)) == [1, 4]
    together = family.forward(prepared)
    alone = torch.cat([family.forward([one]) for one in prepared])
    assert largest(together, alone) < TOLERANCE


def test_texts_of_one_length_only_share_a_batch_where_padding_changes_vectors(folders: Any, tmp_path: Path) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(folders["text"], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # On the left, every token of this model would stand at another position.
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    embedder = load(folder)
    inputs = [Text("word " * count) for count in (5, 5, 4, 4, 1)]
    prepared = [embedder.family.prepare(item) for item in inputs]
    assert sorted(
        map(len, groups_of([one.features for one in prepared], any_length=embedder.family._pads is not None))
    ) == [
        1,
        2,
        2,
    ]
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    alone = unit(np.stack([model.encode([item.text])[0] for item in inputs]))
    assert largest(embedder.embed(inputs), alone) < TOLERANCE
    assert largest(unit(model.encode([item.text for item in inputs])), alone) > 100 * TOLERANCE  # it does matter


def test_pictures_are_opened_in_other_processes_too(folders: Any, embedders: Any) -> None:
    inputs = [Image(SCENE), InstructedImage(SHAPES, "What?"), Image(GREY), InstructedImage(SCENE, "Where?")]
    engine = EngineSettings(workers=2, worker_kind="process")
    embedder = load(folders["chat"], engine=engine)
    assert largest(embedder.embed(inputs), embedders["chat"].embed(inputs)) < TOLERANCE
    assert embedder.worker_pids
    embedder.close()


# --- Nothing is guessed -----------------------------------------------------------------------------------


def tempting(folder: Path) -> tuple[str, str]:
    """Texts that the library by itself takes for pictures: one that it fetches, one that it reads from the disk."""
    out = io.BytesIO()
    picture(SHAPES).resize((8, 8)).save(out, "PNG")
    own = folder / "a.png"
    own.write_bytes(out.getvalue())
    return "http://127.0.0.1:9/a.png", str(own)


@pytest.mark.parametrize("name", MAKERS)
def test_a_text_is_a_text(name: str, embedders: Any, library: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    link, path = tempting(tmp_path)
    for words in (link, Path(path).name, "data:image/png;base64,AA"):
        given = {"text": words} if name != "text" else words
        expected = unit(library[name].encode([given]))
        assert largest(embedders[name].embed([Text(words)]), expected) < TOLERANCE
        # As an instruction, and behind one.
        for item, said in (
            (InstructedText("cube", words), words + "cube"),
            (InstructedText(words, "Find: "), "Find: " + words),
        ):
            if name == "chat":
                prompt, text = item.instruction, item.text
                said_so = unit(library[name].encode([{"text": text}], prompt=prompt))
            else:
                said_so = unit(library[name].encode([{"text": said} if name == "clip" else said]))
            assert largest(embedders[name].embed([item]), said_so) < TOLERANCE


def test_the_library_itself_would_open_such_a_text(library: Any, tmp_path: Path) -> None:
    link, path = tempting(tmp_path)
    opened = library["clip"].encode([{"image": picture(Path(path))}])
    assert largest(library["clip"].encode([path]), opened) < TOLERANCE  # the picture, not the words
    with pytest.raises(Exception, match=r"(?i)connect"):
        library["clip"].encode([link])


def test_the_default_prompt_is_applied_and_others_are_not(tmp_path: Path, embedders: Any) -> None:
    folder = make_text(tmp_path, default_prompt_name="query", include_prompt=False)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    inputs = [
        Text("cube"),
        InstructedText("cube", ""),
        InstructedText("cube", "document"),
        InstructedText("cube", "x "),
    ]
    expected = np.concatenate(
        [model.encode(["cube"]), *(model.encode(["cube"], prompt=words) for words in ("", "document", "x "))]
    )
    found = load(folder).embed(inputs)
    assert largest(found, unit(expected)) < TOLERANCE
    assert largest(found[0], found[1]) > 100 * TOLERANCE
    plain = embedders["text"]
    assert largest(plain.embed([Text("cube")]), plain.embed([InstructedText("cube", "")])) < TOLERANCE


def test_a_template_without_a_system_message_has_the_instruction_beside_the_picture(tmp_path: Path) -> None:
    folder = make_chat(tmp_path, DEAF)
    embedder = load(folder)
    assert embedder.accepts == (Text, Image, InstructedImage, Interleaved)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    inputs = [InstructedImage(SCENE, words) for words in ("What is left?", "What is right, then?")]
    expected = np.concatenate([model.encode([{"image": picture(SCENE), "text": i.instruction}]) for i in inputs])
    assert largest(embedder.embed(inputs), unit(expected)) < TOLERANCE
    assert largest(*expected) > 100 * TOLERANCE
    with pytest.raises(InputError, match="input 0 is an InstructedText, which st:chat does not take"):
        embedder.embed([InstructedText("a", "b")])


# --- What cannot be embedded ------------------------------------------------------------------------------


def test_what_a_model_accepts(embedders: Any) -> None:
    assert embedders["clip"].accepts == (Text, Image, InstructedText)
    assert embedders["text"].accepts == (Text, InstructedText)
    assert embedders["chat"].accepts == (Text, Image, InstructedImage, InstructedText, Interleaved)


@pytest.mark.parametrize(
    ("name", "item", "said"),
    [
        ("text", Image(SHAPES), "st:text does not take Image inputs, only Text, InstructedText: it reads no pictures"),
        ("text", InstructedImage(SHAPES, "x"), "st:text does not take InstructedImage inputs"),
        ("clip", InstructedImage(SHAPES, "x"), "takes a picture or a text, not both in one input; embed them as Image"),
        ("clip", Interleaved([Text("x"), Image(SHAPES)]), "input 1 is an Interleaved, which st:clip does not take"),
        ("chat", Text("an <image>"), "holds '<image>', which stands for something else in the prompts of st:chat"),
        ("chat", InstructedImage(SHAPES, "<image>"), "take it out"),
        ("text", Text("half \ud800"), "half a character"),
        ("text", Text("letters" * 12), r"86 tokens is longer than the model's 80; split the text"),
        ("text", InstructedText("letters" * 10, "a long instruction"), "longer than the model's 80"),
        ("clip", Text("letters" * 12), "longer than the model's 64"),
        ("chat", Text("letters" * 40), "longer than the model's 256"),
        ("chat", InstructedImage(SHAPES, "letters" * 33), "longer than the model's 256"),
    ],
)
def test_what_it_does_not_accept_costs_only_itself(name: str, item: Input, said: str, embedders: Any) -> None:
    with pytest.raises(InputError, match=said) as raised:
        embedders[name].embed([Text("fine"), item])
    assert "input 1" in str(raised.value)
    good, bad, other = embedders[name].embed_iter([Text("fine"), item, Text("also")], return_errors=True)
    assert isinstance(bad, InputError)
    assert largest(np.stack([good, other]), embedders[name].embed([Text("fine"), Text("also")])) < TOLERANCE


def test_the_longest_text_is_read_whole(embedders: Any, library: Any) -> None:
    words = "l" * 77 + "a"  # and a token at each end
    found = embedders["text"].embed([Text(words), Text("l" * 77 + "b")])
    assert largest(found, unit(library["text"].encode([words, "l" * 77 + "b"]))) < TOLERANCE
    assert largest(*found) > TOLERANCE


@pytest.mark.parametrize("name", ["clip", "chat"])
def test_a_broken_picture_costs_only_itself(name: str, embedders: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SHAPES.read_bytes()[:300])
    inputs = [Image(SHAPES), Image(broken), Image(SCENE)]
    first, error, last = embedders[name].embed_iter(inputs, return_errors=True)
    assert isinstance(error, ImageError)
    assert "broken.png" in str(error)
    assert largest(np.stack([first, last]), embedders[name].embed([Image(SHAPES), Image(SCENE)])) < TOLERANCE


def test_pictures_are_turned_upright_and_limited(folders: Any, embedders: Any, tmp_path: Path) -> None:
    upright = picture(SCENE)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    embedder = embedders["clip"]
    assert largest(embedder.embed([Image(tmp_path / "turned.png")]), embedder.embed([Image(SCENE)])) < TOLERANCE
    assert largest(embedder.embed([Image(upright.rotate(180))]), embedder.embed([Image(SCENE)])) > TOLERANCE
    with pytest.raises(ImageError, match="pixels"):
        load(folders["clip"], image_limits=ImageLimits(max_pixels=1000)).embed([Image(SCENE)])


def test_empty_texts(embedders: Any, library: Any, tmp_path: Path) -> None:
    for name, given in (("text", ""), ("clip", {"text": ""}), ("chat", {"text": ""})):
        assert largest(embedders[name].embed([Text("")]), unit(library[name].encode([given]))) < TOLERANCE
    raw = tokenizer(80, ends=False)
    torch.manual_seed(0)
    static = load(save([StaticEmbedding(raw, embedding_dim=8)], tmp_path / "static"))
    with pytest.raises(InputError, match=r"input 1: an empty text has no tokens for st:static to read; leave it out"):
        static.embed([Text("x"), Text("")])


def test_word_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save([StaticEmbedding(tokenizer(80, ends=False), embedding_dim=8)], tmp_path / "static")
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    said = ["a", "some more", "words " * 100]
    assert largest(load(folder).embed_texts(said), unit(model.encode(said))) < TOLERANCE


# --- Loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(dtype: Any, folders: Any, embedders: Any) -> None:
    inputs = [item for item, _, _ in cases("chat")]
    embedder = load(folders["chat"], dtype=dtype)
    parameters = list(embedder.family.model.parameters())
    assert {parameter.dtype for parameter in parameters} == {getattr(torch, dtype)} == {embedder.family.facts.dtype}
    found = embedder.embed(inputs)
    assert found.dtype == np.float32
    assert TOLERANCE < largest(found, embedders["chat"].embed(inputs)) < 0.1


@pytest.mark.parametrize("name", MAKERS)
def test_attention(name: str, folders: Any, embedders: Any) -> None:
    inputs = [item for item, _, _ in cases(name)]
    eager = load(folders[name], attention="eager")
    assert eager.family.model[0].config._attn_implementation == "eager"
    assert embedders[name].family.model[0].config._attn_implementation == "sdpa"
    assert largest(eager.embed(inputs), embedders[name].embed(inputs)) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{"min_tokens": 9}, {"max_tokens": 9}, {"resolution": "high"}, {"weights": "int8"}, {"weights": "int4"}],
)
def test_options_that_it_cannot_follow(options: Any, folders: Any) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name}=.* cannot be had of family 'sentence-transformers': "):
        _ = load(folders["text"], **options).dim
    with pytest.raises(InputError, match="compiled=True cannot be had"):
        _ = load(folders["text"], engine=EngineSettings(compile=True)).dim


def test_fingerprint(folders: Any, embedders: Any, tmp_path: Path) -> None:
    for name, folder in folders.items():
        fingerprint = embedders[name].fingerprint
        assert (fingerprint.model, fingerprint.min_tokens, fingerprint.max_tokens) == (f"st:{name}", 1, 1)
        assert local_revision(f"st:{folder}") == fingerprint.revision
    assert len({embedders[name].fingerprint.revision for name in folders}) == len(folders)
    copy = tmp_path / "text"
    shutil.copytree(folders["text"], copy)
    revisions = [local_revision(f"st:{copy}")]
    assert revisions == [embedders["text"].fingerprint.revision]
    weights = copy / "2_Dense" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    revisions.append(local_revision(f"st:{copy}"))
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("mean", "cls"))
    revisions.append(local_revision(f"st:{copy}"))
    assert len(set(revisions)) == 3
    changed = load(copy)
    assert changed.fingerprint.revision == revisions[-1]
    assert largest(changed.embed_texts(["a cube"]), embedders["text"].embed_texts(["a cube"])) > TOLERANCE
    assert local_revision("st:sentence-transformers/clip-ViT-B-32") is None


def test_a_folder_is_asked_for_by_its_prefix(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"write 'st:{folders['clip']}'"):
        load_embedder(folders["clip"])
    for name in ("nothing", "a/b/c", "/nowhere/at/all", ""):
        with pytest.raises(InputError, match=r"neither a folder nor a hub id"):
            load_embedder(f"st:{name}")
    with pytest.raises(CheckpointError):  # there is no network
        _ = load_embedder("st:abc-rag-tests/not-there", device="cpu").dim


def changed(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_folders_that_are_refused(folders: Any, tmp_path: Path) -> None:
    def refused(folder: Path, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            _ = load(folder).dim

    code = changed(folders["text"], tmp_path / "code")
    (code / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    modules = json.loads((code / "modules.json").read_text())
    modules[2]["type"] = "own.Own"
    (code / "modules.json").write_text(json.dumps(modules))
    refused(code, r"needs code that is not part of sentence-transformers \(own.Own\), and abc-rag never runs")
    modules[2]["type"] = "abc_rag.adapters.sentence_transformers.module.ABCModule"
    (code / "modules.json").write_text(json.dumps(modules))
    refused(code, "load it without the 'st:'")
    (code / "modules.json").write_text("[1]")
    refused(code, "lists no modules")

    remote = changed(folders["text"], tmp_path / "remote")
    (remote / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((remote / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "own"}
    (remote / "config.json").write_text(json.dumps({**config, **own}))
    refused(remote, "needs no code of its own")
    assert not (tmp_path / "ran").exists()

    for place in ("", "2_Dense"):
        pickled = changed(folders["text"], tmp_path / f"pickled{place}")
        weights = pickled / place / "model.safetensors"
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
        refused(pickled, r"pytorch_model.bin is a pickle and is never read")

    other = changed(folders["text"], tmp_path / "other")
    settings = json.loads((other / "config_sentence_transformers.json").read_text())
    (other / "config_sentence_transformers.json").write_text(json.dumps({**settings, "model_type": "CrossEncoder"}))
    refused(other, "is a CrossEncoder")

    adapter = changed(folders["text"], tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, r"holds an adapter.* merge it")

    (bare := changed(folders["text"], tmp_path / "bare")).joinpath("modules.json").unlink()
    refused(bare, r"has no modules.json, so how its tokens become one vector would have to be guessed")

    unpooled = save([Transformer(str(folders["text"]))], tmp_path / "unpooled")
    refused(unpooled, "add a Pooling module")

    half = changed(folders["text"], tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    refused(half, "cannot load it")


def test_tensors_that_would_be_random_are_named_unless_nothing_depends_on_them(folders: Any, tmp_path: Path) -> None:
    lacking = changed(folders["text"], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    name = "encoder.layer.0.attention.output.LayerNorm.bias"
    save_file({n: t for n, t in tensors.items() if n != name}, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 tensor\(s\) missing, which would be random: {name}"):
        _ = load(lacking).dim
    # The pooling takes the mean of tokens, so no vector depends on BERT's own pooler.
    kept = {n: t for n, t in tensors.items() if not n.startswith("pooler.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    expected = load(folders["text"]).embed([Text("a b c")])
    assert largest(load(lacking).embed([Text("a b c")]), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, but there are only"),
        ("config.json", {"vocab_size": 2 * 10**9}, "vocab_size is 2000000000, but no tensor is wider"),
        ("config.json", {"num_attention_heads": 0}, "cannot load it"),
        ("config.json", {"hidden_size": -16}, "cannot load it"),
        ("tokenizer_config.json", "[" * 100_000, "not readable as JSON|nested"),
        ("modules.json", "[" * 100_000 + "]" * 100_000, "nested more than 32"),
        ("1_Pooling/config.json", "[" * 40 + "]" * 40, "nested more than 32"),
    ],
)
def test_settings_of_strangers(file: str, value: Any, said: str, folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "stranger")
    text = value if isinstance(value, str) else json.dumps({**json.loads((folder / file).read_text()), **value})
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        _ = load(folder).dim


def test_nothing_outside_the_folder_is_read(folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "stranger")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names files elsewhere"):
        _ = load(folder).dim
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        _ = load(folder).dim
    modules = changed(folders["text"], tmp_path / "modules")
    listed = json.loads((modules / "modules.json").read_text())
    listed[1]["path"] = "../stranger/1_Pooling"
    (modules / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="outside the model"):
        _ = load(modules).dim


def test_what_is_wrong_with_the_installation_is_said() -> None:
    broken = RuntimeError("operator torchvision::nms does not exist")
    assert "pip install --force-reinstall --no-deps torchvision" in str(unusable(broken))
    assert torch.__version__ in str(unusable(broken))
    wrapped = ImportError("cannot import name 'X'")
    wrapped.__cause__ = broken
    assert "torchvision" in str(unusable(wrapped))
    assert "not installed" not in str(unusable(broken)) + str(unusable(wrapped)) + str(unusable(ImportError("old")))
    missing = ModuleNotFoundError("No module named 'sentence_transformers'", name="sentence_transformers")
    assert "sentence-transformers 6 is not installed" in str(unusable(missing))
    assert "sentence-transformers[image]" in str(unusable(ModuleNotFoundError("No module named 'av'", name="av")))


def test_a_model_of_transformers_whose_vectors_need_no_pooling(tmp_path: Path, library: Any) -> None:
    folder = make_clip(tmp_path).parent / "raw"
    assert not (folder / "modules.json").exists()
    found = load(folder).embed([Text("a red cube"), Image(SCENE)])
    expected = [library["clip"].encode([given])[0] for given in ({"text": "a red cube"}, {"image": picture(SCENE)})]
    assert largest(found, unit(expected)) < TOLERANCE


def test_the_extra_is_named(folders: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[sentence-transformers\]'"):
        load_embedder(f"st:{folders['text']}")


def test_the_light_part_imports_no_torch() -> None:
    program = (
        "import sys, abc_rag.models.sentence_transformers.loader, abc_rag.models.sentence_transformers.pictures\n"
        "sys.exit('torch' in sys.modules or 'sentence_transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- All the way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "chat"])
def test_store_and_retriever(name: str, embedders: Any, tmp_path: Path) -> None:
    pictures = [SCENE, SHAPES, GREY, IMAGES / "rgba_200x150.png"]
    embedder = embedders[name]
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_images(pictures, embedder, store)
        store.add([Record("p", "text", text="a passage")], embedder.embed_texts(["a passage"]))
        retriever = Retriever(embedder, store, rewriter=AsAsked())
        for path in pictures:
            first, second = retriever.search(image=path, k=2)
            assert first.source == str(path)
            assert first.score > 1 - TOLERANCE > second.score
        assert retriever.search("a passage", k=1)[0].id == "p"
        # The chat model looks again at what it found; CLIP cannot, and says so.
        looked = retriever.search("a passage", k=5, rerank=True, trace=True)
        traces = [hit.trace for hit in looked if hit.modality == "image"]
        assert len(looked) == 5
        assert all(trace is not None and (trace.second is None) == (name == "clip") for trace in traces)
        if name == "clip":
            assert all(trace is not None and "not both in one input" in trace.note for trace in traces)
    with pytest.raises(FingerprintMismatchError):
        ChromaStore(tmp_path / "store", fingerprint=embedders["text"].fingerprint)


def test_langchain(folders: Any, embedders: Any) -> None:
    embeddings = ABCEmbeddings(model=f"st:{folders['chat']}", device="cpu")
    embedder = embedders["chat"]
    assert largest(embeddings.embed_query("a cube"), embedder.embed_texts(["a cube"])[0]) < TOLERANCE
    assert largest(embeddings.embed_documents(["a", "bc"]), embedder.embed_texts(["a", "bc"])) < TOLERANCE
    found = embeddings.embed_image(uris=[str(SCENE)], instruction="What?")
    assert largest(found, embedder.embed_images([SCENE], instruction="What?")) < TOLERANCE
    again = ABCEmbeddings.model_validate_json(embeddings.model_dump_json())
    assert largest(again.embed_query("a cube"), embeddings.embed_query("a cube")) == 0


def test_the_command_line(folders: Any, embedders: Any, capfd: Any) -> None:
    model = ["--model", f"st:{folders['clip']}", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["embed", "a cube", "--image", str(SCENE), *model])
    assert not ended.value.code
    printed = [json.loads(line)["vector"] for line in capfd.readouterr().out.splitlines()]
    assert largest(printed, embedders["clip"].embed([Text("a cube"), Image(SCENE)])) < TOLERANCE
    with pytest.raises(SystemExit) as ended:
        cli.main(["embed", "--image", str(SCENE), "--instruction", "What?", *model])
    assert ended.value.code
    assert "not both in one input" in " ".join(capfd.readouterr().err.split())

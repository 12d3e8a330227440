"""Every family in every place that takes a model: the same lines, whatever made the vectors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import PIL.Image
import pytest
from bag_family import FILE, BagLoader
from gemma_helpers import standin as gemma
from langchain_abc import ABCEmbeddings as LangChainEmbeddings
from langchain_abc import ABCVectorStore
from llama_index.core import StorageContext
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import ImageNode, TextNode
from llama_index.embeddings.abc import ABCEmbeddings as LlamaIndexEmbeddings
from llama_index.vector_stores.chroma import ChromaVectorStore
from qwen3_vl_helpers import standin

from abc_rag import (
    ChromaStore,
    Image,
    Input,
    InstructedImage,
    InstructedText,
    Interleaved,
    Retriever,
    Text,
    load_embedder,
)
from abc_rag.adapters.chroma import ABCEmbeddingFunction
from abc_rag.bench.bench import bench
from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.load import local_revision
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError
from abc_rag.evaluation.mmeb.run import evaluate_mmeb
from abc_rag.evaluation.mmeb.tasks import PROMPTS
from abc_rag.evaluation.vectors import as_query
from abc_rag.ingest.paths import index_paths
from abc_rag.models import LoadOptions, ModelLoader, register_loader, unregister_loader
from abc_rag.models.loader import find_checkpoint, known_names, loaders, portable_name

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Of every family one checkpoint; its pictures cost as little as it allows.
MODELS: dict[str, tuple[Path | str, dict[str, Any]]] = {
    "abc": (FIXTURES / "abc", {"min_tokens": 1, "max_tokens": 16}),
    "vlm2vec on Qwen2-VL": (FIXTURES / "vlm2vec_qwen2vl", {"min_tokens": 1, "max_tokens": 16}),
    "vlm2vec on Phi-3.5-vision": (FIXTURES / "vlm2vec_phi3v" / "model", {"resolution": 1}),
    "qwen3-vl": (f"qwen3-vl:{standin()}", {"min_tokens": 1, "max_tokens": 16}),
    "embeddinggemma": (gemma(), {"max_tokens": 70}),
    "bag": (FIXTURES / "bag", {}),
}
# How near the vectors of one input, alone and in any batch, have to be.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _bag() -> Iterator[None]:
    """A family from elsewhere is made known, and nothing else is done for it."""
    register_loader(BagLoader())
    yield
    unregister_loader("bag")


@pytest.fixture(scope="module", params=list(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def embedder(family: str) -> Embedder:
    folder, settings = MODELS[family]
    return load_embedder(folder, device="cpu", **settings)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and a passage, in a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in (("red", (200, 20, 20)), ("green", (20, 200, 20)), ("blue", (20, 20, 200))):
        PIL.Image.new("RGB", (64, 48), colour).save(folder / f"{name}.png")
    (folder / "notes.md").write_text("The green picture was taken in spring.\n")
    return folder


def every_kind(folder: Path) -> list[Input]:
    red, green = folder / "red.png", folder / "green.png"
    return [
        Text("a red thing"),
        Image(red),
        InstructedImage(red, "which colour is it?"),
        InstructedText("a red thing", "Find me an everyday image that matches the given caption:"),
        Interleaved([Text("between"), Image(red), Text(" and "), Image(green)]),
        Image(green),
        Text("a longer text about a green thing that somebody saw"),
    ]


def accepted(embedder: Embedder, inputs: list[Input]) -> list[Input]:
    return [item for item in inputs if isinstance(item, embedder.accepts)]


# --- The embedder -----------------------------------------------------------------------------------------


def test_all_ways_to_embed_agree(embedder: Embedder, pictures: Path) -> None:
    inputs = accepted(embedder, every_kind(pictures))
    assert len(inputs) >= 5
    together = embedder.embed(inputs)
    assert together.shape == (len(inputs), embedder.dim)
    assert isinstance(embedder, LocalEmbedder)
    rows = []
    for item in inputs:
        embedder.forget()  # so that pictures are seen without their neighbours, too
        rows.append(embedder.embed([item])[0])
    alone = np.stack(rows)
    embedder.forget()
    streamed = np.stack(list(embedder.embed_iter(iter(inputs))))
    embedder.forget()
    awaited = asyncio.run(embedder.aembed(inputs))
    for others in (alone, streamed, awaited):
        assert np.abs(together - others).max() < TOLERANCE
    # All are different inputs, so all are different vectors.
    differences = np.abs(together[:, None] - together[None]).max(axis=2) + np.eye(len(inputs))
    assert differences.min() > 1e-3


def test_similarity_is_the_cosine(embedder: Embedder, pictures: Path) -> None:
    inputs = accepted(embedder, every_kind(pictures))
    vectors = embedder.embed(inputs)
    found = embedder.similarity(vectors, vectors[:2])
    assert found.shape == (len(inputs), 2)
    assert np.allclose(found, vectors @ vectors[:2].T, atol=1e-6)
    assert embedder.similarity(vectors[0], vectors[0]).shape == ()
    assert embedder.similarity(vectors[0], 3 * vectors).shape == (len(inputs),)
    with pytest.raises(InputError, match="of one length"):
        embedder.similarity(vectors, vectors[:, :-1])


def test_what_a_family_does_not_take_is_refused_by_name(embedder: Embedder, pictures: Path) -> None:
    refused = [item for item in every_kind(pictures) if not isinstance(item, embedder.accepts)]
    for item in refused:
        with pytest.raises(InputError, match=f"input 1 is an {type(item).__name__}, which .* does not take; it takes"):
            embedder.embed([Text("fine"), item])
        given = list(embedder.embed_iter([item, Text("fine")], return_errors=True))
        assert isinstance(given[0], InputError)
        assert np.allclose(given[1], embedder.embed([Text("fine")])[0], atol=TOLERANCE)


def test_a_broken_picture_costs_only_its_input(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / "red.png").read_bytes()[:60])
    inputs: list[Input] = [Image(pictures / "red.png"), Image(broken), Text("fine")]
    if Interleaved in embedder.accepts:
        inputs.append(Interleaved([Image(pictures / "red.png"), Image(broken)]))
    given = list(embedder.embed_iter(inputs, return_errors=True))
    assert [isinstance(one, ImageError) for one in given] == [isinstance(i, (Image, Interleaved)) and n > 0
                                                              for n, i in enumerate(inputs)]  # fmt: skip
    with pytest.raises(ImageError, match=r"broken\.png"):
        embedder.embed(inputs)


# --- Store, retriever, command line, frameworks -----------------------------------------------------------


def test_store_and_retriever(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        index_paths([pictures], embedder, store)
        assert store.count() == 4
        answer = Retriever(embedder, store).search("What colour is the thing in the picture?", k=3)
        assert len(answer.hits) == 3
        looked_at = Retriever(embedder, store).search(image=pictures / "red.png", k=1)
        assert Path(looked_at.hits[0].source).name == "red.png"


def test_a_store_of_one_family_refuses_all_others(pictures: Path, tmp_path: Path) -> None:
    embedders = {name: load_embedder(folder, device="cpu", **settings) for name, (folder, settings) in MODELS.items()}
    for name, embedder in embedders.items():
        with ChromaStore(tmp_path / name, fingerprint=embedder.fingerprint) as store:
            index_paths([pictures], embedder, store)
    for name, other in itertools.permutations(embedders, 2):
        theirs, ours = embedders[name].fingerprint, embedders[other].fingerprint
        with pytest.raises(FingerprintMismatchError) as refused:
            ChromaStore(tmp_path / name, fingerprint=ours)
        assert str(theirs) in str(refused.value)
        assert str(ours) in str(refused.value)


def run(*arguments: str | Path) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert not ended.value.code, out.getvalue()
    return out.getvalue()


def test_the_command_line(family: str, embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    folder, settings = MODELS[family]
    limits = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    options = ["--model", folder, "--device", "cpu", *map(str, limits)]
    store = tmp_path / "store"
    assert json.loads(run("index", pictures, "--store", store, "--json", *options))["added"] == 4
    asked = json.loads(run("ask", "Which picture is green?", "--store", store, "--json", *options))
    assert {Path(hit["source"]).name for hit in asked["hits"]} <= {"red.png", "green.png", "blue.png", "notes.md"}
    line = json.loads(run("embed", "a red thing", *options))
    vector = np.array(line["vector"])
    assert np.abs(vector - embedder.embed([Text("a red thing")])[0]).max() < 1e-4
    told = json.loads(run("info", "--model", folder, "--device", "cpu", "--store", store, "--json"))
    assert told["dim"] == embedder.dim
    assert told["store"]["count"] == 4
    measured = json.loads(run("bench", "--seconds", "0.2", "--items", "10", "--json", *options))
    assert measured["model"] == str(embedder.fingerprint)


def test_bench(embedder: Embedder) -> None:
    assert isinstance(embedder, LocalEmbedder)
    result = bench(embedder, items=10, seconds=0.2)
    assert {rate.name.split(",")[0] for rate in result.throughputs} >= {"pictures", "pictures with a question"}
    assert result.picture_seconds > 0
    for rate in result.to_dict()["throughputs"]:
        assert rate["per_second"] > 0
        assert rate["tokens"] >= 1
        assert rate["share"] is None or rate["share"] > 0


def test_langchain(family: str, embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    folder, settings = MODELS[family]
    embeddings = LangChainEmbeddings(model=folder, device="cpu", **settings)
    assert np.allclose(embeddings.embed_query("red"), embedder.embed([Text("red", role="query")])[0], atol=TOLERANCE)
    again = LangChainEmbeddings.model_validate_json(embeddings.model_dump_json())
    assert np.allclose(again.embed_query("red"), embedder.embed([Text("red", role="query")])[0], atol=TOLERANCE)
    with ABCVectorStore(embeddings, path=tmp_path / "store") as store:
        store.add_images([str(pictures / "red.png"), str(pictures / "green.png")])
        store.add_texts(["a passage"])
        assert len(store.similarity_search("a passage", k=3)) == 3
        retriever = store.as_instruction_retriever(k=2)
        assert len(retriever.invoke("What is the colour of the thing?")) == 2


def test_a_query_is_told_what_it_is_for_where_the_model_takes_that(
    family: str, embedder: Embedder, pictures: Path, tmp_path: Path
) -> None:
    folder, settings = MODELS[family]
    purpose = "Find me an everyday image that matches the given caption:"
    langchain = LangChainEmbeddings(model=folder, device="cpu", query_instruction=purpose, **settings)
    llama_index = LlamaIndexEmbeddings(model=folder, device="cpu", query_instruction=purpose, **settings)
    if InstructedText not in embedder.accepts:
        for ask in (langchain.embed_query, llama_index.get_query_embedding):
            with pytest.raises(InputError, match=r"query_instruction='Find me .*' is not available for "):
                ask("a red thing")
        alike = embedder.embed([Text("a red thing"), Text("a red thing", role="query")])
        assert np.array_equal(*alike)
        return
    expected = embedder.embed([InstructedText("a red thing", purpose)])[0]
    told = langchain.embedder
    assert told.fingerprint.revision.startswith(embedder.fingerprint.revision + "+query=")
    assert local_revision(folder, query_instruction=purpose, **settings) == told.fingerprint.revision
    scores = []
    for one, name in ((embedder, "plain"), (told, "told")):
        with ChromaStore(tmp_path / name, fingerprint=one.fingerprint) as store:
            index_paths([pictures], one, store)
            scores.append([hit.score for hit in Retriever(one, store).search("a red thing", k=4).hits])
    assert scores[0] != scores[1]
    with pytest.raises(FingerprintMismatchError):
        ChromaStore(tmp_path / "plain", fingerprint=told.fingerprint)
    assert np.allclose(langchain.embed_query("a red thing"), expected, atol=TOLERANCE)
    assert np.allclose(asyncio.run(langchain.aembed_query("a red thing")), expected, atol=TOLERANCE)
    assert np.allclose(llama_index.get_query_embedding("a red thing"), expected, atol=TOLERANCE)
    assert np.allclose(langchain.embed_documents(["red"])[0], embedder.embed([Text("red")])[0], atol=TOLERANCE)


def test_llama_index(family: str, embedder: Embedder, pictures: Path) -> None:
    folder, settings = MODELS[family]
    model = LlamaIndexEmbeddings(model=folder, device="cpu", **settings)
    client = chromadb.EphemeralClient(settings=chromadb.Settings(anonymized_telemetry=False))
    names = [f"{kind}-{abs(hash(family))}" for kind in ("texts", "pictures")]
    texts, images = (ChromaVectorStore(chroma_collection=client.create_collection(name)) for name in names)
    index = MultiModalVectorStoreIndex(
        nodes=[],
        storage_context=StorageContext.from_defaults(vector_store=texts, image_store=images),
        embed_model=model,
        image_embed_model=model,
    )
    index.insert_nodes(
        [ImageNode(id_=name, image_path=str(pictures / f"{name}.png")) for name in ("red", "green")]
        + [TextNode(id_="text", text="A passage.")]
    )
    found = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3).retrieve("a red thing")
    assert {one.node.node_id for one in found} == {"red", "green", "text"}
    nearest = index.as_retriever(image_similarity_top_k=1).image_to_image_retrieve(str(pictures / "red.png"))
    assert nearest[0].node.node_id == "red"
    for name in names:
        client.delete_collection(name)


def test_chromas_embedding_function_knows_a_resolution_by_its_name() -> None:
    folder = FIXTURES / "vlm2vec_qwen2vl"
    function = ABCEmbeddingFunction(folder, device="cpu", resolution="low")
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    expected = load_embedder(folder, device="cpu", resolution="low").embed([Image(PIL.Image.fromarray(image))])
    again = ABCEmbeddingFunction.build_from_config(json.loads(json.dumps(function.get_config())))
    assert np.allclose(again([image]), expected, atol=TOLERANCE)
    with pytest.raises(InputError, match="resolution: None before, 'low' now"):
        function.validate_config_update(ABCEmbeddingFunction(folder, device="cpu").get_config(), function.get_config())


def test_chromas_embedding_function(family: str, embedder: Embedder) -> None:
    folder, settings = MODELS[family]
    function = ABCEmbeddingFunction(folder, device="cpu", **settings)
    again = ABCEmbeddingFunction.build_from_config(json.loads(json.dumps(function.get_config())))
    assert np.allclose(again(["a red thing"])[0], embedder.embed([Text("a red thing")])[0], atol=TOLERANCE)


def test_mmeb(embedder: Embedder, pictures: Path, tmp_path: Path) -> None:
    """A question whose right answer is what it says itself, which every family finds that reads both alike."""
    rows = [
        {"qry_text": "red thing", "qry_img_path": "", "tgt_text": ["red thing", "a dog", "seven"],
         "tgt_img_path": [""] * 3},
        {"qry_text": "<|image_1|>\nRepresent the given image.\n", "qry_img_path": "red.png",
         "tgt_text": ["<|image_1|>\nRepresent the given image.\n"] * 2, "tgt_img_path": ["red.png", "blue.png"]},
    ]  # fmt: skip
    (tmp_path / "VOC2007").mkdir()
    (tmp_path / "VOC2007" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate_mmeb(embedder, tmp_path, images=pictures)
    prompts, first = PROMPTS[results.settings["arguments"]["prompts"]], pictures / "red.png"
    places = [(None, [None] * 3), (first, [first, pictures / "blue.png"])]
    hits = []
    for row, (asked, answers) in zip(rows, places, strict=True):
        query = as_query(prompts.query("VOC2007", str(row["qry_text"]), asked))
        texts = zip(row["tgt_text"], answers, strict=True)
        candidates = [prompts.candidate("VOC2007", text, place) for text, place in texts]
        hits.append(int((embedder.embed(candidates) @ embedder.embed([query])[0]).argmax() == 0))
    assert results.metrics["hit@1/VOC2007"] == np.mean(hits)
    if embedder.embed([Text("a")]).tolist() == embedder.embed([Text("a", role="query")]).tolist():
        assert hits == [1, 1]
    assert results.settings["arguments"]["prompts"] == ("vlm2vec" if Interleaved in embedder.accepts else "mmeb")


# --- How a family is found --------------------------------------------------------------------------------


def test_every_family_is_known() -> None:
    assert {"abc", "vlm2vec", "bag"} <= set(loaders())
    assert {"abc", "abc-mini", "TIGER-Lab/VLM2Vec-Full"} <= set(known_names())


def test_a_folder_says_which_family_it_belongs_to(family: str, embedder: Embedder) -> None:
    folder, settings = MODELS[family]
    if isinstance(folder, str):
        bare = Path(folder.partition(":")[2])
        with pytest.raises(InputError, match=f"which could be many models; if it is .*, write '{folder}'"):
            load_embedder(bare)
        return
    name = family.split()[0]
    assert [other for other, loader in loaders().items() if loader.refusal(folder) is None] == [name]
    again = load_embedder(f"{name}:{folder}", device="cpu", **settings)
    assert again.fingerprint == embedder.fingerprint


def test_what_two_families_would_take_has_to_be_named(tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(FIXTURES / "vlm2vec_qwen2vl", both)
    shutil.copy(FIXTURES / "bag" / FILE, both)
    with pytest.raises(InputError) as refused:
        load_embedder(both)
    assert "could be a checkpoint of " in str(refused.value)
    assert f"model='vlm2vec:{both}' or 'bag:{both}'" in str(refused.value)
    assert load_embedder(f"bag:{both}", device="cpu").dim == 16
    assert load_embedder(f"vlm2vec:{both}", device="cpu").dim == 128


def test_what_no_family_takes_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load_embedder(tmp_path)
    assert f"{tmp_path} is no checkpoint of a known family (" in str(refused.value)
    for reason in ("abc: holds no base/", "vlm2vec: holds no adapter/", f"bag: holds no {FILE}"):
        assert reason in str(refused.value)


@pytest.mark.parametrize("model", [7, None, b"abc-mini", ["abc-mini"]])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="model must be a name or a folder, not"):
        find_checkpoint(model)


def test_names_mean_the_same_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)
    assert portable_name("abc-mini") == "abc-mini"
    assert portable_name("TIGER-Lab/VLM2Vec-LoRA") == "TIGER-Lab/VLM2Vec-LoRA"
    assert portable_name("vlm2vec:SOMEBODY/THEIRS") == "vlm2vec:SOMEBODY/THEIRS"
    assert portable_name("bag:bag") == f"bag:{FIXTURES / 'bag'}"
    assert portable_name("bag") == str(FIXTURES / "bag")


class Named(BagLoader):
    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "message"),
    [("abc", "already"), ("bag", "already"), ("C", "lower case"), ("c", "one letter"), ("", "lower"), ("a:b", "lower")],
)
def test_a_name_that_cannot_be_a_prefix_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        register_loader(Named(name))


def test_options_that_a_family_cannot_follow_are_refused() -> None:
    for settings, message in (
        ({"weights": "int8"}, "weights='int8' is not available for family 'bag': it has none"),
        ({"min_tokens": 4}, "min_tokens=4 is not available for family 'bag'"),
    ):
        with pytest.raises(InputError, match=message):
            load_embedder(FIXTURES / "bag", device="cpu", **settings).embed([Text("x")])
    with pytest.raises(InputError, match="resolution='high' is not available for family 'abc': it is set by"):
        load_embedder("abc-mini", device="cpu", resolution="high").embed([Text("x")])
    assert issubclass(BagLoader, ModelLoader)
    assert LoadOptions.__dataclass_params__.frozen

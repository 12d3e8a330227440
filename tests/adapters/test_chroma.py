"""The Chroma embedding function, against a real embedded Chroma, reopened in other processes."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import PIL.Image
import pytest
from chromadb import Schema
from chromadb.api.types import VectorIndexConfig
from chromadb.config import Settings
from chromadb.utils.data_loaders import ImageLoader
from chromadb.utils.embedding_functions import known_embedding_functions
from PIL import ImageCms

import abc_rag
from abc_rag import ABCCheckpoint, Embedder, InstructedImage
from abc_rag.adapters.chroma import ABCEmbeddingFunction, ABCImageLoader
from abc_rag.errors import CheckpointError, FingerprintMismatchError, ImageError, ImageLimitError, InputError
from abc_rag.images.limits import ImageLimits

PACKAGE = Path(next(iter(abc_rag.__path__)))
DEMO = sorted((PACKAGE / "models" / "bundled" / "demo").glob("*.jpg"))
MINI = PACKAGE / "models" / "bundled" / "abc-mini"
CLOSE = {"rtol": 0, "atol": 1e-5}
DEFAULTS: dict[str, Any] = {"device": "auto", "dtype": "auto", "min_tokens": None, "max_tokens": None}
DEFAULTS |= {"attention": "auto", "weights": "full"}
DEFAULTS["instruction"] = None

Client = Any


def open_client(path: Path) -> Client:
    return chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    opened = open_client(tmp_path / "chroma")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def function() -> ABCEmbeddingFunction:
    return ABCEmbeddingFunction(model="abc-mini", device="cpu")


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    return [np.asarray(PIL.Image.open(path).convert("RGB")) for path in DEMO]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of abc-mini in a folder of one's own."""
    return Path(shutil.copytree(MINI, tmp_path / "mine"))


def change_files(folder: Path) -> None:
    """Other files, the same vectors: what counts is that the revision tells."""
    (folder / "pretrain" / "note.txt").write_text("trained on")


def run(program: str, *arguments: object, path: Path | None = None) -> str:
    """What a program in another process prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ABC_RAG", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=kept,
        cwd=path or PACKAGE.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OPEN = """
import json, sys, chromadb, numpy, PIL.Image
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
"""


# --- Finding --------------------------------------------------------------------------------------------------


def test_a_text_finds_its_picture_and_a_picture_itself(
    client: Client, function: ABCEmbeddingFunction, arrays: list[np.ndarray], mini: Embedder
) -> None:
    photos = client.create_collection("photos", embedding_function=function)
    photos.add(ids=[path.name for path in DEMO], images=arrays)
    assert photos.query(query_texts=["a pig to the left of a car"], n_results=1)["ids"] == [["pig-car.jpg"]]
    rose, pig = (DEMO.index(PACKAGE / "models" / "bundled" / "demo" / name) for name in ("rose-fox.jpg", "pig-car.jpg"))
    found = photos.query(query_images=[arrays[rose], arrays[pig]], n_results=1)
    assert found["ids"] == [["rose-fox.jpg"], ["pig-car.jpg"]]
    np.testing.assert_allclose(found["distances"], 0, atol=1e-5)
    stored = photos.get(ids=[path.name for path in DEMO], include=["embeddings"])
    order = [[path.name for path in DEMO].index(name) for name in stored["ids"]]
    np.testing.assert_allclose(stored["embeddings"], mini.embed_images(map(str, DEMO))[order], **CLOSE)


def test_texts_and_pictures_share_a_collection(
    client: Client, function: ABCEmbeddingFunction, arrays: list[np.ndarray], mini: Embedder
) -> None:
    both = client.create_collection("both", embedding_function=function)
    both.add(ids=["rose", "dog"], documents=["a rose to the left of a fox", "a dog"])
    both.upsert(
        ids="pig", images=arrays[DEMO.index(PACKAGE / "models" / "bundled" / "demo" / "pig-car.jpg")]
    )  # not in a list
    assert both.query(query_texts="a pig to the left of a car", n_results=1)["ids"] == [["pig"]]
    fox = arrays[DEMO.index(PACKAGE / "models" / "bundled" / "demo" / "rose-fox.jpg")]
    assert both.query(query_images=[fox], n_results=1)["ids"] == [["rose"]]
    both.update(ids="dog", documents="a cat")
    np.testing.assert_allclose(both.get("dog", include=["embeddings"])["embeddings"], mini.embed_texts(["a cat"]), 1e-4)


def test_pictures_by_uri_through_chromas_loader(client: Client, function: ABCEmbeddingFunction) -> None:
    photos = client.create_collection("photos", embedding_function=function, data_loader=ImageLoader())
    photos.add(ids=[path.name for path in DEMO], uris=[str(path) for path in DEMO])
    assert photos.query(query_texts=["a pig to the left of a car"], n_results=1)["ids"] == [["pig-car.jpg"]]


# --- Vectors ----------------------------------------------------------------------------------------------------


def test_mixed_inputs_keep_their_order(
    function: ABCEmbeddingFunction, arrays: list[np.ndarray], mini: Embedder
) -> None:
    texts = ["a dog", str(DEMO[0]), "https://example.org/photo.jpg", "data:image/png;base64,AAAA", ""]
    mixed: list[Any] = [texts[0], arrays[0], texts[1], texts[2], arrays[1], texts[3], texts[4]]
    vectors = function(mixed)
    wanted_texts, wanted_images = mini.embed_texts(texts), mini.embed_images(map(str, DEMO[:2]))
    np.testing.assert_allclose(np.stack(vectors)[[0, 2, 3, 5, 6]], wanted_texts, **CLOSE)
    np.testing.assert_allclose(np.stack(vectors)[[1, 4]], wanted_images, **CLOSE)
    assert [vector.dtype for vector in vectors] == [np.float32] * 7
    for vector, query in zip(vectors, function.embed_query(mixed), strict=True):
        np.testing.assert_array_equal(vector, query)
    np.testing.assert_array_equal(function.embed_with_retries(mixed[:1])[0], function(mixed[:1])[0])


def test_every_layout_of_an_rgb_array_is_the_picture_it_shows(
    function: ABCEmbeddingFunction, arrays: list[np.ndarray], mini: Embedder
) -> None:
    colour = arrays[0]
    readonly, channels_first = colour.copy(), np.ascontiguousarray(colour.transpose(2, 0, 1))
    readonly.setflags(write=False)
    vectors = function([colour, readonly, channels_first.transpose(1, 2, 0), np.asfortranarray(colour)])
    np.testing.assert_allclose(np.stack(vectors), mini.embed_images([PIL.Image.fromarray(colour)] * 4), **CLOSE)


def odd_pictures(folder: Path) -> dict[str, Path]:
    """The same picture as Chroma's own loader hands over numbers that mean something else."""
    picture = PIL.Image.open(DEMO[0]).convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    wide = PIL.Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    made: dict[str, tuple[PIL.Image.Image, dict[str, Any]]] = {
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "palette.png": (picture.convert("P"), {}),
        "palette.gif": (picture.convert("P"), {}),
        "turned.jpg": (picture, {"exif": exif}),
        "deep.png": (wide, {}),
        "grey.png": (picture.convert("L"), {}),
        "grey-alpha.png": (picture.convert("LA"), {}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "bits.png": (picture.convert("1"), {}),
        "ycc.jpg": (picture, {}),
    }
    lab = ImageCms.applyTransform(
        picture,
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    made["lab.tif"] = (lab, {})
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return {name: folder / name for name in made}


def test_our_loader_hands_over_what_a_path_shows(
    client: Client, function: ABCEmbeddingFunction, mini: Embedder, tmp_path: Path
) -> None:
    paths = odd_pictures(tmp_path)
    photos = client.create_collection("odd", embedding_function=function, data_loader=ABCImageLoader())
    photos.add(ids=list(paths), uris=[str(path) for path in paths.values()])
    for name, path in paths.items():
        stored = np.asarray(photos.get(ids=[name], include=["embeddings"])["embeddings"])[0]
        assert stored @ mini.embed_images([str(path)])[0] > 0.999, name
    asked = client.get_collection("odd", embedding_function=function, data_loader=ABCImageLoader(workers=1))
    assert asked.query(query_uris=[str(paths["turned.jpg"])], n_results=1)["ids"] == [["turned.jpg"]]


def test_what_chromas_loader_hands_over_is_refused_where_it_is_no_rgb(
    function: ABCEmbeddingFunction, tmp_path: Path
) -> None:
    for name, path in odd_pictures(tmp_path).items():
        with PIL.Image.open(path) as image:
            array = np.array(image)  # as Chroma's ImageLoader does, which leaves the file open
        if name in ("turned.jpg", "ycc.jpg", "lab.tif"):  # three channels: an array cannot say of what
            continue
        with pytest.raises(InputError, match="a picture is"):
            function([array])


def test_a_loader_composites_and_scales(tmp_path: Path) -> None:
    PIL.Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    path = str(tmp_path / "clear.png")
    plain, nothing, white = *ABCImageLoader()([path, None]), *ABCImageLoader(background="white")([path])
    assert nothing is None
    assert plain is not None
    assert (plain.shape, plain.dtype, plain.max()) == ((3, 4, 3), np.uint8, 0)
    assert white is not None
    assert white.min() == 255
    with pytest.raises(ImageError, match=r"bad\.png: is not of a format"):
        ABCImageLoader()([path, str(tmp_path / "bad.png")])
    with pytest.raises(ImageError, match="wrap a URL"):
        ABCImageLoader()(["http://169.254.169.254/x.png"])
    with pytest.raises(ImageError, match="max_pixels"):
        ABCImageLoader(image_limits=ImageLimits(max_pixels=3))([path])
    with pytest.raises(InputError, match="background"):
        ABCImageLoader(background="no colour")


def test_an_instruction_is_for_every_picture_and_no_text(arrays: list[np.ndarray], mini: Embedder) -> None:
    left = ABCEmbeddingFunction("abc-mini", device="cpu", instruction="what is on the left?")
    wanted = mini.embed_images(map(str, DEMO[:2]), instruction="what is on the left?")
    np.testing.assert_allclose(np.stack(left([arrays[0], arrays[1]])), wanted, **CLOSE)
    np.testing.assert_allclose(np.stack(left.embed_query([arrays[0]])), wanted[:1], **CLOSE)
    np.testing.assert_allclose(np.stack(left(["a dog"])), mini.embed_texts(["a dog"]), **CLOSE)
    assert wanted[0] @ mini.embed_images([str(DEMO[0])])[0] < 0.99
    empty = ABCEmbeddingFunction("abc-mini", device="cpu", instruction="")
    np.testing.assert_allclose(empty([arrays[0]]), mini.embed_images([str(DEMO[0])], instruction=""), **CLOSE)


def test_a_vector_of_ones_own_goes_beside(client: Client, function: ABCEmbeddingFunction) -> None:
    facts = client.create_collection("facts", embedding_function=function)
    facts.add(ids=["pig", "car", "dog"], documents=["a pig", "a car", "a dog"])
    picture = str(PACKAGE / "models" / "bundled" / "demo" / "pig-car.jpg")
    for instruction, wanted in (("what is on the left?", "pig"), ("what is on the right?", "car")):
        vector = function.embedder.embed([InstructedImage(picture, instruction)])
        assert facts.query(query_embeddings=vector, n_results=1)["ids"] == [[wanted]]


# --- Wrong inputs ------------------------------------------------------------------------------------------------

PIXELS = np.zeros((30, 20, 3), np.uint8)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PIXELS / 255, r"input 1 is an array of float64 and shape \(30, 20, 3\); .* scale it to 0..255"),
        (PIXELS.astype(np.int64), "input 1 is an array of int64 .*astype"),
        (PIXELS[:, :, 0] > 0, "input 1 is an array of bool .*astype"),
        (PIXELS.transpose(2, 0, 1), r"input 1 .* shape \(3, 30, 20\); .*array.transpose\(1, 2, 0\) makes it one"),
        (
            PIXELS[:, :, :2],
            r"input 1 .* shape \(30, 20, 2\); a picture is height x width x 3, in RGB: .*ABCImageLoader",
        ),
        (PIXELS[:, :, 0], r"input 1 .* shape \(30, 20\); .*convert\('RGB'\)"),
        (np.zeros((30, 20, 4), np.uint8), r"input 1 .* shape \(30, 20, 4\); .*convert\('RGB'\)"),
        (PIXELS[None], r"input 1 .* shape \(1, 30, 20, 3\); a picture is"),
        (PIXELS[:0], "input 1 .*, without pixels"),
        (None, "input 1 is a NoneType; pass a text as a str, and a picture as a numpy array"),
        (PIL.Image.fromarray(PIXELS), r"input 1 is a Image; .*numpy.asarray\(picture.convert\('RGB'\)\)"),
        (b"bytes", "input 1 is a bytes"),
        ("a dog " * 5000, "input 1: .*tokens"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(value: Any, message: str, function: ABCEmbeddingFunction) -> None:
    with pytest.raises(InputError, match=message):
        function(["a dog", value])
    with pytest.raises(InputError, match=message):
        function.embed_query(["a dog", value])


def test_a_picture_beyond_a_limit_is_named(function: ABCEmbeddingFunction) -> None:
    thin = np.zeros((1, 1000, 3), np.uint8)
    with pytest.raises(ImageLimitError, match="input 2: 1000 x 1, an aspect ratio of 1,000") as caught:
        function([PIXELS, "a dog", thin])
    assert caught.value.source == "input 2"


@pytest.mark.parametrize("value", ["a dog", PIXELS, b"", 5, None, {"a": 1}, iter(["a dog"])])
def test_what_is_no_list_is_refused(value: Any, function: ABCEmbeddingFunction) -> None:
    with pytest.raises(InputError, match="must be a list of texts and images"):
        function(value)


def test_nothing_is_refused(client: Client, function: ABCEmbeddingFunction) -> None:
    with pytest.raises(InputError, match="input is empty"):
        function([])
    photos = client.create_collection("photos", embedding_function=function)
    with pytest.raises(ValueError, match="Non-empty lists are required"):
        photos.add(ids=[], documents=[])
    with pytest.raises(ValueError, match="Non-empty lists are required"):
        photos.query(query_texts=[])


def test_chroma_passes_our_message_on_and_stores_nothing(client: Client, function: ABCEmbeddingFunction) -> None:
    photos = client.create_collection("photos", embedding_function=function)
    with pytest.raises(InputError, match=r"input 1 is an array of float64 .* in add"):
        photos.add(ids=["1", "2"], images=[PIXELS, PIXELS / 255])
    assert photos.count() == 0


# --- Settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_travel_as_settings(how: Any) -> None:
    function = ABCEmbeddingFunction("abc-mini", device="cpu", instruction="what is on the left?", background="white")
    expected = function(["a pig"])
    again = how(function)
    assert again.get_config() == function.get_config()
    assert np.array_equal(again(["a pig"]), expected)


def test_a_background_is_part_of_the_settings(mini: Embedder) -> None:
    plain, white = (ABCEmbeddingFunction("abc-mini", **given) for given in ({}, {"background": "white"}))
    assert "background" not in plain.get_config()
    assert white.get_config()["background"] == "white"
    assert white.embedder.fingerprint != plain.embedder.fingerprint
    with pytest.raises(InputError, match="background: None before, 'white' now"):
        white.validate_config_update(plain.get_config(), white.get_config())


def test_the_configuration_is_plain_json(mini: Embedder) -> None:
    revision = mini.fingerprint.revision
    assert ABCEmbeddingFunction("abc-mini").get_config() == DEFAULTS | {"model": "abc-mini", "revision": revision}
    settings = {"device": "cpu", "dtype": "float32", "min_tokens": 4, "max_tokens": 16, "attention": "eager"}
    settings["weights"] = "full"
    function = ABCEmbeddingFunction("abc-mini", instruction="what is on the left?", **settings)  # type: ignore[arg-type]
    config = function.get_config()
    assert config == settings | {"model": "abc-mini", "revision": revision, "instruction": "what is on the left?"}
    assert json.loads(json.dumps(config)) == config
    again = ABCEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    assert again.embedder is function.embedder
    assert (again.embedder.fingerprint.min_tokens, again.embedder.fingerprint.max_tokens) == (4, 16)
    config["model"] = "changed"
    assert function.get_config()["model"] == "abc-mini"
    assert not function.is_legacy()
    assert ABCEmbeddingFunction.build_from_config({"model": "abc-mini"}).get_config()["revision"] is None


def test_the_published_model_is_neither_loaded_nor_looked_for() -> None:
    program = f"""
import json, sys
network = []
def watch(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        network.append(event)
sys.addaudithook(watch)
{OPEN.replace("chromadb.PersistentClient(sys.argv[1], ", "chromadb.EphemeralClient(")}
from abc_rag.adapters.chroma import ABCEmbeddingFunction, ABCImageLoader
client.create_collection("photos", embedding_function=ABCEmbeddingFunction())
photos = client.get_collection("photos")
photos.add(ids=["1"], embeddings=[[1.0, 0.0]])
ABCEmbeddingFunction("abc").check(photos)
photos.configuration, photos.schema
print(json.dumps([photos.configuration_json["embedding_function"], network, photos.count()]))
"""
    stored, network, count = json.loads(run(program))
    assert stored == {
        "type": "known",
        "name": "abc_rag.adapters.chroma",
        "config": DEFAULTS | {"model": "abc", "revision": None},
    }
    assert network == []
    assert count == 1


def test_the_environment_names_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABC_RAG_MODEL", "abc-mini")
    function = ABCEmbeddingFunction()
    monkeypatch.delenv("ABC_RAG_MODEL")
    assert function.get_config()["model"] == "abc-mini"


def test_a_folder_is_stored_where_it_is(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, mini: Embedder) -> None:
    monkeypatch.chdir(checkpoint.parent)
    for model in ("mine", Path("mine"), "./mine", str(checkpoint)):
        config = ABCEmbeddingFunction(model, device="cpu").get_config()
        assert config["model"] == str(checkpoint)
        assert config["revision"] == mini.fingerprint.revision
    (checkpoint.parent / "mine").rename(checkpoint.parent / "abc-mini")
    assert ABCEmbeddingFunction("abc-mini").get_config()["model"] == "abc-mini"  # as load_embedder reads it
    assert ABCEmbeddingFunction(Path("abc-mini")).get_config()["model"] == str(checkpoint.parent / "abc-mini")


def test_a_checkpoint_of_parts_comes_back(checkpoint: Path, mini: Embedder) -> None:
    parts = ABCCheckpoint(checkpoint / "base", str(checkpoint / "pretrain"), checkpoint / "instruct")
    function = ABCEmbeddingFunction(parts, device="cpu", min_tokens=9, max_tokens=9)
    config = json.loads(json.dumps(function.get_config()))
    assert config["revision"] == mini.fingerprint.revision
    folders = ABCCheckpoint(*(checkpoint / part for part in ("base", "pretrain", "instruct")))
    again = ABCEmbeddingFunction.build_from_config(config)
    assert repr(again) == f"ABCEmbeddingFunction(model={folders!r}, device='cpu', min_tokens=9, max_tokens=9)"
    assert again.embedder is function.embedder
    hub = ABCCheckpoint("some/base", "some/pretrain", checkpoint / "instruct", base_revision="v1")
    config = ABCEmbeddingFunction(hub).get_config()
    assert config["revision"] is None
    assert config["model"] == {
        "base": "some/base",
        "base_revision": "v1",
        "pretrain": "some/pretrain",
        "pretrain_revision": None,
        "instruct": {"folder": str(checkpoint / "instruct")},
        "instruct_revision": None,
    }
    again = ABCEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    assert repr(again) == f"ABCEmbeddingFunction(model={hub!r})"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "no-such-model"}, "model 'no-such-model' is neither 'abc', 'abc-mini', 'auto' nor a folder"),
        ({"model": 5}, "model must be a name, a folder or an abc_rag.ABCCheckpoint, not int"),
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"attention": "flash"}, "attention must be one of"),
        ({"weights": "int2"}, "weights must be one of"),
        ({"min_tokens": 0}, "min_tokens must be a positive number"),
        ({"min_tokens": 16, "max_tokens": 9}, "is larger than"),
        ({"device": 0}, "device must be a str such as 'cuda:0', not int"),
        ({"instruction": ["left?"]}, "instruction must be a str or None, not list"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ABCEmbeddingFunction(**({"model": "abc-mini"} | settings))


def test_a_missing_part_is_refused_at_once(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such folder"):
        ABCEmbeddingFunction(ABCCheckpoint(checkpoint / "base", checkpoint / "gone", checkpoint / "instruct"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model must be a str, or a dict with base, pretrain, instruct, not None"),
        ({"model": {"base": "some/base"}}, "model must be a str, or a dict"),
        ({"model": "abc-mini", "prompt": "x", "api_key": "y"}, "no setting 'api_key', 'prompt'; if a newer abc-rag"),
        ({"model": "abc-mini", "instruction": 5}, "instruction must be a str or None, not int"),
        ({"model": "abc-mini", "revision": 5}, "revision must be a str or None, not int"),
        ("abc-mini", "are a dict, not str"),
    ],
)
def test_a_configuration_of_something_else_is_refused(config: Any, message: str) -> None:
    for use in (ABCEmbeddingFunction.validate_config, ABCEmbeddingFunction.build_from_config):
        with pytest.raises(InputError, match=message):
            use(config)


def test_settings_that_cannot_be_used_here_say_so_on_first_use(tmp_path: Path) -> None:
    function = ABCEmbeddingFunction.build_from_config({"model": str(tmp_path / "gone")})
    with pytest.raises(InputError, match=r"gone' is neither .*If these settings came from a collection"):
        function(["a dog"])
    function = ABCEmbeddingFunction.build_from_config({"model": "abc-mini", "dtype": "float8"})
    with pytest.raises(InputError, match="dtype must be one of"):
        function(["a dog"])


# --- Spaces -------------------------------------------------------------------------------------------------------


def test_all_spaces_rank_alike(client: Client, function: ABCEmbeddingFunction, arrays: list[np.ndarray]) -> None:
    assert function.default_space() == "cosine"
    found = []
    for space in (None, *function.supported_spaces()):
        configuration = None if space is None else {"hnsw": {"space": space}}
        photos = client.create_collection(f"in-{space}", embedding_function=function, configuration=configuration)
        assert photos.configuration_json["hnsw"]["space"] == (space or "cosine")
        photos.add(ids=[path.name for path in DEMO], images=arrays)
        found.append(photos.query(query_texts=["a pig to the left of a car"], n_results=5)["ids"])
    assert len(found) == 4
    assert found == found[:1] * 4


# --- Reopening ----------------------------------------------------------------------------------------------------


def test_another_process_finds_the_function_and_its_settings(tmp_path: Path, arrays: list[np.ndarray]) -> None:
    path = tmp_path / "chroma"
    function = ABCEmbeddingFunction("abc-mini", device="cpu", instruction="what is on the left?")
    client = open_client(path)
    client.create_collection("photos", embedding_function=function).add(ids=[p.name for p in DEMO], images=arrays)
    client.close()

    use = """
photos = client.get_collection("photos")
picture = numpy.asarray(PIL.Image.open(sys.argv[2]).convert("RGB"))
found = photos.query(query_images=[picture], n_results=1), photos.query(query_texts=["a pig"], n_results=1)
photos.add(ids=["text"], documents=["a pig"])
print(json.dumps([*[one["ids"][0] + one["distances"][0] for one in found], photos.count()]))
"""
    picture = PACKAGE / "models" / "bundled" / "demo" / "pig-car.jpg"
    by_picture, by_text, count = json.loads(run(OPEN + "import abc_rag.adapters.chroma\n" + use, path, picture))
    assert by_picture[0] == "pig-car.jpg"
    assert by_picture[1] == pytest.approx(0, abs=1e-5)
    assert by_text[0] == "pig-car.jpg"
    assert count == len(DEMO) + 1

    # Without the import, the error names the module.
    forgotten = """
photos = client.get_collection("photos")
try:
    photos.query(query_texts=["a pig"])
except ValueError as error:
    print(error)
"""
    assert "Embedding function abc_rag.adapters.chroma not found" in run(OPEN + forgotten, path)


def test_a_reopened_collection_loads_the_model_once(
    client: Client, function: ABCEmbeddingFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection("photos", embedding_function=function)
    made = []
    build = ABCEmbeddingFunction.build_from_config

    class Watched(ABCEmbeddingFunction):
        @staticmethod
        def build_from_config(config: dict[str, Any]) -> ABCEmbeddingFunction:
            made.append(build(config))
            return made[-1]

    monkeypatch.setitem(known_embedding_functions, "abc_rag.adapters.chroma", Watched)
    photos = client.get_collection("photos")
    photos.add(ids=["1"], documents=["a dog"])
    photos.query(query_texts=["a dog"])
    photos.query(query_texts=["a cat"])
    assert len(made) >= 3  # Chroma makes a function a call
    assert {id(one.embedder) for one in made} == {id(function.embedder)}


def test_the_last_two_models_stay_loaded_and_no_more() -> None:
    def embedder(tokens: int) -> Embedder:
        return ABCEmbeddingFunction("abc-mini", max_tokens=tokens).embedder

    first, second = weakref.ref(embedder(21)), weakref.ref(embedder(22))
    gc.collect()
    assert first() is embedder(21)
    assert second() is not None
    embedder(23)
    gc.collect()
    assert first() is not None
    assert second() is None  # used longest ago


def test_a_function_in_a_schema_comes_back(client: Client, function: ABCEmbeddingFunction) -> None:
    schema = Schema().create_index(VectorIndexConfig(embedding_function=function))
    client.create_collection("photos", schema=schema, embedding_function=None)
    photos = client.get_collection("photos")
    assert photos.configuration_json["embedding_function"]["config"] == function.get_config()
    assert photos.configuration_json["hnsw"]["space"] == "cosine"
    function.check(photos)
    photos.add(ids=["1", "2"], documents=["a dog", "a car"])
    assert photos.query(query_texts=["a car"], n_results=1)["ids"] == [["2"]]


def test_a_collection_without_its_folder_still_takes_vectors(client: Client, checkpoint: Path) -> None:
    client.create_collection("photos", embedding_function=ABCEmbeddingFunction(checkpoint, device="cpu"))
    moved = checkpoint.rename(checkpoint.parent / "moved")
    photos = client.get_collection("photos")
    photos.add(ids=["1"], embeddings=[[1.0] + [0.0] * 191])  # without a warning
    with pytest.raises(InputError, match=r"mine' is neither .*embedding_function=ABCEmbeddingFunction"):
        photos.add(ids=["2"], documents=["a dog"])
    found = ABCEmbeddingFunction(moved, device="cpu")
    photos = client.get_collection("photos", embedding_function=found)
    found.check(photos)  # the same files
    photos.add(ids=["2"], documents=["a dog"])
    photos.modify(configuration={"embedding_function": found})
    assert client.get_collection("photos").query(query_texts=["a dog"], n_results=1)["ids"] == [["2"]]


# --- Other models -------------------------------------------------------------------------------------------------


def test_changed_files_are_noticed(client: Client, checkpoint: Path) -> None:
    first = ABCEmbeddingFunction(checkpoint, device="cpu")
    photos = client.create_collection("photos", embedding_function=first)
    photos.add(ids=["1"], documents=["a dog"])
    change_files(checkpoint)
    # Loaded before: the files' change does not touch it.
    client.get_collection("photos").query(query_texts=["a dog"])
    second = ABCEmbeddingFunction(checkpoint, device="cpu")
    assert second.embedder is not first.embedder
    assert second.embedder.fingerprint.revision == second.get_config()["revision"] != first.get_config()["revision"]
    with pytest.raises(FingerprintMismatchError, match="'photos' holds vectors of other settings: revision: "):
        second.check(client.get_collection("photos", embedding_function=second))
    with pytest.raises(InputError, match="revision: "):
        second.validate_config_update(first.get_config(), second.get_config())


def test_stored_settings_compute_only_with_their_revision(client: Client, checkpoint: Path) -> None:
    client.create_collection("photos", embedding_function=ABCEmbeddingFunction(checkpoint, device="cpu"))
    change_files(checkpoint)
    photos = client.get_collection("photos")
    with pytest.raises(FingerprintMismatchError, match=r"mine' have changed: .* made with revision \w+, .* in add"):
        photos.add(ids=["1"], documents=["a dog"])
    assert photos.count() == 0


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "left?"}, "instruction: None before, 'left\\?' now"),
    ({"min_tokens": 4}, "min_tokens: None before, 4 now"),
    ({"max_tokens": 16}, "max_tokens: None before, 16 now"),
    ({"weights": "int8"}, "weights: 'full' before, 'int8' now"),
    ({"model": "abc"}, "model: 'abc-mini' before, 'abc' now"),
]


@pytest.mark.parametrize(("settings", "message"), OTHERS)
def test_chroma_takes_any_function_and_check_refuses(
    settings: dict[str, Any], message: str, client: Client, function: ABCEmbeddingFunction
) -> None:
    client.create_collection("photos", embedding_function=function)
    other = ABCEmbeddingFunction(**({"model": "abc-mini", "device": "cpu"} | settings))
    for photos in (
        client.get_collection("photos", embedding_function=other),
        client.get_or_create_collection("photos", embedding_function=other),
    ):
        assert photos.configuration_json["embedding_function"]["config"] == function.get_config()
        with pytest.raises(FingerprintMismatchError, match=f"'photos' holds vectors of other settings: {message}"):
            other.check(photos)
        function.check(photos)
    ABCEmbeddingFunction("abc-mini", dtype="float32", attention="eager").check(photos)


def test_check_refuses_what_says_nothing(client: Client, function: ABCEmbeddingFunction) -> None:
    for name, given in (("none", {"embedding_function": None}), ("default", {})):
        collection = client.create_collection(name, **given)
        with pytest.raises(FingerprintMismatchError, match=f"'{name}' was not created with an ABCEmbeddingFunction"):
            function.check(collection)
    with pytest.raises(ValueError, match=r"conflict: new: abc_rag.adapters.chroma vs persisted: default"):
        client.get_collection("default", embedding_function=function)


@pytest.mark.parametrize(("settings", "message"), OTHERS)
def test_a_refused_change_says_how_to_take_it_back(
    settings: dict[str, Any], message: str, client: Client, function: ABCEmbeddingFunction
) -> None:
    photos = client.create_collection("photos", embedding_function=function)
    other = ABCEmbeddingFunction(**({"model": "abc-mini", "device": "cpu"} | settings))
    with pytest.raises(InputError, match=message) as caught:
        photos.modify(configuration={"embedding_function": other})
    # Chroma stores before it asks. Should this fail one day, the message and the module's docstring may shrink.
    stored = client.get_collection("photos").configuration_json["embedding_function"]["config"]
    assert stored == other.get_config()
    remedy = str(caught.value).split("take them back with ")[1]
    assert remedy == (
        "collection.modify(configuration={'embedding_function': ABCEmbeddingFunction(model='abc-mini', device='cpu')})"
    )
    eval(remedy, {"collection": photos, "ABCEmbeddingFunction": ABCEmbeddingFunction})
    function.check(client.get_collection("photos"))


def test_what_does_not_decide_vectors_may_change(client: Client, function: ABCEmbeddingFunction) -> None:
    photos = client.create_collection("photos", embedding_function=function)
    other = ABCEmbeddingFunction("abc-mini", device="cpu", dtype="float32", attention="eager")
    photos.modify(configuration={"embedding_function": other})
    assert client.get_collection("photos").configuration_json["embedding_function"]["config"] == other.get_config()


# --- Importing ----------------------------------------------------------------------------------------------------


def test_importing_registers_and_loads_no_torch() -> None:
    program = """
import sys, json
import abc_rag.adapters.chroma
from chromadb.utils.embedding_functions import known_embedding_functions as known
names = [name for name in ("torch", "transformers", "peft", "langchain_core", "llama_index") if name in sys.modules]
function = known["abc_rag.adapters.chroma"].build_from_config({"model": "abc"})
print(json.dumps([names, "torch" in sys.modules, type(function).__name__]))
"""
    assert json.loads(run(program)) == [[], False, "ABCEmbeddingFunction"]

"""An export for sentence-transformers gives the engine's vectors, and does what its model card says."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import FIXTURE, TOLERANCE, as_input
from safetensors.torch import load_file, save_file

from abc_rag import URL, DataURI, Image, ImageLimits, InstructedImage, Text, load_embedder
from abc_rag.adapters.sentence_transformers.export import (
    SentenceTransformersExport,
    _difference,
    export_sentence_transformers,
    load_sentence_transformer,
)
from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import CheckpointError, ImageError, InputError, MissingExtraError
from abc_rag.models.abc.loader import _bundled
from abc_rag.types import Vectors

IMAGES = FIXTURE / "images"
SCENE, SHAPES = IMAGES / "scene_640x480.png", IMAGES / "shapes_56x56.png"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformersExport:
    folder = tmp_path_factory.mktemp("export") / "mini"
    return export_sentence_transformers("abc-mini", folder, device="cpu")


@pytest.fixture(scope="module")
def model(done: SentenceTransformersExport) -> Any:
    return load_sentence_transformer(done.folder, device="cpu")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("export") / "tiny"
    return load_sentence_transformer(export_sentence_transformers(FIXTURE, out, check=False).folder, device="cpu")


def mixed() -> tuple[list[Any], list[Any]]:
    """What encode takes, and the same as typed inputs."""
    with PIL.Image.open(SHAPES) as opened:
        opened.load()
    pairs: list[tuple[Any, Any]] = [
        ("a red cube", Text("a red cube")),
        ("!", Text("!")),
        ("Look! Here! ! !", Text("Look! Here! ! !")),
        ("", Text("")),
        (" ", Text(" ")),
        ("many words " * 60, Text("many words " * 60)),
        ("<|im_end|><|image_pad|>", Text("<|im_end|><|image_pad|>")),
        ({"text": "x"}, Text("x")),
        ({"image": str(SCENE)}, Image(SCENE)),
        ({"image": SCENE}, Image(SCENE)),
        (opened, Image(SHAPES)),
        (IMAGES / "wide_900x100.png", Image(IMAGES / "wide_900x100.png")),
        (SCENE.read_bytes(), Image(SCENE)),
        ({"image": opened, "text": "What is left?"}, InstructedImage(SHAPES, "What is left?")),
        ({"text": "What is left?", "image": str(SCENE)}, InstructedImage(SCENE, "What is left?")),
        ({"image": SCENE.read_bytes(), "text": ""}, InstructedImage(SCENE, "")),
        ({"image": str(SCENE), "text": "!"}, InstructedImage(SCENE, "!")),
        (Text("typed"), Text("typed")),
        (Image(SHAPES), Image(SHAPES)),
        (InstructedImage(SHAPES, "typed"), InstructedImage(SHAPES, "typed")),
        ([{"role": "user", "content": "a turn"}], Text("a turn")),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "colour?"}, {"type": "image", "image": str(SCENE)}],
                }
            ],
            InstructedImage(SCENE, "colour?"),
        ),
    ]
    return [given for given, _ in pairs], [meant for _, meant in pairs]


FEW = [0, 1, 6, 9, 10, 13, 15]  # every kind once, where one look is enough


def few() -> tuple[list[Any], list[Any]]:
    given, meant = mixed()
    return [given[i] for i in FEW], [meant[i] for i in FEW]


@pytest.fixture(scope="module")
def expected(mini: Embedder) -> Vectors:
    return mini.embed(mixed()[1])


def largest(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


# --- Vectors ----------------------------------------------------------------------------------------------


def test_the_export_has_been_compared(done: SentenceTransformersExport, mini: Embedder) -> None:
    assert done.difference is not None
    assert done.difference <= TOLERANCE
    assert done.fingerprint == mini.fingerprint


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_any_mix_has_the_engines_vectors_in_order(model: Any, expected: Vectors, batch_size: int) -> None:
    found = model.encode(mixed()[0], batch_size=batch_size)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert largest(found, expected) <= TOLERANCE


def test_one_input_gives_one_vector(model: Any, expected: Vectors) -> None:
    for value, vector in zip(few()[0], expected[FEW], strict=True):
        assert largest(model.encode(value), vector) <= TOLERANCE, value


def test_the_original_research_codes_vectors(
    tiny_model: Any, cases: list[dict[str, Any]], goldens: dict[str, torch.Tensor]
) -> None:
    some = [*cases[:18:2], *cases[18:-1:4]]  # texts, then pictures
    found = tiny_model.encode([as_input(case) for case in some], batch_size=5)
    assert largest(found, torch.stack([goldens[f"{case['id']}.embedding"] for case in some])) <= TOLERANCE


def test_a_string_is_a_text_whatever_it_looks_like(
    model: Any, mini: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENE, "real.png")
    Path("broken.jpg").write_bytes(b"no picture")  # opening it would be an error
    looks = ["real.png", "broken.jpg", "https://example.org/a.png", "data:image/png;base64,AAAA", "/etc/passwd"]
    looks += ["https://youtu.be/x", "https://example.org/a.mp4", "file:///etc/passwd", "http://[bad/a.jpg", "a.wav"]
    found = model.encode(looks)  # sockets are blocked here: a look-up would be an error too
    assert largest(found, mini.embed_texts(looks)) <= TOLERANCE
    assert largest(model.encode(["real.png"]), mini.embed_texts(["real.png"])) <= TOLERANCE
    assert largest(model.encode({"image": "real.png"}), mini.embed_images([SCENE])[0]) <= TOLERANCE


def test_a_prompt_goes_before_words_and_not_before_pictures(model: Any, mini: Embedder) -> None:
    found = model.encode(["cube", {"image": str(SCENE), "text": "hue?"}, {"image": str(SCENE)}], prompt="a red ")
    wanted = mini.embed([Text("a red cube"), InstructedImage(SCENE, "a red hue?"), Image(SCENE)])
    assert largest(found, wanted) <= TOLERANCE


def test_the_librarys_options(model: Any, expected: Vectors) -> None:
    inputs = mixed()[0]
    for encode in (model.encode_query, model.encode_document):
        assert largest(encode(inputs[:2]), expected[:2]) <= TOLERANCE
    tensors = model.encode(inputs[:3], convert_to_tensor=True, normalize_embeddings=True)
    assert isinstance(tensors, torch.Tensor)
    assert largest(tensors, expected[:3]) <= TOLERANCE
    assert largest(model.encode(inputs[:3], truncate_dim=16), expected[:3, :16]) <= TOLERANCE
    assert largest(model.encode(np.array(["a red cube", "!"])), expected[:2]) <= TOLERANCE
    assert len(model.encode([])) == 0
    assert largest(model.similarity(tensors, tensors), expected[:3] @ expected[:3].T) <= TOLERANCE
    assert model.get_embedding_dimension() == expected.shape[1]
    assert model.similarity_fn_name == "cosine"
    assert model.supports(("image", "text"))
    assert not model.supports("video")
    assert model.max_seq_length == 2048
    assert "min_tokens" in repr(model)


def test_its_tools_run_on_it(model: Any) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import semantic_search

    words = ["a dog", "a boat", "a red cube"]
    hits = semantic_search(model.encode(["a boat"]), model.encode(words))
    assert hits[0][0]["corpus_id"] == 1
    judge = InformationRetrievalEvaluator(
        {"q": "a dog"}, {str(i): word for i, word in enumerate(words)}, {"q": {"0"}}, map_at_k=[1], write_csv=False
    )
    assert judge(model)["cosine_accuracy@1"] == 1.0


def test_threads_do_not_switch_each_others_adapter(model: Any, expected: Vectors) -> None:
    inputs = mixed()[0]
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(model.encode, inputs))
    assert largest(np.stack(runs), expected) <= TOLERANCE


def test_a_copy_for_another_process_is_the_same(model: Any, expected: Vectors) -> None:
    copy = pickle.loads(pickle.dumps(model))
    assert largest(copy.encode(few()[0]), expected[FEW]) <= TOLERANCE
    assert isinstance(copy[0]._computing, type(threading.Lock()))


# --- Loading ----------------------------------------------------------------------------------------------


def load_trusted(folder: Path, **arguments: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, local_files_only=True, **arguments)


def test_the_library_wants_to_be_told_to_trust_the_class(done: SentenceTransformersExport, expected: Vectors) -> None:
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(done.folder), local_files_only=True)
    loaded = load_trusted(done.folder)
    assert largest(loaded.encode(few()[0]), expected[FEW]) <= TOLERANCE
    assert loaded.prompts == {"query": "", "document": ""}
    assert not list(done.folder.rglob("*.py"))


def test_the_model_card_runs_from_another_folder_without_network(
    done: SentenceTransformersExport, tmp_path: Path, mini: Embedder
) -> None:
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert str(done.fingerprint) in card
    PIL.Image.open(SCENE).convert("RGB").save(tmp_path / "photo.jpg")
    shutil.copytree(done.folder, tmp_path / done.folder.name)
    watch = """
import sys
def _watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"network: {arguments}")
sys.addaudithook(_watch)
"""
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join([watch, *blocks, "vectors.tofile('vectors')"])],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "(4, 192)"
    photo = tmp_path / "photo.jpg"
    wanted = mini.embed([Text("a text"), Image(photo), InstructedImage(photo, "What is on the left?"), Image(photo)])
    assert largest(np.fromfile(tmp_path / "vectors", np.float32).reshape(4, -1), wanted) <= TOLERANCE


def test_a_save_can_be_loaded_by_the_library_and_by_the_engine(model: Any, expected: Vectors, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "again"))
    for folder in (tmp_path / "again", tmp_path / "once more"):
        assert largest(load_sentence_transformer(folder, device="cpu").encode(few()[0]), expected[FEW]) <= TOLERANCE
        assert largest(load_embedder(folder, device="cpu").embed(few()[1]), expected[FEW]) <= TOLERANCE
        load_trusted(folder).save_pretrained(str(tmp_path / "once more"))
    with pytest.raises(InputError, match="safetensors only"):
        model.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)


def test_the_folder_is_the_same_checkpoint_as_before(done: SentenceTransformersExport, mini: Embedder) -> None:
    kept = load_embedder(done.folder, device="cpu")
    assert kept.fingerprint == mini.fingerprint
    for file in _bundled("abc-mini").rglob("*.safetensors"):
        assert (done.folder / file.relative_to(_bundled("abc-mini"))).read_bytes() == file.read_bytes()


def test_another_resolution_and_limits(tiny_model: Any, tmp_path: Path) -> None:
    folder = export_sentence_transformers(FIXTURE, tmp_path / "tiny", check=False).folder
    smaller = load_sentence_transformer(folder, device="cpu", min_tokens=4, max_tokens=16)
    trusted = load_trusted(folder, processor_kwargs={"min_tokens": 4, "max_tokens": 16})
    engine = load_embedder(FIXTURE, device="cpu", min_tokens=4, max_tokens=16).embed_images([SCENE])
    assert largest(smaller.encode([SCENE]), engine) <= TOLERANCE
    assert largest(trusted.encode([SCENE]), engine) <= TOLERANCE
    assert largest(tiny_model.encode([SCENE]), engine) > 1e-3
    smaller.save_pretrained(str(tmp_path / "kept"))
    assert largest(load_sentence_transformer(tmp_path / "kept", device="cpu").encode([SCENE]), engine) <= TOLERANCE
    strict = load_sentence_transformer(folder, device="cpu", image_limits=ImageLimits(max_pixels=100))
    with pytest.raises(ImageError, match="max_pixels"):
        strict.encode([SCENE])


def test_half_precision(done: SentenceTransformersExport, model: Any) -> None:
    engine = load_embedder("abc-mini", device="cpu", dtype="bfloat16").embed([Text("a red cube")])
    trusted = load_trusted(done.folder, model_kwargs={"torch_dtype": torch.bfloat16}).encode(["a red cube"])
    ours = load_sentence_transformer(done.folder, device="cpu", dtype="bfloat16").encode(["a red cube"])
    assert largest(trusted, ours) <= TOLERANCE
    # The engine computes without padding, in another order of operations, each of which rounds to 8 bits.
    assert largest(ours, engine) < 0.005
    assert 1e-5 < largest(ours, model.encode(["a red cube"])) < 0.01
    with pytest.raises(InputError, match=r"load it with model_kwargs=\{\"dtype\": \"bfloat16\"\}"):
        pickle.loads(pickle.dumps(model)).half().encode("a red cube")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_kwargs": {"device_map": "auto"}}, "model_kwargs: device_map is not known"),
        ({"model_kwargs": {"dtype": "int8"}}, "dtype must be float32, bfloat16 or float16, not 'int8'"),
        ({"model_kwargs": {"attn_implementation": "magic"}}, "attention must be one of"),
        ({"processor_kwargs": {"max_pixels": 3}}, "it takes image_limits, max_tokens, min_tokens"),
        ({"processor_kwargs": {"max_tokens": 0}}, "max_tokens must be a positive number"),
        ({"processor_kwargs": {"image_limits": 3}}, "image_limits must be an abc_rag.ImageLimits, not int"),
        ({"config_kwargs": {"x": 1}}, "config_kwargs: x is not known to this model; it takes nothing"),
        ({"backend": "onnx"}, "backend 'onnx' is not available"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(
    done: SentenceTransformersExport, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_trusted(done.folder, **arguments)


def test_only_exports_are_loaded(done: SentenceTransformersExport, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'nonsense' cannot be used here"):
        load_sentence_transformer(done.folder, device="nonsense")
    for folder in (tmp_path, tmp_path / "nowhere", FIXTURE):
        with pytest.raises(InputError, match="is no folder that abc-rag export sentence-transformers has written"):
            load_sentence_transformer(folder)


# --- Bad inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), "PIL.Image.fromarray"),
        (("a", "pair"), "cannot embed a tuple"),
        (3, "cannot embed a int"),
        (None, "cannot embed a NoneType"),
        ({"image": None, "text": "x"}, "InstructedImage.source must be a path"),
        ({"image": str(SCENE), "text": None}, "InstructedImage.instruction must be a str, not NoneType"),
        ({"text": 1}, "Text.text must be a str"),
        ({"image": [SCENE, SCENE]}, "one picture, not several"),
        ({"picture": str(SCENE)}, "keys image, text or both, not .'picture'"),
        ({}, "keys image, text or both"),
        ({"role": "assistant", "content": "x"}, "one message of the role"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "one message of the role"),
        ({"role": "user", "content": [{"type": "video", "video": "x"}]}, "and nothing else; got"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}] * 2}, "and nothing else; got"),
        ({"role": "user", "content": []}, "keys image, text or both"),
        ("word " * 5000, "longer than the model's 2048; split the text"),
        ("half \ud800", "half a character"),
    ],
)
def test_what_cannot_be_embedded_is_refused(model: Any, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.encode([["a text"], [value]][1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "check the path"),
        ("https://example.org/a.png", r"wrap a URL as abc_rag.URL"),
        (URL("https://example.org/a.png"), "allow_urls"),
        (DataURI("data:image/png;base64,AAAA"), "not of a format that is read"),
        (b"no picture", "not of a format that is read"),
    ],
)
def test_pictures_that_cannot_be_opened_are_named(model: Any, source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        model.encode(["a text", {"image": source}])


def test_nothing_is_cut_or_ignored(model: Any) -> None:
    with pytest.raises(InputError, match="max_seq_length cannot be set to 128"):
        model.max_seq_length = 128
    with pytest.raises(InputError, match="processing_kwargs: not known"):
        model.encode("x", processing_kwargs={"text": {"truncation": True}})
    with pytest.raises(InputError, match="gradient checkpointing is not available"):
        model.gradient_checkpointing_enable()


# --- Training ---------------------------------------------------------------------------------------------


@pytest.fixture
def trainable(done: SentenceTransformersExport) -> Any:
    return load_sentence_transformer(done.folder, device="cpu")


def gradients(model: Any, loss: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    pictures = [{"image": str(SCENE), "text": "left?"}, {"image": str(SHAPES), "text": "right?"}, {"image": SCENE}]
    columns = [model.preprocess(pictures), model.preprocess(["a cube", "a ball, and many other things", "a scene"])]
    model.zero_grad()
    loss(columns, None).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_flow_also_in_smaller_batches_and_a_step_is_saved(trainable: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import losses

    plain = gradients(trainable, losses.MultipleNegativesRankingLoss(trainable))
    assert {name for name, _ in trainable.named_parameters()} - set(plain) == {"0.network.temperature.temp"}
    cached = gradients(trainable, losses.CachedMultipleNegativesRankingLoss(trainable, mini_batch_size=2))
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-3, atol=1e-4)
    before = trainable.encode(few()[0])
    torch.optim.SGD(trainable.parameters(), lr=1e-3).step()
    after = trainable.encode(few()[0])
    assert largest(before, after) > 1e-3
    trainable.save_pretrained(str(tmp_path / "trained"))
    assert largest(load_embedder(tmp_path / "trained", device="cpu").embed(few()[1]), after) <= TOLERANCE


def test_what_the_user_freezes_stays_frozen(trainable: Any) -> None:
    from sentence_transformers.sentence_transformer import losses

    adapter = {name for name, _ in trainable.named_parameters() if ".instruct." in name}
    for frozen in (adapter, {name for name, _ in trainable.named_parameters()} - adapter):
        for name, parameter in trainable.named_parameters():
            parameter.requires_grad_(name not in frozen and "temperature" not in name)
            parameter.grad = None
        found = gradients(trainable, losses.MultipleNegativesRankingLoss(trainable))
        trainable.encode(["a text", {"image": SCENE, "text": "x"}])
        assert set(found) == {name for name, p in trainable.named_parameters() if p.requires_grad}
        assert not set(found) & frozen


# --- Where it is written ----------------------------------------------------------------------------------


def test_only_an_earlier_export_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_sentence_transformers(FIXTURE, out, check=False)  # an empty folder is as good as none
    with pytest.raises(InputError, match=r"holds an earlier export; .*--overwrite"):
        export_sentence_transformers("abc-mini", out, check=False)
    again = export_sentence_transformers("abc-mini", out, check=False, overwrite=True)
    assert load_embedder(out, device="cpu").fingerprint == again.fingerprint
    assert again.difference is None
    # An export can be exported, onto itself too.
    assert export_sentence_transformers(out, out, check=False, overwrite=True).fingerprint == again.fingerprint
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("in the way")
    for taken, message in ((mine, "not empty, and no earlier export"), (tmp_path / "file", "is a file")):
        with pytest.raises(InputError, match=message):
            export_sentence_transformers("abc-mini", taken, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "out"]
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path) -> None:
    killed, running, mine = tmp_path / f".abc-{0:016}.part", tmp_path / f".abc-{1:016}.part", tmp_path / "out.part"
    for folder in (killed, running, mine):
        folder.mkdir()
        (folder / "modules.json").touch()
    os.utime(killed, (0, 0))
    export_sentence_transformers("abc-mini", tmp_path / "out", check=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [running.name, "out", mine.name]


def test_a_checkpoint_that_is_broken_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(_bundled("abc-mini"), broken)
    (broken / "instruct" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors here"):
        export_sentence_transformers(broken, tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match="is neither 'abc', 'abc-mini' nor a folder"):
        export_sentence_transformers("nowhere", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow larger: what a full disk does to a write, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_leaves_nothing_half_done(model: Any, expected: Vectors, tmp_path: Path) -> None:
    with largest_file(2**20), pytest.raises(CheckpointError, match="out: cannot be written"):
        export_sentence_transformers("abc-mini", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    model.save_pretrained(str(tmp_path / "saved"))
    with largest_file(2**20), pytest.raises(CheckpointError, match=r"cannot be written .*; make room and save again"):
        model.save_pretrained(str(tmp_path / "saved"))
    assert not list(tmp_path.rglob("*.part"))
    again = load_sentence_transformer(tmp_path / "saved", device="cpu")
    assert largest(again.encode(few()[0]), expected[FEW]) <= TOLERANCE


def test_vectors_that_differ_are_an_error(done: SentenceTransformersExport, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(_bundled("abc-mini"), other)
    file = other / "pretrain" / "adapter_model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(file).items()}
    tensors["base_model.model.mlp_head.linear_layer2.bias"] += 0.01
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"vectors differ by .* from the engine's, more than 1e-05"):
        _difference(done.folder, other, "cpu")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mini: Embedder
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["export", "sentence-transformers", *arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    code, out, err = run("abc-mini", "out", "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["folder"] == str(tmp_path / "out")
    assert said["fingerprint"] == str(mini.fingerprint)
    assert said["difference"] <= TOLERANCE
    code, out, err = run("abc-mini", "out")
    assert (code, out) == (2, "")
    assert "overwrite it with --overwrite" in err
    code, out, err = run("abc-mini", "out", "--overwrite", "--no-check")
    assert (code, err) == (0, "")
    assert "how to load it, and its limits: out/README.md" in out
    assert "It was not compared" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sentence_transformers", "sentence_transformers.base.modules"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "abc_rag.adapters.sentence_transformers.module")
    for call in (export_sentence_transformers, lambda _, out: load_sentence_transformer(out)):
        with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[sentence-transformers\]'"):
            call("abc-mini", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["TIGER-Lab/VLM2Vec-Full", "vlm2vec:somewhere", "st:sentence-transformers/clip"])
def test_models_of_other_families_are_not_exported(model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{model} is no ABC model, and only those are exported"):
        export_sentence_transformers(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()

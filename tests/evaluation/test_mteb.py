"""The mteb wrapper, on tiny tasks that mteb itself executes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# mteb makes its cache folder where this says, when it is imported.
os.environ.setdefault("MTEB_CACHE", tempfile.mkdtemp(prefix="mteb-cache-"))

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models import ModelMeta
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from abc_rag.cli.main import main
from abc_rag.embedding.embedder import BatchSize, Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import DatasetError, InputError
from abc_rag.evaluation.mteb import MTEBModel, evaluate_mteb, load_mteb_model, model_meta
from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.questions import questions
from abc_rag.scenes.world import held_out_scenes, phrase, phrases
from abc_rag.types import Image, Input, InstructedImage, Text, Vectors


def metadata(name: str, kind: str, category: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Scenes of one or two emoji.",
        reference=None,
        dataset={"path": "abc-rag/in-memory", "revision": "1"},
        type=kind,  # type: ignore[arg-type]
        category=category,  # type: ignore[arg-type]
        modalities=["image", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        date=("2026-01-01", "2026-01-01"),
        domains=["Constructed"],
        task_subtypes=[],
        license="mit",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
        prompt=None,
    )


SCENES = held_out_scenes(16, seed=3)
PICTURES = [render(scene, size=112) for scene in SCENES]
CAPTIONS = [captions(scene, random.Random(number)) for number, scene in enumerate(SCENES)]
ASKED = [random.Random(number).choice(questions(scene, random.Random(number))) for number, scene in enumerate(SCENES)]


class Retrieval(AbsTaskRetrieval):
    """Queries and documents in memory; ``answers[i]`` is the document that answers query i."""

    def columns(self) -> tuple[dict[str, list[Any]], dict[str, list[Any]], list[int]]:
        """Queries, documents, answers."""
        raise NotImplementedError

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        queries, corpus, answers = self.columns()
        size = len(next(iter(corpus.values())))
        self.dataset = {"default": {"test": RetrievalSplitData(
            queries=Dataset.from_dict({"id": [f"q{i}" for i in range(len(answers))], **queries}),
            corpus=Dataset.from_dict({"id": [f"d{i}" for i in range(size)], **corpus}),
            relevant_docs={f"q{i}": {f"d{answer}": 1} for i, answer in enumerate(answers)},
            top_ranked=None,
        )}}  # fmt: skip
        self.data_loaded = True


class PictureToCaption(Retrieval):
    metadata = metadata("ScenesI2TRetrieval", "Any2AnyRetrieval", "i2t", "ndcg_at_10")

    def columns(self) -> Any:
        return {"image": PICTURES}, {"text": CAPTIONS}, list(range(len(SCENES)))


class CaptionToPicture(Retrieval):
    """As ViDoRe's tasks are: texts in, pictures out."""

    metadata = metadata("ScenesT2IRetrieval", "DocumentUnderstanding", "t2i", "ndcg_at_5")

    def columns(self) -> Any:
        return {"text": CAPTIONS}, {"image": PICTURES}, list(range(len(SCENES)))


class QuestionToPhrase(Retrieval):
    """A picture and a question in, texts out: nothing but the question tells which object is meant."""

    metadata = metadata("ScenesIT2TRetrieval", "Any2AnyRetrieval", "it2t", "hit_rate_at_1")

    def columns(self) -> Any:
        asked = {"image": PICTURES, "text": [question.instruction for question in ASKED]}
        return asked, {"text": phrases()}, [phrases().index(question.answer) for question in ASKED]


class Kinds(AbsTaskZeroShotClassification):
    metadata = metadata("ScenesZeroShot", "ZeroShotClassification", "i2t", "accuracy")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        labels = [self.get_candidate_labels().index(_only(number)) for number in range(len(SCENES))]
        self.dataset = DatasetDict({"test": Dataset.from_dict({"image": PICTURES, "label": labels})})
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        return sorted({_only(number) for number in range(len(SCENES))})


def _only(number: int) -> str:
    return phrase(SCENES[number].objects[0].kind)


class Recorder(FakeEmbedder):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(dim=16)
        self.seen: list[Input] = []

    def _embed(self, inputs: Any, *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.seen += inputs
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


# --- Tasks that mteb executes ---------------------------------------------------------------------------------


def test_abc_mini_runs_tasks_of_every_kind(mini: Embedder, tmp_path: Path) -> None:
    tasks = [PictureToCaption(), CaptionToPicture(), QuestionToPhrase(), Kinds()]
    results = evaluate_mteb(mini, tasks, out=tmp_path)
    assert results.bad["count"] == 0
    assert results.metrics["ScenesI2TRetrieval"] >= 0.9
    assert results.metrics["ScenesT2IRetrieval"] >= 0.9
    assert results.metrics["ScenesIT2TRetrieval"] >= 0.9
    assert results.metrics["ScenesZeroShot"] >= 0.6
    revision = mini.fingerprint.revision
    files = {file.name: file for file in tmp_path.glob(f"results/abc-rag__abc-mini/{revision}/**/*.json")}
    assert {f"{task.metadata.name}.json" for task in tasks} <= set(files)
    scores = json.loads(files["ScenesT2IRetrieval.json"].read_text())["scores"]["test"][0]
    assert scores["main_score"] == results.metrics["ScenesT2IRetrieval"]
    assert results.tables[0].rows[1][:4] == ("ScenesT2IRetrieval", "test", "default", "ndcg_at_5")
    assert results.settings["versions"]["mteb"] == mteb.__version__
    assert results.settings["datasets"]["ScenesZeroShot"] == {"path": "abc-rag/in-memory", "revision": "1"}


def test_results_that_are_there_are_not_computed_again(tmp_path: Path) -> None:
    first, again = Recorder(), Recorder()
    once = evaluate_mteb(first, [CaptionToPicture()], out=tmp_path)
    twice = evaluate_mteb(again, [CaptionToPicture()], out=tmp_path)
    assert len(first.seen) == 32
    assert again.seen == []
    assert once.metrics == twice.metrics


def test_another_resolution_is_another_experiment(tmp_path: Path) -> None:
    coarse, fine = (load_mteb_model("abc-rag/abc-mini", device="cpu", max_tokens=n).mteb_model_meta for n in (9, 16))
    assert coarse.revision == fine.revision
    assert coarse.experiment_name != fine.experiment_name


def test_what_mteb_hands_over_becomes_typed_inputs() -> None:
    seen = Recorder()
    evaluate_mteb(seen, [QuestionToPhrase()])
    kinds = {kind: sum(isinstance(item, kind) for item in seen.seen) for kind in (Text, Image, InstructedImage)}
    assert kinds == {Text: len(phrases()), Image: 0, InstructedImage: len(SCENES)}
    asked = {item.instruction for item in seen.seen if isinstance(item, InstructedImage)}
    assert asked == {question.instruction for question in ASKED}
    seen = Recorder()
    evaluate_mteb(seen, [PictureToCaption()])
    assert {type(item) for item in seen.seen} == {Text, Image}


def test_a_task_that_fails_costs_no_other() -> None:
    class Broken(CaptionToPicture):
        metadata = metadata("Broken", "Any2AnyRetrieval", "t2i", "ndcg_at_10")

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            raise RuntimeError("no such data")

    results = evaluate_mteb(FakeEmbedder(), [Broken(), CaptionToPicture()])
    assert list(results.metrics) == ["ScenesT2IRetrieval"]
    assert results.bad["rows"][0]["where"] == "Broken"
    assert "no such data" in results.bad["rows"][0]["detail"]
    with pytest.raises(DatasetError, match=r"no task could be run; .*Broken: task failed .*no such data"):
        evaluate_mteb(FakeEmbedder(), [Broken()])


# --- The protocol ---------------------------------------------------------------------------------------------


def loader(*batches: dict[str, Any]) -> Any:
    class Batches:
        dataset = range(sum(len(next(iter(batch.values()))) for batch in batches))

        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter(batches)

    return Batches()


def encode(embedder: Embedder, *batches: dict[str, Any], **kwargs: Any) -> Vectors:
    task = CaptionToPicture.metadata
    return MTEBModel(embedder).encode(
        loader(*batches), task_metadata=task, hf_split="test", hf_subset="default", **kwargs
    )


def test_rows_of_a_batch_may_differ() -> None:
    seen = Recorder()
    batch = {"image": [PICTURES[0], None, PICTURES[1]], "text": ["what is left?", "a dog", ""], "id": ["1", "2", "3"]}
    vectors = encode(seen, batch)
    assert [type(item) for item in seen.seen] == [InstructedImage, Text, Image]
    expected = seen.embed([InstructedImage(PICTURES[0], "what is left?"), Text("a dog"), Image(PICTURES[1])])
    np.testing.assert_array_equal(vectors, expected)
    assert vectors.dtype == np.float32


def test_many_batches_keep_their_order() -> None:
    texts = [f"text {number}" for number in range(600)]
    batches = [{"text": texts[start : start + 32]} for start in range(0, 600, 32)]
    fake = FakeEmbedder()
    np.testing.assert_array_equal(encode(fake, *batches), fake.embed_texts(texts))
    assert encode(fake).shape == (0, 32)


def test_what_cannot_be_embedded_is_said() -> None:
    with pytest.raises(InputError, match=r"ScenesT2IRetrieval: has neither texts nor pictures \(audio, id\)"):
        encode(FakeEmbedder(), {"audio": [b""], "id": ["1"]})
    with pytest.raises(InputError, match="a row has neither text nor picture"):
        encode(FakeEmbedder(), {"image": [None], "id": ["1"]})
    with pytest.raises(InputError, match="precision 'int8' is not supported"):
        encode(FakeEmbedder(), {"text": ["a"]}, precision="int8")


def test_similarity_is_the_cosine(mini: Embedder) -> None:
    model = MTEBModel(mini)
    assert isinstance(model, EncoderProtocol)
    vectors = mini.embed_texts(["a dog", "a cat", "a red car"])
    pairs = model.similarity(vectors, torch.from_numpy(vectors[:2]))
    assert pairs.shape == (3, 2)
    np.testing.assert_allclose(pairs.numpy(), vectors @ vectors[:2].T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(vectors[:2], vectors[1:]).numpy(), [
        vectors[0] @ vectors[1], vectors[1] @ vectors[2]
    ], atol=1e-6)  # fmt: skip


# --- Metadata -------------------------------------------------------------------------------------------------


def test_metadata_say_what_was_measured(mini: Embedder) -> None:
    meta = model_meta(mini)
    assert meta.name == "abc-rag/abc-mini"
    assert meta.revision == mini.fingerprint.revision
    assert meta.embed_dim == mini.dim
    assert set(meta.modalities) == {"image", "text"}
    assert meta.n_parameters is not None
    assert 1e5 < meta.n_parameters < 1e8
    assert meta.max_tokens is not None
    limits = {"min_tokens": mini.fingerprint.min_tokens, "max_tokens": mini.fingerprint.max_tokens}
    assert meta.experiment_kwargs == {**limits, "dtype": "float32"}
    assert MTEBModel(mini, name="me/mine").mteb_model_meta.name == "me/mine"
    with pytest.raises(InputError, match="name must be 'organisation/model', not 'mine'"):
        model_meta(mini, name="mine")
    fake = model_meta(FakeEmbedder())
    assert (fake.name, fake.n_parameters, fake.loader) == ("abc-rag/fake", None, None)


def test_metadata_load_the_model_again(mini: Embedder) -> None:
    class WithoutTorchvision(ModelMeta):
        """Mteb asks for torchvision whether or not the model uses it."""

        def _check_requirements(self) -> None:
            pass

    made = model_meta(mini)
    meta = WithoutTorchvision(**{name: getattr(made, name) for name in ModelMeta.model_fields})
    model = meta.load_model(device="cpu")
    assert isinstance(model, MTEBModel)
    assert model.embedder is not mini
    np.testing.assert_allclose(model.embedder.embed_texts(["a dog"]), mini.embed_texts(["a dog"]), atol=1e-6)
    assert model.mteb_model_meta.name == meta.name
    with pytest.raises(InputError, match=r"its weights have revision .*, not 123"):
        load_mteb_model("abc-rag/abc-mini", "123", device="cpu")
    with pytest.raises(InputError, match="neither 'abc', 'abc-mini', 'auto' nor a folder"):
        load_mteb_model("abc-rag/nonsense")


# --- Names, network, command ----------------------------------------------------------------------------------


def test_names_of_tasks_and_benchmarks() -> None:
    from abc_rag.evaluation.mteb import _tasks

    assert [task.metadata.name for task in _tasks("VidoreDocVQARetrieval")] == ["VidoreDocVQARetrieval"]
    assert len(_tasks("ViDoRe(v1)")) == 10
    with pytest.raises(InputError, match=r"mteb has no task or benchmark of this name: .*VidoreDocVQARetrieval"):
        _tasks("VidoreDocVQARetrival")
    with pytest.raises(InputError, match="no tasks given"):
        evaluate_mteb(FakeEmbedder(), [])


def test_neither_importing_nor_making_a_model_reaches_for_the_network(tmp_path: Path) -> None:
    program = """
import sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") and "new" not in event else None)
import abc_rag.evaluation.mteb as ours
assert "mteb" not in sys.modules
from abc_rag.embedding.fake import FakeEmbedder
ours.model_meta(FakeEmbedder())
print([event for event in seen if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=os.environ | {"MTEB_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # mteb finds its tasks by name in a registry that is filled when it is imported.
    from mteb.get_tasks import _TASKS_REGISTRY

    for task in (CaptionToPicture, Kinds):
        monkeypatch.setitem(_TASKS_REGISTRY, task.metadata.name, task)
    command = ["evaluate", "mteb", "--model", "abc-mini", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main([*command, "--tasks", "ScenesT2IRetrieval,ScenesZeroShot", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert end.value.code == 0
    assert set(printed["metrics"]) == {"ScenesT2IRetrieval", "ScenesZeroShot"}
    assert (tmp_path / "results.json").is_file()
    assert len(list(tmp_path.glob("results/abc-rag__abc-mini/**/Scenes*.json"))) == 2
    with pytest.raises(SystemExit) as end:
        main([*command, "--tasks", "NoSuchTask"])
    assert end.value.code == 2
    assert "mteb has no task or benchmark of this name" in capsys.readouterr().err


def test_names_between_commas_and_in_brackets() -> None:
    from abc_rag.cli.mmeb import names_of

    assert names_of(["MTEB(eng, v2), ViDoRe(v2)", "VOC2007"]) == ["MTEB(eng, v2)", "ViDoRe(v2)", "VOC2007"]
    assert names_of(None) is None


def test_queries_have_their_role() -> None:
    batch = {"image": [PICTURES[0], None, PICTURES[1]], "text": ["what is left?", "a dog", ""], "id": ["1", "2", "3"]}
    for kind, role in ((PromptType.query, "query"), (PromptType.document, "document"), (None, "document")):
        seen = Recorder()
        encode(seen, batch, prompt_type=kind)
        assert [item.role for item in seen.seen] == [role] * 3

"""Embedders as models of mteb 2, for its image and document benchmarks (MIEB, ViDoRe).

Each row of mteb becomes one input: a text a `Text`, a picture an `Image`, and a picture with a text an
`InstructedImage`. The latter holds for queries (an instruction for the picture) and documents (a captioned picture)
alike, as ABC has no other input with both. An empty text beside a picture is ignored. mteb has already put titles,
conversations and per-query instructions into the text. A task's own prompt is not used: ABC is trained without task
prompts.

Importing this module does not import mteb, which on import creates an empty folder ``~/.cache/mteb`` (or
``$MTEB_CACHE``) and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.options import EmbedderOptions, shows_options
from abc_rag.embedding.progress import progress_bar
from abc_rag.errors import DatasetError, InputError, MissingExtraError
from abc_rag.evaluation.results import Cell, Results, ResultTable, settings
from abc_rag.evaluation.vectors import as_query, compute_of
from abc_rag.training.data.rows import BadRows
from abc_rag.types import Image, Input, InstructedImage, Text, Vectors

if TYPE_CHECKING:
    import torch
    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType
    from torch.utils.data import DataLoader
    from typing_extensions import Unpack

    from abc_rag.embedding.options import EmbedderKeywords

__all__ = ["MTEBModel", "evaluate_mteb", "load_mteb_model", "model_meta"]

_ORGANISATION = "abc-rag"
_PUBLISHED_NAME = "TIGER-Lab/ABC-Qwen2VL-Instruct"
_CHUNK = 256  # rows per call: with mteb's batches of 32 the device would wait between them


class MTEBModel:
    """An embedder as mteb's ``EncoderProtocol``.

    Example:
        ``mteb.evaluate(MTEBModel(load_embedder("abc")), mteb.get_tasks(tasks=["VidoreDocVQARetrieval"]))``

    Args:
        embedder: The model.
        name: ``"organisation/model"``, under which mteb stores results; derived from the model's name if None.
    """

    def __init__(self, embedder: Embedder, *, name: str | None = None) -> None:
        self.embedder = embedder
        self._name = name
        self._meta: ModelMeta | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb records about the model; loads it. Weights, resolution and number format distinguish results."""
        if self._meta is None:
            self._meta = model_meta(self.embedder, name=self._name)
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        # ModelMeta.load_model sets the metadata that a model was loaded with.
        self._meta = meta

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Vectors:
        """Embed the batches of mteb's loader.

        Args:
            inputs: Batches with ``text`` (strings) or ``image`` (PIL images), or both.
            task_metadata: The task, for messages.
            hf_split: Ignored.
            hf_subset: Ignored.
            prompt_type: ``"query"``: the rows have that role; else they are documents.
            kwargs: ``show_progress_bar``; ``batch_size``, which does not change results; ``precision``, which must be
                ``"float32"``.

        Returns:
            float32 unit rows ``(n, dim)``.

        Raises:
            InputError: A row has neither text nor picture, or the precision is another one.
            ImageError: A picture cannot be used.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise InputError(f"precision {kwargs['precision']!r} is not supported; use 'float32'")
        parts = [np.zeros((0, self.embedder.dim), dtype=np.float32)]
        total = len(inputs.dataset)  # type: ignore[arg-type]
        label = f"embedding {task_metadata.name}"
        asked = getattr(prompt_type, "value", prompt_type) == "query"
        with progress_bar(label, total=total, enabled=bool(kwargs.get("show_progress_bar"))) as bar:
            for chunk in _chunks(inputs, task_metadata.name):
                parts.append(self.embedder.embed([as_query(one) for one in chunk] if asked else chunk))
                bar.advance(len(chunk))
        return np.concatenate(parts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401
        """Cosines of all pairs: ``(n, dim)`` and ``(m, dim)`` arrays or tensors in, tensor ``(n, m)`` out."""
        cosines: torch.Tensor = _mteb().similarity_functions.cos_sim(embeddings1, embeddings2)
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401
        """Cosines row by row: two ``(n, dim)`` arrays or tensors in, tensor ``(n,)`` out."""
        cosines: torch.Tensor = _mteb().similarity_functions.pairwise_cos_sim(embeddings1, embeddings2)
        return cosines


def model_meta(embedder: Embedder, *, name: str | None = None) -> ModelMeta:
    """The mteb ``ModelMeta`` of an embedder; loads the model.

    ``ModelMeta.load_model()`` can load models again that `load_embedder` knows by name. For that, mteb requires
    torchvision, as for every model that reads pictures; a `MTEBModel` passed to mteb works without it.

    Args:
        embedder: The model.
        name: ``"organisation/model"``; if None, the hub's name for ``"abc"``, else ``"abc-rag/NAME"``.

    Raises:
        InputError: ``name`` has no organisation.
    """
    from abc_rag.models.loader import known_names

    fingerprint = embedder.fingerprint
    known = fingerprint.model in known_names()
    published = fingerprint.model == "abc"
    if name is not None and "/" not in name:
        raise InputError(f"name must be 'organisation/model', not {name!r}")
    if name is None:
        hub_id = known and "/" in fingerprint.model
        other = fingerprint.model if hub_id else f"{_ORGANISATION}/{fingerprint.model.replace('/', '-')}"
        name = _PUBLISHED_NAME if published else other
    parameters, size = _weight(embedder)
    _, dtype = compute_of(embedder)
    apart: dict[str, Any] = {"min_tokens": fingerprint.min_tokens, "max_tokens": fingerprint.max_tokens}
    if dtype != "unknown":
        apart["dtype"] = dtype
    return _mteb().models.ModelMeta(
        loader=load_mteb_model if known else None,
        loader_kwargs={"model": fingerprint.model} if known else {},
        name=name,
        revision=fingerprint.revision,
        release_date="2025-03-01" if published else None,
        languages=["eng-Latn"],
        n_parameters=parameters,
        memory_usage_mb=size,
        max_tokens=_text_tokens(embedder),
        embed_dim=embedder.dim,
        license=None,
        open_weights=True if known else None,
        public_training_code="https://github.com/TIGER-AI-Lab/ABC" if published else None,
        public_training_data="https://huggingface.co/datasets/TIGER-Lab/ABC-Pretraining-Data" if published else None,
        framework=["PyTorch"],
        reference=f"https://huggingface.co/{_PUBLISHED_NAME}" if published else None,
        similarity_fn_name="cosine",
        use_instructions=False,
        training_datasets=None,
        modalities=["image", "text"],
        # mteb distinguishes results by these, and passes them to the loader.
        experiment_kwargs=apart,
    )


@shows_options(EmbedderOptions)
def load_mteb_model(
    name: str,
    revision: str | None = None,
    *,
    model: str | None = None,
    **options: Unpack[EmbedderKeywords],
) -> MTEBModel:
    """Load a model for mteb; the ``loader`` of its ``ModelMeta``.

    Args:
        name: The name under which mteb stores results.
        revision: The required revision of the weights; any if None.
        model: The model for `abc_rag.load_embedder`; the part of ``name`` behind the slash if None.
        **options: See `abc_rag.load_embedder`.

    Raises:
        InputError: There is no such model, or its weights are not those of ``revision``.
    """
    from abc_rag.embedding.load import load_embedder
    from abc_rag.models.loader import known_names

    if model is None:
        model = "abc" if name == _PUBLISHED_NAME else name if name in known_names() else name.rpartition("/")[2]
    options["device"] = options.get("device") or "auto"  # mteb says None
    embedder = load_embedder(model, **options)
    if revision is not None and embedder.fingerprint.revision != revision:
        raise InputError(
            f"{model}: its weights have revision {embedder.fingerprint.revision}, not {revision}; pass revision=None "
            "to use them anyway"
        )
    return MTEBModel(embedder, name=name)


def evaluate_mteb(
    embedder: Embedder,
    tasks: Sequence[str | AbsTask],
    *,
    out: Path | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Results:
    """Run tasks of mteb. mteb fetches their data sets from the hub, unless they are in its cache.

    Args:
        embedder: The model.
        tasks: Names of tasks (``"VidoreDocVQARetrieval"``) or of benchmarks (``"ViDoRe(v2)"``, ``"MIEB(lite)"``), or
            task objects.
        out: Folder for mteb's own result files (``out/results/MODEL/REVISION/TASK.json``). Tasks whose results
            are there already, for the same weights and resolution, are not run again.
        name: See `MTEBModel`.
        progress: Show progress bars.

    Returns:
        Metrics ``TASK`` -> its main score, the mean over its splits and subsets. A task that fails does not affect
        others, and is listed in ``bad``.

    Raises:
        InputError: mteb has no such task.
        DatasetError: No task could be run.
        MissingExtraError: mteb is not installed.
    """
    mteb = _mteb()
    chosen = [task for one in tasks for task in _tasks(one)]
    if not chosen:
        raise InputError("no tasks given; choose from https://embeddings-benchmark.github.io/mteb")
    bad = BadRows("mteb", limit=len(chosen))
    model = MTEBModel(embedder, name=name)
    found = mteb.evaluate(
        model,
        chosen,
        co2_tracker=False,
        raise_error=False,
        cache=None if out is None else mteb.ResultCache(out),
        show_progress_bar=progress,
    )
    for failed in found.exceptions or ():
        bad.add(failed.task_name, "task failed", failed.exception)
    if not found.task_results:
        failures = "; ".join(map(str, bad.rows[:5]))
        raise DatasetError(f"no task could be run; mteb fetches data sets from the Hugging Face hub. {failures}")
    measures = {task.metadata.name: task.metadata.main_score for task in chosen}
    rows = [row for result in found.task_results for row in _rows(result, measures)]
    scores: dict[str, list[float]] = {}
    for task, _, _, _, score in rows:
        scores.setdefault(task, []).append(score)
    recorded = settings(embedder, tasks=[task.metadata.name for task in chosen], name=model.mteb_model_meta.name)
    recorded["versions"]["mteb"] = mteb.__version__
    recorded["datasets"] = {task.metadata.name: dict(task.metadata.dataset or {}) for task in chosen}
    shown: list[Sequence[Cell]] = [(*row[:4], 100 * row[4]) for row in rows]
    return Results(
        benchmark="mteb",
        model=str(embedder.fingerprint),
        metrics={task: float(np.mean(values)) for task, values in scores.items()},
        settings=recorded,
        tables=[ResultTable("mteb", ["task", "split", "subset", "measure", "score"], shown)],
        bad=bad.as_dict(),
        notes=[] if out is None else [f"mteb's own result files: {out / 'results'}"],
    )


def _mteb() -> Any:  # noqa: ANN401
    try:
        import mteb
        import mteb.models
        import mteb.similarity_functions
    except ImportError as error:
        raise MissingExtraError("this needs mteb; pip install 'abc-rag[evaluate]'") from error
    return mteb


def _tasks(task: str | AbsTask) -> list[AbsTask]:
    if not isinstance(task, str):
        return [task]
    mteb = _mteb()
    try:
        return [mteb.get_task(task)]
    except KeyError as error:
        suggestion = str(error.args[0]).removeprefix("KeyError: ")
    try:
        return list(mteb.get_benchmark(task).tasks)
    except KeyError:
        raise InputError(f"mteb has no task or benchmark of this name: {suggestion}") from None


def _rows(result: Any, measures: Mapping[str, str]) -> Iterator[tuple[str, str, str, str, float]]:  # noqa: ANN401
    """Task, split, subset, measure, score."""
    name = result.task_name
    for split, subsets in result.scores.items():
        for scores in subsets:
            yield name, split, scores["hf_subset"], measures.get(name, "main score"), float(scores["main_score"])


def _chunks(loader: DataLoader[Any], task: str) -> Iterator[list[Input]]:
    waiting: list[Input] = []
    for batch in loader:
        waiting += _inputs(batch, task)
        if len(waiting) >= _CHUNK:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _inputs(batch: Mapping[str, Any], task: str) -> list[Input]:
    """The rows of one batch."""
    images, texts = batch.get("image"), batch.get("text")
    if images is None and texts is None:
        raise InputError(
            f"{task}: has neither texts nor pictures ({', '.join(batch)}), and nothing else can be embedded"
        )
    count = len(images if images is not None else texts)  # type: ignore[arg-type]
    rows = zip(images or [None] * count, texts or [None] * count, strict=True)
    return [_input(image, text, task) for image, text in rows]


def _input(image: Any, text: str | None, task: str) -> Input:  # noqa: ANN401
    if image is None:
        if text is None:
            raise InputError(f"{task}: a row has neither text nor picture; leave the task out")
        return Text(text)
    return InstructedImage(image, text) if text else Image(image)


def _weight(embedder: Embedder) -> tuple[int | None, float | None]:
    """Number of parameters and their size in MB; None if unknown."""
    network = getattr(getattr(embedder, "family", None), "network", None)
    if network is None:
        return None, None
    parameters = list(network.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters) / 2**20
    return sum(p.numel() for p in parameters), round(size, 1)


def _text_tokens(embedder: Embedder) -> int | None:
    """Maximum input length in tokens; None if unknown."""
    network = getattr(getattr(embedder, "family", None), "network", None)
    config = getattr(getattr(network, "backbone", None), "text_config", None)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None

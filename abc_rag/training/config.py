"""The settings of a training run: the paper's defaults, overridden by a YAML file, then by the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from abc_rag.errors import InputError, MissingExtraError

__all__ = [
    "AdapterConfig",
    "InstructConfig",
    "LoopConfig",
    "PretrainConfig",
    "TrainConfig",
    "VLM2VecConfig",
    "make_config",
    "parts_of",
    "read_config",
]

Config = TypeVar("Config", bound="LoopConfig")


@dataclass(frozen=True)
class LoopConfig:
    """The settings of every run, whatever it trains.

    Attributes:
        out: Folder of the run. An interrupted run with the same settings is resumed.
        steps: Number of optimiser steps.
        lr: Peak learning rate; it rises linearly over ``warmup``, then falls along a cosine.
        warmup: Share of the steps over which the learning rate rises.
        final_lr: Final learning rate, as a share of ``lr``.
        optimizer: ``"adamw"``, or ``"muon"`` for matrices and AdamW for the rest.
        weight_decay: Decoupled weight decay.
        beta2: AdamW's second decay rate.
        max_grad_norm: Gradients are clipped to this norm.
        seed: Seed of everything random.
        bf16: Compute in bfloat16; trained weights stay float32.
        checkpoint_every: Steps between checkpoints; the last two are kept.
        log_every: Steps between rows of ``metrics.jsonl``.
        tensorboard: Write TensorBoard files too.
        threads: CPU threads of torch; torch's default if None.
        workers: Threads that open pictures during the computation.
    """

    out: str
    steps: int = 1000
    lr: float = 4e-5
    warmup: float = 0.03
    final_lr: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.01
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 0
    bf16: bool = True
    checkpoint_every: int = 100
    log_every: int = 1
    tensorboard: bool = True
    threads: int | None = None
    workers: int = 8


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(LoopConfig):
    """The further settings of training an adapter.

    Attributes:
        data: The training data.
        images: Folder that picture names are relative to; the data's own folder if None.
        base: The base model: a hub id, or a folder if it starts with ``/``, ``./``, ``../`` or ``~``.
        base_revision: Hub commit, tag or branch of ``base``.
        chunk: Maximum pictures (VLM2Vec: rows) that one process computes at once. The gradients do not depend on it
            (gradient caching). If None, a process computes its whole share at once.
        rank: Rank of the LoRA matrices.
        alpha: Scale of the LoRA matrices; ``2 * rank`` if None.
        dropout: Dropout in front of the LoRA matrices.
        base_dtype: Precision of the frozen weights; ``"auto"`` is bfloat16 on a GPU, else float32.
        attention: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        gradient_checkpointing: Recompute each layer's activations in the backward pass instead of keeping them.
        save_dtype: Precision of the saved adapter.
        max_bad: Maximum number of unusable rows.
    """

    data: str
    images: str | None = None
    base: str
    base_revision: str | None = None
    chunk: int | None = None
    rank: int
    alpha: int | None = None
    dropout: float = 0.05
    base_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_bad: int = 100


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AdapterConfig):
    """The settings that both stages of ABC share.

    Attributes:
        data: A folder or file of JSON lines, the name of a published data set, or ``"scenes"``.
        base: A Qwen2-VL; see `AdapterConfig`.
        head_hidden: Hidden width of the MLP head.
        pictures: Pictures per step, over all processes.
        rank: Rank of the LoRA matrices.
        label_smoothing: Share of the probability that is spread over all candidates.
        min_temperature: Lower bound of the temperature.
        min_tokens: Minimum image tokens of a picture.
        max_tokens: Maximum image tokens of a picture in training.
        max_tokens_in_use: Maximum image tokens at inference. If None, ``2 * max_tokens`` as published (512 and 1,024),
            or ``max_tokens`` if that equals ``min_tokens``.
        download: Fetch a published data set from the hub.
    """

    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    head_hidden: int = 4096
    pictures: int = 512
    rank: int = 64
    label_smoothing: float = 0.1
    min_temperature: float = 0.01
    min_tokens: int = 256
    max_tokens: int = 512
    max_tokens_in_use: int | None = None
    download: bool = False

    @property
    def tokens_in_use(self) -> int:
        """Maximum image tokens at inference."""
        if self.max_tokens_in_use is not None:
            return self.max_tokens_in_use
        return self.max_tokens if self.min_tokens == self.max_tokens else 2 * self.max_tokens


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Pretraining, with the paper's values (arXiv 2503.00329): 4,000 steps of 512 pictures against 4,096 captions.

    Attributes:
        negatives: Mined negatives per picture.
        negatives_file: The file that ``abc-rag train mine-negatives`` wrote for ``data``.
        temperature: Initial value of the learnt temperature.
        head_init: ``"published"`` initialises both layers of the head as identities, ``"neutral"`` the whole head as
            one.
        true_negatives: ``"all"``: a caption gets gradients from every picture of the batch, on whichever process, so
            that two processes do what one would. ``"own"``, as in the published code: only from the pictures of its
            own process.
    """

    steps: int = 4000
    negatives: int = 7
    negatives_file: str | None = None
    temperature: float = 0.07
    head_init: Literal["published", "neutral"] = "published"
    true_negatives: Literal["all", "own"] = "all"


@dataclass(frozen=True, kw_only=True)
class InstructConfig(TrainConfig):
    """Instruction finetuning, with the paper's values: 100 steps of 128 pictures with 4 instructions each.

    Attributes:
        pretrain: The pretrain adapter: a hub id or a folder, as for ``base``.
        pretrain_revision: Hub commit, tag or branch of ``pretrain``.
        pairs: Maximum (instruction, phrase) pairs per picture in a batch.
    """

    steps: int = 100
    pictures: int = 128
    rank: int = 16
    pretrain: str = "TIGER-Lab/ABC-Qwen2VL-Pretrain"
    pretrain_revision: str | None = None
    pairs: int = 4


@dataclass(frozen=True, kw_only=True)
class VLM2VecConfig(AdapterConfig):
    """VLM2Vec, with the published values (arXiv 2410.05160): 2,000 steps of 1,024 rows with DoRA.

    Attributes:
        data: A folder in the layout of ``TIGER-Lab/MMEB-train``, or one file of it; see `abc_rag.training.data.mmeb`.
        subsets: Subsets of ``data``, separated by commas; all subsets if None.
        split: If a subset has files of several kinds, use those whose names begin with this.
        rows_per_subset: Use the first rows of each subset; all rows if None. The published run took 50,000.
        base: A Qwen2-VL or a Phi-3.5-vision; see `AdapterConfig`.
        rows: Rows per step, over all processes. Their targets and negatives are the candidates.
        rank: Rank of the LoRA matrices.
        alpha: Scale of the LoRA matrices.
        dropout: Dropout in front of the LoRA matrices.
        dora: Use DoRA rather than plain LoRA.
        init: Initialisation of the first LoRA matrix; the second starts as zero.
        targets: Layers whose names end in one of these get an adapter; separated by commas.
        temperature: The fixed temperature that the cosines are divided by.
        resolution: How pictures are opened: ``"low"``, ``"mid"`` or ``"high"`` for Qwen2-VL, a number of crops for
            Phi-3.5-vision; the model's default if None.
        min_tokens: Minimum image tokens of a picture, for models that have this setting.
        max_tokens: Maximum image tokens of a picture, for models that have this setting.
    """

    steps: int = 2000
    lr: float = 2e-5
    warmup: float = 0.1
    weight_decay: float = 0.0
    subsets: str | None = None
    split: str = "original"
    rows_per_subset: int | None = None
    base: str = "Qwen/Qwen2-VL-2B-Instruct"
    rows: int = 1024
    rank: int = 8
    alpha: int | None = 64
    dropout: float = 0.1
    dora: bool = True
    init: Literal["gaussian", "uniform"] = "gaussian"
    targets: str = "q_proj,k_proj,v_proj,o_proj,out_proj,down_proj,gate_up_proj,qkv_proj"
    temperature: float = 0.02
    resolution: str | int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None


_AT_LEAST: dict[str, float] = {
    **dict.fromkeys(
        ("steps", "pictures", "chunk", "rank", "alpha", "checkpoint_every", "log_every", "workers", "threads", "pairs",
         "head_hidden", "min_tokens", "max_tokens", "max_tokens_in_use", "rows", "rows_per_subset"), 1,
    ),
    **dict.fromkeys(
        ("warmup", "final_lr", "weight_decay", "dropout", "label_smoothing", "min_temperature", "negatives", "max_bad"),
        0,
    ),
}  # fmt: skip
_BELOW_1 = ("warmup", "dropout", "label_smoothing", "beta2")
_POSITIVE = ("lr", "max_grad_norm", "temperature", "beta2")


def make_config(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A checked configuration from plain values.

    Raises:
        InputError: A name is unknown, a value is missing, or one is of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise InputError(f"{name!r} is not a setting of {kind.__name__}{hint}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise InputError(f"{kind.__name__} needs {' and '.join(missing)}; set them in the file or on the command line")
    hints = typing.get_type_hints(kind)
    checked = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    config = kind(**checked)
    if isinstance(config, (TrainConfig, VLM2VecConfig)):
        least, most = config.min_tokens, config.max_tokens
        if least is not None and most is not None and least > most:
            raise InputError(f"min_tokens ({least}) is larger than max_tokens ({most})")
    return config


def parts_of(model: str) -> dict[str, Any]:
    """The settings that follow from a complete checkpoint: its parts and its sizes.

    Args:
        model: ``"abc-mini"``, or a folder with ``base/`` and ``pretrain/``.

    Raises:
        InputError: ``model`` is neither.
    """
    from abc_rag.models.abc.loader import checkpoint_folder
    from abc_rag.models.abc.network import ABCSettings

    folder = checkpoint_folder(model).resolve()
    settings = ABCSettings.read(folder)
    return {
        "base": str(folder / "base"), "pretrain": str(folder / "pretrain"), "head_hidden": settings.head_hidden,
        "min_tokens": settings.min_tokens, "max_tokens": settings.max_tokens,
    }  # fmt: skip


def _checked(name: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    origin = typing.get_origin(hint)
    choices = typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kinds = [h for h in choices if h is not type(None)]
        hint = type(value) if type(value) in kinds else kinds[0]
    elif origin is Literal:
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
        return value
    if hint is float and type(value) in (int, float):
        value = float(value)
    elif hint is float and isinstance(value, str):
        # YAML 1.1 reads 4e-5 as text.
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{name} must be a number, not {value!r}") from None
    elif type(value) is not hint:
        raise InputError(f"{name} must be of type {hint.__name__}, not {value!r}")
    if name in _AT_LEAST and not value >= _AT_LEAST[name]:
        raise InputError(f"{name} must be at least {_AT_LEAST[name]:g}, not {value!r}")
    if (name in _BELOW_1 and not value < 1) or (name in _POSITIVE and not value > 0):
        raise InputError(f"{name} is out of range: {value!r}")
    return value


def read_config(
    kind: type[Config],
    file: Path | None,
    overrides: Mapping[str, Any],
    assignments: typing.Iterable[str] = (),
    *,
    model: str | None = None,
) -> Config:
    """A configuration from a YAML file (or JSON, which is YAML), overrides, and ``name=value`` assignments.

    Args:
        kind: The type of the configuration.
        file: A mapping of setting names to values; optional.
        overrides: Values by name; None keeps the file's value or the default.
        assignments: Texts such as ``"lr=1e-4"``; the value is read as YAML.
        model: See `parts_of`; everything else takes precedence over it.

    Raises:
        InputError: The file cannot be read, or `make_config` refuses a value.
        MissingExtraError: PyYAML is not installed.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    values = {name: value for name, value in (parts_of(model) if model else {}).items() if name in known}
    if file is not None:
        try:
            read = _yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as YAML ({error})") from error
        if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
            raise InputError(f"{file}: must hold settings as 'name: value' lines")
        values.update(read)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not of the form name=value")
        try:
            values[name.strip()] = _yaml(text)
        except ValueError as error:
            raise InputError(f"{assignment!r}: the value cannot be read as YAML ({error})") from error
    values.update({name: value for name, value in overrides.items() if value is not None})
    return make_config(kind, values)


def _yaml(text: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("reading YAML needs PyYAML: pip install 'abc-rag[train]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error

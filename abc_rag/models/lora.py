"""LoRA and DoRA adapters of peft, read so that every tensor is accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.models.checkpoint import TORCH_ADAPTER, StoredTensors, allocate, fill, match_tensors, stored_tensors
from abc_rag.models.config import Config, part_file
from abc_rag.models.lora_linear import is_adapted, merge_linears, wrap_linears
from abc_rag.models.patterns import PatternError, full_matches
from abc_rag.models.torch_file import torch_file

if TYPE_CHECKING:
    from abc_rag.models.lora_layers import LoraConfig, LoraModel

__all__ = [
    "OTHER_SETTINGS",
    "SILENT_SETTINGS",
    "AdapterSwitch",
    "adapter_tensors",
    "load_adapter",
    "lora_config",
    "put_adapter",
    "put_adapters_beside",
]

_MAGNITUDE = ".lora_magnitude_vector"
_MAX_RANK = 2**16
_MAX_NAMES = 1000
SILENT_SETTINGS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "modules_to_save", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying", "lora_dropout",
}  # fmt: skip
"""Settings of peft that say nothing of the result: where an adapter came from, and how it was started."""
OTHER_SETTINGS = {
    "layers_pattern", "trainable_token_indices", "velora_config", "alora_invocation_tokens", "use_qalora",
    "monteclora_config", "layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config",
    "kasa_config",
}  # fmt: skip
"""Settings that make peft match by ``re``, or do other things than LoRA or DoRA; refused unless they are unset."""
_PLAIN = re.compile(r"[\^$\w.\\]{1,200}")


def lora_config(folder: Path, module: nn.Module) -> LoraConfig:
    """The configuration of an adapter, ready to be injected into ``module`` by peft.

    Heads and temperatures are read by name, so ``modules_to_save`` is not passed on.

    Raises:
        CheckpointError: It is missing, no LoRA, or has a value that cannot be used.
    """
    return _peft_config(_settings(folder, module))


def _peft_config(settings: dict[str, Any]) -> LoraConfig:
    from abc_rag.models.lora_layers import LoraConfig

    return LoraConfig(**settings, inference_mode=True)


def _settings(folder: Path, module: nn.Module) -> dict[str, Any]:
    """Arguments of peft's ``LoraConfig``."""
    raw = Config.read(folder / "adapter_config.json")
    if raw.values.get("peft_type") != "LORA":
        raw.refuse("peft_type", "'LORA'")
    known: dict[str, Any] = {
        "r": raw.whole("r", 8, most=_MAX_RANK),
        "lora_alpha": raw.number("lora_alpha", 8, least=0, most=1e6),
        "use_dora": raw.flag("use_dora"),
        "use_rslora": raw.flag("use_rslora"),
        "fan_in_fan_out": raw.flag("fan_in_fan_out"),
        "bias": raw.text("bias", "none", among=("none",)),
        "rank_pattern": _pattern(raw, "rank_pattern", 1),
        "alpha_pattern": _pattern(raw, "alpha_pattern", 0),
        "target_modules": _names(raw, "target_modules", module) or raw.refuse("target_modules", "names of layers"),
        "exclude_modules": _names(raw, "exclude_modules", module) or None,
        "layers_to_transform": _layers(raw),
    }
    for name in sorted(OTHER_SETTINGS):
        if raw.values.get(name):
            raw.refuse(name, "nothing; it is not supported")
    return known


def _plain_targets(settings: dict[str, Any], module: nn.Module) -> list[str]:
    """Names of the layers to adapt, where plain LoRA on plain linear layers is all that is asked for; else none."""
    special = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform")
    if any(settings[name] for name in special):
        return []
    ends = tuple(f".{target}" for target in settings["target_modules"])
    found = {name: layer for name, layer in module.named_modules() if f".{name}".endswith(ends)}
    return list(found) if all(type(layer) is nn.Linear for layer in found.values()) else []


def _names(raw: Config, name: str, module: nn.Module) -> list[str]:
    """Ends of names, as in the file, or what a pattern matches; never a pattern, which peft would give to ``re``."""
    found = raw.values.get(name)
    if isinstance(found, str) and name == "target_modules" and found == "all-linear":
        return [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if isinstance(found, str):
        try:
            return full_matches(found, (path for path, _ in module.named_modules()))
        except PatternError as error:
            raw.refuse(name, f"a pattern that can be matched ({error}), or a list of names")
    if found is not None and not (
        isinstance(found, list)
        and len(found) <= _MAX_NAMES
        and all(isinstance(one, str) and 0 < len(one) <= 200 for one in found)
    ):
        raw.refuse(name, f"a pattern, or up to {_MAX_NAMES} names")
    return found or []


def _pattern(raw: Config, name: str, least: int) -> dict[str, int]:
    found = raw.part(name)
    for key in found.values:
        if not _PLAIN.fullmatch(key):
            found.refuse(key, "the end of a layer's name in place of this pattern")
        found.whole(key, least=least, most=_MAX_RANK)
    return dict(found.values)


def _layers(raw: Config) -> list[int] | None:
    found = raw.values.get("layers_to_transform")
    layers = [found] if type(found) is int else found
    if layers is not None and not (
        isinstance(layers, list) and len(layers) <= _MAX_NAMES and all(type(one) is int and one >= 0 for one in layers)
    ):
        raw.refuse("layers_to_transform", f"up to {_MAX_NAMES} numbers of layers")
    return layers or None


def put_adapter(
    module: nn.Module,
    folder: Path,
    adapter: str,
    rename: Callable[[str], str | None],
    others: Mapping[str, torch.Tensor] | None = None,
    *,
    merge: bool = False,
) -> None:
    """Put an adapter on ``module`` and fill it; no memory is taken before all of its tensors are known to fit.

    From safetensors, or where there are none from what ``torch.save`` wrote, as most published VLM2Vec adapters are.
    Plain LoRA on linear layers is put on by this package, DoRA and the rest by peft.

    Args:
        module: The base.
        folder: Where the adapter is.
        adapter: Its name.
        rename: The checkpoint's names of the base's tensors -> those of ``module``.
        others: More tensors that the adapter's file holds, by name.
        merge: Merge it into ``module`` for good.

    Raises:
        CheckpointError: It does not fit.
    """
    settings = _settings(folder, module)
    if targets := _plain_targets(settings, module):
        rank, alpha = settings["r"], settings["lora_alpha"]
        scaling = alpha / math.sqrt(rank) if settings["use_rslora"] else alpha / rank
        wrap_linears(module, targets, adapter, rank=rank, scaling=scaling)
        load_adapter(module, folder, adapter, rename, others)
        if merge:
            merge_linears(module, targets)
        return
    lora = _injected_model(module, folder, adapter, _peft_config(settings), None)
    load_adapter(module, folder, adapter, rename, others)
    if merge:
        lora.merge_and_unload()


def _injected_model(
    module: nn.Module, folder: Path, adapter: str, config: LoraConfig, first: LoraModel | None
) -> LoraModel:
    from abc_rag.models.lora_layers import LoraModel

    try:
        if first is None:
            return LoraModel(module, config, adapter, low_cpu_mem_usage=True)
        first.peft_config[adapter] = config
        first.inject_adapter(module, adapter, low_cpu_mem_usage=True)
        return first
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # no such layers, or others than LoRA's
        raise CheckpointError(f"{folder}: does not fit this base ({error})") from error


class AdapterSwitch:
    """The adapters that lie beside a base, and which of them compute.

    Args:
        module: The base, with all adapters injected.
        first: The adapter that computes until another is asked for.
    """

    def __init__(self, module: nn.Module, first: str) -> None:
        layers: list[Any] = [layer for layer in module.modules() if is_adapted(layer)]
        for layer in layers:
            layer.set_adapter([first], inference_mode=True)
        self._layers = [layer for layer in layers if set(layer.lora_A) != {first}]
        self._on: tuple[str, ...] = (first,)

    def use(self, *adapters: str) -> None:
        """Compute with these, and no others, from now on."""
        if adapters != self._on:
            for layer in self._layers:
                layer.set_adapter(list(adapters), inference_mode=True)
            self._on = adapters


def put_adapters_beside(
    module: nn.Module,
    folders: Mapping[str, Path],
    rename: Callable[[str], str | None],
    others: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> AdapterSwitch:
    """Put adapters on ``module`` without merging any, in its own precision.

    Args:
        module: The base.
        folders: Name -> folder, in the order in which they were trained on top of one another.
        rename: As for `put_adapter`.
        others: Name -> more tensors that the adapter's file holds.

    Returns:
        What switches them; the first is on.

    Raises:
        CheckpointError: One does not fit, or is a DoRA that was trained on top of another: its magnitudes belong to the
            merged weights.
    """
    # Before the first is injected: "all linear layers" would count its matrices.
    configs = {name: lora_config(folder, module) for name, folder in folders.items()}
    lora: LoraModel | None = None
    for name, folder in folders.items():
        if lora is not None and configs[name].use_dora:
            raise CheckpointError(
                f"{folder}: a DoRA on top of another adapter works on merged weights only; it cannot lie beside it"
            )
        lora = _injected_model(module, folder, name, configs[name], lora)
        load_adapter(module, folder, name, rename, (others or {}).get(name))
    adapted: Any
    for adapted in module.modules():
        if is_adapted(adapted):
            weight = adapted.get_base_layer().weight
            for path, parameter in adapted.named_parameters():
                if not path.startswith("base_layer."):
                    parameter.data = parameter.data.to(weight.dtype)
    return AdapterSwitch(module, next(iter(folders)))


def load_adapter(
    module: nn.Module,
    folder: Path,
    adapter: str,
    rename: Callable[[str], str | None],
    others: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Fill the injected tensors of ``adapter``, and ``others``, from a folder; all of them, and nothing else.

    See `put_adapter`. What lies on the meta device gets its memory here.

    Raises:
        CheckpointError: A tensor is missing, left over or of another shape.
    """

    def renamed(name: str) -> str | None:
        found = rename(name.removeprefix("base_model.model."))
        return found if found is None else found.replace(f"{_MAGNITUDE}.weight", _MAGNITUDE)

    stored = adapter_tensors(folder)
    names = match_tensors({**_injected(module, adapter), **(others or {})}, stored, renamed)
    _allocate(module)
    fill({**_injected(module, adapter), **(others or {})}, stored, names)


def _injected(module: nn.Module, adapter: str) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, by the names that they have in files."""
    infix = f".{adapter}"
    # DoRA's magnitudes are a parameter of a module in newer versions of peft, and were one of the layer before.
    return {
        name.replace(f"{infix}.", ".").replace(f"{_MAGNITUDE}.weight", _MAGNITUDE).removesuffix(infix): parameter
        for name, parameter in module.named_parameters()
        if f"{infix}." in name or name.endswith(infix)
    }


def _allocate(module: nn.Module) -> None:
    """Give an adapter's tensors memory, where the layers are that it is on."""
    for layer in module.modules():
        if not is_adapted(layer):
            continue
        adapted: Any = layer
        allocate(layer, adapted.get_base_layer().weight.device)


def adapter_tensors(folder: Path) -> StoredTensors:
    """The tensors of an adapter: in safetensors, or where there are none in what ``torch.save`` wrote.

    Raises:
        CheckpointError: There are neither, or they cannot be read.
    """
    saved = part_file(folder, TORCH_ADAPTER)
    if saved.is_file() and not any(folder.glob("adapter_model.safetensors*")):
        return torch_file(saved)
    return stored_tensors(folder, "adapter_model")

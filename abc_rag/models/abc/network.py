"""ABC (arXiv 2503.00329): a Qwen2-VL backbone, bidirectional, with two LoRA adapters and an MLP head.

One space holds texts, pictures, and pictures seen under an instruction. The pretrain adapter is merged for
good; the instruct adapter runs only for an input that has a picture *and* an instruction.

Undocumented behaviour of the published code, which the published weights expect:

* plain positions 0, 1, 2, ... for all tokens, image tokens included (3-D positions occur only in a fresh
  model's very first call);
* the hidden states of token id 0 (``!``) are left out of the sum but counted in the mean;
* a picture is resized twice, and small ones are enlarged to ``min_tokens``.

One deviation, on purpose: padding never enters the mean, so a vector does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.files import write_json
from abc_rag.models.config import MAX_SIZE, Config
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.lora import AdapterSwitch, adapter_tensors, put_adapter, put_adapters_beside
from abc_rag.models.lora_linear import is_adapted
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.qwen2_vl.network import (
    Qwen2VLBackbone,
    SpeakingBase,
    backbone_name,
    load_backbone,
    load_speaking,
)
from abc_rag.models.qwen2_vl.packed import PackedQwen2VL

__all__ = ["FIRST_RESIZE", "ABCNetwork", "ABCSettings", "MLPHead", "load_beside", "load_merged", "load_network"]

_HEAD_HIDDEN = 4096
FIRST_RESIZE = (4, 16384)
"""Fewest and most image tokens of the first of the two resizes: the limits of qwen-vl-utils."""


@dataclass(frozen=True)
class ABCSettings:
    """Settings of a checkpoint in ``abc.json``, beside its three folders; all optional.

    Attributes:
        name: The model's name, for the fingerprint.
        min_tokens: Fewest image tokens, unless the caller says otherwise (paper: 256).
        max_tokens: Most image tokens, unless the caller says otherwise (published code: 1024).
        head_hidden: Width inside the MLP head (published code: 4096, whatever the backbone).
    """

    name: str = ""
    min_tokens: int = 256
    max_tokens: int = 1024
    head_hidden: int = _HEAD_HIDDEN

    @classmethod
    def read(cls, folder: Path) -> ABCSettings:
        """Read ``folder/abc.json``; the published defaults where there is none."""
        file = folder / "abc.json"
        if not file.is_file():
            return cls(name=folder.name)
        raw = Config.read(file)
        unknown = sorted(set(raw.values) - set(cls.__dataclass_fields__))
        if unknown:
            raise CheckpointError(f"{file}: {', '.join(unknown)[:200]} is not a setting of this version of abc-rag")
        least, most = (
            raw.whole(name, getattr(cls, name), most=FIRST_RESIZE[1]) for name in ("min_tokens", "max_tokens")
        )
        if least > most:
            raw.refuse("min_tokens", f"at most max_tokens ({most})")
        head_hidden = raw.whole("head_hidden", _HEAD_HIDDEN, most=MAX_SIZE)
        return cls(raw.text("name", folder.name), least, most, head_hidden)

    def write(self, folder: Path) -> None:
        """Write ``folder/abc.json``."""
        write_json(folder / "abc.json", self.__dict__)


class MLPHead(nn.Module):
    """``x + W2 . SELU(W1 x + b1) + b2`` on the pooled state."""

    def __init__(self, dim: int, hidden: int = _HEAD_HIDDEN) -> None:
        super().__init__()
        self.linear_layer1 = nn.Linear(dim, hidden)
        self.linear_layer2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, dim)`` to ``(n, dim)``."""
        y: torch.Tensor = x + self.linear_layer2(nn.functional.selu(self.linear_layer1(x)))
        return y


class Temperature(nn.Module):
    """The learnable temperature, under the name that the published adapters store it by."""

    def __init__(self, value: float = 0.07) -> None:
        super().__init__()
        # One row, as FSDP shards no scalars.
        self.temp = nn.Parameter(torch.tensor([value]))

    @property
    def stored(self) -> torch.Tensor:
        """The scalar that checkpoints hold: the same memory, without gradient."""
        return self.temp.detach().view(())


class ABCNetwork(nn.Module):
    """Backbone, head and temperature; the one forward that training and inference share."""

    def __init__(self, backbone: Qwen2VLBackbone, *, head_hidden: int = _HEAD_HIDDEN) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = MLPHead(backbone.hidden_size, head_hidden)
        self.temperature = Temperature()
        self.compiled = False
        self.beside: AdapterSwitch | None = None
        self._instruct_layers: list[Any] = []
        self._instruct_on = False

    def register_instruct_layers(self) -> None:
        """Remember the layers of the instruct adapter, which must have been injected, and switch it off."""
        self._instruct_layers = [m for m in self.backbone.modules() if is_adapted(m)]
        self._instruct_on = True
        self.set_instruct(False)

    def set_instruct(self, on: bool) -> None:
        """Switch the instruct adapter on or off for all that follows."""
        if self.beside is not None:
            self.beside.use("pretrain", *(["instruct"] if on else []))
            return
        if on and not self._instruct_layers:
            raise CheckpointError("this network has no instruct adapter")
        if on != self._instruct_on:
            for layer in self._instruct_layers:
                layer.enable_adapters(on)
            self._instruct_on = on

    def pool(self, states: torch.Tensor, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Mean over real tokens in float32; id 0 is counted but not summed, as published."""
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        summed = (steps[None, :] < lengths[:, None]) & (input_ids != 0)
        # where, not a product: what a padding row holds is undefined, and 0 * NaN would spread it.
        kept = torch.where(summed.unsqueeze(-1), states.float(), 0.0)
        return kept.sum(dim=1) / lengths.unsqueeze(-1)

    @property
    def packed(self) -> PackedQwen2VL:
        """The same backbone for sequences that lie end to end, without gradients."""
        return PackedQwen2VL(self.backbone, compiled=self.compiled)

    def embed(self, packed: PackedBatch) -> torch.Tensor:
        """Unit vectors ``(n, dim)`` in float32 in the order of ``packed``, without gradients."""
        states = self.packed.hidden_states(
            packed.input_ids,
            packed.segments,
            features=packed.features,
            image_positions=packed.image_positions,
            position_ids=packed.position_ids,
        )
        return nn.functional.normalize(self.head(self.pool_packed(states, packed.input_ids, packed.segments)), dim=-1)

    def pool_packed(self, states: torch.Tensor, input_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        """`pool` for sequences that lie end to end: ``(total, hidden)`` to ``(n, hidden)``."""
        kept = torch.where((input_ids != 0).unsqueeze(-1), states.float(), 0.0)
        if kept.device.type in ("cpu", "cuda"):
            # "Unsafe" only leaves out checks, for which a GPU would have to be waited for.
            summed = torch.segment_reduce(kept, "sum", lengths=segments.counts, axis=0, unsafe=True)
        else:
            summed = kept.new_zeros(len(segments.lengths), kept.shape[1]).index_add(0, segments.rows, kept)
        return summed / segments.counts.unsqueeze(-1)

    def forward(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Unit vectors ``(batch, dim)`` in float32 of right-padded sequences, with gradients.

        See `Qwen2VLBackbone.hidden_states`.
        """
        states = self.backbone.hidden_states(input_ids, lengths=lengths, features=features)
        pooled = self.pool(states, input_ids, lengths)
        return nn.functional.normalize(self.head(pooled), dim=-1)


# --- Weights --------------------------------------------------------------------------------------


def load_merged(
    base: Path,
    pretrain: Path,
    place: Placement = CPU,
    *,
    head_hidden: int = _HEAD_HIDDEN,
) -> ABCNetwork:
    """Base and pretrain adapter as one network, on which the instruct adapter is put.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    backbone = load_backbone(base, place)
    adapter_tensors(pretrain).check_size("head_hidden", head_hidden)
    network = ABCNetwork(backbone, head_hidden=head_hidden).to(place.device)
    put_adapter(backbone, pretrain, "pretrain", backbone_name, _kept_whole(network), merge=True)
    return network.eval().requires_grad_(False)


def _kept_whole(network: ABCNetwork) -> dict[str, torch.Tensor]:
    """What the file of a pretrain adapter holds beside it."""
    head = {f"mlp_head.{name}": parameter for name, parameter in network.head.named_parameters()}
    return {**head, "temperature.temp": network.temperature.stored}


def load_beside(
    base: Path,
    pretrain: Path,
    instruct: Path,
    place: Placement = CPU,
    *,
    head_hidden: int = _HEAD_HIDDEN,
) -> tuple[ABCNetwork, SpeakingBase]:
    """`load_network` with both adapters beside the base, and the base without them.

    Raises:
        CheckpointError: As `load_merged`; or the base has no output layer.
    """
    backbone, speaking = load_speaking(base, place)
    adapter_tensors(pretrain).check_size("head_hidden", head_hidden)
    network = ABCNetwork(backbone, head_hidden=head_hidden).to(place.device)
    folders = {"pretrain": pretrain, "instruct": instruct}
    network.beside = put_adapters_beside(backbone, folders, backbone_name, {"pretrain": _kept_whole(network)})
    return network.eval().requires_grad_(False), speaking


def load_network(
    base: Path,
    pretrain: Path,
    instruct: Path,
    place: Placement = CPU,
    *,
    head_hidden: int = _HEAD_HIDDEN,
    weights: Literal["full", "int8", "int4"] = "full",
) -> ABCNetwork:
    """Read the three parts of an ABC checkpoint into one network, ready to embed.

    See `load_merged`, and for ``weights`` `Placement.bring`.

    Raises:
        CheckpointError: As `load_merged`.
        InputError: The device or the network's sizes do not allow such weights.
        MissingExtraError: bitsandbytes is needed and not installed.
    """
    network = load_merged(base, pretrain, place.before(weights), head_hidden=head_hidden)
    put_adapter(network.backbone, instruct, "instruct", backbone_name)
    for name, parameter in network.backbone.named_parameters():
        # Not the whole module: that would round the rotary frequencies too.
        if ".instruct." in name:
            parameter.data = parameter.data.to(device=place.device, dtype=place.dtype)
    place.bring(network, network.backbone.language_layers, weights)
    network.register_instruct_layers()
    return network.eval().requires_grad_(False)

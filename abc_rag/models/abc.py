"""ABC (arXiv 2503.00329): a Qwen2-VL backbone, bidirectional, with two LoRA adapters and an MLP head.

One space holds texts, pictures, and pictures seen under an instruction. The pretrain adapter is merged for
good; the instruct adapter runs only for an input that has a picture *and* an instruction.

What the published code does without saying so, and the published weights therefore expect:

* plain positions 0, 1, 2, ... for all tokens, image tokens included (3-D positions occur only in a fresh
  model's very first call);
* the hidden states of token id 0 (``!``) are left out of the sum but counted in the mean;
* a picture is resized twice, and small ones are enlarged to ``min_tokens``.

One deviation, on purpose: padding never enters the mean, so a vector does not depend on its batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer

from abc_rag.errors import CheckpointError
from abc_rag.images import ImageLimits
from abc_rag.models._adapters import load_adapter, lora_config
from abc_rag.models._attention import Segments
from abc_rag.models._checkpoint import read_json
from abc_rag.models._packed import PackedBatch, split_features
from abc_rag.models._peft import BaseTunerLayer, LoraModel, inject_adapter_in_model
from abc_rag.models._pictures import Patches, QwenPictures
from abc_rag.models._qwen2_vl import Qwen2VLBackbone, backbone_name, load_backbone
from abc_rag.models._qwen2_vl_packed import PackedQwen2VL
from abc_rag.models._tokenizer import PlainTokenizer
from abc_rag.models.family import Family, Picture, Prepared, check_length
from abc_rag.models.flops import count_flops
from abc_rag.types import Fingerprint, Image, ImageSource, Input, InstructedImage, Text

__all__ = ["ABCFamily", "ABCNetwork", "ABCPrompts", "ABCSettings", "MLPHead", "load_network"]

_HEAD_HIDDEN = 4096
# The first of the two resizes: qwen-vl-utils' own limits, in image tokens.
_FIRST_MIN_TOKENS, _FIRST_MAX_TOKENS = 4, 16384


@dataclass(frozen=True)
class ABCSettings:
    """What a checkpoint may say about itself in ``abc.json`` beside its three folders; all of it optional.

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
        raw = read_json(file)
        unknown = sorted(set(raw) - set(cls.__dataclass_fields__))
        if unknown:
            raise CheckpointError(f"{file}: {', '.join(unknown)} is not a setting of this version of abc-rag")
        settings = cls(**{"name": folder.name, **raw})
        for name in ("min_tokens", "max_tokens", "head_hidden"):
            value = getattr(settings, name)
            if type(value) is not int or value < 1:
                raise CheckpointError(f"{file}: {name} must be a positive number, not {value!r}")
        return settings

    def write(self, folder: Path) -> None:
        """Write ``folder/abc.json``."""
        text = json.dumps(self.__dict__, indent=2) + "\n"
        (folder / "abc.json").write_text(text, encoding="utf-8")


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
        self._instruct_layers: list[BaseTunerLayer] = []
        self._instruct_on = False

    def register_instruct_layers(self) -> None:
        """Remember the layers of the instruct adapter, which must have been injected, and switch it off."""
        self._instruct_layers = [m for m in self.backbone.modules() if isinstance(m, BaseTunerLayer)]
        self._instruct_on = True
        self.set_instruct(False)

    def set_instruct(self, on: bool) -> None:
        """Switch the instruct adapter on or off for all that follows."""
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

    def embed(
        self,
        input_ids: torch.Tensor,
        segments: Segments,
        *,
        features: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit vectors ``(n, dim)`` in float32 of sequences that lie end to end, without gradients.

        See `PackedQwen2VL.hidden_states`.
        """
        states = self.packed.hidden_states(input_ids, segments, features=features, image_positions=image_positions)
        return nn.functional.normalize(self.head(self.pool_packed(states, input_ids, segments)), dim=-1)

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


class ABCPrompts:
    """Inputs to token ids, through the checkpoint's own chat template.

    The template is rendered once around a marker. What a user wrote is then tokenised as plain
    text: ``<|im_end|>`` typed into a passage stays harmless text and cannot end the turn.
    """

    _MARK = "\x00"

    def __init__(self, tokenizer: Any, *, image_token_id: int) -> None:  # noqa: ANN401  (transformers' own type varies)
        self._image_token_id = image_token_id
        self._special: Tokenizer = tokenizer.backend_tokenizer
        self._plain = PlainTokenizer(self._special)
        self._special_names = [t.content for t in self._special.get_added_tokens_decoder().values()]
        self._text = self._split(tokenizer, [{"type": "text", "text": self._MARK}])
        self._image = self._split(tokenizer, [{"type": "image"}, {"type": "text", "text": self._MARK}])

    def _split(self, tokenizer: Any, content: list[dict[str, str]]) -> tuple[list[int], str, str, list[int]]:  # noqa: ANN401
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, mark, after = rendered.partition(self._MARK)
        if not mark or self._MARK in after:
            raise CheckpointError("the chat template does not keep the user's text as it is")
        # Special tokens cut a text before anything else happens, so only the stretch between the last one
        # before the text and the first one after it has to be tokenised together with the text.
        start = max((before.rfind(t) + len(t) for t in self._special_names if t in before), default=0)
        end = min((after.find(t) for t in self._special_names if t in after), default=len(after))
        return self._ids(before[:start]), before[start:], after[:end], self._ids(after[end:])

    def _ids(self, text: str) -> list[int]:
        return list(self._special.encode(text, add_special_tokens=False).ids)

    def __call__(self, text: str, *, image_tokens: int | None = None) -> npt.NDArray[np.int64]:
        """Token ids of one prompt; with ``image_tokens``, of one with a picture of that many tokens."""
        head, before, after, tail = self._text if image_tokens is None else self._image
        body = self._plain(before + text + after)
        ids = np.array([*head, *body, *tail], dtype=np.int64)
        if image_tokens is None:
            return ids
        (at,) = np.flatnonzero(ids == self._image_token_id)[:1]
        return np.concatenate([ids[:at], np.full(image_tokens, self._image_token_id), ids[at + 1 :]])


class ABCFamily(Family):
    """ABC behind the engine's seam."""

    def __init__(
        self,
        network: ABCNetwork,
        prompts: ABCPrompts,
        *,
        fingerprint: Fingerprint,
        image_limits: ImageLimits,
    ) -> None:
        self.network = network
        self._prompts = prompts
        self._fingerprint = fingerprint
        self._image_limits = image_limits
        self._max_length = int(network.backbone.text_config.max_position_embeddings)
        backbone = network.backbone
        resizes = ((_FIRST_MIN_TOKENS, _FIRST_MAX_TOKENS), (fingerprint.min_tokens, fingerprint.max_tokens))
        self._recipe = QwenPictures(backbone.patch, backbone.merge, resizes)

    def at(self, *, min_tokens: int, max_tokens: int) -> ABCFamily:
        """The same network at another resolution."""
        limits = replace(self._fingerprint, min_tokens=min_tokens, max_tokens=max_tokens)
        return ABCFamily(self.network, self._prompts, fingerprint=limits, image_limits=self._image_limits)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.network.backbone.hidden_size

    @property
    def fingerprint(self) -> Fingerprint:
        """Model, revision and resolution."""
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.network.backbone.dtype

    @property
    def image_limits(self) -> ImageLimits:
        """Which pictures are accepted."""
        return self._image_limits

    @property
    def recipe(self) -> QwenPictures:
        """How pictures are opened: resized twice, as published."""
        return self._recipe

    def picture_tokens(self, opened: Patches) -> int:
        """How many image tokens an opened picture has."""
        return opened.patches // self.network.backbone.merge**2

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise; see `Family.prepare`."""
        if isinstance(item, Text):
            prepared = Prepared("text", self._prompts(item.text))
        else:
            opened = self.opened(item, pictures)
            instruction = f"Instruction: {item.instruction}" if isinstance(item, InstructedImage) else ""
            ids = self._prompts(instruction, image_tokens=opened[0].tokens)
            prepared = Prepared("image" if isinstance(item, Image) else "image+instruction", ids, opened)
        check_length(prepared, item, self._max_length)
        return prepared

    def count_flops(self, item: Input) -> tuple[int, float]:
        """Tokens in the language model, and operations; see `Family.count_flops`."""
        prepared, backbone = self.prepare(item), self.network.backbone
        flops = count_flops(
            backbone.config,
            tokens=prepared.tokens,
            patches=sum(picture.tokens for picture in prepared.pictures) * backbone.merge**2,
            instructed=isinstance(item, InstructedImage),
            head_hidden=self.network.head.linear_layer1.out_features,
        )
        return prepared.tokens, flops

    def prepare_image(self, source: ImageSource, *, name: str | None = None) -> Patches:
        """Open, resize twice as published, and cut into patches; ``name`` is for messages."""
        return self._recipe.open(source, limits=self._image_limits, name=name)

    def see(self, opened: Sequence[Patches]) -> list[torch.Tensor]:
        """Vision features of some pictures; see `Family.see`."""
        with torch.inference_mode():
            features = self.network.packed.image_features(opened)
            return split_features(features, [self.picture_tokens(one) for one in opened])

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed a batch of one kind; see `Family.forward`."""
        self.see_all(batch)
        packed = PackedBatch.of(batch, image_token_id=self.network.backbone.image_token_id, device=self.device)
        with torch.inference_mode():
            self.network.set_instruct(packed.first.kind == "image+instruction")
            rows = self.network.embed(
                packed.input_ids,
                packed.segments,
                features=packed.features,
                image_positions=packed.image_positions,
            )
            return packed.in_order(rows)


# --- Weights --------------------------------------------------------------------------------------


def load_merged(
    base: Path,
    pretrain: Path,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    head_hidden: int = _HEAD_HIDDEN,
) -> ABCNetwork:
    """Base and pretrain adapter as one network: what the instruct adapter is put on.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    backbone = load_backbone(base, attention=attention, dtype=dtype, device=device)
    network = ABCNetwork(backbone, head_hidden=head_hidden).to(device)
    lora = LoraModel(backbone, lora_config(pretrain), "pretrain")
    load_adapter(
        backbone,
        pretrain,
        "pretrain",
        backbone_name,
        {f"mlp_head.{n}": p for n, p in network.head.named_parameters()}
        | {"temperature.temp": network.temperature.stored},
    )
    lora.merge_and_unload()
    return network.eval().requires_grad_(False)


def load_network(
    base: Path,
    pretrain: Path,
    instruct: Path,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    head_hidden: int = _HEAD_HIDDEN,
    weights: Literal["full", "int8", "int4"] = "full",
) -> ABCNetwork:
    """Read the three parts of an ABC checkpoint into one network, ready to embed; see `load_merged`.

    With ``weights="int8"`` or ``"int4"`` the parts are put together in the computer's own memory, in ``dtype``, and
    reach ``device`` layer by layer: it never holds more than the result and one layer.

    Raises:
        CheckpointError: As `load_merged`.
        InputError: The device or the network's sizes do not allow such weights.
        MissingExtraError: bitsandbytes is needed and not installed.
    """
    first = device
    if weights != "full":
        from abc_rag.models._quantize import check_device, quantize_linears

        check_device(weights, device)
        first = "cpu"
    network = load_merged(base, pretrain, attention=attention, dtype=dtype, device=first, head_hidden=head_hidden)
    inject_adapter_in_model(lora_config(instruct), network.backbone, "instruct")
    load_adapter(network.backbone, instruct, "instruct", backbone_name)
    for name, parameter in network.backbone.named_parameters():
        # Not the whole module: that would round the rotary frequencies too.
        if ".instruct." in name:
            parameter.data = parameter.data.to(device=device, dtype=dtype)
    if weights != "full":
        quantize_linears(network.backbone.language_model.layers, weights, device)
        network.to(device)
    network.register_instruct_layers()
    return network.eval().requires_grad_(False)


def load_prompts(base: Path) -> ABCPrompts:
    """The tokenizer and the chat template of a Qwen2-VL folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{base}: no usable tokenizer ({error})") from error
    if tokenizer.chat_template is None:
        file = base / "chat_template.json"
        tokenizer.chat_template = read_json(file).get("chat_template")
    return ABCPrompts(tokenizer, image_token_id=int(read_json(base / "config.json")["image_token_id"]))

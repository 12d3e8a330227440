"""Train abc-mini from nothing, by ABC's recipe (arXiv 2503.00329) at small scale.

Three stages, one after the other, each saved in the folder that the loader expects:

``base/``
    A Qwen2-VL of two million parameters, trained in full. It stands in for Qwen2-VL-Instruct, which ABC starts
    from: it learns to see, to read, and to answer questions about a picture. Queries are pictures with an
    instruction against every phrase of the world, and pictures against captions.
``pretrain/``
    LoRA on vision tower and language model, with head and temperature in full: picture -> caption, with the
    captions of scenes that differ in one respect as hard negatives; label smoothing 0.1.
``instruct/``
    LoRA on the language model only: several (instruction, phrase) pairs of one picture in one batch; candidates
    are embedded without the adapter and without gradient; the temperature is frozen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from abc_rag.errors import CheckpointError
from abc_rag.models._qwen2_vl import (
    Patches,
    Qwen2VLBackbone,
    base_state_dict,
    load_backbone,
)
from abc_rag.models.abc import ABCNetwork, ABCPrompts, ABCSettings, load_merged, load_prompts
from abc_rag.training._mini_data import IMAGE_TOKENS, Batch, MiniConfig, batches, make_caption_batch
from abc_rag.training._words import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer

__all__ = ["MiniConfig", "train_mini"]

# On CPU in bfloat16 the fused kernel's backward is several times slower than plain matrix products.
_ATTENTION = "eager"


# --- Forward --------------------------------------------------------------------------------------


class _Embed:
    """Prompts and network together: what the three stages call."""

    def __init__(self, network: ABCNetwork, prompts: ABCPrompts) -> None:
        self.network = network
        self.prompts = prompts

    def vision(self, pictures: Sequence[Patches]) -> torch.Tensor:
        """``(pictures, image tokens, width)``."""
        return self.network.backbone.image_features(pictures).view(len(pictures), IMAGE_TOKENS, -1)

    def _padded(self, ids: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(i) for i in ids])
        # Multiples of four: matrix libraries prepare each new shape once, and that costs more than the padding.
        padded = torch.zeros(len(ids), -(-int(lengths.max()) // 4) * 4, dtype=torch.long)
        for row, one in zip(padded, ids, strict=True):
            row[: len(one)] = torch.from_numpy(one)
        return padded, lengths

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of texts, computed in order of length so that little of it is padding."""
        prompts = [self.prompts(t) for t in texts]
        order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
        rows = []
        for start in range(0, len(order), 64):
            ids, lengths = self._padded([prompts[i] for i in order[start : start + 64]])
            rows.append(self.network(ids, lengths=lengths))
        return torch.cat(rows)[torch.tensor(order).argsort()]

    def images(self, features: torch.Tensor) -> torch.Tensor:
        """Unit vectors of pictures by themselves."""
        ids = torch.from_numpy(self.prompts("", image_tokens=IMAGE_TOKENS)).expand(len(features), -1)
        lengths = torch.full((len(features),), ids.shape[1])
        return self.network(ids.contiguous(), lengths=lengths, features=features.flatten(0, 1))  # type: ignore[no-any-return]

    def instructed(self, features: torch.Tensor, asked: Sequence[tuple[int, str, int]]) -> torch.Tensor:
        """Unit vectors of (picture, instruction) pairs, all from one vision pass."""
        ids, lengths = self._padded([self.prompts(f"Instruction: {q}", image_tokens=IMAGE_TOKENS) for _, q, _ in asked])
        of_pair = features[torch.tensor([p for p, _, _ in asked])]
        return self.network(ids, lengths=lengths, features=of_pair.flatten(0, 1))  # type: ignore[no-any-return]


def contrastive_loss(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    *,
    smoothing: float = 0.1,
    excluded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ABC's loss: InfoNCE with label smoothing; and the share of queries whose own candidate is nearest.

    Args:
        queries: Unit rows ``(q, dim)``.
        candidates: Unit rows ``(c, dim)``.
        targets: int64 ``(q,)``: each query's candidate.
        temperature: Scalar that the cosines are divided by.
        smoothing: Share of the probability spread over all candidates.
        excluded: bool ``(q, c)``: candidates that are true of a query without being its own, which are left out.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries.float() @ candidates.float().T / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, float("-inf"))
    log_probabilities = scores.log_softmax(dim=1)
    own = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    kept = torch.isfinite(log_probabilities)
    # masked_fill, not a product: 0 * inf would be NaN.
    spread = log_probabilities.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)
    loss = -((1 - smoothing) * own + smoothing * spread).mean()
    return loss, (scores.argmax(dim=1) == targets).float().mean()


# --- Stages ---------------------------------------------------------------------------------------


class _Log:
    """Metrics as JSON lines, and a line to the reader now and then."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._path = folder / "metrics.jsonl"
        self._say = say
        self._start = self._stage_start = time.monotonic()
        self._mean: dict[str, float] = {}

    def __call__(self, stage: str, step: int, steps: int, **values: float) -> None:
        if step == 0:
            self._mean.clear()
            self._stage_start = time.monotonic()
        for name, value in values.items():
            self._mean[name] = 0.95 * self._mean.get(name, value) + 0.05 * value
        if step % 25 == 0 or step == steps - 1:
            seconds = round(time.monotonic() - self._start, 1)
            row = {"stage": stage, "step": step, "seconds": seconds, **{k: round(v, 5) for k, v in values.items()}}
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        if step % 100 == 0 or step == steps - 1:
            shown = "  ".join(f"{k} {v:.3f}" for k, v in self._mean.items())
            now = time.monotonic()
            rest = f", {(now - self._stage_start) / step * (steps - 1 - step):.0f} s left" if step else ""
            self._say(f"{stage} {step + 1}/{steps}  {now - self._start:.0f} s{rest}  {shown}")


def _optimisers(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for the rest.

    Tried on the first 100 steps of the base stage (25,000 questions, same seed): loss 2.77 with Muon at 2e-3, 2.48 at
    5e-3, against 4.53 with AdamW at 2e-3.
    """
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if p.ndim == 2 and "embed_tokens" not in n]
    rest = [p for n, p in named if p.ndim != 2 or "embed_tokens" in n]
    if not named:
        raise CheckpointError("nothing is marked to be trained; is an adapter switched off?")
    optimisers: list[torch.optim.Optimizer] = []
    if rest:
        optimisers.append(torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)))
    if inner:
        optimisers.append(torch.optim.Muon(inner, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimisers


def _schedule(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) * 0.99 + 0.01


def _run(
    stage: str,
    network: nn.Module,
    data: Iterator[Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    lr: float,
    log: _Log,
    bf16: bool,
) -> None:
    """The loop that all three stages share."""
    optimisers = _optimisers(network, lr)
    parameters = [p for p in network.parameters() if p.requires_grad]
    for step, batch in enumerate(data):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, values = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * _schedule(step, steps, warmup=min(200, steps // 10 + 1))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        log(stage, step, steps, loss=loss.item(), **values)


def _backbone_config(config: MiniConfig, tokenizer: Tokenizer) -> Qwen2VLConfig:
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    built: Any = Qwen2VLConfig.from_dict(
        {
            "model_type": "qwen2_vl",
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "hidden_size": config.width,
            "intermediate_size": config.text_hidden,
            "num_hidden_layers": config.text_depth,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "max_window_layers": config.text_depth,
            "rms_norm_eps": 1e-6,
            # Sequences are tens of tokens long: the frequencies of a 32,000-token model would all be near zero.
            "rope_theta": 1000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": config.vocab_size,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_config": {
                "depth": config.vision_depth,
                "embed_dim": config.vision_width,
                "hidden_size": config.width,
                "mlp_ratio": 3,
                "num_heads": 4,
                "in_chans": 3,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        }
    )
    return built  # type: ignore[no-any-return]


def _initialise(backbone: Qwen2VLBackbone) -> None:
    for name, parameter in backbone.named_parameters():
        if parameter.ndim >= 2:
            std = 0.02 if "embed_tokens" in name else 1 / math.sqrt(parameter.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                std *= 0.3  # what is added to the residual stream starts small
            nn.init.normal_(parameter, std=std)
        elif "norm" in name or "ln_q" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.zeros_(parameter)


def _train_base(config: MiniConfig, out: Path, log: _Log) -> None:
    tokenizer = train_tokenizer(vocab_size=config.vocab_size, seed=config.seed)
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    ).save_pretrained(str(base), save_jinja_files=False)
    built = _backbone_config(config, tokenizer)
    torch.manual_seed(config.seed)
    backbone = Qwen2VLBackbone(built, attention=_ATTENTION)
    _initialise(backbone)
    network = ABCNetwork(backbone, head_hidden=config.head_hidden)
    _neutral_head(network)
    (base / "config.json").write_text(json.dumps(built.to_dict(), indent=2, default=str) + "\n", encoding="utf-8")
    embed = _Embed(network, load_prompts(base))
    temperature = network.temperature.temp
    network.head.requires_grad_(False)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        features = embed.vision(batch.pictures)
        targets = torch.tensor([t for _, _, t in batch.asked])
        t = temperature.clamp(min=0.02)
        answers, right = contrastive_loss(
            embed.instructed(features, batch.asked), embed.texts(batch.candidates), targets, t, smoothing=0.0
        )
        images, texts = embed.images(features), embed.texts(batch.captions)
        own = torch.arange(len(images))
        to_text, found = contrastive_loss(images, texts, own, t, smoothing=0.0)
        to_image, _ = contrastive_loss(texts[: len(images)], images, own, t, smoothing=0.0)
        loss = answers + 0.25 * (to_text + to_image)
        return loss, {"right": right.item(), "caption": found.item(), "temperature": temperature.item()}

    def singles(step: int) -> float:
        return 1.0 if step < config.one_object * config.base_steps else 0.15

    data = batches(config, steps=config.base_steps, seed=config.seed + 1, singles=singles, negatives=config.negatives)
    _run(
        "base",
        network,
        data,
        loss_of,
        steps=config.base_steps,
        lr=config.base_lr,
        log=log,
        bf16=config.bf16,
    )
    _save(base / "model.safetensors", base_state_dict(backbone))


def _neutral_head(network: ABCNetwork) -> None:
    """Start the residual head as the identity."""
    nn.init.zeros_(network.head.linear_layer2.weight)
    nn.init.zeros_(network.head.linear_layer2.bias)


def _save(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    # Half precision keeps the checkpoint small; what is evaluated and shipped is what was saved.
    save_file({k: v.half() for k, v in state.items()}, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors writes for the owner alone
    temporary.replace(path)


_TEXT_TARGETS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
_VISION_TARGETS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def _lora(config: MiniConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, lora_dropout=0.0, target_modules=targets)


def _save_adapter(folder: Path, network: ABCNetwork, name: str, config: LoraConfig, *, with_head: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model."
    state = {
        prefix + n.replace(f".{name}.", ".").replace("language_model.", "model.", 1): p.detach().contiguous()
        for n, p in network.backbone.named_parameters()
        if f".{name}." in n
    }
    saved = replace(config, inference_mode=True, modules_to_save=["temperature", "mlp_head"] if with_head else None)
    if with_head:
        state |= {f"{prefix}mlp_head.{n}": p.detach() for n, p in network.head.named_parameters()}
        state[f"{prefix}temperature.temp"] = network.temperature.temp.detach()
    _save(folder / "adapter_model.safetensors", state)
    saved.save_pretrained(str(folder))


def _train_pretrain(config: MiniConfig, out: Path, log: _Log) -> None:
    torch.manual_seed(config.seed + 10)
    backbone = load_backbone(out / "base", attention=_ATTENTION).requires_grad_(False)
    lora = _lora(config, _TEXT_TARGETS + _VISION_TARGETS)
    inject_adapter_in_model(lora, backbone, "pretrain")
    network = ABCNetwork(backbone, head_hidden=config.head_hidden)
    _neutral_head(network)
    nn.init.constant_(network.temperature.temp, 0.07)
    embed = _Embed(network, load_prompts(out / "base"))

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        images = embed.images(embed.vision(batch.pictures))
        loss, found = contrastive_loss(
            images,
            embed.texts(batch.captions),
            torch.arange(len(images)),
            network.temperature.temp.clamp(min=0.01),
            excluded=batch.excluded,
        )
        return loss, {"caption": found.item(), "temperature": network.temperature.temp.item()}

    data = batches(
        config,
        steps=config.pretrain_steps,
        seed=config.seed + 11,
        singles=lambda _: 0.15,
        negatives=3,
        make=make_caption_batch,
    )
    _run("pretrain", network, data, loss_of, steps=config.pretrain_steps, lr=config.lora_lr, log=log, bf16=config.bf16)
    _save_adapter(out / "pretrain", network, "pretrain", lora, with_head=True)


def _train_instruct(config: MiniConfig, out: Path, log: _Log) -> None:
    torch.manual_seed(config.seed + 20)
    network = load_merged(out / "base", out / "pretrain", attention=_ATTENTION, head_hidden=config.head_hidden)
    lora = _lora(config, _TEXT_TARGETS)
    inject_adapter_in_model(lora, network.backbone, "instruct")
    network.register_instruct_layers()
    network.set_instruct(True)  # while it is off, peft marks its weights as not to be trained
    embed = _Embed(network, load_prompts(out / "base"))
    temperature = network.temperature.temp.detach().clamp(min=0.01)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        with torch.no_grad():
            network.set_instruct(False)
            features = embed.vision(batch.pictures)
            candidates = embed.texts(batch.candidates)
        network.set_instruct(True)
        targets = torch.tensor([t for _, _, t in batch.asked])
        loss, right = contrastive_loss(embed.instructed(features, batch.asked), candidates, targets, temperature)
        return loss, {"right": right.item()}

    data = batches(config, steps=config.instruct_steps, seed=config.seed + 21, singles=lambda _: 0.15, negatives=0)
    _run("instruct", network, data, loss_of, steps=config.instruct_steps, lr=config.lora_lr, log=log, bf16=config.bf16)
    _save_adapter(out / "instruct", network, "instruct", lora, with_head=False)


def train_mini(out: Path, config: MiniConfig | None = None, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Train the three parts of abc-mini into ``out``. A stage whose result is already there is not repeated.

    Args:
        out: Folder that receives ``base/``, ``pretrain/``, ``instruct/``, ``abc.json`` and ``training.json``.
        config: Sizes, steps and seed.
        say: Receives a line of progress now and then.
    """
    config = config or MiniConfig()
    torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)
    log = _Log(out, say)
    (out / "training.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    ABCSettings("abc-mini", IMAGE_TOKENS, IMAGE_TOKENS, config.head_hidden).write(out)
    for result, stage in (
        ("base/model", _train_base),
        ("pretrain/adapter_model", _train_pretrain),
        ("instruct/adapter_model", _train_instruct),
    ):
        if not (out / f"{result}.safetensors").exists():
            stage(config, out, log)

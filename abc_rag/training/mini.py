"""Trains abc-mini from scratch by ABC's recipe (arXiv 2503.00329), at small scale.

Three stages, each saved in the folder where the loader expects it:

``base/``
    A Qwen2-VL of two million parameters, trained in full. It takes the place of Qwen2-VL-Instruct, ABC's starting
    point: it learns to see, to read, and to answer questions about a picture. Pictures with an instruction are
    compared with every phrase of the world, and pictures alone with captions.
``pretrain/``
    The result of ``abc-rag train pretrain`` on the base: picture -> caption, with the captions of scenes that differ
    in one respect as hard negatives.
``instruct/``
    The result of ``abc-rag train instruct`` on both.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from abc_rag.files import write_json
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone, base_state_dict
from abc_rag.scenes.words import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer
from abc_rag.training.adapters import save_tensors
from abc_rag.training.config import InstructConfig, LoopConfig, PretrainConfig
from abc_rag.training.data.scenes import IMAGE_TOKENS, BaseBatch, base_batch
from abc_rag.training.instruct import instruct
from abc_rag.training.losses import contrastive_loss
from abc_rag.training.objective import init_head
from abc_rag.training.pretrain import pretrain
from abc_rag.training.running.loop import Objective, run
from abc_rag.training.step import Encoder, seeded

__all__ = ["MiniConfig", "train_mini"]


_NOT_THE_BASES = ("pretrain_steps", "instruct_steps", "lora_lr", "lora_rank", "threads", "checkpoint_every")


@dataclass(frozen=True)
class MiniConfig:
    """The settings of `train_mini`."""

    seed: int = 0
    width: int = 192
    text_depth: int = 3
    text_hidden: int = 384
    vision_width: int = 128
    vision_depth: int = 3
    vocab_size: int = 1536
    head_hidden: int = 768
    pictures: int = 64
    questions: int = 4
    negatives: int = 2
    base_steps: int = 5000
    pretrain_steps: int = 500
    instruct_steps: int = 500
    one_object: float = 0.1
    base_lr: float = 5e-3
    lora_lr: float = 1e-3
    lora_rank: int = 16
    threads: int = 2
    bf16: bool = True
    checkpoint_every: int = 250

    def _loop(self, out: Path, steps: int, lr: float, seed: int) -> dict[str, Any]:
        return {
            "out": str(out), "steps": steps, "lr": lr, "seed": seed, "warmup": min(0.1, 200 / steps), "final_lr": 0.01,
            "optimizer": "muon", "beta2": 0.98, "bf16": self.bf16, "checkpoint_every": self.checkpoint_every,
            "log_every": 25, "tensorboard": False, "threads": self.threads, "workers": self.threads,
        }  # fmt: skip

    def _adapter(self, out: Path) -> dict[str, Any]:
        return {
            "data": "scenes", "base": str(out.resolve() / "base"), "head_hidden": self.head_hidden,
            "pictures": self.pictures, "rank": self.lora_rank, "dropout": 0.0, "min_tokens": IMAGE_TOKENS,
            "max_tokens": IMAGE_TOKENS, "save_dtype": "float16",
            # On a CPU in bfloat16, the fused kernel's backward is several times slower than plain matrix products.
            "attention": "eager",
        }  # fmt: skip

    def base(self, out: Path) -> LoopConfig:
        """The settings of the first stage."""
        return LoopConfig(**self._loop(out / "base", self.base_steps, self.base_lr, self.seed))

    def pretrain(self, out: Path) -> PretrainConfig:
        """The settings of the second stage."""
        loop = self._loop(out / "pretrain", self.pretrain_steps, self.lora_lr, self.seed + 10)
        return PretrainConfig(**loop, **self._adapter(out), negatives=3, head_init="neutral")

    def instruct(self, out: Path) -> InstructConfig:
        """The settings of the third stage."""
        loop = self._loop(out / "instruct", self.instruct_steps, self.lora_lr, self.seed + 20)
        return InstructConfig(
            **loop, **self._adapter(out), pretrain=str(out.resolve() / "pretrain"), pairs=self.questions
        )


def train_mini(out: Path, config: MiniConfig | None = None, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Train the three parts of abc-mini into ``out``. Finished stages are kept, an interrupted one is resumed.

    Args:
        out: Folder that receives ``base/``, ``pretrain/``, ``instruct/``, ``abc.json`` and ``training.json``.
        config: Sizes, steps and seed.
        say: Receives a line of progress now and then.

    Raises:
        InputError: The folder holds a run with other settings.
        CheckpointError: Weights cannot be written.
    """
    config = config or MiniConfig()
    out.mkdir(parents=True, exist_ok=True)
    run(lambda: _Base(config, out), config.base(out), result="model.safetensors", say=say)
    pretrain(config.pretrain(out), say=say)
    instruct(config.instruct(out), say=say)
    write_json(out / "training.json", asdict(config))
    ABCSettings("abc-mini", IMAGE_TOKENS, IMAGE_TOKENS, config.head_hidden).write(out)


class _Base(Objective[BaseBatch]):
    """Trains everything but the head, which stays the identity."""

    label = "base"

    def __init__(self, config: MiniConfig, out: Path) -> None:
        self._config = config
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
        write_json(base / "config.json", json.loads(json.dumps(built.to_dict(), default=str)))
        torch.manual_seed(config.seed)
        backbone = Qwen2VLBackbone(built, attention="eager")
        _initialise(backbone)
        network = ABCNetwork(backbone, head_hidden=config.head_hidden)
        init_head(network, "neutral")
        network.head.requires_grad_(False)
        self._backbone = backbone
        self._prompts = load_prompts(base)
        self.model = Encoder(network, bf16=config.bf16)
        self.data = {key: value for key, value in asdict(config).items() if key not in _NOT_THE_BASES}

    def batch(self, step: int) -> BaseBatch:
        """One object per picture at first, then mostly two."""
        config = self._config
        return base_batch(
            random.Random(seeded(config.seed, "base", step)),
            pictures=config.pictures,
            per_picture=config.questions,
            negatives=config.negatives,
            singles=1.0 if step < config.one_object * config.base_steps else 0.15,
        )

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: BaseBatch, step: int) -> dict[str, float]:
        """Questions against phrases, and pictures against captions in both directions."""
        asked = [((n,), self._prompts(f"Instruction: {q}", image_tokens=IMAGE_TOKENS)) for n, q, _ in batch.asked]
        alone = [((n,), self._prompts("", image_tokens=IMAGE_TOKENS)) for n in range(len(batch.pictures))]
        texts = [((), self._prompts(t)) for t in [*batch.candidates, *batch.captions]]
        queries, answers, temperature = model(batch.pictures, [*asked, *alone], texts)
        phrases, captions = answers.split([len(batch.candidates), len(batch.captions)])
        instructed, images = queries.split([len(asked), len(alone)])
        targets = torch.tensor([t for _, _, t in batch.asked], device=images.device)
        own = torch.arange(len(images), device=images.device)
        t = temperature.clamp(min=0.02)
        to_phrase, right = contrastive_loss(instructed, phrases, targets, t, smoothing=0.0)
        to_text, found = contrastive_loss(images, captions, own, t, smoothing=0.0)
        to_image, _ = contrastive_loss(captions[: len(images)], images, own, t, smoothing=0.0)
        loss = to_phrase + 0.25 * (to_text + to_image)
        accelerator.backward(loss)
        return {
            "loss": loss.item(),
            "accuracy": right.item(),
            "caption_accuracy": found.item(),
            "temperature": temperature.item(),
        }

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Save in half precision, which keeps the checkpoint small."""
        save_tensors(out / "model.safetensors", base_state_dict(self._backbone), torch.float16)


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
            # Sequences have tens of tokens: the frequencies of a 32,000-token model would all be near zero.
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
                std *= 0.3  # contributions to the residual stream start small
            nn.init.normal_(parameter, std=std)
        elif "norm" in name or "ln_q" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.zeros_(parameter)

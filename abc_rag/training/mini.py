"""Trains abc-mini from scratch by ABC's recipe (arXiv 2503.00329), at small scale.

Four stages; the last three are saved in the folders where the loader expects them:

``see/``
    The vision tower alone: what covers each cell of a picture. Seeing is what takes longest to learn, and a step of it
    costs a small part of one that reads and speaks as well.
``base/``
    A Qwen2-VL of four million parameters, trained in full: first on what the tower sees already, then with it. Most
    of its batches are conversations: questions about a picture, answers from sources, judgements. Beside them,
    pictures with an instruction are compared with every phrase of the world, and pictures alone with captions. It
    takes the place of Qwen2-VL-Instruct, ABC's starting point.
``pretrain/``
    The result of ``abc-rag train pretrain`` on the base: picture -> caption, with the captions of scenes that differ
    in one respect as hard negatives.
``instruct/``
    The result of ``abc-rag train instruct`` on both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch._dynamo import config as dynamo
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLDecoderLayer

from abc_rag.errors import CheckpointError
from abc_rag.files import new_file, write_json
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone, base_state_dict
from abc_rag.models.qwen2_vl.prompts import ChatPrompts, load_chat_tokenizer
from abc_rag.models.tasks import VERSION
from abc_rag.scenes.kinds import load_kinds
from abc_rag.scenes.words import CHAT_TEMPLATE, own_words, said_tokenizer, train_tokenizer
from abc_rag.scenes.world import BACKGROUNDS
from abc_rag.training.adapters import save_tensors
from abc_rag.training.base import BaseModel, BaseTokens, Tokeniser, embedded_loss, spoken_loss
from abc_rag.training.config import InstructConfig, LoopConfig, PretrainConfig
from abc_rag.training.data.tasks import fixed_texts
from abc_rag.training.data.teacher import load_teacher
from abc_rag.training.data.wide import CELLS, SIDES, SIZES, seen_batch, wide_batch, wide_scene
from abc_rag.training.data.wide_rows import WideCaptions, WidePairs
from abc_rag.training.instruct import Instructing
from abc_rag.training.mini_network import backbone_config, initialise, names_of_kinds
from abc_rag.training.objective import init_head
from abc_rag.training.pretrain import Pretraining
from abc_rag.training.running.loop import Objective, run
from abc_rag.training.seeing import WORD_LENGTH, seen_loss, vision_block
from abc_rag.training.step import seeded

__all__ = ["MiniConfig", "train_mini"]


_NOT_THE_BASES = ("pretrain_steps", "instruct_steps", "lora_lr", "lora_rank", "threads", "compiled", "checkpoint_every")
_TOKENS = CELLS * CELLS
_VARIANTS = 64
_WORDS = "words.npy"
_WEIGHTS = "model.safetensors"
_PLAIN, _PLAINER = 0.12, 2.5  # least share of plain conversations, and how fast it is reached


@dataclass(frozen=True)
class MiniConfig:
    """The settings of `train_mini`.

    Attributes:
        kinds: Archive of ``scripts/draw_kinds.py``; empty for the package's own drawings alone.
        most_kinds: Number of kinds taken from it.
        teacher: Archive of ``scripts/teach_words.py``; empty to learn all words from the world's texts.
        eyes: Weights of an earlier run's ``see/`` that this one's begins with; empty to begin from random ones.
        own: Share of scenes that look like the package's own.
        pictures: Pictures per step.
        questions: Questions per picture.
        negatives: Captions per picture that are false of it.
        chats: Pictures per step that questions are answered about in words.
        tasks: Groups of other conversations per step: answering from sources, judging, rewriting.
        turns: Most conversations of a group.
        sources: Most sources that are answered from at once; see `abc_rag.training.data.tasks.worked`.
        sentences: The teacher's sentences per step.
        see_steps: Steps that learn to see alone, on ``3 * pictures`` pictures each.
        still: Share of the steps of ``base/`` in which the vision tower stays as it is.
        first: Share of its steps in the first lesson: which of two things a plain question is about.
        clean: Share of its steps in the first two lessons, in which pictures are the package's own and words plain.
        compiled: Compile the layers, which makes a step almost twice as fast; needs a C++ compiler.
    """

    seed: int = 0
    width: int = 192
    text_depth: int = 4
    text_hidden: int = 512
    vision_width: int = 128
    vision_depth: int = 4
    vocab_size: int = 6000
    head_hidden: int = 512
    kinds: str = ""
    most_kinds: int = 340
    teacher: str = ""
    eyes: str = ""
    own: float = 0.6
    pictures: int = 40
    questions: int = 2
    negatives: int = 1
    chats: int = 24
    tasks: int = 36
    turns: int = 4
    sources: int = 1
    sentences: int = 16
    see_steps: int = 8000
    base_steps: int = 3400
    still: float = 0.75
    pretrain_steps: int = 500
    instruct_steps: int = 500
    first: float = 0.1
    clean: float = 0.5
    base_lr: float = 5e-3
    lora_lr: float = 1e-3
    lora_rank: int = 16
    threads: int = 2
    bf16: bool = True
    compiled: bool = False
    checkpoint_every: int = 100

    def _loop(self, out: Path, steps: int, lr: float, seed: int) -> dict[str, Any]:
        return {
            "out": str(out), "steps": steps, "lr": lr, "seed": seed, "warmup": min(0.1, 200 / steps), "final_lr": 0.01,
            "optimizer": "muon", "beta2": 0.98, "bf16": self.bf16, "checkpoint_every": self.checkpoint_every,
            "log_every": 25, "tensorboard": False, "threads": self.threads, "workers": self.threads,
        }  # fmt: skip

    def _adapter(self, out: Path) -> dict[str, Any]:
        return {
            "data": "scenes", "base": str(out.resolve() / "base"), "head_hidden": self.head_hidden,
            "pictures": self.pictures, "rank": self.lora_rank, "dropout": 0.0, "min_tokens": _TOKENS,
            "max_tokens": _TOKENS, "save_dtype": "float16",
            # On a CPU in bfloat16, the fused kernel's backward is several times slower than plain matrix products.
            "attention": "eager",
        }  # fmt: skip

    def see(self, out: Path) -> LoopConfig:
        """The settings of the vision tower's stage."""
        return LoopConfig(**self._loop(out / "see", self.see_steps, self.base_lr, self.seed + 5))

    def base(self, out: Path) -> LoopConfig:
        """The settings of the base's stage."""
        return LoopConfig(**self._loop(out / "base", self.base_steps, self.base_lr, self.seed))

    def pretrain(self, out: Path) -> PretrainConfig:
        """The settings of the first adapter's stage."""
        loop = self._loop(out / "pretrain", self.pretrain_steps, self.lora_lr, self.seed + 10)
        return PretrainConfig(**loop, **self._adapter(out), negatives=3, head_init="neutral")

    def instruct(self, out: Path) -> InstructConfig:
        """The settings of the second adapter's stage."""
        loop = self._loop(out / "instruct", self.instruct_steps, self.lora_lr, self.seed + 20)
        return InstructConfig(
            **loop, **self._adapter(out), pretrain=str(out.resolve() / "pretrain"), pairs=self.questions
        )


def train_mini(out: Path, config: MiniConfig | None = None, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Train abc-mini into ``out``. Finished stages are kept, an interrupted one is resumed.

    Args:
        out: Folder that receives ``see/``, ``base/``, ``pretrain/``, ``instruct/``, ``abc.json`` and ``training.json``.
        config: Sizes, steps and seed.
        say: Receives a line of progress now and then.

    Raises:
        InputError: The folder holds a run with other settings.
        CheckpointError: Weights cannot be written.
    """
    config = config or MiniConfig()
    # Layers are compiled anew for what their inputs' gradients and lengths are; beyond the limit they would not be.
    with dynamo.patch(recompile_limit=_VARIANTS) if config.compiled else nullcontext():
        _train(out, config, say)


def _train(out: Path, config: MiniConfig, say: Callable[[str], None]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    run(lambda: _Seeing(config, out), config.see(out), result=_WEIGHTS, say=say)
    run(lambda: _Base(config, out), config.base(out), result=_WEIGHTS, say=say)
    kinds = load_kinds(config.kinds, config.most_kinds)
    first, second = config.pretrain(out), config.instruct(out)
    captions = WideCaptions(kinds, own=config.own, seed=first.seed, negatives=first.negatives)
    run(lambda: _compiled(Pretraining(first, captions), config), first, say=say)
    pairs = WidePairs(kinds, own=config.own, seed=second.seed)
    run(lambda: _compiled(Instructing(second, pairs), config), second, say=say)
    write_json(out / "training.json", asdict(config))
    ABCSettings("abc-mini", _TOKENS, _TOKENS, config.head_hidden).write(out)


class _Base(Objective[BaseTokens]):
    """Trains everything but the head, which stays the identity, and the words that a teacher gave."""

    label = "base"
    # The gradient of conversations is small beside that of the contrastive losses, whose temperature is low: added as
    # they are, what is learnt from conversations alone is forgotten.
    spoken = 4.0

    def __init__(self, config: MiniConfig, out: Path) -> None:
        self._config = config
        teacher = load_teacher(config.teacher)
        self._kinds = load_kinds(config.kinds, config.most_kinds)
        base = out / "base"
        base.mkdir(parents=True, exist_ok=True)
        if (base / "tokenizer.json").is_file():
            # A run that is resumed keeps its tokens, whatever words have been added since.
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        else:
            own = own_words(config.kinds, fixed_texts())
            words = list(dict.fromkeys([*own, *teacher.words])) if teacher else ()
            tokenizer = train_tokenizer(vocab_size=config.vocab_size, seed=config.seed, words=words)
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            chat_template=CHAT_TEMPLATE,
            model_max_length=2048,
        ).save_pretrained(str(base), save_jinja_files=False)
        built = backbone_config(
            tokenizer,
            width=config.width,
            text_depth=config.text_depth,
            text_hidden=config.text_hidden,
            vision_width=config.vision_width,
            vision_depth=config.vision_depth,
        )
        end: Any = tokenizer.token_to_id("<|im_end|>")
        write_json(base / "config.json", json.loads(json.dumps(built.to_dict(), default=str)))
        facts = {"abc_rag_tasks": VERSION, "abc_rag_sources": config.sources}
        write_json(base / "generation_config.json", {"eos_token_id": [end], **facts})
        torch.manual_seed(config.seed)
        backbone = Qwen2VLBackbone(built, attention="eager")
        initialise(backbone)
        if teacher is not None:
            given = _kept(base / _WORDS, lambda: teacher.embeddings(tokenizer, config.width, norm=WORD_LENGTH))
            backbone.language_model.embed_tokens.weight.data[: len(given)] = torch.from_numpy(given)
            backbone.language_model.embed_tokens.weight.requires_grad_(False)
        network = ABCNetwork(backbone, head_hidden=config.head_hidden)
        init_head(network, "neutral")
        network.head.requires_grad_(False)
        self._backbone = backbone
        self._taught = teacher.sentence_vectors if teacher else None
        plain, image_token = load_chat_tokenizer(base)
        self._tokenise = Tokeniser(
            load_prompts(base),
            ChatPrompts(plain, image_token_id=image_token),
            said_tokenizer(tokenizer),
            image_token=image_token,
            end=end,
            sentences=teacher.sentences if teacher else (),
        )
        self.model = self._losses = BaseModel(
            network,
            bf16=config.bf16,
            kinds=len(self._kinds) if teacher is None else names_of_kinds(self._kinds.categories, tokenizer, given),
            colours=len(BACKGROUNDS),
            places=None if teacher is None else names_of_kinds((*SIDES, *SIZES), tokenizer, given),
            teacher=teacher.sentence_vectors.shape[1] if teacher else 0,
        )
        backbone.use_library()
        _compiled(self, config)
        if config.compiled:
            self.model.layer = torch.compile(vision_block, dynamic=False)
        self.data = {key: value for key, value in asdict(config).items() if key not in _NOT_THE_BASES}
        self._begin(out)

    def _begin(self, out: Path) -> None:
        """It begins with what has learnt to see."""
        self._load(out / "see" / _WEIGHTS)

    def _load(self, file: Path) -> None:
        try:
            unknown = self.model.load_state_dict(load_file(file), strict=False).unexpected_keys
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{file}: no weights of this network ({error}); choose another file") from error
        if unknown:
            raise CheckpointError(f"{file} holds {unknown[0]}, which this network lacks; choose another file")

    def batch(self, step: int) -> BaseTokens:
        """Three lessons.

        The first has plain questions about two things of the package's own world. Telling which of them is asked about
        is learnt suddenly: from these alone within 300 steps, from everything at once not in 1,600. The second has the
        tasks too. Other drawings, worn pictures, captions and other words come last, the words gradually.
        """
        config = self._config
        rng = random.Random(seeded(config.seed, self.label, step))
        share = step / config.base_steps
        first, clean = share < config.first, share < config.clean
        plain = 1.0 if clean else max(_PLAIN, 1 - _PLAINER * (share - config.clean) / (1 - config.clean))
        own = 1.0 if clean else max(config.own, plain)
        simple = 0.0 if first else 0.12
        scenes = [wide_scene(self._kinds, rng, own=own, simple=simple) for _ in range(config.pictures)]
        return self._tokenise(
            wide_batch(
                scenes,
                self._kinds,
                rng,
                per_picture=config.questions,
                negatives=-1 if clean else config.negatives,
                chats=config.pictures if first else config.chats,
                tasks=0 if first else config.tasks,
                turns=config.turns,
                sentences=config.sentences,
                taught=0 if self._taught is None else len(self._taught),
                plain=plain,
                worn=0.0 if clean else 0.25,
                sources=config.sources,
            )
        )

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: BaseTokens, step: int) -> dict[str, float]:
        """The sum of the losses; see `abc_rag.training.base`."""
        self._losses.sees = self._sees(step)
        found = model(batch)
        wide = batch.batch
        seen, told = seen_loss(found, wide)
        loss = 0.3 * seen if self._losses.sees else torch.zeros(())
        if "queries" in found:
            more, said = embedded_loss(found, wide)
            loss, told = loss + more, told | said
        if "spoken" in found:
            more, said = spoken_loss(found, batch.spoken)
            loss, told = loss + self.spoken * more, told | said
        if "taught" in found and self._taught is not None:
            wanted = torch.from_numpy(self._taught[wide.sentences])
            taught = 1 - nn.functional.cosine_similarity(found["taught"].float(), wanted).mean()
            loss = loss + 0.5 * taught
            told["taught"] = taught.item()
        accelerator.backward(loss)
        return {"loss": loss.item(), **told}

    def _sees(self, step: int) -> bool:
        """Whether the vision tower learns: at first, what does not read yet would spoil what it sees."""
        return step >= self._config.still * self._config.base_steps

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Save in half precision, which keeps the checkpoint small."""
        (out / _WORDS).unlink(missing_ok=True)
        save_tensors(out / _WEIGHTS, base_state_dict(self._backbone), torch.float16)


class _Seeing(_Base):
    """Trains the vision tower, and what tells kinds, boxes and backgrounds from its tokens."""

    label = "see"

    def _begin(self, out: Path) -> None:
        if self._config.eyes:
            self._load(Path(self._config.eyes))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".visual." in name or name.startswith("see_"))

    def batch(self, step: int) -> BaseTokens:
        """Scenes of one object as often as of more."""
        config = self._config
        rng = random.Random(seeded(config.seed, "see", step))
        scenes = [wide_scene(self._kinds, rng, own=config.own, simple=0.5) for _ in range(3 * config.pictures)]
        return BaseTokens(seen_batch(scenes, self._kinds, rng), [], [], [])

    def backward(self, accelerator: Accelerator, model: nn.Module, batch: BaseTokens, step: int) -> dict[str, float]:
        """The loss of seeing alone."""
        loss, told = seen_loss(model(batch), batch.batch)
        accelerator.backward(loss)
        return {"loss": loss.item(), **told}

    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Save what was trained."""
        save_tensors(out / _WEIGHTS, tensors, torch.float32)


_Any = TypeVar("_Any", bound=Objective[Any])


def _compiled(objective: _Any, config: MiniConfig) -> _Any:
    """Has the layers of the language model compiled, whatever the lengths of rows."""
    if config.compiled:
        for module in objective.model.modules():
            if isinstance(module, Qwen2VLDecoderLayer):
                module.compile(dynamic=True)
    return objective


def _kept(file: Path, make: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """What a run began with: frozen weights are in no checkpoint, and another machine may compute others."""
    if file.is_file():
        stored: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
        return stored
    made = make()
    with new_file(file) as draft, draft.open("wb") as handle:
        np.save(handle, made)
    return made

"""The loop that every stage of training shares; it reads from top to bottom.

One step: take the next batch, accumulate gradients (the objective's part), clip them, set the learning rate, step, log,
and write a checkpoint now and then. Hugging Face Accelerate decides on which devices and in how many processes it
runs: one, or what ``accelerate launch`` starts (DDP, FSDP). Everything random follows from the seed and the number of
the step, so a run that was killed and resumed ends in the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from filelock import FileLock, Timeout
from torch import nn

from abc_rag import __version__
from abc_rag.errors import CheckpointError, InputError
from abc_rag.files import write_json
from abc_rag.training.config import LoopConfig
from abc_rag.training.running.checkpoints import Checkpoints, trained_tensors
from abc_rag.training.running.log import RunLog

__all__ = ["Objective", "run"]

Batch = TypeVar("Batch")

# Settings that change how long a run takes or what it reports, never what it learns.
_FREE = {"out", "checkpoint_every", "log_every", "tensorboard", "threads", "workers", "max_bad", "download"}


class Objective(ABC, Generic[Batch]):
    """What is trained: the network, its batches, and the gradients of one step."""

    label: str
    model: nn.Module
    data: Mapping[str, Any] = {}
    """Facts that show whether the data have changed since the run began."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The batch of ``step`` (from 0), equal for equal seeds. Called ahead of time, in another thread."""

    @abstractmethod
    def backward(self, accelerator: Accelerator, model: nn.Module, batch: Batch, step: int) -> dict[str, float]:
        """Accumulate the gradients of one step in ``model``: `model`, wrapped by Accelerate.

        Returns:
            What is logged: ``loss`` and others, equal in all processes.
        """

    @abstractmethod
    def save(self, out: Path, tensors: dict[str, torch.Tensor], run: dict[str, Any]) -> None:
        """Write the result, in the main process, from `trained_tensors` and the content of ``run.json``."""


def run(
    make: Callable[[], Objective[Any]],
    config: LoopConfig,
    *,
    result: str = "adapter_model.safetensors",
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train, from the last checkpoint if there is one; a finished run is left as it is.

    Args:
        make: Makes the objective; called once the processes know of each other.
        config: How to train.
        result: The file that `Objective.save` writes last.
        say: Receives a line of progress now and then where no progress bar can be shown.

    Returns:
        The run's folder.

    Raises:
        InputError: The folder holds a run with other settings or other data, or another process trains in it.
        DatasetError: The data cannot be read, or too many rows are unusable.
        CheckpointError: Weights, a checkpoint or metrics cannot be written or read.
    """
    out = Path(config.out).expanduser()
    if _is_finished(out, config, result):
        return out
    accelerator = _accelerator()
    try:
        with _locked(out) if accelerator.is_main_process else nullcontext():
            _run(make, config, out, accelerator, say)
    except OSError as error:
        raise CheckpointError(
            f"{out}: cannot be written ({error}); free some space and run the same command again: it resumes"
        ) from error
    return out


def _accelerator() -> Accelerator:
    # Precision is a setting of ours (bf16); Accelerate's would scale losses that it never sees.
    accelerator = Accelerator(mixed_precision="no")
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        raise InputError(
            "DeepSpeed is not supported: only its own pickled checkpoints can save its optimiser states; "
            "choose DDP or FSDP in 'accelerate config'"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("FSDP 1 is not supported; set fsdp_version: 2 in 'accelerate config'")
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError("gradient accumulation would change the contrastive batch; leave it at 1 and set chunk")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != accelerator.num_processes:
        raise InputError(
            f"{processes} processes were started, but Accelerate connects only {accelerator.num_processes}; "
            "start them with 'accelerate launch'"
        )
    return accelerator


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{out}: another process is training in this folder; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        # The file stays: by now another process may hold it.
        lock.release()


def _run(
    make: Callable[[], Objective[Any]],
    config: LoopConfig,
    out: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> None:
    main = accelerator.is_main_process
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    objective = make()
    if main:
        _claim(out, config, objective.data)
    accelerator.wait_for_everyone()
    optimizers = _optimizers(objective.model, config)
    model, *prepared = accelerator.prepare(objective.model, *optimizers)
    optimizers = [getattr(o, "optimizer", o) for o in prepared]
    checkpoints = Checkpoints(out / "checkpoints", main=main)
    first = checkpoints.load(model, optimizers)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with (
        RunLog(
            out, label=objective.label, steps=config.steps, first=first, every=config.log_every,
            tensorboard=config.tensorboard, main=main, say=say,
        ) as log,
        _ahead(objective.batch, range(first, config.steps)) as batches,
    ):  # fmt: skip
        for step, batch in zip(range(first, config.steps), batches, strict=True):
            values = objective.backward(accelerator, model, batch, step)
            values["grad_norm"] = float(accelerator.clip_grad_norm_(parameters, config.max_grad_norm))
            values["lr"] = config.lr * _schedule(step, config)
            if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
                raise CheckpointError(
                    f"step {step + 1}: loss {values['loss']}, gradient norm {values['grad_norm']}: the run has "
                    "diverged; start again in a new folder with a lower lr, or without bf16"
                )
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = values["lr"]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            log(step + 1, values)
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                checkpoints.save(step + 1, model, optimizers)
    tensors = trained_tensors(model)
    if main:
        objective.save(out, tensors, json.loads((out / "run.json").read_text(encoding="utf-8")))
        checkpoints.clear()
    accelerator.wait_for_everyone()


def _is_finished(out: Path, config: LoopConfig, result: str) -> bool:
    """Whether the folder holds the run's result already; refuses a folder that holds another run."""
    _refuse_another_run(out, config)
    found = (out / result).is_file()
    if found and not (out / "run.json").is_file():
        raise InputError(f"{out} holds a {result} that no run wrote; choose another folder")
    return found


def _refuse_another_run(out: Path, config: LoopConfig) -> None:
    try:
        before = json.loads((out / "run.json").read_text(encoding="utf-8"))["config"]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{out / 'run.json'}: not the settings of a run ({error}); choose another folder") from error
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in asdict(config).items()
        if name not in _FREE and before.get(name) != value
    ]
    if changed:
        raise InputError(f"{out} holds a run with other settings ({'; '.join(changed)}); choose another folder")


def _claim(out: Path, config: LoopConfig, data: Mapping[str, Any]) -> None:
    """Write the run's settings; refuse a folder that holds another run."""
    _refuse_another_run(out, config)
    if (out / "run.json").exists():
        before = json.loads((out / "run.json").read_text(encoding="utf-8")).get("data")
        if before != json.loads(json.dumps(data)):
            raise InputError(
                f"{out}: the data have changed since the run began ({before} before, {dict(data)} now); "
                "restore them, or choose another folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    versions = {"abc-rag": __version__, "torch": torch.__version__, **_code_version()}
    write_json(out / "run.json", {"config": asdict(config), "data": data, "versions": versions})


def _code_version() -> dict[str, str]:
    """Versions of the libraries that the result depends on, and the commit of a checkout."""
    import peft
    import transformers

    found = {"transformers": transformers.__version__, "peft": peft.__version__}
    head = Path(__file__).parents[3] / ".git" / "HEAD"
    try:
        text = head.read_text(encoding="utf-8").strip()
        reference = text.removeprefix("ref: ")
        found["commit"] = text if reference == text else (head.parent / reference).read_text(encoding="utf-8").strip()
    except OSError:
        pass  # an installed package has no checkout
    return found


def _optimizers(network: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the network and AdamW for the rest.

    Tried on the first 100 steps of abc-mini's base stage (25,000 questions, same seed): loss 2.77 with Muon at 2e-3,
    2.48 at 5e-3, against 4.53 with AdamW at 2e-3.
    """
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    if not named:
        raise CheckpointError("no weights are marked as trainable; is the adapter switched off?")
    inner = [p for n, p in named if config.optimizer == "muon" and p.ndim == 2 and "embed_tokens" not in n]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(
            torch.optim.AdamW(rest, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, config.beta2))
        )
    if inner:
        optimizers.append(
            torch.optim.Muon(inner, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def _schedule(step: int, config: LoopConfig) -> float:
    """Factor of the peak learning rate: linear warmup, then half a cosine down to ``final_lr``."""
    warmup = math.ceil(config.warmup * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, config.steps - warmup)
    return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share))


@contextmanager
def _ahead(make: Callable[[int], Any], steps: range, *, count: int = 2) -> Iterator[Iterator[Any]]:
    """Batches made in a thread, ``count`` ahead; its errors are raised where the batch is taken."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=count)
    stop = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def produce() -> None:
        for step in steps:
            try:
                batch = make(step)
            except BaseException as error:
                return put((None, error))
            put((batch, None))
            if stop.is_set():
                return

    def take() -> Iterator[Any]:
        for _ in steps:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch

    thread = threading.Thread(target=produce, daemon=True, name="abc-rag-batches")
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        thread.join()

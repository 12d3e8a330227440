"""Checkpoints of a run: trained weights and optimiser in safetensors, written beside the last one and then renamed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from abc_rag.errors import CheckpointError

__all__ = ["Checkpoints", "trained_tensors"]

_LOG = logging.getLogger(__name__)
_KEPT = 2


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are trained, whole and on the CPU, by name. Every process must call it."""
    state, _ = get_state_dict(model, (), options=_options())
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _options() -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=True,
        strict=False,
    )


class Checkpoints:
    """The checkpoints in ``folder``. Whatever happens while one is written, the one before it stays whole.

    Args:
        folder: Created on the first `save`.
        main: Whether this process writes.
    """

    def __init__(self, folder: Path, *, main: bool) -> None:
        self._folder = folder
        self._main = main

    def steps(self) -> list[int]:
        """The steps after which there is a whole checkpoint, ascending."""
        if not self._folder.is_dir():
            return []
        names = (f.name for f in self._folder.iterdir() if f.is_dir())
        return sorted(int(n.removeprefix("step-")) for n in names if n.startswith("step-") and n[5:].isdigit())

    def save(self, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Write the state after ``step`` steps; then remove all but the last two.

        Raises:
            CheckpointError: It could not be written; the message names the last good one.
        """
        found = get_state_dict(model, optimizers, options=_options())
        weights, states = cast(tuple[dict[str, Any], dict[str, Any]], found)
        if not self._main:
            return
        tensors = {f"weights.{n}": t.contiguous() for n, t in weights.items() if isinstance(t, torch.Tensor)}
        for weight, state in states["state"].items():
            tensors |= {f"optimizer.{kind}.{weight}": torch.as_tensor(t).contiguous() for kind, t in state.items()}
        target = self._folder / f"step-{step:07d}"
        part = target.with_suffix(".part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            # A tensor shared between two names (none is expected) is refused by safetensors rather than written twice.
            save_file(tensors, part / "state.safetensors", metadata={"format": "pt"})
            groups = json.dumps({"step": step, "param_groups": states["param_groups"]})
            (part / "state.json").write_text(groups, encoding="utf-8")
            for file in part.iterdir():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            good = self.steps()
            rest = f"the last good one is after step {good[-1]}" if good else "there is none yet"
            raise CheckpointError(
                f"{target}: the checkpoint could not be written ({error}); {rest}. "
                "Make room and run the same command again: it goes on from there"
            ) from error
        for old in self.steps()[:-_KEPT]:
            shutil.rmtree(self._folder / f"step-{old:07d}", ignore_errors=True)

    def load(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
        """Restore the last readable checkpoint; the number of steps that it has seen, 0 if there is none.

        Raises:
            CheckpointError: None of them can be read, or one does not fit the model.
        """
        found = self.steps()
        for number in reversed(found):
            folder = self._folder / f"step-{number:07d}"
            try:
                weights, states, groups = self._read(folder)
            except CheckpointError as error:
                if number == found[0]:
                    raise
                _LOG.warning("%s; going on from the one before", error)
                continue
            self._put(folder, model, optimizers, weights, {"state": states, "param_groups": groups})
            return number
        return 0

    def _read(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
        weights: dict[str, Any] = {}
        states: dict[str, Any] = {}
        try:
            with safe_open(folder / "state.safetensors", framework="pt") as handle:
                for name in handle.keys():
                    kind, _, rest = name.partition(".")
                    if kind == "weights":
                        weights[rest] = handle.get_tensor(name)
                    else:
                        kind, _, weight = rest.partition(".")
                        states.setdefault(weight, {})[kind] = handle.get_tensor(name)
            plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: not readable ({error}); delete it to start anew") from error
        return weights, states, plain["param_groups"]

    def _put(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        weights: dict[str, Any],
        states: dict[str, Any],
    ) -> None:
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        # Wrappers (DDP) put a prefix before the names; the state has none.
        bare = {n.removeprefix("module.") for n in trained}
        if bare != set(weights):
            odd = sorted(bare ^ set(weights))[:5]
            raise CheckpointError(f"{folder}: belongs to another network ({', '.join(odd)}); choose another folder")
        set_state_dict(model, optimizers, model_state_dict=weights, optim_state_dict=states, options=_options())

    def clear(self) -> None:
        """Remove them all: the result is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

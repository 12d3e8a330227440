"""How much memory a device has left, asked before much of it is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from abc_rag.errors import InputError

__all__ = ["free_memory", "require_memory"]

_GB = 1e9


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where that is not known.

    On a CPU the least of what the machine has, what its control group allows, and the process's own limit.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    import resource

    known = []
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            known.append(1024 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    try:
        known.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # another version of control groups, or no limit ("max")
        pass
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        known.append(limit)
    return min(known, default=None)


def require_memory(shape: str, needed: int, free: int | None) -> None:
    """Refuse what does not fit.

    Args:
        shape: What is to be built.
        needed: Bytes that it takes.
        free: Bytes that are left, if that is known.

    Raises:
        InputError: It does not fit.
    """
    if free is not None and needed > free:
        raise InputError(
            f"shape {shape!r} needs {needed / _GB:.1f} GB of memory for its weights, and {free / _GB:.1f} GB are free; "
            "choose a smaller shape, dtype='bfloat16' (half of float32), or another device"
        )

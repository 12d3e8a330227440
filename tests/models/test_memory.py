"""Too little memory is said before any is taken."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch

from abc_rag.errors import InputError
from abc_rag.models.memory import free_memory, require_memory

LIMIT = 12 * 10**9


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(InputError, match=r"'7b' needs 31\.1 GB .* 8\.0 GB are free; choose a smaller shape"):
        require_memory("7b", 31_100_000_000, 8_000_000_000)
    require_memory("7b", 8_000_000_000, 8_000_000_000)
    require_memory("7b", 8_000_000_000, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from Linux's own files")
def test_a_cpu_has_no_more_than_the_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    pages = os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= pages * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(torch.device("meta")) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process as Linux does")
def test_the_command_ends_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "abc_rag.cli", "bench", "--shape", "7b", "--device", "cpu", "--dtype", "float32"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --shape 7b needs 31.0 GB")
    assert "choose a smaller --shape, --dtype bfloat16" in done.stderr
    assert len(done.stderr.splitlines()) == 1

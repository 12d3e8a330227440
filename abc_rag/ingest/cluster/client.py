"""Ray as a package that may be missing, and a connection to a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from abc_rag.errors import ABCRagError, InputError, MissingExtraError

__all__ = ["LOCAL", "connected", "import_ray", "translated"]

LOCAL = "local"
"""In place of an address: Ray on this machine alone, for the time of the run."""
_PATIENCE_S = 10.0


def import_ray() -> ModuleType:
    """The module ``ray``, with ``ray.data``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "indexing on a cluster", extra="ray") from error
    return ray  # type: ignore[no-any-return]


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """The module ``ray``, connected to a cluster.

    Nothing is reported to Ray's makers, and a Ray that is started here listens on this machine alone and has no
    dashboard.

    Args:
        address: ``HOST:PORT`` of the cluster's head; ``"auto"`` for the one that this machine is a node of; `LOCAL`;
            None for whatever this process is connected to, else ``"auto"``.

    Raises:
        InputError: There is no such cluster.
        MissingExtraError: Ray is not installed.
    """
    ray = import_ray()
    # Plans and stages of the pipeline are no news to whoever asked for an index.
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        if not ray.is_initialized():
            with _started("auto" if address is None else address, ray):
                yield ray
            return
        if address is not None and address != LOCAL and ray.get_runtime_context().gcs_address != address:
            raise InputError(f"{address}: this process is connected to another cluster; call ray.shutdown() first")
        yield ray
    finally:
        log.setLevel(level)


@contextmanager
def _started(where: str, ray: ModuleType) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING, "namespace": "abc-rag"}
    if where == LOCAL:
        ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    else:
        _require_answer(where)
        try:
            ray.init(where, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{where}: no Ray cluster answers there ({error}); run this on one of its machines, with the address "
                "that 'ray start --head' printed, or pass 'local'"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ray itself would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise InputError(f"{address!r} is no address of a Ray cluster; write HOST:PORT of its head, 'auto' or 'local'")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{address}: nothing answers there ({error}); check that the cluster's head runs, or pass 'local'"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Raise our own error where that is what ended a task on the cluster."""
    try:
        yield
    except ABCRagError:
        raise
    except Exception as error:
        deepest: BaseException = error
        while isinstance(cause := getattr(deepest, "cause", None) or deepest.__cause__, BaseException):
            if isinstance(cause, ABCRagError):
                raise cause from error
            deepest = cause
        if type(error).__module__.startswith("ray."):
            raise ABCRagError(
                f"the cluster could not go on ({type(deepest).__name__}: {str(deepest).strip()[:500]}); run the same "
                "command again, it goes on where it stopped"
            ) from error
        raise

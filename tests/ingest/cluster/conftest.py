"""A cluster of three nodes on loopback, and folders to index on it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster_helpers import LOOPBACK, NODE

from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest.cluster import Engines, index_on_cluster
from abc_rag.ingest.report import IndexReport

TESTS = str(Path(__file__).parents[2])
OnCluster = Callable[..., IndexReport]


@pytest.fixture(scope="session")
def nodes(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Three nodes of two logical CPUs each; this process is connected to them."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'abc-rag[ray]'")
    with suppress(pytest.skip.Exception):
        request.getfixturevalue("bucket")  # nodes have the environment of their start
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Workers import the helpers too.
        patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]))
        cluster = started()
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, _node_ip_address=LOOPBACK)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def started() -> Any:
    """The nodes. Ray itself gives a node 30 seconds to start, which a busy machine may not keep."""
    from ray.cluster_utils import Cluster

    for _ in range(4):
        cluster = Cluster()
        try:
            cluster.add_node(**NODE, include_dashboard=False)
            cluster.add_node(**NODE)
            cluster.add_node(**NODE)
            return cluster
        except Exception as error:
            cluster.shutdown()
            why = error
    pytest.skip(f"Ray's nodes do not start in time: {why}")


@pytest.fixture
def on_cluster(nodes: Any, tmp_path: Path) -> OnCluster:
    """Index into a lake of the test's own."""

    def run(*sources: Path | str, embedder: Embedder | None = None, **settings: Any) -> IndexReport:
        settings = {"engines": Engines(most=2), "commit_rows": 8, **settings}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            return index_on_cluster(sources, embedder or FakeEmbedder(), f"lance://{tmp_path / 'lake'}", **settings)

    return run

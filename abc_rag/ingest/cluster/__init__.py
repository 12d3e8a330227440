"""Indexing on a Ray cluster, into Lance datasets."""

from __future__ import annotations

from abc_rag.ingest.cluster.embedder import ClusterEmbedder
from abc_rag.ingest.cluster.options import Columns, Engines, Reading
from abc_rag.ingest.cluster.run import index_on_cluster

__all__ = ["ClusterEmbedder", "Columns", "Engines", "Reading", "index_on_cluster"]

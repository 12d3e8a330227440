"""An embedder whose engines are on the cluster."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from abc_rag import Image, Text
from abc_rag.cli.main import app
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.ingest.cluster import ClusterEmbedder, Engines
from abc_rag.scenes.captions import captions
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import held_out_scenes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
BROKEN = b"\x89PNG\r\n\x1a\nbroken"


def test_vectors_in_order_and_errors_at_their_places(nodes: Any) -> None:
    own = FakeEmbedder()
    texts = [Text(f"passage {number}") for number in range(30)]
    with ClusterEmbedder(own, engines=Engines(most=2, batch=4, cpus=0.5)) as spread:
        assert (spread.dim, spread.fingerprint, spread.accepts) == (own.dim, own.fingerprint, own.accepts)
        np.testing.assert_array_equal(spread.embed(texts), own.embed(texts))
        results = list(spread.embed_iter([*texts[:9], Image(BROKEN), *texts[9:]], return_errors=True))
        assert [n for n, one in enumerate(results) if isinstance(one, ABCRagError)] == [9]
        assert isinstance(results[9], ImageError)
        np.testing.assert_array_equal(np.stack(results[:9] + results[10:]), own.embed(texts))
        with pytest.raises(InputError):
            spread.embed([Image(BROKEN)])
    with pytest.raises(ABCRagError, match="has been closed"):
        spread.embed(texts)


def test_commands_on_a_cluster_give_what_they_give_here(nodes: Any, tmp_path: Path) -> None:
    """Mining and an evaluation with a real model, whose sums depend on the batch in the last digits."""
    scenes = held_out_scenes(12, seed=3)
    rng = random.Random(3)
    rows = []
    for number, scene in enumerate(scenes):
        render(scene, 56).save(tmp_path / f"{number}.png")
        rows.append({"id": f"s{number}", "image": f"{number}.png", "caption": captions(scene, rng)})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = ["train", "mine-negatives", str(tmp_path), "OUT", "--query", "image", "--count", "3"]
    measure = ["evaluate", "ctrlbench", "scenes", "--limit", "6"]
    found = []
    for name, cluster in (("here", []), ("there", ["--ray", nodes.address, "--engine-cpus", "0.5"])):
        file = str(tmp_path / f"{name}.txt")
        results = []
        for command in (mine, measure):
            given = [file if one == "OUT" else one for one in command]
            done = CliRunner().invoke(app, [*given, "--model", "abc-mini", "--device", "cpu", "--json", *cluster])
            assert done.exit_code == 0, (done.output, done.exception)
            results.append(json.loads(done.stdout))
        found.append((Path(file).read_text(), results[0]["rows"], results[1]["tables"]))
    assert found[0] == found[1]
    refused = CliRunner().invoke(app, ["evaluate", "speaking", "--ray", nodes.address])
    assert isinstance(refused.exception, InputError)
    assert "the model generates on this machine; leave it out" in str(refused.exception)

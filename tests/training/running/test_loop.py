"""Whole runs: resumed after a kill, on two processes, on a full disk; what they leave behind and refuse."""

from __future__ import annotations

import base64
import http.server
import json
import math
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import FIXTURE
from safetensors import safe_open
from safetensors.torch import load_file
from training_helpers import RECORDS, family_of, gradients, instructing_network, plan_of, pretraining_network, step

from abc_rag import ABCCheckpoint, InstructedImage, Text, load_embedder
from abc_rag.cli.main import main
from abc_rag.embedding.load import local_revision
from abc_rag.errors import CheckpointError, DatasetError, InputError
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import held_out_scenes
from abc_rag.training.config import InstructConfig, PretrainConfig, read_config
from abc_rag.training.instruct import instruct
from abc_rag.training.losses import contrastive_loss
from abc_rag.training.pretrain import pretrain
from abc_rag.training.running.card import push_to_hub
from abc_rag.training.running.checkpoints import Checkpoints
from abc_rag.training.step import Encoder

TESTS = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "data": "scenes", "base": str(FIXTURE / "base"), "pictures": 4, "rank": 4, "min_tokens": 4, "max_tokens": 9,
    "bf16": False, "head_hidden": 64, "checkpoint_every": 1, "threads": 1, "workers": 2, "dropout": 0.1,
    "tensorboard": False, "base_dtype": "float32", "lr": 1e-3,
}  # fmt: skip


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def arguments(config: dict[str, Any]) -> list[str]:
    return [part for name, value in config.items() for part in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "pretrain"
    said: list[str] = []
    config = PretrainConfig(**{**SMALL, "out": str(out), "steps": 4, "tensorboard": True})
    assert pretrain(config, say=said.append) == out
    assert "pretrain 4/4" in said[-1]
    return out


# --- What a run leaves behind -----------------------------------------------------------------------------


def test_a_run_keeps_its_settings_metrics_and_card(pretrained: Path) -> None:
    run = json.loads((pretrained / "run.json").read_text())
    assert run["config"]["seed"] == 0
    assert run["config"]["lr"] == 1e-3
    assert {"abc-rag", "torch", "transformers", "peft"} <= set(run["versions"])
    found = rows(pretrained)
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in found)
    # Cosine: warmed up after one step (3 % of four, rounded up), and down to nothing behind the last.
    assert [row["lr"] for row in found] == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3], rel=1e-5)
    assert list((pretrained / "tensorboard").glob("events*"))
    card = (pretrained / "README.md").read_text()
    mean = found[-1]["loss"]
    assert f"| {mean:.4f} |" in card
    assert str(FIXTURE) not in card
    assert "| seed | 0 |" in card
    assert not (pretrained / "checkpoints").exists()


def test_the_adapters_can_be_used(pretrained: Path, tmp_path: Path) -> None:
    config = InstructConfig(**{**SMALL, "out": str(tmp_path / "run"), "steps": 2, "pretrain": str(pretrained)})
    out = instruct(config)
    assert "temperature" in rows(out)[0]
    picture = render(held_out_scenes(1, seed=0)[0])
    inputs = [Text("a dog"), InstructedImage(picture, "what is on the left?")]
    vectors = load_embedder(out, device="cpu").embed(inputs)
    parts = ABCCheckpoint(base=FIXTURE / "base", pretrain=pretrained, instruct=out)
    assert np.abs(load_embedder(parts, device="cpu").embed(inputs) - vectors).max() < 1e-6
    # Texts are embedded without the new adapter: the space that candidates live in stays as it is.
    other = instruct(replace(config, out=str(tmp_path / "other"), seed=5))
    again = load_embedder(other, device="cpu").embed(inputs)
    assert np.abs(again[0] - vectors[0]).max() < 1e-6
    assert np.abs(again[1] - vectors[1]).max() > 1e-5


def test_a_terminal_shows_a_bar_with_loss_accuracy_and_temperature(tmp_path: Path) -> None:
    config = {**SMALL, "out": str(tmp_path / "run"), "steps": 2}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "abc_rag.cli", "train", "pretrain", *arguments(config)],
        stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "160", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # what reading says when the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert "2/2" in text
    assert all(name in text for name in ("pretrain", "loss", "accuracy", "temperature"))


def test_a_finished_run_is_not_repeated(pretrained: Path) -> None:
    before = (pretrained / "adapter_model.safetensors").stat().st_mtime_ns
    pretrain(PretrainConfig(**{**SMALL, "out": str(pretrained), "steps": 4}))
    assert (pretrained / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"seed was 0 and is 1"):
        pretrain(PretrainConfig(**{**SMALL, "out": str(pretrained), "steps": 4, "seed": 1}))


# --- Interrupted runs -------------------------------------------------------------------------------------


def test_a_killed_run_ends_in_the_same_weights(pretrained: Path, tmp_path: Path) -> None:
    config = {**SMALL, "out": str(tmp_path / "run"), "steps": 4}
    command = [sys.executable, "-m", "abc_rag.cli", "train", "pretrain", *arguments(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not (tmp_path / "run" / "checkpoints" / "step-0000002").is_dir():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    # A line that was being written when the run died.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 3, "sec')
    pretrain(PretrainConfig(**config))
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (pretrained, tmp_path / "run"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert [r["step"] for r in rows(tmp_path / "run")] == [1, 2, 3, 4]
    assert [r["loss"] for r in rows(tmp_path / "run")] == [r["loss"] for r in rows(pretrained)]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    network = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoints = Checkpoints(tmp_path, main=True)
    network(torch.ones(100)).sum().backward()
    optimizer.step()
    checkpoints.save(1, network, [optimizer])
    good = network.weight.detach().clone()
    optimizer.step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be written.*last good one is after step 1"):
            checkpoints.save(2, network, [optimizer])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps() == [1]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-0000001"]
    other = torch.nn.Linear(100, 100)
    restored = torch.optim.AdamW(other.parameters())
    assert checkpoints.load(other, [restored]) == 1
    assert torch.equal(other.weight, good)
    assert float(restored.state_dict()["state"][0]["step"]) == 1
    with pytest.raises(CheckpointError, match="belongs to another network"):
        checkpoints.load(torch.nn.Sequential(torch.nn.Linear(100, 100)), [restored])


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    checkpoints = Checkpoints(tmp_path, main=True)
    for number in (1, 2, 3):
        checkpoints.save(number, network, [optimizer])
    assert checkpoints.steps() == [2, 3]


# --- Two processes ----------------------------------------------------------------------------------------


def two_processes(command: list[str]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Each stage and each way to share it; neither depends on the other.
@pytest.mark.parametrize(("mode", "wrapper"), [("pretrain", "fsdp"), ("instruct", "ddp")])
def test_two_processes_have_the_gradients_of_one(mode: str, wrapper: str, tmp_path: Path) -> None:
    """Three pictures over two processes, in chunks of one: neither the share nor the chunk changes anything."""
    out = tmp_path / "gradients.safetensors"
    two_processes([str(TESTS / "training_worker.py"), mode, wrapper, "1", "all", str(out)])
    network = pretraining_network() if mode == "pretrain" else instructing_network()
    with ThreadPoolExecutor(2) as pool:
        values = step(network, RECORDS[mode], load_prompts(FIXTURE / "base"), pool)
    with safe_open(out, framework="pt") as handle:
        assert float(handle.metadata()["loss"]) == pytest.approx(values["loss"], rel=1e-5)
    found, expected = load_file(out), gradients(network)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_own_negatives_are_those_of_the_published_gather(tmp_path: Path) -> None:
    """There a caption learns from its own process's pictures only: the other's captions are constants to it."""
    out = tmp_path / "gradients.safetensors"
    two_processes([str(TESTS / "training_worker.py"), "pretrain", "ddp", "0", "own", str(out)])
    network, prompts = pretraining_network(), load_prompts(FIXTURE / "base")
    plan, family = plan_of(RECORDS["pretrain"]), family_of(network, prompts)
    asked = [family.prepare(query) for query in plan.queries]
    ids = [((n,), one.input_ids) for n, one in enumerate(asked)]
    texts = [((), family.prepare(text).input_ids) for text in plan.candidates]
    q, c, temperature = Encoder(network)([one.pictures[0].opened for one in asked], ids, texts)
    owner, total = torch.tensor(plan.candidate_rows), torch.zeros(())
    for ours in ([0], [1, 2]):
        held = torch.isin(owner, torch.tensor(ours))[:, None]
        candidates = torch.where(held, c, c.detach())
        loss, _ = contrastive_loss(q[ours], candidates, torch.from_numpy(plan.targets)[ours], temperature)
        total = total + loss * len(ours) / plan.rows
    total.backward()
    found, expected = load_file(out), gradients(network)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_the_command_runs_on_two_processes(tmp_path: Path) -> None:
    out = {}
    for processes in (1, 2):
        config = {**SMALL, "out": str(tmp_path / str(processes)), "steps": 2, "dropout": 0.0, "pictures": 5}
        command = ["-m", "abc_rag.cli", "train", "pretrain", *arguments(config)]
        if processes == 2:
            two_processes(command)
        else:
            subprocess.run([sys.executable, *command], capture_output=True, check=True, timeout=900)
        out[processes] = rows(tmp_path / str(processes))
        assert (tmp_path / str(processes) / "adapter_model.safetensors").is_file()
    assert [row["step"] for row in out[2]] == [1, 2]
    assert out[2][0]["loss"] == pytest.approx(out[1][0]["loss"], rel=1e-5)
    assert out[2][0]["grad_norm"] == pytest.approx(out[1][0]["grad_norm"], rel=1e-4)
    assert out[2][1]["loss"] == pytest.approx(out[1][1]["loss"], rel=1e-3)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started, but Accelerate connects only 1"):
        pretrain(PretrainConfig(**{**SMALL, "out": str(tmp_path / "run"), "steps": 1}))


# --- Settings ---------------------------------------------------------------------------------------------


def test_a_file_the_command_line_and_defaults_make_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: pictures\nlr: 2e-5\nsteps: 10\nchunk: null\n")
    config = read_config(PretrainConfig, file, {"out": "runs/x", "steps": None, "seed": 7}, ["steps=20", "rank=8"])
    assert (config.data, config.lr, config.steps, config.seed, config.rank) == ("pictures", 2e-5, 20, 7, 8)
    assert (config.pictures, config.negatives, config.label_smoothing) == (512, 7, 0.1)
    assert InstructConfig(out="x", data="y").pairs == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "x"}, "needs out"),
        ({"out": "o", "data": "x", "learning_rate": 1}, "'learning_rate' is not a setting"),
        ({"out": "o", "data": "x", "stesp": 1}, "did you mean 'steps'"),
        ({"out": "o", "data": "x", "steps": 0}, "steps must be at least 1"),
        ({"out": "o", "data": "x", "lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"out": "o", "data": "x", "bf16": "yes"}, "bf16 must be of type bool"),
        ({"out": "o", "data": "x", "optimizer": "sgd"}, "must be one of 'adamw', 'muon'"),
        ({"out": "o", "data": "x", "dropout": 1.0}, "dropout is out of range"),
        ({"out": "o", "data": "x", "min_tokens": 600}, r"min_tokens \(600\) is larger than max_tokens \(512\)"),
    ],
)
def test_unusable_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_config(PretrainConfig, None, values)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- lr\n- steps\n")
    (tmp_path / "b.yaml").write_text("a: [1,\n")
    for name in ("a.yaml", "b.yaml", "missing.yaml"):
        with pytest.raises(InputError, match=name):
            read_config(PretrainConfig, tmp_path / name, {})
    with pytest.raises(InputError, match="not of the form name=value"):
        read_config(PretrainConfig, None, {}, ["steps"])


def test_a_folder_that_is_not_a_runs_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="that no run wrote"):
        pretrain(PretrainConfig(**{**SMALL, "out": str(tmp_path), "steps": 4}))
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / "run.lock"):
        with pytest.raises(InputError, match="another process is training in this folder"):
            pretrain(PretrainConfig(**{**SMALL, "out": str(tmp_path / "run"), "steps": 4}))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        pretrain(PretrainConfig(**{**SMALL, "out": str(tmp_path / "file" / "run"), "steps": 4}))


def test_changed_data_are_noticed(pretrained: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 6)
    config = InstructConfig(
        **{**SMALL, "data": str(folder), "pictures": 6, "steps": 3, "out": str(tmp_path / "a"),
           "pretrain": str(pretrained)}
    )  # fmt: skip
    instruct(config)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with (folder / "train.jsonl").open("a") as handle:
        handle.write("\n" + json.dumps({"image": "0.png", "pairs": [{"instruction": "new", "phrase": "new"}]}))
    with pytest.raises(InputError, match="the data have changed since the run began"):
        instruct(config)


def test_a_checkpoint_names_a_local_model_relative_to_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("base", "pretrain", "instruct"):
        (tmp_path / "own" / part).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = read_config(PretrainConfig, None, {"out": "o", "data": "d"}, model="own")
    assert config.base == str(tmp_path / "own" / "base")
    with pytest.raises(InputError, match="neither 'abc-mini' nor a folder"):
        read_config(PretrainConfig, None, {"out": "o", "data": "d"}, model="abc")


def test_parts_on_the_hub_are_not_fetched_to_look_at_a_folder(tmp_path: Path) -> None:
    parts = {"base": "Qwen/Qwen2-VL-7B-Instruct", "pretrain": "a/b", "instruct": "./"}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    assert local_revision(tmp_path) is None
    with pytest.raises(InputError, match="neither 'abc-mini' nor a folder"):
        read_config(PretrainConfig, None, {"out": "o", "data": "d"}, model=str(tmp_path))
    (tmp_path / "parts.json").write_text(json.dumps({**parts, "base": None}))
    with pytest.raises(CheckpointError, match="must name base, pretrain and instruct"):
        local_revision(tmp_path)


def test_another_runs_folder_is_refused(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((pretrained / "run.json").read_text())
    with pytest.raises(InputError, match=r"lr was 0\.001 and is 0\.002.*choose another folder"):
        pretrain(PretrainConfig(**{**SMALL, "out": str(tmp_path), "steps": 4, "lr": 2e-3}))


# --- A team's own data ------------------------------------------------------------------------------------


def make_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    lines = []
    for number, scene in enumerate(held_out_scenes(count, seed=1)):
        render(scene, 84).save(folder / f"{number}.png")
        asked = {"behind it": f"a {scene.background} wall", "shown": f"a {scene.objects[0].kind}, number {number}"}
        pairs = [{"instruction": f"what is {aspect}?", "phrase": phrase} for aspect, phrase in asked.items()]
        lines.append(json.dumps({"id": f"p{number}", "image": f"{number}.png", "pairs": pairs}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def test_a_broken_picture_is_named_counted_and_left_out(pretrained: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 6)
    (folder / "2.png").write_bytes(b"no picture")
    config = InstructConfig(
        **{**SMALL, "data": str(folder), "pictures": 6, "steps": 2, "out": str(tmp_path / "a"), "chunk": 2,
           "pretrain": str(pretrained)}
    )  # fmt: skip
    out = instruct(config)
    assert all(math.isfinite(row["loss"]) for row in rows(out))
    assert "rows left out: 1" in (out / "README.md").read_text()  # once, however often its turn comes
    with pytest.raises(DatasetError, match=r"p2: picture is broken.*") as caught:
        instruct(replace(config, out=str(tmp_path / "b"), max_bad=0))
    assert "the limit is 0" in str(caught.value)


def test_too_few_rows_for_a_batch_is_an_error(pretrained: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 3)
    config = {**SMALL, "data": str(folder), "pictures": 4, "out": str(tmp_path / "a"), "pretrain": str(pretrained)}
    with pytest.raises(InputError, match=r"3 usable rows, fewer than one batch of 4 pictures; set pictures=3"):
        instruct(InstructConfig(**config))


# --- To the hub -------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload of small files needs."""

    committed: dict[str, bytes]
    created: list[dict[str, Any]]

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer({"id": "user/adapter", "sha": "0" * 40, "siblings": [], "private": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self._answer({"url": "http://127.0.0.1/user/adapter", "name": "user/adapter"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"commitUrl": "http://127.0.0.1/user/adapter/commit/1", "commitOid": "1" * 40})
        else:
            self._answer({})


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"committed": {}, "created": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_is_pushed_with_its_figures(pretrained: Path, tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    url, handler = hub
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"benchmark": "ctrlbench", "model": "m", "metrics": {"R@1": 0.5}}))
    push_to_hub(pretrained, "user/adapter", endpoint=url, results=results)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"benchmark": "retrieval", "model": "m", "metrics": {"R@1": 0.25}}))
    push_to_hub(pretrained, "user/adapter", endpoint=url, results=other)
    push_to_hub(pretrained, "user/adapter", endpoint=url, results=results)
    assert handler.created[0].get("private") or handler.created[0].get("visibility") == "private"
    assert set(handler.committed) == {
        "adapter_model.safetensors", "adapter_config.json", "abc.json", "metrics.jsonl", "README.md",
    }  # fmt: skip
    assert handler.committed["adapter_model.safetensors"] == (pretrained / "adapter_model.safetensors").read_bytes()
    card = handler.committed["README.md"].decode()
    assert card.count("## Evaluation: ctrlbench (m)") == 1
    assert "| R@1 | 0.5000 |" in card
    assert "| R@1 | 0.2500 |" in card
    assert card.index("## Evaluation") < card.index("## Data")
    for name, content in handler.committed.items():
        assert str(FIXTURE.parent).encode() not in content, name


def test_an_unfinished_run_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train to the end first"):
        push_to_hub(tmp_path, "user/adapter")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"results\.json"):
        push_to_hub(tmp_path, "user/adapter", results=tmp_path / "none.json")
    with pytest.raises(InputError, match="is not the name of a repository"):
        push_to_hub(tmp_path, "user/adapter/more/parts")


def test_the_command_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "pretrain", "--data", "scenes"])
    assert caught.value.code == 2
    assert "needs out" in capsys.readouterr().err


def test_muon_beside_adamw_is_restored(tmp_path: Path) -> None:
    def made() -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
        matrices = [p for p in network.parameters() if p.ndim == 2]
        others = [p for p in network.parameters() if p.ndim != 2]
        return network, [torch.optim.AdamW(others, lr=0.1), torch.optim.Muon(matrices, lr=0.1)]

    def advance(network: torch.nn.Module, optimizers: list[torch.optim.Optimizer], number: int) -> None:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        network(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    one, optimizers = made()
    checkpoints = Checkpoints(tmp_path, main=True)
    for number in range(4):
        advance(one, optimizers, number)
        if number == 1:
            checkpoints.save(2, one, optimizers)
    two, restored = made()
    assert checkpoints.load(two, restored) == 2
    for number in (2, 3):
        advance(two, restored, number)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))

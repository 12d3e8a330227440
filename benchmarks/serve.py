"""What the server costs and gives: throughput of many clients, overhead over the local engine, and a soak.

The server runs abc-mini in a process of its own, on loopback; clients are threads of this process, each with a
connection of its own. ``--soak MINUTES`` sends a mix of requests from 64 clients and watches the server's memory; every
answer is compared with the vectors of a local embedder, and every item of every upload is counted. Asked for alone,
before and after, each input has the local vector bit for bit; in a batch with others, the sums of a product may round
differently. An answer that is an error other than 429, or an item that is lost or doubled, ends it with status 1.

    python -m benchmarks.serve --json results/serve.json
    python -m benchmarks.serve --soak 10 --json results/serve-soak.json
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abc_rag import Image, Input, InstructedImage, Text, load_embedder
from abc_rag.bench.inputs import random_jpeg, random_passage
from benchmarks._harness import finish, parser, prepare, spread

_MB = 2**20
# What a batch's composition may change in a number of a vector of length 1.
_ROUNDING = 1e-6
_FINE = ("200", "202", "429")


def main() -> int:
    """Run the benchmark."""
    options = parser(__doc__, shapes=("mini", "tiny"), rounds=3)
    options.add_argument("--clients", type=int, default=16, help="clients at once")
    options.add_argument("--seconds", type=float, default=5.0, help="seconds of each measurement")
    options.add_argument("--soak", type=float, default=0.0, help="minutes of the soak, in place of the measurements")
    arguments = options.parse_args()
    prepare(arguments)
    if arguments.quick:
        arguments.seconds, arguments.clients = min(arguments.seconds, 0.3), min(arguments.clients, 2)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.soak:
            with served(Path(folder)) as server:
                found = soak(server, arguments)
            finish("serve", arguments, {"rows": [found]})
            for fault in faults(found):
                print(fault, file=sys.stderr)
            return 1 if faults(found) else 0
        with served(Path(folder)) as server:
            rows = [throughput(server, arguments)]
        tokens = 16 if arguments.quick else 256
        with served(Path(folder), "--min-tokens", str(tokens), "--max-tokens", str(tokens)) as server:
            rows.append(overhead(server, arguments, tokens))
    finish("serve", arguments, {"rows": rows})
    return 0


class Server:
    """A running server: its port and its process."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """A client with a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            yield Client(connection)

    def cpu(self) -> float:
        """Seconds of CPU time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def batches(self) -> tuple[float, float]:
        """How many batches it has computed, and of how many inputs."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("GET", "/metrics")
            lines = [line.split() for line in connection.getresponse().read().decode().splitlines()]
        count, inputs = (
            sum(float(line[-1]) for line in lines if line[0].startswith(f"abc_rag_batch_inputs_{end}"))
            for end in ("count", "sum")
        )
        return count, inputs

    def memory(self) -> int:
        """Bytes of memory that the process has now."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Client:
    """One connection that is kept open."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:  # noqa: ANN401
        """Status and value of an answer."""
        sent = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, sent, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        told = answer.read()
        return answer.status, json.loads(told) if told else None

    def embed(self, inputs: list[dict[str, Any]]) -> np.ndarray:
        """Vectors of inputs in our own form."""
        status, answer = self.ask("POST", "/v1/vectors", {"inputs": inputs})
        if status != 200:
            raise RuntimeError(f"{status}: {answer}")
        return vectors_of(answer)


def vectors_of(answer: dict[str, Any]) -> np.ndarray:
    """The vectors of an answer in our own form."""
    return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(-1, answer["dim"])


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Server]:
    """A server of abc-mini; ended with SIGTERM."""
    command = [sys.executable, "-m", "abc_rag.cli", "serve", "--model", "abc-mini", "--port", "0", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--store", str(folder / "store")], stdout=log, stderr=log)
    try:
        while b"listening on " not in (said := (folder / "log").read_bytes()):
            if process.poll() is not None:
                raise RuntimeError(said.decode())
            time.sleep(0.1)
        port = int(said.split(b"listening on http://127.0.0.1:")[1].split()[0])
        server = Server(port, process.pid)
        with server.connect() as client:
            while client.ask("GET", "/ready")[0] != 200:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run work in threads; the first error is raised."""
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def throughput(server: Server, arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """Texts a second of one client alone, and of many at once, each sending one text after the other."""
    found: dict[int, list[_Sent]] = {1: [], arguments.clients: []}
    for round_ in range(arguments.rounds + 1):
        for clients, rounds in found.items():
            sent = _send_texts(server, clients, arguments.seconds, f"{arguments.seed} {round_}")
            if round_:  # the first warms up
                rounds.append(sent)
    row: dict[str, Any] = {"what": f"single texts, {arguments.clients} clients over 1"}
    for clients, rounds in found.items():
        who = f"{clients} client{'s' * (clients > 1)}"
        row |= {
            f"{who}, texts/s": spread([one.rate for one in rounds]),
            f"{who}, CPU of the server, ms a text": spread([one.server_ms for one in rounds]),
            f"{who}, CPU of the clients, ms a text": spread([one.clients_ms for one in rounds]),
            f"{who}, texts in a batch": spread([one.batch for one in rounds]),
        }
    many, one = (row[f"{who}, texts/s"]["median"] for who in (f"{arguments.clients} clients", "1 client"))
    return {**row, "times": many / one}


class _Sent(NamedTuple):
    """What texts cost in one round: texts a second, CPU time in milliseconds a text, and inputs of a batch."""

    rate: float
    server_ms: float
    clients_ms: float
    batch: float


def _send_texts(server: Server, clients: int, seconds: float, seed: str) -> _Sent:
    done = [0] * clients
    before, cpu, own = server.batches(), server.cpu(), time.process_time()
    begun = time.perf_counter()

    def work(number: int) -> None:
        rng = random.Random(f"{seed} {clients} {number}")
        with server.connect() as client:
            while time.perf_counter() < begun + seconds:
                client.embed([{"type": "text", "text": random_passage(rng, 12)}])
                done[number] += 1

    in_threads(clients, work)
    took, texts = time.perf_counter() - begun, sum(done)
    own, cpu, after = time.process_time() - own, server.cpu() - cpu, server.batches()
    batch = (after[1] - before[1]) / max(1.0, after[0] - before[0])
    return _Sent(texts / took, 1000 * cpu / texts, 1000 * own / texts, batch)


def overhead(server: Server, arguments: Any, tokens: int) -> dict[str, Any]:  # noqa: ANN401
    """Time of pictures over HTTP against the same pictures in a local engine, in turn."""
    embedder = load_embedder("abc-mini", device="cpu", min_tokens=tokens, max_tokens=tokens)
    count = 2 if arguments.quick else 16
    local: list[float] = []
    remote: list[float] = []
    for round_ in range(arguments.rounds + 1):
        rng = np.random.default_rng([arguments.seed, round_])
        pictures = [random_jpeg(rng, 448, 448) for _ in range(count)]
        begun = time.perf_counter()
        mine = embedder.embed([Image(one) for one in pictures])
        between = time.perf_counter()
        sent = [{"type": "image", "image": {"data": base64.b64encode(one).decode()}} for one in pictures]
        with server.connect() as client:
            theirs = client.embed(sent)
        ended = time.perf_counter()
        if np.abs(mine - theirs).max() > 1e-5:
            raise RuntimeError("the server's vectors are others")
        if round_:
            local.append(between - begun)
            remote.append(ended - between)
    return {
        "what": f"{count} pictures of {tokens} tokens, over HTTP and in the engine",
        "local, s": spread(local),
        "remote, s": spread(remote),
        "overhead": float(np.median(remote) / np.median(local) - 1),
    }


def soak(server: Server, arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """A mix of requests from 64 clients: errors, wrong vectors, lost and doubled items, and the server's memory."""
    clients = 4 if arguments.quick else 64
    rng = np.random.default_rng(arguments.seed)
    jpegs = [random_jpeg(rng, 128, 96) for _ in range(16)]
    words = random.Random(arguments.seed)
    typed: list[Input] = [Text(random_passage(words, 12)) for _ in range(64)]
    wire: list[dict[str, Any]] = [{"type": "text", "text": one.words} for one in typed]
    for one in jpegs:
        data = {"data": base64.b64encode(one).decode()}
        typed += [Image(one), InstructedImage(one, "what is on the left?")]
        wire += [
            {"type": "image", "image": data},
            {"type": "instructed_image", "image": data, "instruction": "what is on the left?"},
        ]
    embedder = load_embedder("abc-mini", device="cpu")
    alone = np.concatenate([embedder.embed([one]) for one in typed])
    embedder.close()
    tallies: list[Counter[str]] = [Counter() for _ in range(clients)]
    worst = [0.0] * clients

    def asked_alone() -> int:
        """How many inputs have the local vector bit for bit, where nobody else asks."""
        with server.connect() as client:
            return sum(bool((client.embed([one])[0] == vector).all()) for one, vector in zip(wire, alone, strict=True))

    equal = [asked_alone()]
    until = time.perf_counter() + 60 * arguments.soak
    with server.connect() as client:
        client.ask("POST", "/v1/collections", {"name": "soak"})
    stored: list[str] = []

    def work(number: int) -> None:
        with server.connect() as client:
            ask_on(client, number)

    def ask_on(client: Client, number: int) -> None:
        own, words = np.random.default_rng([arguments.seed, number]), random.Random(f"{arguments.seed} {number}")
        round_, counts = 0, tallies[number]
        while time.perf_counter() < until:
            round_ += 1
            kind = int(own.integers(10))
            if kind < 7:
                chosen = own.integers(len(wire), size=1 if kind < 4 else 8)
                status, answer = client.ask("POST", "/v1/vectors", {"inputs": [wire[position] for position in chosen]})
                if status == 200:
                    gap = np.abs(vectors_of(answer) - alone[chosen]).max(axis=1)
                    worst[number] = max(worst[number], float(gap.max()))
                    counts["vectors"] += len(chosen)
                    counts["bit-equal"] += int((gap == 0).sum())
            elif kind == 7 and number < 8:
                ids = [f"{number}-{round_}-{position}" for position in range(3)]
                items = [{"text": random_passage(words, 8), "id": id_} for id_ in ids]
                status, _ = client.ask("POST", "/v1/collections/soak/items", {"items": items})
                if status == 202:
                    stored.extend(ids)
            elif kind == 8:
                status, _ = client.ask("POST", "/v1/collections/soak/search", {"question": random_passage(words, 6)})
            else:
                documents = [random_passage(words, 10) for _ in range(4)]
                status, _ = client.ask("POST", "/v1/rerank", {"query": "a rose", "documents": documents})
            counts[f"status {status}"] += 1

    with watched(server, min(5.0, 60 * arguments.soak / 40)) as memory:
        in_threads(clients, work)
    with server.connect() as client:
        there = settled(client, len(stored))
    equal.append(asked_alone())
    quarter = max(1, len(memory) // 4)
    early, late = (float(np.median(part or [0])) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    return {
        "what": f"{clients} clients for {arguments.soak:g} min",
        **dict(sorted(sum(tallies, Counter()).items())),
        "largest difference from a vector computed alone": max(worst),
        "inputs": len(wire),
        "bit-equal when asked alone before": equal[0],
        "bit-equal when asked alone after": equal[1],
        "items sent": len(stored),
        "items lost": len(set(stored) - there.keys()),
        "items doubled": sum(count - 1 for count in there.values()),
        "memory after a quarter, MB": round(early, 1),
        "memory at the end, MB": round(late, 1),
    }


@contextmanager
def watched(server: Server, every_s: float) -> Iterator[list[float]]:
    """Megabytes that a server's process has, noted again and again until the block ends."""
    found: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            found.append(server.memory() / _MB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


def faults(row: dict[str, Any]) -> list[str]:
    """What a soak may not have: an error but 429, items that are lost or doubled, a vector other than the local one."""
    found = [f"{key}: {row[key]} times" for key in row if key.startswith("status ") and key[7:] not in _FINE]
    found += [f"{key}: {row[key]}" for key in ("items lost", "items doubled") if row[key]]
    for when in ("before", "after"):
        if (equal := row[f"bit-equal when asked alone {when}"]) != row["inputs"]:
            found.append(f"bit-equal when asked alone {when}: {equal} of {row['inputs']}")
    if (worst := row["largest difference from a vector computed alone"]) > _ROUNDING:
        found.append(f"vectors differ by {worst}")
    return found


def settled(client: Client, count: int) -> Counter[str]:
    """The ids in the collection once all jobs are done."""
    while any(job["state"] != "done" for job in client.ask("GET", "/v1/collections/soak/jobs")[1]["data"]):
        time.sleep(0.5)
    found: Counter[str] = Counter()
    for offset in range(0, count + 1000, 500):
        page = client.ask("GET", f"/v1/collections/soak/records?offset={offset}&limit=500")[1]["data"]
        found.update(record["id"] for record in page)
    return found


if __name__ == "__main__":
    sys.exit(main())

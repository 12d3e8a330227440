"""A server of OpenAI's protocol on loopback, behind which a generator stands."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from abc_rag import DataURI, Image, Text
from abc_rag.answering.generator import Generator
from abc_rag.types import Message


def _message(turn: dict[str, Any]) -> Message:
    content = turn["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(
        turn["role"],
        [Text(one["text"]) if one["type"] == "text" else Image(DataURI(one["image_url"]["url"])) for one in parts],
    )


@contextmanager
def serving(generator: Generator) -> Iterator[str]:
    """The base URL of a server that says what the generator says."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            schema = body["response_format"]["json_schema"]["schema"] if "response_format" in body else None
            said = generator.generate([_message(one) for one in body["messages"]], schema=schema)
            self.send_response(200)
            self.end_headers()
            pieces = [{"delta": {"content": piece}} for piece in said.text.partition(" ") if piece]
            for choice in [*pieces, {"delta": {}, "finish_reason": "stop"}]:
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

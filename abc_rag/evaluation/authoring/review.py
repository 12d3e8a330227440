"""A page for accepting, rejecting and editing pairs, and a server on this machine that saves the decisions."""

from __future__ import annotations

import base64
import functools
import hmac
import html
import importlib.resources
import json
import logging
import os
import re
import secrets
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.evaluation.authoring.ask import jpeg_of
from abc_rag.evaluation.authoring.folder import BuildFolder
from abc_rag.evaluation.authoring.pairs import LONGEST, Pair, pair_problem
from abc_rag.evaluation.authoring.scan import Picture
from abc_rag.files import write
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import open_image

__all__ = ["ReviewServer", "write_review_page"]

_LOG = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_SIDE = 1280
_QUALITY = 85
# Longer side in a page without a server: a browser must be able to open a file with a thousand pictures.
_SIDE_INSIDE = 640
_MOST_BYTES = 16_384
_Refusal = tuple[HTTPStatus, str]


class ReviewServer:
    """Serves the review of one benchmark to a browser on this machine, and saves each decision at once.

    It listens on 127.0.0.1 only, and answers only requests whose path begins with a random token, which other users of
    the machine and other pages in the browser do not know.

    Args:
        out: A folder that `build_ctrlbench` made.
        port: The port to listen on; 0 is any free one.
        limits: Which pictures are opened.

    Attributes:
        url: The address to open in a browser.
        port: The port that it listens on.
        token: The first part of the path of every request.

    Raises:
        InputError: ``out`` was not made by `build_ctrlbench`, or there is nothing to review.
        ABCRagError: The port is taken.

    Example:
        >>> with ReviewServer("bench") as server:  # doctest: +SKIP
        ...     print(server.url)
        ...     server.wait()
    """

    def __init__(self, out: str | os.PathLike[str], *, port: int = 0, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._files = BuildFolder(Path(os.path.realpath(os.path.expanduser(out))))
        self._limits = limits
        self._images: dict[str, str] = {}  # id of a pair -> its picture
        if not self._state()["pictures"]:
            raise InputError(f"{out}: holds no answers to review; build first")
        self.token = secrets.token_urlsafe(24)
        self._finished = threading.Event()
        try:
            self._server = _Server((_HOST, port), functools.partial(_Handler, self))
        except (OSError, OverflowError) as error:
            raise ABCRagError(f"port {port} of {_HOST} cannot be used ({error}); choose another, or 0") from error
        self.port = int(self._server.server_address[1])
        self.url = f"http://{_HOST}:{self.port}/{self.token}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="abc-rag-review", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the reviewer presses "Finish", or until an interrupt (Ctrl-C)."""
        while not self._finished.wait(0.5):  # without a timeout, Windows would delay an interrupt
            pass

    def close(self) -> None:
        """Stop serving. Decisions are already on disk."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> ReviewServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Answers to requests ------------------------------------------------------------------

    def page(self) -> tuple[bytes, str]:
        """The page, and its content security policy."""
        return _page(self._state() | {"mode": "server"})

    def picture(self, sha256: str) -> bytes:
        """A picture of the benchmark as JPEG.

        Raises:
            InputError: There is no such picture, or it cannot be shown.
        """
        # The hash is looked up in the benchmark, so no request can name a file.
        found = [row for row in self._files.read_build()["pictures"] if row["sha256"] == sha256]
        if not found:
            raise InputError("no such picture")
        return _shown(self._files.out / found[0]["image"], sha256, _SIDE, self._limits)

    def decide(self, asked: object) -> None:
        """Save a decision.

        Raises:
            InputError: The decision is invalid.
        """
        if not isinstance(asked, dict):
            raise InputError("a decision is a JSON object")
        id_, verdict = asked.get("pair"), asked.get("decision")
        if not isinstance(id_, str) or id_ not in self._images:
            raise InputError("no such pair; load the page again")
        if verdict not in ("accept", "reject", "undo"):
            raise InputError("the decision must be accept, reject or undo")
        texts = [asked.get("instruction"), asked.get("phrase")]
        if not all(isinstance(text, str) for text in texts):
            raise InputError("instruction and phrase must be strings")
        pair = Pair(*(" ".join(str(text).split()) for text in texts))
        problem = pair_problem(pair)
        if problem is not None and verdict == "accept":
            raise InputError(f"cannot be accepted: {problem}")
        row = {"pair": id_, "image": self._images[id_], "decision": verdict, **pair.as_dict()}
        self._files.review.append(row)

    def finish(self) -> None:
        """Let `wait` return."""
        self._finished.set()

    def _state(self) -> dict[str, Any]:
        state = _state(self._files, lambda picture: f"picture/{picture.sha256}")
        # Never fewer, because another page may still show a picture that this one no longer shows.
        self._images |= {pair["id"]: picture["name"] for picture in state["pictures"] for pair in picture["pairs"]}
        return state


class _Server(ThreadingHTTPServer):
    """A server that does not look up its own name, and does not report closed connections."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        _LOG.debug("a request ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Handle one request."""

    timeout = 30  # seconds; for a browser that opens a connection and sends nothing
    server_version = "abc-rag"
    sys_version = ""

    def __init__(self, review: ReviewServer, *arguments: Any) -> None:  # noqa: ANN401
        self._review = review
        super().__init__(*arguments)

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing, because the address contains the token."""

    def do_GET(self) -> None:
        """Send the page or a picture."""
        path = self._path()
        if path is None:
            return
        try:
            if path == "":
                page, policy = self._review.page()
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", page, policy)
            elif match := re.fullmatch("picture/([0-9a-f]{64})", path):
                self._send(HTTPStatus.OK, "image/jpeg", self._review.picture(match[1]))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        except InputError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))

    def do_POST(self) -> None:
        """Save a decision, or finish."""
        path = self._path()
        if path is None:
            return
        body = self._body()
        if isinstance(body, tuple):
            self._refuse(*body)
        elif path == "decisions":
            try:
                self._review.decide(json.loads(body))
            except (ValueError, RecursionError) as error:  # includes InputError
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            except OSError as error:
                self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"cannot be saved: {error.strerror}")
            else:
                self._send(HTTPStatus.OK, "application/json", b"{}")
        elif path == "finish":
            self._send(HTTPStatus.OK, "application/json", b"{}")
            self._review.finish()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def _path(self) -> str | None:
        """The path after the token; None if the request was refused."""
        names = [f"{name}:{self._review.port}" for name in (_HOST, "localhost")]
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        # A page elsewhere can point its own name at this server (DNS rebinding), but cannot forge these headers.
        if host not in names or (origin is not None and origin not in [f"http://{name}" for name in names]):
            self._refuse(HTTPStatus.FORBIDDEN, "this address is for this machine's browser alone")
            return None
        parts = self.path.split("?")[0].split("/", 2)
        if len(parts) < 3 or not hmac.compare_digest(parts[1].encode("utf-8", "replace"), self._review.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that abc-rag printed")
            return None
        return parts[2]

    def _body(self) -> bytes | _Refusal:
        # Another page needs a CORS preflight to send this type, and preflights are not answered.
        if self.headers.get_content_type() != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json"
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal():
            return HTTPStatus.LENGTH_REQUIRED, "send a Content-Length"
        if len(length) > 9 or int(length) > _MOST_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MOST_BYTES} bytes"
        return self.rfile.read(int(length))

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, "application/json", json.dumps({"error": reason}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def write_review_page(out: str | os.PathLike[str], *, limits: ImageLimits = DEFAULT_LIMITS) -> Path:
    """Write ``OUT/review.html``: the same page with the pictures inside, which needs no server.

    Decisions stay in the browser until "Download decisions" saves a ``review.jsonl``. Move it to OUT and call
    `write_ctrlbench`.

    Args:
        out: A folder that `build_ctrlbench` made.
        limits: Which pictures are opened.

    Returns:
        The path of the page.

    Raises:
        InputError: ``out`` is no such folder, or holds nothing to review.
    """
    files = BuildFolder(Path(os.path.realpath(os.path.expanduser(out))))

    def inside(picture: Picture) -> str:
        try:
            data = _shown(files.out / picture.image, picture.sha256, _SIDE_INSIDE, limits)
        except InputError:
            return ""  # the page says that the picture is missing
        return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"

    state = _state(files, inside)
    if not state["pictures"]:
        raise InputError(f"{out}: holds no answers to review; build first")
    target = files.out / "review.html"
    write(target, _page(state | {"mode": "page"})[0].decode())
    return target


def _state(files: BuildFolder, source: Callable[[Picture], str]) -> dict[str, Any]:
    """The data of the page. Pairs that clash with others are left out, unless they were decided."""
    build = files.read_build()
    pictures = []
    for picture, pairs in files.reviewed(build).pictures:
        shown = [
            {
                "id": one.id,
                "instruction": one.pair.instruction,
                "phrase": one.pair.phrase,
                "original": one.original.as_dict(),
                "decision": one.verdict,
                "note": one.clash,
            }
            for one in pairs
            if not one.clash or one.verdict is not None
        ]
        if shown:
            pictures.append({"name": picture.image, "source": source(picture), "pairs": shown})
    return {"model": build["settings"]["model"], "longest": LONGEST, "pictures": pictures}


def _shown(path: Path, sha256: str, side: int, limits: ImageLimits) -> bytes:
    try:
        opened = open_image(path, limits=limits)
    except ImageError as error:
        raise InputError(f"cannot be shown: {error.reason}") from error
    if opened.sha256 != sha256:
        raise InputError("cannot be shown: the file has changed since it was asked about; build again")
    return jpeg_of(opened.image, side, _QUALITY)


def _page(state: dict[str, Any]) -> tuple[bytes, str]:
    """The page with its data, and its policy: only its own script and style, and pictures of this server."""
    nonce = secrets.token_urlsafe(16)
    mode: Literal["server", "page"] = state["mode"]
    connect = "connect-src 'self'; img-src 'self' data:" if mode == "server" else "img-src data:"
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; {connect}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = (
        importlib.resources.files("abc_rag.evaluation.authoring").joinpath("review.html").read_text(encoding="utf-8")
    )
    # Inside a script element, only "<" can end the element or begin a comment.
    data = json.dumps(state).replace("<", "\\u003c")
    parts = {"POLICY": html.escape(policy, quote=True), "NONCE": nonce, "DATA": data}
    # In one pass, so that nothing in the data is read as a placeholder.
    return re.sub(r"\{\{(POLICY|NONCE|DATA)\}\}", lambda place: parts[place[1]], template).encode(), policy

"""An object store on loopback: moto's S3, in a process of its own that ends with its standard input."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# One request is answered at a time: a conditional write, by which Lance commits, is then a whole.
_SERVER = """
import sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def alone(environ, start):
    with lock:
        return app(environ, start)
server = make_server("127.0.0.1", 0, alone, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


@contextmanager
def s3() -> Iterator[str]:
    """The address of a bucket, ``s3://bucket``, whose access is in the environment."""
    for name in ("moto", "flask", "flask_cors", "s3fs"):
        pytest.importorskip(name, reason="no S3 to run on loopback: install the extra object-stores")
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    with server, pytest.MonkeyPatch.context() as patch:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            access = {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
            for name, value in {**access, "ENDPOINT_URL": url, "ALLOW_HTTP": "true"}.items():
                patch.setenv(f"AWS_{name}", value)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            request = urllib.request.Request(f"{url}/bucket", method="PUT")
            urllib.request.urlopen(request).close()
            yield "s3://bucket"
        finally:
            server.kill()


def put(url: str, data: bytes) -> str:
    """Write an object; its URL again."""
    place = f"{os.environ['AWS_ENDPOINT_URL']}/{url.removeprefix('s3://')}"
    # moto waits for ever for the body of a form, which is what urllib takes data for.
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(place, data=data, headers=kind, method="PUT")).close()
    return url

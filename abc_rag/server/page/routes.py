"""``GET /`` and the files below ``/page/``: what the package has, by name, and nothing else."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

from abc_rag.server.errors import Refusal

__all__ = ["page_routes"]

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FIRST = "index.html"
# Trusted Types: the browser itself refuses text that would become HTML or a script.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def page_routes() -> APIRouter:
    """The routes. They take no key, as the page has no data before it is given one."""
    routes = APIRouter(include_in_schema=False)
    # Read once, so that no name that a client sends is ever opened.
    known = {
        one.name: (one.read_bytes(), _KINDS["." + one.name.rpartition(".")[2]])
        for one in files(__package__).joinpath("files").iterdir()
    }

    def told(name: str) -> Response:
        if name not in known:
            raise Refusal(404, "the page has no such file")
        data, kind = known[name]
        return Response(data, media_type=kind, headers=_HEADERS)

    @routes.get("/")
    async def index() -> Response:
        return told(_FIRST)

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        return told(name)

    return routes

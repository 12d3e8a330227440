"""Slides and letters as page pictures: LibreOffice prints them to PDF where it is installed.

LibreOffice is a program of its own. It gets a copy without links to elsewhere, a scratch profile that runs no macros,
and limited time; it is killed with all that it started.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from abc_rag.errors import InputError
from abc_rag.ingest.documents.options import DocumentLimits, DocumentOptions
from abc_rag.ingest.documents.packed import check_packed, opened, parsed_xml
from abc_rag.ingest.documents.reader import Reader

__all__ = ["is_printed", "office_program", "printed", "without_links"]

logger = logging.getLogger(__name__)

_PROGRAMS = ("soffice", "libreoffice")
# Hidden slides as well, so that the numbers of pages are those of slides.
_FILTER = 'pdf:{}:{{"ExportHiddenSlides":{{"type":"boolean","value":"true"}}}}'
_FILTERS = {".pptx": _FILTER.format("impress_pdf_Export"), ".docx": "pdf:writer_pdf_Export"}
_SECURITY = "/org.openoffice.Office.Common/Security/Scripting"
_SETTINGS = (
    *(("DisableMacrosExecution", "true"), ("MacroSecurityLevel", "3"), ("DisableActiveContent", "true")),
    ("BlockUntrustedRefererLinks", "true"),
)


def office_program() -> str | None:
    """LibreOffice's program; None where it is not installed."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name)) is not None), None)


def is_printed(reader: Reader, options: DocumentOptions) -> bool:
    """Whether documents of a kind get page pictures from LibreOffice; if only that is missing, it is said once."""
    if not reader.printed_as or not options.office or not options.page_pictures:
        return False
    if office_program() is None:
        _say_once()
        return False
    return importlib.util.find_spec("pypdfium2") is not None


@lru_cache(maxsize=1)
def _say_once() -> None:
    logger.warning("LibreOffice is not installed: PPTX and DOCX files are indexed without pictures of their pages")


def printed(data: bytes, suffix: str, limits: DocumentLimits) -> bytes:
    """A document as PDF.

    Args:
        data: The file.
        suffix: ``".pptx"`` or ``".docx"``.
        limits: Its time, and the bytes of the file and of the result.

    Raises:
        InputError: LibreOffice does not print it; the message ends with the remedy.
    """
    program = office_program()
    if program is None:
        raise InputError("cannot be printed without LibreOffice; install it")
    check_packed(data, limits)
    with tempfile.TemporaryDirectory(prefix="abc-rag-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        source, profile, made = folder / f"document{suffix}", folder / "profile", folder / "out" / "document.pdf"
        source.write_bytes(without_links(data))
        _make_profile(profile)
        command = [program, f"-env:UserInstallation={profile.as_uri()}", "--headless", "--nologo", "--norestore"]
        command += ["--nolockcheck", "--nodefault", "--convert-to", _FILTERS[suffix], "--outdir", str(made.parent)]
        _run([*command, str(source)], folder, limits.print_timeout_s)
        try:
            if made.stat().st_size > limits.max_bytes:
                raise InputError("is printed to more than DocumentLimits.max_bytes; raise it")
            return made.read_bytes()
        except OSError as error:
            raise InputError("is not printed by LibreOffice; open it there and save it anew") from error


def _make_profile(profile: Path) -> None:
    user = profile / "user"
    user.mkdir(parents=True)
    items = "".join(
        f'<item oor:path="{_SECURITY}"><prop oor:name="{name}" oor:op="fuse"><value>{value}</value></prop></item>'
        for name, value in _SETTINGS
    )
    namespace = 'xmlns:oor="http://openoffice.org/2001/registry"'
    (user / "registrymodifications.xcu").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><oor:items {namespace}>{items}</oor:items>', encoding="utf-8"
    )


def _run(command: list[str], folder: Path, seconds: float) -> None:
    """Run a program in a session of its own, and end all of it whatever happens."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT")}
    # No display, no settings of the user, no proxy.
    environment = {**kept, "HOME": str(folder), "TMPDIR": str(folder), "SAL_USE_VCLPLUGIN": "svp"}
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(
            f"is not printed: LibreOffice cannot be started ({error.strerror}); install it anew"
        ) from error
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        limit = f"DocumentLimits.print_timeout_s={seconds:g}"
        raise InputError(f"takes LibreOffice more than {limit} to print; raise it, or pass office=False") from error
    finally:
        with suppress(OSError, AttributeError):  # not every system has groups of processes
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(OSError):
            process.kill()
        process.wait()


def without_links(data: bytes) -> bytes:
    """A packed office document in which what it links to elsewhere is nowhere.

    Raises:
        InputError: Its XML is damaged, or defines a document type.
    """
    import lxml.etree

    out = io.BytesIO()
    with opened(data) as packed, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as cleaned:
        for name in packed.namelist():
            content = packed.read(name)
            if name.endswith(".rels"):
                root = parsed_xml(content)
                for one in root:
                    if one.get("TargetMode") == "External":
                        one.set("Target", "about:blank")
                content = lxml.etree.tostring(root, encoding="UTF-8", xml_declaration=True)
            cleaned.writestr(name, content)
    return out.getvalue()

"""Video, by PyAV (FFmpeg): a frame of each scene, with its time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from abc_rag.errors import InputError
from abc_rag.images.formats import format_of
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Figure, Part, Unread
from abc_rag.ingest.documents.pictures import encoded
from abc_rag.ingest.documents.reader import Reader

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["VideoReader"]

_STEP_S = 0.5  # frames are looked at so often
_LEAST_S = 1.0  # and kept no more often than this
_OTHER = 0.25  # share of the pixels whose colour differs that makes another scene
_PLAIN = 3.0  # standard deviation of brightness below which a frame is a fade or a blank
_LONGEST = 1280  # pixels of the longer side
_MINUTE = 60
_SOUND = (b"M4A ", b"M4B ", b"M4P ")  # the same container


class VideoReader(Reader):
    """MP4, QuickTime, Matroska, WebM and AVI files. Nothing is heard; a frame is a figure with a time."""

    name = "video"
    modules = ("av",)
    extra = "video"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """By its container."""
        return _container(head) is not None

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`. A minute counts as a page, so that one that cannot be read costs itself."""
        import av

        if not options.figures:
            return
        # The container is told, and no protocol allowed: playlists would open other files and addresses.
        told = {"protocol_whitelist": "none"}
        try:
            with closing(av.open(io.BytesIO(data), format=_container(data[:64]), container_options=told)) as opened:
                if not opened.streams.video:
                    raise InputError("has no pictures, only sound; leave it out")
                yield from _scenes(opened, options, start)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot be read as video ({error}); save it anew") from error


def _container(head: bytes) -> str | None:
    if head[4:8] == b"ftyp" and head[8:12] not in _SOUND and format_of(head) is None:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def _scenes(opened: Any, options: DocumentOptions, start: int) -> Iterator[Part | int]:  # noqa: ANN401
    stream = opened.streams.video[0]
    stream.thread_type = "AUTO"
    if start > 1:
        opened.seek((start - 1) * _MINUTE * 1_000_000)
    kept: npt.NDArray[np.float64] | None = None
    first: Any = None
    minute, looked, shown, count = 0, -_STEP_S, -_LEAST_S, 0
    for frame in opened.decode(stream):
        time = float(frame.time or 0.0)
        if int(time // _MINUTE) + 1 > minute:
            minute = int(time // _MINUTE) + 1
            yield minute
        if time - looked < _STEP_S or minute < start:
            continue
        looked = time
        small = frame.reformat(width=64, height=36, format="rgb24").to_ndarray()
        first = first if first is not None else frame
        if small.mean(axis=2).std() < _PLAIN or time - shown < _LEAST_S:
            continue
        colours = _colours(small)
        if kept is not None and np.abs(colours - kept).sum() / 6 < _OTHER:
            continue
        if count == options.limits.max_pages:
            yield Unread(reason=f"more scenes than DocumentLimits.max_pages={count:,}; the rest is left out")
            return
        kept, shown, count = colours, time, count + 1
        yield _figure(frame, time, options)
    if not count and first is not None:
        yield _figure(first, float(first.time or 0.0), options)


def _colours(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """How much of a frame has which red, green and blue; each sums to 1, of shape ``(48,)``."""
    channels = [np.bincount(pixels[..., channel].ravel() // 16, minlength=16) for channel in range(3)]
    shares: npt.NDArray[np.float64] = np.concatenate(channels) / float(pixels.shape[0] * pixels.shape[1])
    return shares


def _figure(frame: Any, time: float, options: DocumentOptions) -> Figure:  # noqa: ANN401
    side = min(_LONGEST, int(options.limits.max_pixels**0.5))
    scale = min(1.0, side / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    picture = PIL.Image.fromarray(frame.reformat(width=width, height=height, format="rgb24").to_ndarray())
    turned = int(getattr(frame, "rotation", 0) or 0)
    data, mime_type = encoded(picture.rotate(turned, expand=True) if turned else picture)
    return Figure(time=round(time, 2), data=data, mime_type=mime_type)

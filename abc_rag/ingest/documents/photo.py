"""Picture files whose words are read: photos, scans and screenshots that are PNG, JPEG and so on."""

from __future__ import annotations

from collections.abc import Iterator

import PIL.Image

from abc_rag.errors import ImageError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part, Scan
from abc_rag.ingest.documents.reader import Reader

__all__ = ["PictureReader"]

# What reads them shrinks larger ones without smoothing; small type survives this better.
_LONGEST = 2000


class PictureReader(Reader):
    """A picture file as a scan; its boxes are in pixels. It is asked for by name: a picture is no document."""

    name = "picture"
    extra = "ocr"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """Never: see `abc_rag.images.formats.format_of`."""
        return False

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        try:
            picture = open_image(data, limits=ImageLimits(max_pixels=options.limits.max_pixels)).image
        except ImageError as error:
            raise InputError(error.reason) from error
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        picture.thumbnail((_LONGEST, _LONGEST), PIL.Image.Resampling.LANCZOS)
        yield Scan(box=box, picture=picture)

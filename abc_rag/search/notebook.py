"""Show pictures and tables in a notebook.

`show` and `table` display at once and return nothing, so that one cell can show several things. Both need IPython,
which every notebook has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from abc_rag.errors import InputError, MissingExtraError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import open_image
from abc_rag.types import ImageSource

__all__ = ["contact_sheet", "show", "table"]

_COLUMNS = 6
_GAP = 10  # pixels between pictures, and between a picture's row and the next
_LINE = 16  # height of a caption's line


def contact_sheet(
    pictures: Iterable[tuple[ImageSource, str]], *, side: int = 150, limits: ImageLimits = DEFAULT_LIMITS
) -> PIL.Image.Image:
    """Pictures in rows of six, each above its caption, as one picture.

    Args:
        pictures: (picture, caption) pairs; a caption may have several lines.
        side: Width and height of each picture, in pixels. Pictures that are not square are stretched.
        limits: Which pictures are opened.

    Returns:
        An RGB picture.

    Raises:
        InputError: There are no pictures.
        ImageError: One of them cannot be opened.
    """
    shown = list(pictures)
    if not shown:
        raise InputError("no pictures to show: pass (picture, caption) pairs")
    columns, rows = min(_COLUMNS, len(shown)), -(-len(shown) // _COLUMNS)
    height = side + _GAP + _LINE * max(caption.count("\n") + 1 for _, caption in shown)
    sheet = PIL.Image.new("RGB", (columns * (side + _GAP) - _GAP, rows * height), "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(10)
    for place, (picture, caption) in enumerate(shown):
        x, y = place % _COLUMNS * (side + _GAP), place // _COLUMNS * height
        sheet.paste(open_image(picture, limits=limits).image.resize((side, side)), (x, y))
        pen.multiline_text((x, y + side + 4), caption, "black", font)
    return sheet


def show(pictures: Iterable[tuple[ImageSource, str]], *, side: int = 150, limits: ImageLimits = DEFAULT_LIMITS) -> None:
    """Display a `contact_sheet` as a JPEG, with the captions as its text.

    Raises:
        InputError: There are no pictures.
        ImageError: One of them cannot be opened.
        MissingExtraError: IPython is not installed.
    """
    shown = list(pictures)
    data = BytesIO()
    contact_sheet(shown, side=side, limits=limits).save(data, "JPEG", quality=88)
    captions = " | ".join(caption.replace("\n", ", ") for _, caption in shown)
    _display({"image/jpeg": base64.b64encode(data.getvalue()).decode("ascii"), "text/plain": captions})


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Display a table.

    Args:
        columns: The names of the columns.
        rows: One value a column; each is shown as ``str`` has it. A ``|`` in a value does not end its cell.

    Raises:
        InputError: A row has another number of values than there are columns.
        MissingExtraError: IPython is not installed.
    """
    if isinstance(columns, str):
        raise InputError("columns must be a list of names; got a single str: pass [name, ...]")
    lines = [list(columns), ["---"] * len(columns)]
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise InputError(f"row {number} has {len(row)} values, but there are {len(columns)} columns")
        lines.append([str(value).replace("|", "\\|").replace("\n", " ") for value in row])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    _display({"text/markdown": text, "text/plain": text})


def _display(data: dict[str, str]) -> None:
    try:
        from IPython.display import display
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_module(error, "showing in a notebook", extra="notebooks") from error
    display(data, raw=True)

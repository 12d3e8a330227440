"""Cut the emoji of abc-mini's world out of the Noto Color Emoji font into ``abc_rag/models/bundled/sprites.png``.

Needed only when the list of kinds changes. The font is Debian's package ``fonts-noto-color-emoji``::

    python scripts/cut_sprites.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from abc_rag.scenes.world import CATEGORIES

_SIZE = 96
_COLUMNS = 10


def main() -> None:
    """Draw, crop and scale each kind, and write the sheet and its index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("font", type=Path)
    parser.add_argument("--out", type=Path, default=Path("abc_rag/models/bundled"))
    arguments = parser.parse_args()
    # 109 is the only size for which the font has bitmaps.
    font = ImageFont.truetype(str(arguments.font), 109)
    characters = {kind: char for kinds in CATEGORIES.values() for kind, char in kinds.items()}
    sheet = Image.new("RGBA", (_COLUMNS * _SIZE, math.ceil(len(characters) / _COLUMNS) * _SIZE))
    boxes = {}
    for position, (kind, character) in enumerate(characters.items()):
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), character, font=font, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            raise SystemExit(f"the font has no drawing for {kind!r}")
        glyph = canvas.crop(box)
        glyph.thumbnail((_SIZE, _SIZE), Image.Resampling.BICUBIC)
        x, y = position % _COLUMNS * _SIZE, position // _COLUMNS * _SIZE
        sheet.paste(glyph, (x, y))
        boxes[kind] = [x, y, x + glyph.width, y + glyph.height]
    sheet.save(arguments.out / "sprites.png", optimize=True)
    (arguments.out / "sprites.json").write_text(json.dumps({"boxes": boxes}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

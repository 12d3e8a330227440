"""npm and Debian packages, and how their SVGs and fonts become the pictures of ``draw_kinds.py``."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image, ImageDraw, ImageFont

__all__ = ["deb_files", "glyph", "icon", "member", "npm_package", "on_colour", "svg_picture"]

_SIZE = 96
_NO_CHARACTER = "\U0010fffe"


def npm_package(folder: Path, name: str, version: str) -> Path:
    """A package's file in ``folder``, fetched if it is not there; its digest is the registry's."""
    file = folder / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"
    if not file.is_file():
        with urllib.request.urlopen(f"https://registry.npmjs.org/{name}/{version}", timeout=60) as answer:
            about = json.load(answer)["dist"]
        with urllib.request.urlopen(about["tarball"], timeout=600) as answer:
            data = answer.read()
        digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
        if f"sha512-{digest}" != about["integrity"]:
            raise SystemExit(f"{name} {version}: the digest is not the registry's; try again")
        file.write_bytes(data)
    return file


def member(package: Path, name: str) -> bytes:
    """A file of a package; empty if it has none such, as some sets have no table of characters."""
    with tarfile.open(package) as archive:
        found = archive.extractfile(name) if name in archive.getnames() else None
        return b"" if found is None else found.read()


def deb_files(folder: Path, pool_path: str, digest: str, names: set[str]) -> dict[str, bytes]:
    """Files of a Debian package, by their paths; the package is fetched if it is not in ``folder``."""
    file = folder / pool_path.rpartition("/")[2]
    if file.is_file():
        data = file.read_bytes()
    else:
        with urllib.request.urlopen(f"https://deb.debian.org/debian/pool/main/{pool_path}", timeout=600) as answer:
            data = answer.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise SystemExit(f"{file}: the SHA-256 is not {digest}; delete it if it is there, and try again")
    file.write_bytes(data)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_ar_member(data, b"data.tar.xz")))) as archive:
        for entry in archive:
            if entry.name in names and (content := archive.extractfile(entry)) is not None:
                found[entry.name] = content.read()
    return found


def _ar_member(data: bytes, name: bytes) -> bytes:
    """A member of an ar archive, the form of a .deb: headers of 60 bytes, contents padded to even lengths."""
    at = 8
    while at < len(data):
        size = int(data[at + 48 : at + 58])
        if data[at : at + 16].rstrip(b" /") == name:
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit(f"a Debian package without {name.decode()}")


def icon(icons: dict[str, Any], names: list[str | None]) -> Image.Image | None:
    """The first of a set's icons that is there and not empty."""
    for name in names:
        found = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
        if found is None:
            continue
        width, height = (found.get(side, icons.get(side, 16)) for side in ("width", "height"))
        box = f"{found.get('left', 0)} {found.get('top', 0)} {width} {height}"
        picture = svg_picture(
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{width}" height="{height}">'
            f"{found['body']}</svg>"
        )
        if picture is not None:
            return picture
    return None


def svg_picture(svg: str) -> Image.Image | None:
    """An SVG drawn without its transparent border; None if it is broken or empty."""
    try:
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=160, height=160, dpi=96, skip_system_fonts=True))
    except ValueError:
        return None
    return _cut(Image.open(io.BytesIO(data)).convert("RGBA"))


def glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """A character in black, without its border; None if the font has none such."""
    if len(character) != 1 or bytes(font.getmask(character)) == bytes(font.getmask(_NO_CHARACTER)):
        return None
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    picture = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), character, fill="black", font=font)
    return _cut(picture)


def _cut(picture: Image.Image) -> Image.Image | None:
    box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    picture.thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    return picture


def on_colour(picture: Image.Image, kind: str) -> Image.Image:
    """A drawing in black on its own shape, holes included, in a light colour that follows from the kind."""
    outside = Image.new("L", (picture.width + 2, picture.height + 2), 0)
    outside.paste(picture.getchannel("A").point(lambda a: 255 * (a > 96)), (1, 1))
    ImageDraw.floodfill(outside, (0, 0), 128)
    inside = outside.crop((1, 1, picture.width + 1, picture.height + 1)).point(lambda a: 255 * (a != 128))
    red, green, blue = (130 + byte * 125 // 255 for byte in hashlib.sha256(kind.encode()).digest()[:3])
    filled = Image.merge("RGBA", [*(Image.new("L", picture.size, level) for level in (red, green, blue)), inside])
    filled.alpha_composite(picture)
    return filled

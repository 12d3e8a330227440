"""Draw hundreds of everyday things in several designers' styles, for training and measuring abc-mini.

Fetches pinned npm packages, checks their digests, renders their SVGs, and writes one ``kinds.npz``::

    python scripts/draw_kinds.py runs/kinds.npz

Drawings: fluent-emoji and fluent-emoji-flat (Microsoft, MIT), noto (Google, Apache-2.0), twemoji (CC-BY-4.0), emojione
(CC-BY-4.0), and openmoji (CC-BY-SA-4.0), which is only evaluated on; a kind has at least four of these. Where they draw
it, also noto-v1 (Google, Apache-2.0), fxemoji (Mozilla, Apache-2.0), streamline-emojis (CC-BY-4.0), icon-park
(ByteDance, Apache-2.0), and, in black with a colour behind it, fluent-emoji-high-contrast (Microsoft, MIT),
emojione-monotone (CC-BY-4.0), game-icons (CC-BY-3.0), mdi (Apache-2.0), ph (MIT) and tabler (MIT). Names are
emojibase-data's (MIT). Needs resvg-py (``pip install 'abc-rag[draw]'``). The file is not part of the package.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image, ImageDraw

from abc_rag.scenes.world import CATEGORIES

_SIZE = 96
_QUOTE = "\u2019"
_PACKAGES = {
    "fluent-emoji": ("@iconify-json/fluent-emoji", "1.2.7"),
    "fluent-emoji-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "emojione": ("@iconify-json/emojione", "1.2.3"),
    "openmoji": ("@iconify-json/openmoji", "1.2.29"),
}
_MORE_PACKAGES = {
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2"),
    "streamline-emojis": ("@iconify-json/streamline-emojis", "1.2.4"),
    "fluent-emoji-high-contrast": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6"),
    "emojione-monotone": ("@iconify-json/emojione-monotone", "1.2.1"),
    "game-icons": ("@iconify-json/game-icons", "1.2.4"),
    "icon-park": ("@iconify-json/icon-park", "1.2.4"),
    "mdi": ("@iconify-json/mdi", "1.2.3"),
    "ph": ("@iconify-json/ph", "1.2.2"),
    "tabler": ("@iconify-json/tabler", "1.2.41"),
}
_BLACK = ("fluent-emoji-high-contrast", "emojione-monotone", "game-icons", "mdi", "ph", "tabler")
_ICONS = {"game-icons": "", "icon-park": "", "mdi": "", "ph": "-duotone", "tabler": "-filled"}
"""Sets of icons, not of emoji: found by the kind's name, with this behind it where they have that."""
_OTHER_THINGS = {"mouse", "log", "pie", "turkey", "brush", "football"}  # as icons
_NAMES = ("emojibase-data", "17.0.0")
_GROUP_OF = {
    "animal": (34, 35, 36, 37, 38, 39), "plant": (40, 41), "food": (42, 43, 44, 45, 46, 47), "building": (51, 52),
    "vehicle": (54, 55, 56), "instrument": (68,), "clothing": (65,), "sports item": (62,),
    "household object": (48, 57, 58, 60, 61, 63, 64, 66, 67, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81),
    "sight in the sky": (59,),
}  # fmt: skip
_LISTS = [line for line in Path(__file__).with_name("kinds.txt").read_text(encoding="utf-8").splitlines() if line]
_LEFT_OUT = {line.removeprefix("- ") for line in _LISTS if line.startswith("- ")}
_RENAMED = dict(line.split(" = ") for line in _LISTS if " = " in line)


def main() -> None:
    """Fetch, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=None, help="folder with the .tgz files, fetched if missing")
    options = parser.parse_args()
    folder = options.packages or options.out.parent / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    named = json.loads(_member(_package(folder, *_NAMES), "package/en/data.json"))
    sets = {
        style: (
            json.loads(_member(package, "package/icons.json")),
            json.loads(_member(package, "package/chars.json") or b"{}"),
        )
        for style, package in ((s, _package(folder, *p)) for s, p in {**_PACKAGES, **_MORE_PACKAGES}.items())
    }
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for kind, category, emoji in _chosen(named):
        found = {
            style: _draw(icons, chars, emoji) if style not in _ICONS else _icon(icons, kind, _ICONS[style])
            for style, (icons, chars) in sets.items()
        }
        drawn = {
            style: _on_colour(picture, kind) if style in _BLACK else picture
            for style, picture in found.items()
            if picture is not None
        }
        if len(drawn.keys() & _PACKAGES.keys()) < 4:
            continue
        about[kind] = {"category": category, "emoji": emoji["hexcode"], "tags": emoji.get("tags", [])}
        for style, picture in drawn.items():
            arrays[f"{style}|{kind}"] = np.asarray(picture)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    np.savez_compressed(options.out, **arrays)
    print(f"{len(about)} kinds, {len(arrays) - 1} drawings, {options.out.stat().st_size / 1e6:.1f} MB")


def _chosen(named: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    old = {
        char.replace("\ufe0f", ""): (kind, category)
        for category, kinds in CATEGORIES.items()
        for kind, char in kinds.items()
    }
    category_of = {number: category for category, numbers in _GROUP_OF.items() for number in numbers}
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for emoji in named:
        character = emoji["emoji"].replace("\ufe0f", "")
        if character in old:
            kind, category = old[character]
            found[kind] = (kind, category, emoji)
    for emoji in named:
        label, category = emoji["label"], category_of.get(emoji.get("subgroup", -1))
        if category is None or label in _LEFT_OUT or emoji["emoji"].replace("\ufe0f", "") in old:
            continue
        kind = _RENAMED.get(label, label.replace(_QUOTE, "'")).lower()
        if kind.endswith((" face", "o'clock", "-thirty")) or kind in found:
            continue
        found[kind] = (kind, category, emoji)
    return list(found.values())


def _draw(icons: dict[str, Any], chars: dict[str, str], emoji: dict[str, Any]) -> Image.Image | None:
    code = emoji["hexcode"].lower()
    name = re.sub(r"[^a-z0-9]+", "-", emoji["label"].lower().replace(_QUOTE, "")).strip("-")
    return _first(icons, [chars.get(code), chars.get(code.replace("-fe0f", "")), name, name.replace("-", "")])


def _icon(icons: dict[str, Any], kind: str, suffix: str) -> Image.Image | None:
    name = re.sub(r"[^a-z0-9]+", "-", kind).strip("-")
    return None if kind in _OTHER_THINGS else _first(icons, [name + suffix, name])


def _first(icons: dict[str, Any], keys: list[str | None]) -> Image.Image | None:
    """The first that is there, without its transparent border."""
    for name in keys:
        icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
        if icon is None:
            continue
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="{width}" height="{height}">'
            f"{icon['body']}</svg>"
        )
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=160, height=160))
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
        box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
        if box is None:
            continue
        picture = picture.crop(box)
        picture.thumbnail((_SIZE, _SIZE), Image.Resampling.LANCZOS)
        return picture
    return None


def _on_colour(picture: Image.Image, kind: str) -> Image.Image:
    """A drawing in black on its own shape, holes included, in a light colour that follows from the kind."""
    outside = Image.new("L", (picture.width + 2, picture.height + 2), 0)
    outside.paste(picture.getchannel("A").point(lambda a: 255 * (a > 96)), (1, 1))
    ImageDraw.floodfill(outside, (0, 0), 128)
    inside = outside.crop((1, 1, picture.width + 1, picture.height + 1)).point(lambda a: 255 * (a != 128))
    red, green, blue = (130 + byte * 125 // 255 for byte in hashlib.sha256(kind.encode()).digest()[:3])
    filled = Image.merge("RGBA", [*(Image.new("L", picture.size, level) for level in (red, green, blue)), inside])
    filled.alpha_composite(picture)
    return filled


def _package(folder: Path, name: str, version: str) -> Path:
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


def _member(package: Path, name: str) -> bytes:
    """A file of a package; empty if it has none such, as some sets have no table of characters."""
    with tarfile.open(package) as archive:
        member = archive.extractfile(name) if name in archive.getnames() else None
        return b"" if member is None else member.read()


if __name__ == "__main__":
    main()

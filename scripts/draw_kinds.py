"""Draw hundreds of everyday things in many designers' styles, for training and measuring abc-mini.

Fetches pinned npm and Debian packages, checks their digests, renders their drawings, and writes one ``kinds.npz``::

    python scripts/draw_kinds.py runs/kinds.npz

Emoji: fluent-emoji and fluent-emoji-flat (Microsoft, MIT), noto (Google, Apache-2.0), twemoji (CC-BY-4.0), emojione
(CC-BY-4.0), and openmoji (CC-BY-SA-4.0), which is only evaluated on; a kind has at least four of these. Where they draw
it, also noto-v1 (Google, Apache-2.0), fxemoji (Mozilla, Apache-2.0), streamline-emojis (CC-BY-4.0), and, as lines,
fluent-emoji-high-contrast (Microsoft, MIT), emojione-monotone (CC-BY-4.0), and the fonts noto-emoji (Google, OFL-1.1)
and symbola (George Douros, free for any use).

Clip art: Debian's openclipart-svg (many authors, public domain), those files that ``openclipart.txt`` lists.

Icons, by the names that ``icons.txt`` gives: icon-park (ByteDance, Apache-2.0), streamline-color, -cyber-color,
-flex-color, -plump-color and -ultimate-color (Streamline, CC-BY-4.0), and, in black with a colour behind it, game-icons
(CC-BY-3.0), mdi (Apache-2.0), ph (MIT), tabler (MIT), bxs (Boxicons, MIT), fa7-solid (Font Awesome, CC-BY-4.0), fluent
(Microsoft, MIT), hugeicons (MIT), iconoir (MIT), ion (MIT), lucide and lucide-lab (ISC), material-symbols (Google,
Apache-2.0), mingcute (Apache-2.0), solar (480 Design, CC-BY-4.0), temaki (CC0-1.0) and uil (Iconscout, Apache-2.0).

Names are emojibase-data's (MIT). Needs resvg-py (``pip install 'abc-rag[draw]'``). The file is not part of the package.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from drawings import deb_files, glyph, icon, member, npm_package, on_colour, svg_picture
from PIL import Image, ImageFont

from abc_rag.scenes.world import CATEGORIES

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
}
_ICONS = {
    "bxs": ("1.2.3", ""), "fa7-solid": ("1.2.5", ""), "fluent": ("1.2.60", "-48-filled,-32-filled,-24-filled"),
    "game-icons": ("1.2.4", ""), "hugeicons": ("1.2.35", ",-01"), "icon-park": ("1.2.4", ""), "iconoir": ("1.2.11", ""),
    "ion": ("1.2.7", ""), "lucide": ("1.2.137", ""), "lucide-lab": ("1.2.3", ""), "material-symbols": ("1.2.98", ""),
    "mdi": ("1.2.3", ""), "mingcute": ("1.2.8", "-fill"), "ph": ("1.2.2", "-duotone,"),
    "solar": ("1.2.13", "-bold-duotone"), "streamline-color": ("1.2.2", ",-1,-flat"),
    "streamline-cyber-color": ("1.2.2", ",-1"), "streamline-flex-color": ("1.2.2", ",-1,-flat"),
    "streamline-plump-color": ("1.2.2", ",-1,-flat"), "streamline-ultimate-color": ("1.2.2", ",-1"),
    "tabler": ("1.2.41", "-filled,"), "temaki": ("1.2.6", ""), "uil": ("1.2.3", ""),
}  # fmt: skip
"""Sets of icons, not of emoji: their versions, and what stands behind a name there."""
_COLOURED = {"icon-park", *(style for style in _ICONS if style.startswith("streamline-"))}
_BLACK = {"fluent-emoji-high-contrast", "emojione-monotone", *_ICONS} - _COLOURED
_NOTO_EMOJI = ("@expo-google-fonts/noto-emoji", "0.4.7")
_SYMBOLA = (
    "t/ttf-ancient-fonts/fonts-symbola_2.60-1.1_all.deb",
    "408244997437d4103e9cdc9dd75db29d0e5fbee6e6874536173995204033a6df",
)
_OPENCLIPART = (
    "o/openclipart/openclipart-svg_0.18+dfsg-19_all.deb",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
)
_NAMES = ("emojibase-data", "17.0.0")
_GROUP_OF = {
    "animal": (34, 35, 36, 37, 38, 39), "plant": (40, 41), "food": (42, 43, 44, 45, 46, 47), "building": (51, 52),
    "vehicle": (54, 55, 56), "instrument": (68,), "clothing": (65,), "sports item": (62,),
    "household object": (48, 57, 58, 60, 61, 63, 64, 66, 67, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81),
    "sight in the sky": (59,),
}  # fmt: skip


def _lines(name: str) -> list[str]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


_LISTS = _lines("kinds.txt")
_LEFT_OUT = {line.removeprefix("- ") for line in _LISTS if line.startswith("- ")}
_RENAMED = dict(line.split(" = ") for line in _LISTS if " = " in line)
_OTHER_NAMES = {
    kind: names.split(", ") for kind, _, names in (li.partition(" = ") for li in _lines("icons.txt")) if names
}
_OTHER_THINGS = {
    style: kinds.split(", ") for style, _, kinds in (li.partition(": ") for li in _lines("icons.txt")) if kinds
}


def main() -> None:
    """Fetch, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, default=None, help="folder with the .tgz files, fetched if missing")
    options = parser.parse_args()
    folder = options.packages or options.out.parent / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    named = json.loads(member(npm_package(folder, *_NAMES), "package/en/data.json"))
    packages = {**_PACKAGES, **_MORE_PACKAGES, **{s: (f"@iconify-json/{s}", v) for s, (v, _) in _ICONS.items()}}
    sets = {style: _set(npm_package(folder, *package)) for style, package in packages.items()}
    fonts, clip_art = _fonts(folder), _clip_art(folder)
    arrays: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for kind, category, emoji in _chosen(named):
        found = {
            style: _icon(icons, kind, style) if style in _ICONS else _draw(icons, chars, emoji)
            for style, (icons, chars) in sets.items()
        }
        drawn = {
            style: on_colour(picture, kind) if style in _BLACK else picture
            for style, picture in found.items()
            if picture is not None
        }
        if len(drawn.keys() & _PACKAGES.keys()) < 4:
            continue
        about[kind] = {"category": category, "emoji": emoji["hexcode"], "tags": emoji.get("tags", [])}
        for style, font in fonts.items():
            line = glyph(font, emoji["emoji"].replace("\ufe0f", ""))
            if line is not None and kind not in _OTHER_THINGS.get(style, ()):
                drawn[style] = on_colour(line, kind) if _half(style, kind) else line
        for number, file in enumerate(clip_art.get(kind, ()), 1):
            picture = svg_picture(file.decode("utf-8", "replace"))
            if picture is not None:
                drawn["openclipart" if number == 1 else f"openclipart-{number}"] = picture
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


def _set(package: Path) -> tuple[dict[str, Any], dict[str, str]]:
    return json.loads(member(package, "package/icons.json")), json.loads(member(package, "package/chars.json") or b"{}")


def _fonts(folder: Path) -> dict[str, ImageFont.FreeTypeFont]:
    symbola = "./usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf"
    files = {
        "noto-emoji": member(npm_package(folder, *_NOTO_EMOJI), "package/400Regular/NotoEmoji_400Regular.ttf"),
        "symbola": deb_files(folder, *_SYMBOLA, {symbola})[symbola],
    }
    return {style: ImageFont.truetype(io.BytesIO(data), 160) for style, data in files.items()}


def _clip_art(folder: Path) -> dict[str, list[bytes]]:
    listed = {
        kind: [f"./usr/share/openclipart/svg/{name}.svg" for name in names.split()]
        for kind, _, names in (line.partition(": ") for line in _lines("openclipart.txt"))
    }
    files = deb_files(folder, *_OPENCLIPART, {name for names in listed.values() for name in names})
    return {kind: [files[name] for name in names] for kind, names in listed.items()}


def _draw(icons: dict[str, Any], chars: dict[str, str], emoji: dict[str, Any]) -> Image.Image | None:
    code = emoji["hexcode"].lower()
    name = _dashed(emoji["label"].lower().replace(_QUOTE, ""))
    return icon(icons, [chars.get(code), chars.get(code.replace("-fe0f", "")), name, name.replace("-", "")])


def _icon(icons: dict[str, Any], kind: str, style: str) -> Image.Image | None:
    if kind in _OTHER_THINGS["*"] or kind in _OTHER_THINGS.get(style, ()):
        return None
    names = [_dashed(name) for name in [kind, *_OTHER_NAMES.get(kind, ())]]
    return icon(icons, [name + suffix for name in names for suffix in _ICONS[style][1].split(",")])


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _half(style: str, kind: str) -> bool:
    return hashlib.sha256(f"{style}|{kind}".encode()).digest()[0] < 128


if __name__ == "__main__":
    main()

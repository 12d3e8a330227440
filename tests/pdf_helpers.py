"""A small writer of PDF files: text in Helvetica, pictures, outlines, page labels, rotation."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class PDFPage:
    """A page of 400 x 600 points. Places are in PDF's own coordinates: from the bottom left corner."""

    texts: Sequence[tuple[float, float, float, str]] = ()  # x, y, size, text
    pictures: Sequence[tuple[float, float, float, float, tuple[int, int, int]]] = ()  # x, y, width, height, colour
    rotate: int = 0
    extra: str = ""
    annotations: Sequence[str] = field(default_factory=tuple)

    def content(self) -> bytes:
        lines = []
        for number, (x, y, width, height, _) in enumerate(self.pictures):
            lines.append(f"q {width} 0 0 {height} {x} {y} cm /P{number} Do Q")
        for x, y, size, text in self.texts:
            escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            lines.append(f"BT /F {size} Tf {x} {y} Td ({escaped}) Tj ET")
        return "\n".join([*lines, self.extra]).encode("latin-1")


def pdf(
    pages: Sequence[PDFPage],
    *,
    outline: Sequence[tuple[str, int, float]] = (),
    labels: str = "",
    cyclic: bool = False,
) -> bytes:
    """A PDF file.

    Args:
        pages: Its pages.
        outline: Title, page from 0, height on it; all on one level.
        labels: The dictionary of page labels.
        cyclic: Let the outline's last entry be followed by its first.
    """
    objects: dict[int, bytes] = {}
    numbers = iter(range(3, 100_000))
    objects[2] = b""  # the page tree

    def add(body: bytes) -> int:
        number = next(numbers)
        objects[number] = body
        return number

    def stream(told: str, data: bytes) -> bytes:
        packed = zlib.compress(data)
        return f"<< {told} /Filter /FlateDecode /Length {len(packed)} >> stream\n".encode() + packed + b"\nendstream"

    font = add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for page in pages:
        names = []
        for number, (*_, colour) in enumerate(page.pictures):
            told = "/Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceRGB /BitsPerComponent 8"
            names.append(f"/P{number} {add(stream(told, bytes(colour) * 64))} 0 R")
        content = add(stream("", page.content()))
        notes = " ".join(f"{add(note.encode())} 0 R" for note in page.annotations)
        told = f"/Type /Page /Parent 2 0 R /MediaBox [0 0 400 600] /Rotate {page.rotate} /Contents {content} 0 R"
        resources = f"/Resources << /Font << /F {font} 0 R >> /XObject << {' '.join(names)} >> >>"
        kids.append(add(f"<< {told} /Annots [{notes}] {resources} >>".encode()))
    objects[2] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>".encode()
    catalog = "/Type /Catalog /Pages 2 0 R"
    if outline:
        root = next(numbers)
        entries = [next(numbers) for _ in outline]
        for place, (title, page_number, height) in enumerate(outline):
            follows = entries[(place + 1) % len(entries)] if cyclic or place + 1 < len(entries) else 0
            next_ = f"/Next {follows} 0 R" if follows else ""
            child = f"/First {entries[0]} 0 R /Last {entries[0]} 0 R /Count 1" if cyclic else ""
            objects[entries[place]] = (
                f"<< /Title ({title}) /Parent {root} 0 R {next_} {child} "
                f"/Dest [{kids[page_number]} 0 R /XYZ 0 {height} 0] >>"
            ).encode()
        objects[root] = (
            f"<< /Type /Outlines /First {entries[0]} 0 R /Last {entries[-1]} 0 R /Count {len(entries)} >>".encode()
        )
        catalog += f" /Outlines {root} 0 R"
    if labels:
        catalog += f" /PageLabels {labels}"
    objects[1] = f"<< {catalog} >>".encode()
    out = bytearray(b"%PDF-1.7\n")
    places = {}
    for number in sorted(objects):
        places[number] = len(out)
        out += f"{number} 0 obj\n".encode() + objects[number] + b"\nendobj\n"
    table = len(out)
    out += f"xref\n0 {max(objects) + 1}\n0000000000 65535 f \n".encode()
    for number in range(1, max(objects) + 1):
        out += f"{places.get(number, 0):010} 00000 {'n' if number in places else 'f'} \n".encode()
    out += f"trailer << /Size {max(objects) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode()
    return bytes(out)


def manual(*, words: str = "Press the red button to start the pump.") -> bytes:
    """Two pages: chapters from the outline, a figure with its caption, labels i and ii."""
    return pdf(
        [
            PDFPage([(50, 550, 18, "Starting"), (50, 500, 10, words)]),
            PDFPage(
                [(50, 550, 18, "Cleaning"), (50, 500, 10, "Rinse the filter."), (50, 285, 10, "Figure 1: The filter.")],
                [(50, 300, 150, 120, (200, 30, 30))],
            ),
        ],
        outline=[("Starting", 0, 570), ("Cleaning", 1, 570)],
        labels="<< /Nums [0 << /S /r >>] >>",
    )


_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def encrypted(password: str) -> bytes:
    """A PDF of one page that says "secret", under PDF's oldest encryption (40 bits of RC4)."""
    padded = (password.encode() + _PAD)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + b"\xfc\xff\xff\xff" + b"0" * 16).digest()[:5]
    plain = pdf([PDFPage([(50, 500, 10, "secret")])])
    begin = plain.index(b"stream\n") + len(b"stream\n")
    end = plain.index(b"\nendstream")
    number = int(plain[: plain.rindex(b" 0 obj", 0, begin)].rpartition(b"\n")[2])
    object_key = hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[:10]
    locked = plain[:begin] + _rc4(object_key, plain[begin:end]) + plain[end:]
    handler = f"/Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{_rc4(key, _PAD).hex()}>"
    told = f"trailer << /Encrypt << {handler} >> /ID [<{'30' * 16}> <{'30' * 16}>]"
    return locked.replace(b"trailer <<", told.encode())

"""Draw ``docs/demo.png``: one picture, two questions, and what abc-mini finds for each, by headless Chromium.

    python scripts/draw_demo.py             # asks abc-mini and draws
    python scripts/draw_demo.py --html      # prints the page that is drawn

The PNG file contains the page's words, so that the tests can compare them with what the model answers today.
"""

from __future__ import annotations

import argparse
import base64
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from abc_rag import load_embedder
from abc_rag.cli.demo import demo_folder, run_demo

PICTURE = Path(__file__).parents[1] / "docs" / "demo.png"
KEY = "abc-rag:words"
WIDTH, HEIGHT, SCALE = 980, 330, 2
SHOWN = "burger-rabbit.jpg"
STYLE = """
body { margin: 0; width: 980px; height: 330px; box-sizing: border-box; padding: 24px; background: #fff; color: #1c2330;
  font: 16px/1.45 system-ui, "DejaVu Sans", sans-serif; display: flex; gap: 26px; align-items: stretch; }
.picture { flex: none; text-align: center; }
.picture img { width: 256px; height: 256px; border-radius: 14px; display: block; }
.soft { color: #5b677a; font-size: 13.5px; } .picture .soft { margin-top: 4px; }
.rows { flex: 1; display: flex; flex-direction: column; gap: 18px; justify-content: space-between; }
.row { flex: 1; display: flex; gap: 14px; align-items: center; }
.ask { width: 200px; flex: none; background: #e8f0fe; border: 1px solid #3b82f6; border-radius: 14px;
  padding: 14px 16px; font-weight: 600; }
.to { flex: none; color: #7a8699; font-size: 26px; }
.found { flex: 1; border: 1px solid #c9d1dc; border-radius: 14px; padding: 12px 16px; }
"""


def page() -> tuple[str, str]:
    """Ask abc-mini; return the page and the words on it."""
    found = run_demo(load_embedder("abc-mini", device="cpu"))
    chosen = [one.answer for one in found.searches if one.image is not None and Path(str(one.image)).name == SHOWN]
    with demo_folder() as folder:
        data = base64.b64encode((folder / SHOWN).read_bytes()).decode("ascii")
    rows, words = [], [SHOWN]
    for answer in chosen:
        best = answer[0]
        words += [str(answer.question), best.text, f"{best.score:.2f}"]
        rows.append(
            f'<div class="row"><div class="ask">{html.escape(str(answer.question))}</div><div class="to">&#8594;</div>'
            f'<div class="found">{html.escape(best.text)}<div class="soft">the nearest passage of all, '
            f"score {best.score:.2f}</div></div></div>"
        )
    drawn = (
        f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><div class="picture">'
        f'<img src="data:image/jpeg;base64,{data}" alt=""><div class="soft">one picture, two questions</div></div>'
        f'<div class="rows">{"".join(rows)}</div>\n'
    )
    return drawn, "\n".join(words)


def draw(drawn: str, words: str) -> None:
    """Draw the page with Chromium, and write the picture with its words."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium here: docs/demo.png is as it was (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as scratch:
        source, shot = Path(scratch, "page.html"), Path(scratch, "page.png")
        source.write_text(drawn, encoding="utf-8")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={scratch}/user",
        ]
        size = [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}", f"--screenshot={shot}"]
        subprocess.run([browser, *options, *size, source.as_uri()], check=True, capture_output=True, timeout=120)
        with PIL.Image.open(shot) as picture:
            info = PngInfo()
            info.add_itxt(KEY, words)
            picture.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=256).save(
                PICTURE, pnginfo=info, optimize=True
            )


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", action="store_true", help="print the page instead")
    arguments = parser.parse_args()
    drawn, words = page()
    if arguments.html:
        print(drawn)
    else:
        draw(drawn, words)


if __name__ == "__main__":
    main()

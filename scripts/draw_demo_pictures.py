"""Draw the demo's pictures into ``abc_rag/models/bundled/demo``: pairs of objects that abc-mini was not trained on.

python scripts/draw_demo_pictures.py
"""

from __future__ import annotations

from pathlib import Path

from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import KINDS, held_out_scenes

_COUNT = 24
_SEED = 2026


def main() -> None:
    """Write 24 JPEG files, named after what they show, with as many different kinds of objects as chance allows."""
    out = Path("abc_rag/models/bundled/demo")
    seen: set[str] = set()
    written = 0
    for scene in held_out_scenes(400, seed=_SEED):
        kinds = [placed.kind for placed in scene.objects]
        if seen.intersection(kinds):
            continue
        seen.update(kinds)
        name = "-".join(k.replace(" ", "_") for k in kinds)
        render(scene, 336).save(out / f"{name}.jpg", quality=92)
        written += 1
        if written == _COUNT:
            break
    print(f"{written} pictures with {len(seen)} of {len(KINDS)} kinds in {out}")


if __name__ == "__main__":
    main()

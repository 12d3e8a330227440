"""What tests of generation share: transformers' own model to meet, and small checkpoints of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from helpers import FIXTURE
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from abc_rag import Image, Text
from abc_rag.embedding.load import open_embedder
from abc_rag.embedding.options import EmbedderOptions
from abc_rag.images import open_image
from abc_rag.models.chat import Conversation
from abc_rag.models.qwen2_vl.chat import Qwen2VLChat
from abc_rag.models.qwen2_vl.network import normalise
from abc_rag.types import Message

PICTURES = FIXTURE / "images"
SMALL = PICTURES / "shapes_56x56.png"
OTHER = PICTURES / "rgba_200x150.png"


def user(*parts: Any) -> Message:
    """A turn of the user: texts as they are, pictures as paths."""
    return Message("user", [Text(part) if isinstance(part, str) else Image(part) for part in parts])


def assistant(text: str) -> Message:
    return Message("assistant", [Text(text)])


CONVERSATIONS = {
    "text": (user("what is a dog?"),),
    "one picture": (user(SMALL, "what is left?"),),
    "two pictures": (user("first ", SMALL, " and second ", OTHER, "differ how?"),),
    "several turns": (
        Message("system", [Text("Be short.")]),
        user(OTHER, "what is this?"),
        assistant("A thing."),
        user("and this?", SMALL),
        assistant("Another."),
        user("which is larger?"),
    ),
}


def chat_of(folder: Path, **options: Any) -> Qwen2VLChat:
    embedder = open_embedder(folder, EmbedderOptions(device="cpu", **options), adapters="beside")
    assert isinstance(embedder.family.chat, Qwen2VLChat)
    return embedder.family.chat


def embedding_only(to: Path) -> Path:
    """The fixture with a base that was not made to generate."""
    return Path(shutil.copytree(FIXTURE, to, ignore=shutil.ignore_patterns("images", "generation_config.json")))


def tied_checkpoint(to: Path) -> Path:
    """The fixture with a base whose output layer is its embeddings, as transformers itself would save it."""
    folder = Path(shutil.copytree(FIXTURE, to, ignore=shutil.ignore_patterns("images", "goldens*", "loss*")))
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    file = folder / "base" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


class Reference:
    """transformers' own ``Qwen2VLForConditionalGeneration``; only pictures are opened by the embedder's recipe."""

    def __init__(self, base: Path, chat: Qwen2VLChat) -> None:
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self._facts = chat.facts

    def inputs(self, messages: tuple[Message, ...]) -> dict[str, torch.Tensor]:
        turns, grids, pixels = [], [], []
        image = self.model.config.image_token_id
        for message in messages:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if isinstance(part, Text):
                    content.append({"type": "text", "text": part.text})
                    continue
                content.append({"type": "image"})
                opened = self._facts.open(part.source)
                grids.append([1, opened.rows, opened.columns])
                # A still picture is the same frame twice.
                plane = normalise(torch.from_numpy(opened.pixels)).view(opened.patches, 3, 1, 14, 14)
                pixels.append(plane.expand(-1, -1, 2, -1, -1).reshape(opened.patches, -1))
            turns.append({"role": message.role, "content": content})
        prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        left = (rows * columns // 4 for _, rows, columns in grids)
        ids: list[int] = []
        for one in self.tokenizer(prompt, add_special_tokens=False)["input_ids"]:
            ids += [image] * next(left) if one == image else [one]
        found = torch.tensor([ids])
        inputs = {
            "input_ids": found,
            "attention_mask": torch.ones_like(found),
            "mm_token_type_ids": (found == image).int(),
        }
        if grids:
            inputs |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
        return inputs

    def logits(self, messages: tuple[Message, ...], more: list[int]) -> torch.Tensor:
        """float32 ``(len(more) + 1, vocabulary)``: after the conversation, and after each of ``more``."""
        inputs = self.inputs(messages)
        ids = torch.cat([inputs["input_ids"], torch.tensor([more], dtype=torch.long)], dim=1)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(more), dtype=torch.int)], dim=1)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
        with torch.inference_mode():
            return self.model(**inputs).logits[0, -1 - len(more) :]

    def greedy(self, messages: tuple[Message, ...], tokens: int) -> list[int]:
        inputs = self.inputs(messages)
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=tokens, temperature=None, top_p=None, top_k=None
            )
        return out[0, inputs["input_ids"].shape[1] :].tolist()


def decoded(
    chat: Qwen2VLChat, conversations: list[tuple[Message, ...]], tokens: int
) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy tokens and the logits that they were chosen by, of conversations that are decoded together."""
    batch = chat.decoding()
    rows = [batch.add(chat.prepare(Conversation(one))) for one in conversations]
    found: list[tuple[list[int], list[torch.Tensor]]] = [([], [row]) for row in rows]
    for _ in range(tokens):
        chosen = [int(logits[-1].argmax()) for _, logits in found]
        for (ids, _), token in zip(found, chosen, strict=True):
            ids.append(token)
        for (_, logits), row in zip(found, batch.step(chosen), strict=True):
            logits.append(row)
    return [(ids, torch.stack(logits)) for ids, logits in found]


def seen(messages: tuple[Message, ...] | list[Message]) -> list[object]:
    """Roles and texts, and the pixels of pictures."""
    found: list[object] = []
    for message in messages:
        found.append(message.role)
        found += [
            one.text if isinstance(one, Text) else open_image(one.source).image.convert("RGB").tobytes()
            for one in message.parts
        ]
    return found

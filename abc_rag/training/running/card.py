"""The model card of an adapter, made from its run, and the upload to a hub repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from abc_rag.errors import CheckpointError, InputError
from abc_rag.files import write
from abc_rag.models.hub import is_folder

__all__ = ["push_to_hub", "write_card"]

_PLACES = ("base", "pretrain", "data", "images", "negatives_file")
_WHAT = {
    "pretrain": "LoRA on the vision tower and the language model of a Qwen2-VL, with an MLP head and a temperature: "
    "pictures and texts in one space (the first adapter of ABC, arXiv 2503.00329).",
    "instruct": "LoRA on the language model of a Qwen2-VL with its ABC pretrain adapter: it is switched on for a "
    "picture with an instruction, and off for everything else (the second adapter of ABC, arXiv 2503.00329).",
    "vlm2vec": "{method} on a vision-language model: the state of a prompt's last token is the vector of a text, a "
    "picture, or both (VLM2Vec, arXiv 2410.05160).",
}


def write_card(out: Path, *, stage: str, run: dict[str, Any], source: dict[str, Any], bad: dict[str, Any]) -> None:
    """Write ``README.md``: what was trained, on which data, with which settings and figures.

    Args:
        out: Folder of the run, with its ``metrics.jsonl``.
        stage: ``"pretrain"``, ``"instruct"`` or ``"vlm2vec"``.
        run: The content of ``run.json``.
        source: The description of the data.
        bad: The rows that were left out; see `BadRows.as_dict`.
    """
    config, versions = run["config"], run["versions"]
    base = config["base"]
    front = ["---", "library_name: peft", "pipeline_tag: feature-extraction"]
    front.append("tags: [abc-rag, multimodal, embeddings, lora]")
    if not is_folder(base):
        front.append(f"base_model: {base}")
    # A path on this machine means nothing elsewhere.
    config = {k: Path(v).name if k in _PLACES and v is not None and is_folder(v) else v for k, v in config.items()}
    base = config["base"]
    name = out.resolve().name
    lines = [
        *front,
        "---",
        "",
        f"# {name}",
        "",
        _WHAT[stage].format(method="DoRA" if config.get("dora") else "LoRA"),
        "",
        "## Figures",
        "",
        *_figures(out),
        "",
        "## Data",
        "",
    ]
    lines += [f"- {key}: {_short(value)}" for key, value in source.items()]
    lines += [f"- rows left out: {bad['count']}" + (f" ({_short(bad['by_problem'])})" if bad["count"] else "")]
    lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {key} | {_short(value)} |" for key, value in config.items() if key != "out"]
    lines += ["", "## Versions", "", ", ".join(f"{key} {value}" for key, value in versions.items()), "", "## Use", ""]
    lines += ["```python", *(_vlm2vec_use(run) if stage == "vlm2vec" else _abc_use(stage, run, base)), "```", ""]
    write(out / "README.md", "\n".join(lines))


def _abc_use(stage: str, run: dict[str, Any], base: str) -> list[str]:
    config = run["config"]
    other = {"pretrain": "instruct", "instruct": "pretrain"}[stage]
    parts = {
        "base": repr(base) if not is_folder(config["base"]) else f'Path("FOLDER OF {base}")',
        stage: '"THIS REPOSITORY"',
        other: repr(config[other]) if other in config and not is_folder(config[other]) else '"OTHER ADAPTER"',
    }
    return [
        "from abc_rag import ABCCheckpoint, InstructedImage, load_embedder",
        "",
        "checkpoint = ABCCheckpoint(",
        *(f"    {part}={value}," for part, value in parts.items()),
        ")",
        "embedder = load_embedder(checkpoint)",
        'vectors = embedder.embed([InstructedImage("photo.jpg", "What is on the left?")])',
    ]


def _vlm2vec_use(run: dict[str, Any]) -> list[str]:
    config = run["config"]
    # Pictures must be opened as in training.
    opened = {name: config[name] for name in ("resolution", "min_tokens", "max_tokens") if config[name] is not None}
    arguments = ", ".join(['"vlm2vec:THIS REPOSITORY"', *(f"{name}={value!r}" for name, value in opened.items())])
    return [
        "from abc_rag import Image, InstructedText, load_embedder",
        "",
        f"embedder = load_embedder({arguments})",
        'question = InstructedText("a dog", "Find me an everyday image that matches the given caption:")',
        'vectors = embedder.embed([question, Image("photo.jpg")])',
    ]


def _figures(out: Path) -> list[str]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = rows[-max(1, len(rows) // 10) :]

    def mean(name: str) -> float:
        return float(sum(row[name] for row in last) / len(last))

    cells = [f"{mean('loss'):.4f}", f"{100 * mean('accuracy'):.1f} %", f"{mean('temperature'):.4f}"]
    cells += [f"{mean('candidates'):.0f}", f"{rows[-1]['seconds']:.0f}"]
    return [
        f"Means over the steps {last[0]['step']} to {last[-1]['step']} of {rows[-1]['step']}, on the training data:",
        "",
        "| loss | accuracy | temperature | candidates a step | seconds in all |",
        "| --- | --- | --- | --- | --- |",
        f"| {' | '.join(cells)} |",
    ]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", " ")[:300]


def push_to_hub(
    folder: Path, repository: str, *, private: bool = True, results: Path | None = None, endpoint: str | None = None
) -> str:
    """Upload the adapter, settings, metrics and card of a finished run, and nothing else of its folder.

    Args:
        folder: A folder written by ``abc-rag train pretrain``, ``instruct`` or ``vlm2vec``.
        repository: ``"user/name"``; created if missing.
        private: Make a new repository private.
        results: A ``results.json`` of ``abc-rag evaluate``, whose figures are added to the card.
        endpoint: A hub other than huggingface.co.

    Returns:
        The URL of the commit.

    Raises:
        InputError: The folder holds no finished run, or the repository's name is malformed.
        CheckpointError: The hub refuses the upload, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no adapter_model.safetensors; train to the end first")
    if results is not None:
        add_results(folder, results)
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=str(folder),
            repo_id=repository,
            allow_patterns=["adapter_model.safetensors", "adapter_config.json", "abc.json", "metrics.jsonl",
                            "README.md"],
            commit_message="Add the adapter, its settings and its figures",
        )  # fmt: skip
    except HFValidationError as error:
        raise InputError(f"{repository!r} is not the name of a repository; give one such as 'user/name'") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository}: the upload failed ({type(error).__name__}: {error}); set HF_TOKEN to a token with write "
            "permission, or run 'hf auth login'"
        ) from error
    return str(commit)


def add_results(folder: Path, results: Path) -> None:
    """Add the figures of an evaluation to the card; they replace earlier ones of the same benchmark.

    Raises:
        InputError: ``results`` is not a ``results.json``.
    """
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        rows = [f"| {name} | {value:.4f} |" for name, value in found["metrics"].items()]
        title = f"## Evaluation: {found['benchmark']} ({found['model']})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{results}: not a results.json of abc-rag evaluate ({error}); give the one in its --out folder"
        ) from error
    card = folder / "README.md"
    before, _, after = card.read_text(encoding="utf-8").partition("\n## Data\n")
    earlier = rf"\n## Evaluation: {re.escape(found['benchmark'])} .*?(?=\n## |\Z)"
    kept = re.sub(earlier, "", before, flags=re.DOTALL).rstrip()
    text = "\n".join([kept, "", title, "", "| measure | value |", "| --- | --- |", *rows, "", "## Data"]) + "\n" + after
    write(card, text)

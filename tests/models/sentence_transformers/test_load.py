"""Which folders are read as models of sentence-transformers, and which are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Transformer
from st_helpers import (
    SCENE,
    TOLERANCE,
    changed,
    largest,
    load,
    make_clip,
    picture,
    save,
    unit,
)

from abc_rag import (
    Image,
    Text,
    load_embedder,
)
from abc_rag.embedding.load import local_revision
from abc_rag.errors import CheckpointError, InputError, MissingExtraError
from abc_rag.models.sentence_transformers.library import unusable


def test_fingerprint(folders: Any, embedders: Any, tmp_path: Path) -> None:
    for name, folder in folders.items():
        fingerprint = embedders[name].fingerprint
        assert (fingerprint.model, fingerprint.min_tokens, fingerprint.max_tokens) == (f"st:{name}", 1, 1)
        assert local_revision(f"st:{folder}") == fingerprint.revision
    assert len({embedders[name].fingerprint.revision for name in folders}) == len(folders)
    copy = tmp_path / "text"
    shutil.copytree(folders["text"], copy)
    revisions = [local_revision(f"st:{copy}")]
    assert revisions == [embedders["text"].fingerprint.revision]
    weights = copy / "2_Dense" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    revisions.append(local_revision(f"st:{copy}"))
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("mean", "cls"))
    revisions.append(local_revision(f"st:{copy}"))
    assert len(set(revisions)) == 3
    changed = load(copy)
    assert changed.fingerprint.revision == revisions[-1]
    assert largest(changed.embed_texts(["a cube"]), embedders["text"].embed_texts(["a cube"])) > TOLERANCE
    assert local_revision("st:sentence-transformers/clip-ViT-B-32") is None


def test_a_folder_is_asked_for_by_its_prefix(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"write 'st:{folders['clip']}'"):
        load_embedder(folders["clip"])
    for name in ("nothing", "a/b/c", "/nowhere/at/all", ""):
        with pytest.raises(InputError, match=r"neither a folder nor a hub id"):
            load_embedder(f"st:{name}")
    with pytest.raises(CheckpointError):  # there is no network
        _ = load_embedder("st:abc-rag-tests/not-there", device="cpu").dim


def test_folders_that_are_refused(folders: Any, tmp_path: Path) -> None:
    def refused(folder: Path, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            _ = load(folder).dim

    code = changed(folders["text"], tmp_path / "code")
    (code / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    modules = json.loads((code / "modules.json").read_text())
    modules[2]["type"] = "own.Own"
    (code / "modules.json").write_text(json.dumps(modules))
    refused(code, r"needs code that is not part of sentence-transformers \(own.Own\), and abc-rag never runs")
    modules[2]["type"] = "abc_rag.adapters.sentence_transformers.module.ABCModule"
    (code / "modules.json").write_text(json.dumps(modules))
    refused(code, "load it without the 'st:'")
    (code / "modules.json").write_text("[1]")
    refused(code, "lists no modules")

    remote = changed(folders["text"], tmp_path / "remote")
    (remote / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((remote / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "own"}
    (remote / "config.json").write_text(json.dumps({**config, **own}))
    refused(remote, "needs no code of its own")
    assert not (tmp_path / "ran").exists()

    for place in ("", "2_Dense"):
        pickled = changed(folders["text"], tmp_path / f"pickled{place}")
        weights = pickled / place / "model.safetensors"
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
        refused(pickled, r"pytorch_model.bin is a pickle and is never read")

    other = changed(folders["text"], tmp_path / "other")
    settings = json.loads((other / "config_sentence_transformers.json").read_text())
    (other / "config_sentence_transformers.json").write_text(json.dumps({**settings, "model_type": "CrossEncoder"}))
    refused(other, "is a CrossEncoder")
    (other / "config_sentence_transformers.json").write_text(
        json.dumps(settings | {"model_type": "MultiVectorEncoder"})
    )
    refused(other, "is a MultiVectorEncoder, which gives no vectors of one length; take a SentenceTransformer")

    adapter = changed(folders["text"], tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    refused(adapter, r"holds an adapter.* merge it")

    (bare := changed(folders["text"], tmp_path / "bare")).joinpath("modules.json").unlink()
    refused(bare, r"has no modules.json, so how its tokens become one vector would have to be guessed")

    unpooled = save([Transformer(str(folders["text"]))], tmp_path / "unpooled")
    refused(unpooled, "add a Pooling module")

    half = changed(folders["text"], tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    refused(half, "not readable as safetensors")


def test_tensors_that_would_be_random_are_named_unless_nothing_depends_on_them(folders: Any, tmp_path: Path) -> None:
    lacking = changed(folders["text"], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    name = "encoder.layer.0.attention.output.LayerNorm.bias"
    save_file({n: t for n, t in tensors.items() if n != name}, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 tensor\(s\) missing, which would be random: {name}"):
        _ = load(lacking).dim
    # The pooling takes the mean of tokens, so no vector depends on BERT's own pooler.
    kept = {n: t for n, t in tensors.items() if not n.startswith("pooler.")}
    assert len(kept) == len(tensors) - 2
    save_file(kept, lacking / "model.safetensors", metadata={"format": "pt"})
    expected = load(folders["text"]).embed([Text("a b c")])
    assert largest(load(lacking).embed([Text("a b c")]), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("config.json", {"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, but there are only"),
        ("config.json", {"vocab_size": 2 * 10**9}, "vocab_size is 2000000000, but no tensor is wider"),
        ("config.json", {"num_attention_heads": 0}, "cannot load it"),
        ("config.json", {"hidden_size": -16}, "cannot load it"),
        ("tokenizer_config.json", "[" * 100_000, "not readable as JSON|nested"),
        ("modules.json", "[" * 100_000 + "]" * 100_000, "nested more than 32"),
        ("1_Pooling/config.json", "[" * 40 + "]" * 40, "nested more than 32"),
    ],
)
def test_settings_of_strangers(file: str, value: Any, said: str, folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "stranger")
    text = value if isinstance(value, str) else json.dumps({**json.loads((folder / file).read_text()), **value})
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        _ = load(folder).dim


def test_nothing_outside_the_folder_is_read(folders: Any, tmp_path: Path) -> None:
    folder = changed(folders["text"], tmp_path / "stranger")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names files elsewhere"):
        _ = load(folder).dim
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        _ = load(folder).dim
    modules = changed(folders["text"], tmp_path / "modules")
    listed = json.loads((modules / "modules.json").read_text())
    listed[1]["path"] = "../stranger/1_Pooling"
    (modules / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="outside the model"):
        _ = load(modules).dim


def test_what_is_wrong_with_the_installation_is_said() -> None:
    broken = RuntimeError("operator torchvision::nms does not exist")
    assert "pip install --force-reinstall --no-deps torchvision" in str(unusable(broken))
    assert torch.__version__ in str(unusable(broken))
    wrapped = ImportError("cannot import name 'X'")
    wrapped.__cause__ = broken
    assert "torchvision" in str(unusable(wrapped))
    assert "not installed" not in str(unusable(broken)) + str(unusable(wrapped)) + str(unusable(ImportError("old")))
    missing = ModuleNotFoundError("No module named 'sentence_transformers'", name="sentence_transformers")
    assert "sentence-transformers 6 is not installed" in str(unusable(missing))
    assert "sentence-transformers[image]" in str(unusable(ModuleNotFoundError("No module named 'av'", name="av")))


def test_a_model_of_transformers_whose_vectors_need_no_pooling(tmp_path: Path, library: Any) -> None:
    folder = make_clip(tmp_path).parent / "raw"
    assert not (folder / "modules.json").exists()
    found = load(folder).embed([Text("a red cube"), Image(SCENE)])
    expected = [library["clip"].encode([given])[0] for given in ({"text": "a red cube"}, {"image": picture(SCENE)})]
    assert largest(found, unit(expected)) < TOLERANCE


def test_the_extra_is_named(folders: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-rag\[sentence-transformers\]'"):
        load_embedder(f"st:{folders['text']}")


def test_the_light_part_imports_no_torch() -> None:
    program = (
        "import sys, abc_rag.models.sentence_transformers.loader, abc_rag.models.sentence_transformers.pictures\n"
        "sys.exit('torch' in sys.modules or 'sentence_transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

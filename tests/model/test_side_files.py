"""What lies beside the weights goes with them, unless it's code, other weights, or somewhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import secateur
from secateur.model import side_files as module
from secateur.model.side_files import copy_side_files, left_behind, side_files
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

TAKEN = [
    "LICENSE", "Licence.md", "license.txt", "NOTICE", "USE_POLICY.md", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json", "spiece.model",
    "tekken.json", "tokenizer.json", "tokenizer.model.v3", "additional_chat_templates/rag.jinja",
    "additional_chat_templates/tool_use.jinja",
]  # fmt: skip
LEFT = {
    "tokenization_own.py": "code", "build.sh": "code", "native.so": "code", "pytorch_model.bin": "weights",
    "model.gguf": "weights", "onnx/model.onnx": "a folder", "pytorch_model.bin.index.json": "weights",
    "consolidated.safetensors": "weights", "additional_chat_templates/run.py": "code", "weights.PT": "weights",
    "additional_chat_templates/deeper/x": "a folder",
}  # fmt: skip
SILENT = [
    "config.json", "README.md", "model.safetensors", "plan.json", "report.json", "report.html", "events.jsonl",
    "evidence.json", "recipe.yaml", ".gitattributes", ".git/HEAD", "__pycache__/x.pyc", "modeling_secateur.py",
]  # fmt: skip


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_side_file_goes_along_and_what_does_not_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "model", *TAKEN, *LEFT, *SILENT)
    (tmp_path / "out").mkdir()
    copy_side_files(source, tmp_path / "out")
    assert files(tmp_path / "out") == sorted(TAKEN)
    said = dict(line.removesuffix(")").split(" (") for line in side_files(source)[1])
    assert said.keys() == {*(name for name in LEFT if "onnx" not in name and "deeper" not in name), "onnx"} | {
        "additional_chat_templates/deeper"
    }
    for name, reason in LEFT.items():
        assert reason in said.get(name, "a folder")
    (note,) = left_behind(source)
    assert note.startswith("not taken along from the model's folder: ")
    assert note.endswith("and 3 more")


def test_a_folder_with_nothing_else_needs_no_note(tmp_path: Path) -> None:
    assert left_behind(write(tmp_path, *TAKEN, *SILENT)) == []


def test_links_are_followed_no_further_than_the_model(tmp_path: Path) -> None:
    write(tmp_path, "secret", "elsewhere/x.jinja")
    source = write(tmp_path / "model", "real/NOTICE", "tokenizer.json")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    (source / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    (source / "NOTICE").symlink_to("real/NOTICE")
    (source / "loop").symlink_to("loop")
    (source / "gone").symlink_to("nowhere")
    os.mkfifo(source / "pipe")
    taken, left = side_files(source)
    assert taken == ["NOTICE", "tokenizer.json"]
    outside = [name for name in left if "leads out" in name]
    assert [name.split()[0] for name in outside] == ["LICENSE", "additional_chat_templates", "gone", "loop"]
    assert "pipe (no regular file)" in left


def test_a_snapshot_of_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    write(repository / "blobs", "a", "b")
    write(tmp_path / "hub" / "models--org--other" / "blobs", "c")
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "additional_chat_templates").mkdir(parents=True)
    (snapshot / "LICENSE").symlink_to("../../blobs/a")
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to("../../../blobs/b")
    (snapshot / "NOTICE").symlink_to("../../../models--org--other/blobs/c")
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "link"):
        taken, left = side_files(folder)
        assert taken == ["LICENSE", "additional_chat_templates/rag.jinja"]
        assert left == ["NOTICE (a link that leads out of the folder)"]


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 3)
    assert side_files(write(tmp_path, "long.txt"))[1] == ["long.txt (over 0 MB)"]


@pytest.mark.usefixtures("quick")
def test_prune_compress_and_decompress_take_them_along(tmp_path: Path) -> None:
    model = prune_copy(save_tiny(tmp_path / "dense"), tmp_path / "model", 0.7)
    write(tmp_path, "secret")
    write(model, "USE_POLICY.md", "additional_chat_templates/rag.jinja", "own.py")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"the thing number {i} thought that then"}) for i in range(40)))
    told = {"model": str(model), "sites": "channel", "sparsity": 0.5, "calibrate": str(text), "samples": 4}
    recipe = secateur.make_recipe({**told, "length": 16, "evaluate": "none", "speed": False})
    pruned = secateur.prune(recipe, tmp_path / "pruned", quiet=True)
    packed = secateur.compress(model, tmp_path / "packed", quiet=True)
    dense = secateur.decompress(tmp_path / "packed", tmp_path / "again", quiet=True)
    for folder in ("pruned", "packed", "again"):
        found = files(tmp_path / folder)
        assert {"USE_POLICY.md", "additional_chat_templates/rag.jinja", "tokenizer.json"} <= set(found)
        assert not {"LICENSE", "own.py"} & set(found)
        assert set(json.loads((tmp_path / folder / "report.json").read_text())["files"]) == set(found)
    for report in (pruned, packed):
        (note,) = [line for line in report["warnings"] if "not taken along" in line]
        assert "LICENSE (a link that leads out of the folder), own.py (code)" in note
    assert dense["warnings"] == []
    secateur.compress(model, tmp_path / "packed", overwrite=True, quiet=True)
    assert "additional_chat_templates/rag.jinja" in files(tmp_path / "packed")

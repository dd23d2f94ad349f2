"""Opening a folder: what's read, and one line for everything that can be wrong with it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.calibration.walk import walk
from secateur.errors import InputError, SecateurError, UnsupportedModelError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from tests.model import tiny

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def bad_header(file: Path) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[:8] + b"?" * 40 + raw[48:])


def header_longer_than_the_file(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 1 << 40) + file.read_bytes()[8:])


def pickled_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-00001-of-*.safetensors"))[0]


NAME = "model.layers.1.mlp.up_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], type[SecateurError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), InputError, "has no config.json"),
    "bad json": (lambda f: (f / "config.json").write_text("{'a': 1"), InputError, "is not valid JSON"),
    "binary json": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), InputError, "is not valid JSON"),
    "json list": (lambda f: (f / "config.json").write_text("[1]"), InputError, "is a list where an object"),
    "no type": (
        lambda f: edit_json(f / "config.json", lambda c: c.pop("model_type")),
        InputError,
        "has no model_type",
    ),
    "bad values": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(num_attention_heads=5)),
        InputError,
        r"config\.json: ",
    ),
    "wrong types": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(hidden_size="wide")),
        InputError,
        r"config\.json: ",
    ),
    "unknown to transformers": (
        lambda f: edit_json(f / "config.json", lambda c: c.update(model_type="nonesuch")),
        UnsupportedModelError,
        "transformers doesn't know the architecture 'nonesuch'",
    ),
    "code of its own": (
        lambda f: edit_json(
            f / "config.json", lambda c: c.update(model_type="nonesuch", auto_map={"AutoConfig": "own.Config"})
        ),
        UnsupportedModelError,
        "code that comes with a checkpoint is not run",
    ),
    "unknown to the table": (
        lambda f: (f / "config.json").write_text('{"model_type": "t5"}'),
        UnsupportedModelError,
        "architecture 't5' is not in the table",
    ),
    "quantised": (
        lambda f: edit_json(
            f / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4})
        ),
        UnsupportedModelError,
        "the weights are quantised",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), InputError, "has no model.safetensors and no"),
    "pickled": (pickled_only, InputError, r"only pickled weights \(pytorch_model\.bin\)"),
    "truncated": (lambda f: cut_short(f / WEIGHTS), InputError, "is damaged or cut short"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), InputError, "is damaged or cut short"),
    "bad header": (lambda f: bad_header(f / WEIGHTS), InputError, "is damaged or cut short"),
    "long header": (lambda f: header_longer_than_the_file(f / WEIGHTS), InputError, "is damaged or cut short"),
    "missing parameter": (
        lambda f: edit_weights(f, lambda t: t.pop(NAME)),
        InputError,
        f"lacks '{NAME}'",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({NAME: t[NAME][:-1].clone()})),
        InputError,
        f"has 1376 entries of '{NAME}', but its config.json asks for 1408",
    ),
}
BROKEN_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (
        lambda f: first_shard(f).unlink(),
        r"names model-00001-of-\d+\..*, which is not there",
    ),
    "truncated shard": (lambda f: cut_short(first_shard(f)), "is damaged or cut short"),
    "bad index": (lambda f: (f / INDEX).write_text("{"), "is not valid JSON"),
    "index without a map": (lambda f: (f / INDEX).write_text("{}"), "is not a valid index of shards"),
    "index of a list": (lambda f: (f / INDEX).write_text("[]"), r"index\.json"),
    "map of numbers": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": 1}}'),
        "is not a valid index of shards",
    ),
    "index names a missing tensor": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].update(extra=first_shard(f).name)),
        "the index names 'extra', but its file doesn't hold it",
    ),
    "index lacks a tensor": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].pop("model.norm.weight")),
        r"model\.norm\.weight",
    ),
    "a path out of the folder": (
        lambda f: edit_json(f / INDEX, lambda c: c["weight_map"].update(extra="../config.json")),
        "is not a valid index of shards",
    ),
}


def refuses(folder: Path, kind: type[SecateurError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        Checkpoint.open(folder)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text or "is not in the table" in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(what: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("llama-mha"), folder)
    change, kind, message = BROKEN[what]
    change(folder)
    refuses(folder, kind, message)


@pytest.mark.parametrize("what", BROKEN_SHARDS)
def test_a_broken_set_of_shards_is_refused_in_one_line(
    what: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("llama"), folder)
    change, message = BROKEN_SHARDS[what]
    change(folder)
    refuses(folder, InputError, message)


def test_a_path_that_is_no_folder_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", InputError, "no such folder")
    refuses(folder_of("llama-mha") / "config.json", InputError, "is a file; give the folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", InputError, "has no config.json")


@pytest.mark.parametrize("case", ["mixtral", "qwen3-moe"])
def test_a_missing_expert_is_found(case: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.save(case, folder)
    names = [name for name in load_file(folder / WEIGHTS) if "experts.2." in name]
    edit_weights(folder, lambda t: t.pop(names[0]))
    refuses(
        folder, InputError, r"has \d+ entries of 'model\.layers\.0\.mlp\.experts\.\w+', but its config\.json asks"
    )


@pytest.mark.parametrize("case", tiny.CASES)
def test_what_an_open_checkpoint_says(case: str, folder_of: Callable[[str], Path]) -> None:
    model, checkpoint = tiny.build(case), Checkpoint.open(folder_of(case))
    assert checkpoint.layers == tiny.LAYERS
    assert checkpoint.dtype == torch.float32
    assert checkpoint.parameters == model.num_parameters()
    assert len(checkpoint.digest) == 64
    assert checkpoint.digest == Checkpoint.open(folder_of(case)).digest
    assert sum(checkpoint.layer_parameters(i) for i in range(tiny.LAYERS)) == sum(
        p.numel() for p in model.get_submodule(checkpoint.family.layers).parameters()
    )
    for name, _ in model.get_submodule(f"{checkpoint.family.layers}.1").named_parameters():
        assert checkpoint.stored_dtype(1, name) == torch.float32


@pytest.mark.parametrize("case", ["gpt2", "opt", "llama", "bert"])
def test_a_base_model_s_names_and_left_over_tensors_are_understood(case: str, tmp_path: Path) -> None:
    """As on the hub: GPT-2's names lack the prefix, masks of old versions and a task head lie beside the weights."""
    model = tiny.build(case)
    state = {name: t.clone() for name, t in model.state_dict().items() if "lm_head" not in name}
    if case != "bert":
        state = {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in state.items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "cls.seq_relationship.weight": torch.ones(2, 32)}
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    streamed = StreamedModel(Checkpoint.open(tmp_path), torch.device("cpu"), torch.float32)
    ids, got = tiny.tokens(2), []
    list(walk(streamed, ids, at_end=lambda stream: got.append(streamed.logits(ids, stream.states[0]))))
    torch.testing.assert_close(got[0], tiny.logits(model, ids), atol=1e-5, rtol=1e-5)


def test_dtypes_are_those_on_disk(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("llama-mha"), folder)
    edit_weights(folder, lambda t: t.update({k: v.bfloat16() for k, v in t.items() if "norm" not in k}))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.stored_dtype(0, "input_layernorm.weight") == torch.float32
    assert checkpoint.stored_dtype(0, "mlp.up_proj.weight") == torch.bfloat16


def test_a_folder_without_a_tokenizer_says_so(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no tokenizer that loads") as caught:
        Checkpoint.open(folder_of("llama-mha")).tokenizer()
    assert "\n" not in str(caught.value)

"""compress and decompress, by the command line and the library: nothing lost, nothing partial, one-line errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from secateur.cli import app as cli
from secateur.errors import InputError, VerificationError
from secateur.runtime import compress as compressing
from secateur.runtime.folder import MANIFEST, Reader
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny


class Ended(NamedTuple):
    code: int
    out: str
    error: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, half of whose Linear entries are zero."""
    folder = tmp_path_factory.mktemp("models")
    return prune_copy(save_tiny(folder / "tiny"), folder / "half")


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    secateur.compress(model, out, quiet=True)
    return out


def same_bytes(a: Path, b: Path) -> None:
    mine, other = (
        {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()} for folder in (a, b)
    )
    assert mine.keys() == other.keys()
    for name in mine:
        assert mine[name].dtype == other[name].dtype
        assert mine[name].view(-1).view(torch.uint8).equal(other[name].view(-1).view(torch.uint8)), name


def test_there_and_back_on_the_command_line(run: Callable[..., Ended], model: Path, tmp_path: Path) -> None:
    ended = run("compress", model, "--out", tmp_path / "small", "--json")
    assert ended.code == 0, ended.error
    found = json.loads(ended.out)
    assert found["compressed"] == 14
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["bytes_after"] < found["bytes_before"]
    assert not (tmp_path / "small" / ".secateur").exists()
    ended = run("decompress", tmp_path / "small", "--out", tmp_path / "back", "--quiet")
    assert ended.code == 0, ended.error
    assert "bit for bit" in ended.out
    same_bytes(model, tmp_path / "back")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (model / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_shards_keep_their_names(model: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    prune_copy(model, sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, sharded / file)
        weight_map |= dict.fromkeys(part, file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    secateur.compress(sharded, tmp_path / "small", quiet=True)
    assert (tmp_path / "small" / "compressed-00002-of-00002.safetensors").is_file()
    secateur.decompress(tmp_path / "small", tmp_path / "back", quiet=True)
    same_bytes(sharded, tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == weight_map


@pytest.mark.parametrize("name", ["stories260K", "stories3M-fp16", "shakespeare-gpt2-357K"])
def test_real_models_come_back_bit_for_bit(name: str, shared: Path, tmp_path: Path) -> None:
    model = prune_copy(shared / "models" / name, tmp_path / "half")
    found = secateur.compress(model, tmp_path / "small", quiet=True)
    entry = next(iter(load_file(model / "model.safetensors").values())).itemsize
    ideal = 0.5 + 1 / (8 * entry)
    assert found["matrix_bytes_after"] / found["matrix_bytes_before"] == pytest.approx(ideal, abs=0.01)
    secateur.decompress(tmp_path / "small", tmp_path / "back", quiet=True)
    same_bytes(model, tmp_path / "back")


def test_half_of_a_bf16_matrix_takes_at_most_57_percent(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", hidden_size=64, intermediate_size=172, tokenizer=False)
    file = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    found = secateur.compress(prune_copy(folder, tmp_path / "half"), tmp_path / "small", quiet=True)
    assert found["matrix_bytes_after"] <= 0.57 * found["matrix_bytes_before"]


@pytest.mark.parametrize("group", [None, 64])
def test_int8_is_smaller_and_near(run: Callable[..., Ended], model: Path, tmp_path: Path, group: int | None) -> None:
    flags = [] if group is None else ["--group", group]
    ended = run("compress", model, "--values", "int8", *flags, "--out", tmp_path / "small", "--json")
    assert ended.code == 0, ended.error
    secateur.decompress(tmp_path / "small", tmp_path / "back", quiet=True)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    for entry in Reader(tmp_path / "small"):
        W, found = before[entry.name], after[entry.name]
        if entry.packed:
            assert bool(((W - found).abs() <= W.abs().amax(1, keepdim=True) / 254 * 1.001).all())
        else:
            assert W.equal(found)


def test_nothing_to_compress_is_said_and_nothing_written(run: Callable[..., Ended], tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense")
    ended = run("compress", dense, "--quiet", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "no matrix has enough zeros" in ended.error
    assert ended.error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "message"), [
    (("--values", "int4"), "--values int4 is unknown"),
    (("--group", "128"), "--group is for scales"),
    (("--values", "int8", "--group", "100"), "multiple of 64"),
])  # fmt: skip
def test_wrong_flags(
    run: Callable[..., Ended], model: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    ended = run("compress", model, *words, "--out", tmp_path / "out")
    assert (ended.code, ended.error.count("\n")) == (2, 1)
    assert message in ended.error
    assert not (tmp_path / "out").exists()


def test_an_output_folder_is_needed_and_kept(run: Callable[..., Ended], model: Path, tmp_path: Path) -> None:
    assert "add --out DIR" in run("compress", model).error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "is not empty" in run("compress", model, "--out", tmp_path / "mine").error
    assert "didn't make" in run("compress", model, "--out", tmp_path / "mine", "--overwrite").error
    assert run("compress", model, "--out", tmp_path / "out", "--quiet").code == 0
    assert run("compress", model, "--out", tmp_path / "out", "--overwrite", "--quiet").code == 0


def test_what_reads_back_wrong_is_not_delivered(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compressing.pack

    def wrong(W: torch.Tensor, *rest: object, **named: object) -> object:
        packed = right(W, *rest, **named)  # type: ignore[arg-type]
        packed.values[-1] += 1
        return packed

    monkeypatch.setattr(compressing, "pack", wrong)
    with pytest.raises(VerificationError, match="doesn't read back"):
        secateur.compress(model, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def damage(packed: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    prune_copy(packed, folder, 0.0)
    tensors = load_file(packed / "compressed.safetensors")
    change(tensors)
    save_file(tensors, folder / "compressed.safetensors")
    return folder


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("change", [
    lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"][:-3]}),
    lambda t: t.update({f"{NAME}.bitmap": t[f"{NAME}.bitmap"] | 1}),
    lambda t: t.update({f"{NAME}.bitmap": t[f"{NAME}.bitmap"][:-1]}),
    lambda t: t.pop(f"{NAME}.values"),
], ids=["values", "bits", "rows", "missing"])  # fmt: skip
@pytest.mark.parametrize("command", ["decompress", "generate"])
def test_damaged_files_are_refused(
    run: Callable[..., Ended], packed: Path, tmp_path: Path, change: Callable[..., None], command: str
) -> None:
    folder = damage(packed, tmp_path / "damaged", change)
    rest = ["--quiet", "--out", tmp_path / "out"] if command == "decompress" else ["the"]
    ended = run(command, folder, *rest)
    assert (ended.code, ended.error.count("\n")) == (2, 1), ended.error
    assert "compressed.safetensors" in ended.error
    assert not (tmp_path / "out").exists()


ELSEWHERE = {"a": {"file": "../model.safetensors", "dtype": "F32", "shape": [1], "form": "dense"}}
NOT_THERE = {"a": {"file": "model-2.safetensors", "dtype": "F32", "shape": [1], "form": "dense"}}


@pytest.mark.parametrize(("text", "message"), [
    ("{", "is damaged"),
    (json.dumps({"version": 2, "tensors": {}}), "version 2"),
    (json.dumps({"version": 1, "tensors": {}}), "names no tensors"),
    (json.dumps({"version": 1, "tensors": ELSEWHERE}), "is damaged"),
    (json.dumps({"version": 1, "tensors": NOT_THERE}), "lacks compressed-2.safetensors"),
])  # fmt: skip
def test_a_manifest_that_is_wrong(packed: Path, tmp_path: Path, text: str, message: str) -> None:
    folder = damage(packed, tmp_path / "damaged", lambda tensors: None)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=message):
        secateur.decompress(folder, tmp_path / "out", quiet=True)


def test_compressed_folders_are_known_where_dense_ones_are_needed(
    run: Callable[..., Ended], packed: Path, model: Path, tmp_path: Path
) -> None:
    assert "secateur decompress" in run("inspect", packed).error
    assert "is compressed already" in run("compress", packed, "--out", tmp_path / "out").error
    assert "no folder that secateur compress made" in run("decompress", model, "--out", tmp_path / "out").error


def test_the_card_is_of_what_is_there(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(model, source)
    card = "---\nlicense: mit\nlibrary_name: transformers\ntags:\n- mine\n---\n\n# Small\n\nText.\n"
    (source / "README.md").write_text(card, encoding="utf-8")
    secateur.compress(source, tmp_path / "packed", quiet=True)
    written = (tmp_path / "packed" / "README.md").read_text(encoding="utf-8")
    assert "# Small, compressed" in written
    assert "license: mit" in written
    assert written.endswith("# Small\n\nText.\n")
    secateur.decompress(tmp_path / "packed", tmp_path / "back", quiet=True)
    assert (tmp_path / "back" / "README.md").read_text(encoding="utf-8") == card

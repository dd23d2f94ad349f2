"""The command line: every mistake is one line that says what is wrong, and leaves no trace; good runs print."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.cli import app as cli
from secateur.model import save as saving
from secateur.pipeline import one_shot
from secateur.workspace.folder import WORK
from tests.small import byte_tokenizer, save_tiny

STORY = "The thin thief thinks that the moth is theirs. "


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    error: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama: hidden 16, FFN 24, 2 layers, 4 heads in 2 groups, context 32; one token a byte."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n}. {STORY}"}) + "\n" for n in range(30)), encoding="utf-8")
    return file


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(run: Callable[..., Ended], tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must fail with one line and leave the test's folder as it was; gives that line."""

    def call(*arguments: object, code: int = 2) -> str:
        before = snapshot(tmp_path)
        ended = run(*arguments)
        assert ended.error.startswith("error: "), ended.error
        assert ended.error.count("\n") == 1, ended.error
        assert ended.error.endswith("\n")
        assert "Traceback" not in ended.error
        assert ended.out == ""
        assert ended.code == code
        assert snapshot(tmp_path) == before
        return ended.error.removeprefix("error: ").strip()

    return call


@pytest.fixture
def prune(model: Path, text: Path, tmp_path: Path) -> Callable[..., list[object]]:
    """The words of a `prune` that works, with some flags changed (None: left out)."""

    def words(folder: object = model, **changes: object) -> list[object]:
        flags: dict[str, object] = {
            "sites": "channel",
            "sparsity": 0.5,
            "calibrate": text,
            "samples": 4,
            "length": 16,
            "evaluate": "none",
            "out": tmp_path / "out",
            **changes,
        }
        pairs = [(f"--{name.replace('_', '-')}", value) for name, value in flags.items() if value is not None]
        return ["prune", folder, "--quiet", *(word for pair in pairs for word in pair)]

    return words


# ----------------------------------------------------------------------------- models


def config_of(folder: Path, **changes: Any) -> Path:
    """Writes changes (None: the key goes) into a model folder's configuration."""
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return folder


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def corrupt(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4000)


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def lost_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def other_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 16)
    save_file(tensors, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lost_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def of_another_class(folder: Path) -> None:
    config_of(folder, model_type="mamba", architectures=["MambaForCausalLM"])


def unknown(folder: Path) -> None:
    config_of(folder, model_type="no_such_architecture")


def brings_code(folder: Path) -> None:
    config_of(folder, model_type="own", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('this code was run')", encoding="utf-8")


def quantised(folder: Path) -> None:
    config_of(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def untyped(folder: Path) -> None:
    config_of(folder, model_type=None)


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (without_config, "has no config.json"),
    (not_json, "is not valid JSON"),
    (untyped, "has no model_type"),
    (corrupt, "is damaged or cut short"),
    (truncated, "is damaged or cut short"),
    (empty, "is damaged or cut short"),
    (lost_tensor, "lacks 'model.layers.1.mlp.up_proj.weight'"),
    (other_shape, "model.layers.1.mlp.up_proj.weight"),
    (pickled, "only pickled weights (pytorch_model.bin)"),
    (no_weights, "has no model.safetensors"),
    (lost_shard, "names model-00001-of-00002.safetensors, which is not there"),
    (of_another_class, "the checkpoint lacks 'backbone.embeddings.weight', which its config.json asks for"),
    (unknown, "doesn't know the architecture 'no_such_architecture'"),
    (brings_code, "code that comes with a checkpoint is not run"),
    (quantised, "the weights are quantised"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("command", ["prune", "inspect", "eval"])
def test_models_that_can_not_be_used(
    command: str,
    damage: Callable[[Path], None],
    says: str,
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
    tmp_path: Path,
    text: Path,
) -> None:
    broken = save_tiny(tmp_path / "broken")
    damage(broken)
    words = {
        "prune": prune(broken),
        "inspect": ["inspect", broken],
        "eval": ["eval", broken, "--data", text, "--no-speed", "-q"],
    }
    said = refused(*words[command])
    assert says in said or (command == "eval" and said)


@pytest.mark.parametrize("command", ["prune", "inspect", "eval", "generate", "against"])
def test_no_such_model(
    command: str, refused: Callable[..., str], prune: Callable[..., list[object]], model: Path, text: Path
) -> None:
    nowhere = "/no/such/place"
    words = {
        "prune": prune(nowhere),
        "inspect": ["inspect", nowhere],
        "eval": ["eval", nowhere, "--data", text],
        "generate": ["generate", nowhere, "Once"],
        "against": ["generate", model, "Once", "--against", nowhere],
    }
    assert "/no/such/place: no such folder; give a model folder, 'embedded' or a hub id" in refused(*words[command])


def test_a_file_is_no_model(refused: Callable[..., str], prune: Callable[..., list[object]], text: Path) -> None:
    assert "is a file; give the folder" in refused(*prune(text))


def test_a_path_too_long_for_any_file(refused: Callable[..., str], prune: Callable[..., list[object]]) -> None:
    assert "File name too long" in refused(*prune("x" * 5000))


def test_no_tokenizer(refused: Callable[..., str], prune: Callable[..., list[object]], tmp_path: Path) -> None:
    bare = save_tiny(tmp_path / "bare", tokenizer=False)
    assert "no tokenizer that loads" in refused(*prune(bare))


# ----------------------------------------------------------------------------- numbers and names


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "nan", "inf"])
def test_sparsity_out_of_range(value: str, refused: Callable[..., str], prune: Callable[..., list[object]]) -> None:
    assert "is not between 0 and 1" in refused(*prune(sparsity=value))


@pytest.mark.parametrize("value", ["half", "50%%", ""])
def test_sparsity_that_is_no_number(
    value: str, refused: Callable[..., str], prune: Callable[..., list[object]]
) -> None:
    assert "is not a number" in refused(*prune(sparsity=value))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sparsity": None}, "no sparsity given"),
        ({"sites": "chanel"}, "did you mean 'channel'?"),
        ({"method": "wand"}, "did you mean 'wanda'?"),
        ({"method": "sparsegpt"}, "'sparsegpt' doesn't score channel"),
        ({"sites": "weight", "pattern": "1:5", "sparsity": None}, "its 16 inputs are no multiple of 5"),
        ({"sites": "weight", "pattern": "4:2", "sparsity": None}, "pattern '4:2' is unknown"),
        ({"pattern": "2:4"}, "pattern 2:4 is for single weights"),
        ({"samples": 0}, "samples = 0"),
        ({"length": 0}, "length = 0"),
        ({"length": 33}, "--length 33 is more than the model's context; use --length 32 or less"),
        ({"seed": -1}, "seed = -1"),
        ({"device": "gpu"}, "--device gpu is unknown"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"dtype": "int8"}, "--dtype int8 is unknown"),
        ({"memory": "lots"}, "'lots' is not a size"),
        ({"bias": "some"}, "'own', 'add' or 'none'"),
        ({"protect": "7"}, "protect names layer 7, but the model has layers 0 to 1"),
        ({"protect": "x"}, "layers are whole numbers"),
        ({"threads": 0}, "--threads 0 is too small"),
        ({"sites": "layer", "sparsity": 0.1}, "is less than half a layer"),
        ({"sites": "layer", "sparsity": 0.9}, "but at most 1 of 2 may"),
        ({"sparsity": 0.01}, "takes none of 24 channel units away; they go 1 at a time, so give 0.0417 or more"),
        ({"round_to": 64}, "takes none of 24 channel units away; no multiple of 64 is below 24"),
        (
            {"sites": "query_head", "sparsity": 0.2},
            "4 query_head units away; they go 2 at a time, so give 0.5 or more",
        ),
        ({"recipe": "nowhere.yaml"}, "no such recipe file"),
        ({"plan": "nowhere.json"}, "no such plan file"),
        ({"evaluate": "nowhere.jsonl"}, "does not exist"),
        ({"out": None}, "no output folder given; add --out DIR"),
    ],
)
def test_settings(
    changes: dict[str, Any], says: str, refused: Callable[..., str], prune: Callable[..., list[object]]
) -> None:
    assert says in refused(*prune(**changes))


def test_pattern_and_a_width_of_172(
    shared: Path, refused: Callable[..., str], prune: Callable[..., list[object]]
) -> None:
    words = prune(shared / "models/stories260K", sites="weight", pattern="3:8", sparsity=None)
    assert "layers.0.mlp.down_proj: its 172 inputs are no multiple of 8" in refused(*words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prune", "--sparsty", "0.5"], "No such option: --sparsty"),
        (["prune", "--samples", "many"], "--samples"),
        (["prune", "--length", "1.5"], "--length"),
        (["prune", "--out"], "requires an argument"),
        (["prune", "--sparsity", "0.5", "--out", "x"], "no model given"),
        (["prune", "a", "b", "--out", "x"], "unexpected extra argument"),
        (["inspect"], "Missing argument 'model'"),
        (["eval", "x"], "Missing option '--data'"),
        (["eval", "x", "--tasks", "y.jsonl", "--length", "8"], "--length cuts the text of --data"),
        (["generate", "x"], "Missing argument 'prompt'"),
        (["generate", "x", "y", "--tokens", "few"], "--tokens"),
        (["prun"], "No such command 'prun'"),
    ],
)
def test_flags_and_arguments(words: list[str], says: str, refused: Callable[..., str]) -> None:
    said = refused(*words)
    assert says in said
    assert "--help" in said or "recipe" in said


# ----------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.txt", b" \n \n", "nothing but white space"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("body.jsonl", b'{"body": "some"}\n', "no 'text' (or 'input_ids') field; its fields: 'body'"),
        ("list.jsonl", b"[1, 2]\n", "is not a JSON object"),
        ("torn.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("number.jsonl", b'{"text": 5}\n', "must be a string"),
        ("short.txt", b"too short", "less than one sequence of 16"),
        ("story.docx", b"zip", "is no data file that can be read"),
        ("half.parquet", b"PAR1", "parquet"),
        ("ids.jsonl", b'{"input_ids": [1, 2, 99999, 3]}\n', "99999"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "eval"])
def test_data_that_can_not_be_used(
    command: str,
    name: str,
    content: bytes,
    says: str,
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
    model: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    if command == "eval":
        if name == "short.txt":
            pytest.skip("one short text is enough to evaluate on")
        assert says in refused("eval", model, "--data", file, "--no-speed", "-q")
    else:
        assert says in refused(*prune(calibrate=file))


def test_data_that_is_not_there(
    refused: Callable[..., str], prune: Callable[..., list[object]], model: Path, tmp_path: Path
) -> None:
    for words in (
        prune(calibrate="nowhere.jsonl"),
        prune(evaluate="nowhere.jsonl"),
        ["eval", model, "--data", "nowhere.jsonl", "-q"],
    ):
        assert "'nowhere.jsonl' does not exist; give a .jsonl, .txt or .parquet file" in refused(*words)
    assert "is a folder" in refused(*prune(calibrate=tmp_path))
    assert "no domain of stdlib" in refused(*prune(calibrate="stdlib:poems"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "MODEL", "--data", "TEXT", "--length", "0"], "length"),
        (["eval", "MODEL", "--data", ","], "--data is empty"),
        (["eval", "MODEL", "--data", ""], "data file '' does not exist"),
        (["eval", "MODEL", "--data", "TEXT", "--device", "tpu"], "--device tpu"),
        (["eval", "MODEL", "--data", "TEXT", "--threads", "-1"], "--threads -1 is too small"),
        (["generate", "MODEL", "Once", "--tokens", "0"], "--tokens 0 is too small"),
        (["generate", "MODEL", "Once", "--temperature", "-1"], "--temperature -1"),
        (["generate", "MODEL", "Once", "--temperature", "nan"], "--temperature nan"),
        (["generate", "MODEL", "x" * 40], "fills the context"),
    ],
)
def test_eval_and_generate(words: list[str], says: str, refused: Callable[..., str], model: Path, text: Path) -> None:
    filled = [{"MODEL": str(model), "TEXT": str(text)}.get(word, word) for word in words]
    assert says in refused(*filled)


# ----------------------------------------------------------------------------- output folders


def test_out_is_not_empty(refused: Callable[..., str], prune: Callable[..., list[object]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert "is not empty; choose another --out" in refused(*prune())
    assert "holds what secateur didn't make (notes.txt)" in refused(*prune(), "--overwrite")


def test_out_holds_the_report_of_another_program(
    refused: Callable[..., str], prune: Callable[..., list[object]], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    for content in ("{}", "[]", '{"files": ["report.json"]}', "no json"):
        (tmp_path / "out/report.json").write_text(content)
        assert "holds what secateur didn't make" in refused(*prune(), "--overwrite")


def test_out_is_a_file(refused: Callable[..., str], prune: Callable[..., list[object]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder for --out" in refused(*prune(out=tmp_path / "file"))
    assert "Not a directory" in refused(*prune(out=tmp_path / "file/below"))


def test_out_can_not_be_written(
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "closed").mkdir()

    def denied(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    for folder in ("closed", "new/er"):
        assert "can't be written (Permission denied); choose another --out" in refused(*prune(out=tmp_path / folder))


# ----------------------------------------------------------------------------- plans


@pytest.fixture
def plan_file(prune: Callable[..., list[object]], run: Callable[..., Ended], tmp_path: Path) -> Path:
    assert run(*prune(out=tmp_path / "planned"), "--dry-run").code == 0
    return tmp_path / "planned/plan.json"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"model_type": "llama"', '"model_type": "gpt2"', "the plan is for gpt2 with 2 layers, the model is llama"),
        ('"layers": 2', '"layers": 3', "the plan is for llama with 3 layers"),
        ('"layers.1.channel"', '"layers.1.chanel"', "kind 'channel' contradicts the site's name"),
        ('"units": 24', '"units": 25', "has 25 units, the model has 24"),
        ('"version": 1', '"version": 9', "plan version 9 is unknown"),
    ],
)
def test_plans_of_another_model(
    before: str,
    after: str,
    says: str,
    plan_file: Path,
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
) -> None:
    content = plan_file.read_text(encoding="utf-8")
    assert before in content
    plan_file.write_text(content.replace(before, after), encoding="utf-8")
    assert says in refused(*prune(sites=None, sparsity=None, plan=plan_file))


# ----------------------------------------------------------------------------- the machine


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
]


@pytest.mark.parametrize("error", FULL, ids=["space", "quota"])
def test_disk_full_at_the_first_block(
    error: Exception,
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(saving, "write_file", full)
    assert "the disk is full; free some space or choose another --out" in refused(*prune(), code=1)


def test_disk_full_later_keeps_what_is_finished(
    run: Callable[..., Ended],
    prune: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, calls = saving.write_file, []

    def full(*given: object, **how: object) -> None:
        calls.append(given)
        if len(calls) > 1:
            raise FULL[0]
        real(*given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_file", full)
    ended = run(*prune())
    assert ended.code == 1
    assert ended.error.count("\n") == 1
    assert "the disk is full" in ended.error
    assert "--resume" in ended.error
    assert [p.name for p in (tmp_path / "out").iterdir()] == [WORK]
    monkeypatch.setattr(saving, "write_file", real)
    assert "holds an interrupted run; --resume continues it" in run(*prune()).error
    assert run(*prune(), "--overwrite").code == 0


def test_no_room_is_noticed_before_the_run(
    refused: Callable[..., str], prune: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("secateur.workspace.room.shutil.disk_usage", lambda path: usage)
    assert "free, the run needs about" in refused(*prune(), code=1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "cpu", "cuda"],
)
def test_no_memory(
    error: Exception,
    refused: Callable[..., str],
    prune: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(one_shot, "cut_block", fail)
    assert "not enough memory; use fewer --samples, a shorter --length" in refused(*prune(), code=1)


def test_a_mistake_of_ours_is_not_hidden(
    prune: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(one_shot, "cut_block", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main([str(word) for word in prune()])
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- Ctrl-C


def test_stopped_before_a_block_is_finished(
    refused: Callable[..., str], prune: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one_shot, "cut_block", stop)
    assert refused(*prune(), code=130) == "stopped; nothing was written"


def test_stopped_later_and_resumed(
    run: Callable[..., Ended],
    prune: Callable[..., list[object]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with monkeypatch.context() as patch:
        real = one_shot.cut_block

        def stop(block: Any, *given: Any) -> Any:
            if block.index == 1:
                raise KeyboardInterrupt
            return real(block, *given)

        patch.setattr(one_shot, "cut_block", stop)
        ended = run(*prune())
    assert ended.code == 130
    assert ended.error == "error: stopped; the same command with --resume goes on after layer 0\n"
    assert [p.name for p in (tmp_path / "out").iterdir()] == [WORK]
    changed = run(*prune(sparsity=0.25), "--resume")
    assert changed.code == 2
    assert "can't resume, the run differs: sparsity was 0.5, is 0.25" in changed.error
    assert run(*prune(), "--resume").code == 0
    assert not (tmp_path / "out" / WORK).exists()
    assert run(*prune(out=tmp_path / "straight")).code == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "straight"))
    assert one == other


def test_stopped_elsewhere(refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.analysis.inspect.inspect", stop)
    assert refused("inspect", model, code=130) == "stopped"


# ----------------------------------------------------------------------------- what works


def test_help_and_version(run: Callable[..., Ended]) -> None:
    for words in ([], ["--help"], ["-h"]):
        ended = run(*words)
        assert ended.code == 0
        assert ended.error == ""
        for command in ("inspect", "prune", "eval", "generate", "methods"):
            assert command in ended.out
    assert "What to cut" in run("prune", "--help").out
    assert run("--version").out.startswith("secateur 0.")


def test_methods(run: Callable[..., Ended]) -> None:
    rows = json.loads(run("methods", "--json").out)
    assert {row["name"] for row in rows} >= {"magnitude", "wanda", "sparsegpt", "obs", "leave_one_out"}
    assert all(row["paper"].startswith("https://") and row["prunes"] for row in rows)
    assert "2301.00774" in run("methods").out


def test_inspect(run: Callable[..., Ended], model: Path) -> None:
    assert json.loads(run("inspect", model, "--json").out)["layers"] == 2
    assert "What can be cut" in run("inspect", model).out


def test_eval_on_tasks(run: Callable[..., Ended], model: Path, text: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"query": "a", "choices": ["b", "c"], "gold": 1}\n' * 3, encoding="utf-8")
    words = ["eval", model, "--tasks", asked, "--limit", 2, "--against", model, "-q"]
    shown = run(*words)
    assert shown.code == 0
    assert "acc_norm" in shown.out
    assert "McNemar" in shown.out
    alone = json.loads(run(*words, "--json").out)
    assert alone["tasks"]["asked"]["items"] == 2
    both = json.loads(run(*words, "--data", text, "--no-speed", "--json").out)
    assert both["perplexity"] > 0
    assert both["reference"]["perplexity"] == both["perplexity"]
    assert both["differences"] == alone["differences"]
    assert both["reference"]["tasks"]["asked"]["metrics"] == alone["tasks"]["asked"]["metrics"]


def test_eval_against_itself(run: Callable[..., Ended], model: Path, text: Path) -> None:
    ended = run("eval", model, "--against", model, "--data", text, "--no-speed", "-q", "--json")
    found = json.loads(ended.out)
    for key in ("perplexity", "bits_per_byte", "tokens", "data_sha256", "parameters", "bytes_on_disk"):
        assert found[key] == found["reference"][key], key
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["data_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes"):
        assert key in found


def test_generate_shows_both(run: Callable[..., Ended], model: Path) -> None:
    words = ["generate", model, "the", "--tokens", 4, "--against", model]
    found = json.loads(run(*words, "--json").out)
    assert found["text"] == found["reference"]["text"]
    assert run(*words).out.count(str(model)[:20]) == 2


def test_overwrite_replaces_an_earlier_result(
    run: Callable[..., Ended], prune: Callable[..., list[object]], refused: Callable[..., str], tmp_path: Path
) -> None:
    assert run(*prune(), "--dry-run").code == 0
    first = snapshot(tmp_path / "out")
    assert "is not empty" in refused(*prune(sparsity=0.25), "--dry-run")
    assert run(*prune(sparsity=0.25), "--dry-run", "--overwrite").code == 0
    assert snapshot(tmp_path / "out")["plan.json"] != first["plan.json"]
    (tmp_path / "out/notes.txt").write_text("mine")
    assert "didn't make (notes.txt)" in refused(*prune(), "--overwrite")


def test_in_a_process_of_its_own(model: Path, tmp_path: Path) -> None:
    """As a user runs it: one line, no traceback, the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    asked = [sys.executable, "-m", "secateur", "prune", str(model), "--out", str(tmp_path / "out"), "-s", "2"]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: sparsity 2 for weight is not between 0 and 1; 0.25 removes a quarter\n"
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_closes_early(model: Path) -> None:
    shell = subprocess.Popen(
        [sys.executable, "-m", "secateur", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    shell.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        shell.wait(60)
    assert shell.stderr is not None
    assert "Traceback" not in shell.stderr.read()
    shell.stderr.close()


def test_the_tokenizer_of_these_tests_counts_bytes() -> None:
    assert len(byte_tokenizer()("cat").input_ids) == 3

"""Blocks tuned by torch.compile: one compiled function for all of a shape, the eager ones' weights to rounding, and
what can't be compiled goes on as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from secateur.calibration import stream as streaming
from secateur.calibration.walk import Block, walk
from secateur.cli import app as cli
from secateur.config.recipe import make_recipe
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline import one_shot
from secateur.reconstruct import compiled as module
from secateur.reconstruct import tune
from secateur.reconstruct.tune import Tuned, Tuning, reconstruct
from tests.cases import case
from tests.model import tiny
from tests.reconstruct.test_block import copies, masked
from tests.simulated.device import simulate
from tests.small import save_tiny

STEPS = 20


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing was compiled before, in this process or on this machine."""
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 8 * tiny.TOKENS)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    forget()


def forget() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without generated code, which takes seconds: what torch.compile captures is run as it was captured."""
    whole = partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(module, "_compiled", whole)


def opened(name: str, folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(tiny.save(name, folder / name)), torch.device("cpu"), torch.float32)


def tuned(block: Block, compiled: bool = True, **how: Any) -> tuple[Tuned, dict[str, Tensor]]:
    """What becomes of a copy."""
    own = replace(block, layer=copy.deepcopy(block.layer))
    outcome = reconstruct(own, Tuning(STEPS, compiled=compiled, **how))
    assert outcome is not None
    assert outcome.steps
    return outcome, copies(own)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value == 0, other[name] == 0), name
        assert (value - other[name]).abs().max() <= 1e-4 * value.abs().max(), name


def check_blocks_of_one_shape(folder: Path) -> None:
    """What was compiled for the first block is what the next ones run, with weights of their own; and compiled anew
    for the last one alone it gives that one's bytes."""
    for block in walk(opened("llama", folder), tiny.tokens(40), layers=[0, 1, 2], dense=True):
        masked()(block)
        outcome, weights = tuned(block)
        assert graphs() == 1
        expected, eager = tuned(block, compiled=False)
        close(eager, weights)
        assert outcome.held_out_after == pytest.approx(expected.held_out_after, rel=1e-4)
        if block.index == 2:
            forget()
            again = tuned(block)
            assert graphs() == 1
            assert again[0] == outcome
            assert all(torch.equal(again[1][name], value) for name, value in weights.items())


@pytest.mark.usefixtures("captured")
def test_blocks_of_one_shape_share_what_was_compiled(tmp_path: Path) -> None:
    check_blocks_of_one_shape(tmp_path)


@pytest.mark.slow
def test_generated_code_gives_the_same(tmp_path: Path) -> None:
    module.check_compiler(torch.device("cpu"))
    forget()
    check_blocks_of_one_shape(tmp_path)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_other_blocks_too(name: str, tmp_path: Path) -> None:
    """Halves of a block too, which are compiled one by one."""
    for block in walk(opened(name, tmp_path), tiny.tokens(40), layers=[0, 1], dense=True):
        masked()(block)
        outcome, weights = tuned(block, window="half")
        assert outcome.eager is None
        close(tuned(block, compiled=False, window="half")[1], weights)
    assert graphs() == 2


@pytest.mark.usefixtures("captured")
def test_what_cannot_be_compiled_runs_as_it_is(tmp_path: Path) -> None:
    """Experts that are called one after the other, each with its tokens: how many that are is in the data."""
    streamed = opened("mixtral", tmp_path)
    streamed._loader.config._experts_implementation = "eager"
    for block in walk(streamed, tiny.tokens(40), layers=[0], dense=True):
        masked()(block)
        (outcome, weights), (expected, eager) = tuned(block), tuned(block, compiled=False)
        assert outcome.eager
        assert "\n" not in outcome.eager
        assert replace(outcome, eager=None) == expected
        assert all(torch.equal(weights[name], value) for name, value in eager.items())


@pytest.mark.usefixtures("captured")
def test_a_backward_pass_that_fails_begins_the_step_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that were there by then don't count twice."""
    loss, calls = tune.BlockObjective.loss, []

    def fails(*given: Any) -> Tensor:
        found = loss(*given)
        calls.append(given)
        if len(calls) == 5:
            found.backward()
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, ValueError("no such kernel.\nand more"), None)
        return found

    for block in walk(opened("llama", tmp_path), tiny.tokens(40), layers=[0], dense=True):
        masked()(block)
        _, eager = tuned(block, compiled=False)
        monkeypatch.setattr(tune.BlockObjective, "loss", fails)
        outcome, weights = tuned(block)
        assert outcome.eager == "no such kernel"
        close(eager, weights)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("inside", [False, True])
def test_short_of_memory_it_goes_on_with_half(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, whether memory ended in the code or while it was made."""
    loss, lack = tune.BlockObjective.loss, torch.OutOfMemoryError("none left")

    def fails(objective: Any, layer: Any, part: Any) -> Tensor:
        if part.size > 4:
            raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, lack, None) if inside else lack
        return loss(objective, layer, part)

    monkeypatch.setattr(tune.BlockObjective, "loss", fails)
    streamed = opened("llama", tmp_path)
    for block in walk(streamed, tiny.tokens(40), layers=[0], dense=True):
        masked()(block)
        block.stream.alone = block.stream.calls  # nothing of a Llama's belongs to sequences
        with pytest.warns(UserWarning, match="with 4 sequences at a time"):
            outcome, weights = tuned(block)
        assert outcome.eager is None
        assert graphs() == 1
        close(tuned(block, compiled=False)[1], weights)


# ----------------------------------------------------------------------------- whole runs


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    save_tiny(tmp_path / "model", num_hidden_layers=3)
    rows = [{"text": f"the thing number {i} thought that {i * i} was that then, or {i % 7}"} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = {"model": tmp_path / "model", "calibrate": tmp_path / "text.jsonl", "samples": 8, "length": 16}
    return {**told, "sparsity": 0.5, "reconstruct": 5, "evaluate": "none", "speed": False, "compile_blocks": True}


@pytest.mark.usefixtures("captured")
def test_a_run_says_so_and_goes_on_only_compiled(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune: Callable[..., Any] = partial(secateur.prune, quiet=True)
    report = prune(make_recipe(asked), tmp_path / "straight")
    assert report["recipe"]["compile_blocks"]
    assert [block["compiled"] for block in report["reconstruction"]] == [True] * 3
    assert not [line for line in report["warnings"] if "compile" in line]
    assert "compile_blocks: true" in (tmp_path / "straight" / "recipe.yaml").read_text(encoding="utf-8")
    cut_block = one_shot.cut_block

    def stops(block: Block, *rest: Any) -> Any:
        if block.index == 2:
            raise KeyboardInterrupt
        return cut_block(block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "cut_block", stops)
        with pytest.raises(KeyboardInterrupt):
            prune(make_recipe(asked), tmp_path / "out")
    with pytest.raises(InputError, match="compile_blocks was true, is false"):
        prune(make_recipe({**asked, "compile_blocks": False}), tmp_path / "out", resume=True)
    forget()
    prune(make_recipe(asked), tmp_path / "out", resume=True)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "out"))
    assert one == other


def test_a_run_names_what_was_not_compiled(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(graph: Any, inputs: Any) -> Any:
        raise ValueError("no kernel for this")

    monkeypatch.setattr(module, "check_compiler", lambda device: None)
    monkeypatch.setattr(module, "_compiled", partial(torch.compile, backend=refuses))
    monkeypatch.setattr("secateur.pipeline.prune.check_compiler", lambda device: None)
    report = secateur.prune(make_recipe(asked), tmp_path / "out", quiet=True)
    assert [block["compiled"] for block in report["reconstruction"]] == [False] * 3
    assert "tuned without torch.compile: layers 0, 1, 2: no kernel for this" in report["warnings"]
    plain = secateur.prune(make_recipe({**asked, "compile_blocks": False}), tmp_path / "plain", quiet=True)
    assert "compiled" not in plain["reconstruction"][0]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "out"))
    assert one == other


def test_without_a_compiler_nothing_is_begun(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch._inductor.config as inductor

    (tmp_path / "recipe.yaml").write_text(
        json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in asked.items()})
    )
    # Not by monkeypatch, which takes the setting away altogether afterwards.
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(SystemExit) as ended:
        cli.main(["prune", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--quiet"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "C++ compiler" in said
    assert "--compile-blocks" in said
    assert not (tmp_path / "out").exists()


def test_a_device_without_a_compiler_is_refused() -> None:
    with case("sim"), pytest.raises(InputError, match=r"doesn't work for sim:0 here .* leave --compile-blocks out"):
        module.check_compiler(torch.device(simulate().type, 0))


def test_it_is_of_block_reconstruction() -> None:
    with pytest.raises(InputError, match="compile_blocks is of block reconstruction; add --reconstruct 400"):
        make_recipe({"model": "m", "sparsity": 0.5, "compile_blocks": True})

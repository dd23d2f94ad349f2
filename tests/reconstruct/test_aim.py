"""Behind the last block predictions are compared: the divergence is the textbook's, and so is its slope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from secateur.calibration import stream as streaming
from secateur.calibration.activations import MemoryBudget
from secateur.calibration.walk import Block, walk
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.numerics.patterns import Pattern
from secateur.reconstruct import objective as module
from secateur.reconstruct.objective import BlockObjective, Predictions, objective_of
from secateur.reconstruct.sequences import SequenceBatch
from secateur.reconstruct.tune import Tuning, reconstruct
from secateur.system import accelerator
from tests.model import tiny

SEQUENCES = 18


@pytest.fixture(autouse=True)
def _eight_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 8 * tiny.TOKENS)


def blocks(case: str, folder: Path) -> Iterator[Block]:
    """All blocks, the last one with half of its weights gone."""
    streamed = StreamedModel(Checkpoint.open(tiny.save(case, folder / case)), torch.device("cpu"), torch.float32)
    for block in walk(streamed, tiny.tokens(SEQUENCES), dense=True):
        if block.index == streamed.checkpoint.layers - 1:
            for linear in block.linears:
                linear.weight = linear.weight * Pattern.parse("free").mask(linear.weight.abs(), 0.5)
        yield block


def last(case: str, folder: Path) -> Block:
    """The last block, while its walk is still going on."""
    found = blocks(case, folder)
    while (block := next(found)).index != block.streamed.checkpoint.layers - 1:
        pass
    block.streamed.walk = found  # type: ignore[attr-defined]  # a walk that is forgotten ends, and its states with it
    return block


def by_hand(block: Block, folder: Path, case: str) -> Tensor:
    """KL(p | q) of every token, fp64, from two whole models of transformers."""
    dense = AutoModelForCausalLM.from_pretrained(folder / case, dtype=torch.float32).eval()
    pruned = AutoModelForCausalLM.from_pretrained(folder / case, dtype=torch.float32).eval()
    layers = pruned.get_submodule(block.streamed.checkpoint.family.layers)
    layers[block.index].load_state_dict(block.layer.state_dict())
    ids = tiny.tokens(SEQUENCES)
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (dense, pruned))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2", "qwen3-moe"])
@pytest.mark.parametrize("pieces", [None, 3])
def test_the_divergence_is_that_of_two_whole_models(
    case: str, pieces: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = last(case, tmp_path)
    if pieces is not None:  # tokens at once: pieces of sequences
        monkeypatch.setattr(module, "LOGITS", pieces * int(block.streamed.checkpoint.config.vocab_size))
    want = by_hand(block, tmp_path, case)
    with objective_of(block, MemoryBudget(None), "block", None, predictions=True) as objective:
        assert isinstance(objective, Predictions)
        parts = [SequenceBatch(0, slice(0, 8)), SequenceBatch(2, slice(1, 2))]
        own = torch.cat([want[0:8], want[17:18]])
        assert objective.error(block.layer, parts) == pytest.approx(float(own.mean()), rel=1e-4)
        assert float(own.mean()) > 1e-4


@pytest.mark.parametrize("pieces", [None, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_its_slope_is_that_of_the_mean_divergence_and_the_guard(
    bf16: bool, pieces: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = last("llama", tmp_path)
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda _: bf16)
    if pieces is not None:
        monkeypatch.setattr(module, "LOGITS", pieces * int(block.streamed.checkpoint.config.vocab_size))
    part, device = SequenceBatch(0, slice(0, 8)), torch.device("cpu")
    weights = [p.requires_grad_(True) for p in block.layer.parameters()]
    with objective_of(block, MemoryBudget(None), "block", None, predictions=True) as objective:
        found = torch.autograd.grad(objective.loss(block.layer, part), weights)
        out = block.stream.forward(block.layer, block.index, 0, device)
        ids = block.stream.batches[0]
        q = block.streamed.lm_head(ids, out).double().log_softmax(-1)
        p = block.streamed.logits(ids, objective.targets[0]).double().log_softmax(-1)
        target = objective.targets[0].double()
    mean = (p.exp() * (p - q)).sum(-1).mean()
    mean = mean + module.GUARD * ((out.double() - target).square().sum(-1) / target.square().sum(-1)).mean()
    for got, want in zip(found, torch.autograd.grad(mean, weights), strict=True):
        if bf16:  # eight bits of precision
            assert float((got - want).norm()) < 0.05 * float(want.norm())
        else:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)
    assert all(not p.requires_grad for p in block.streamed._model.parameters())


def test_only_what_ends_with_the_model_is_judged_by_predictions(tmp_path: Path) -> None:
    for block in blocks("llama", tmp_path):
        end = block.streamed.checkpoint.layers - 1
        for window, reach in (("half", 0), ("block", 0), (2, 1)):
            with objective_of(block, MemoryBudget(None), window, None, predictions=True) as objective:  # type: ignore[arg-type]
                assert objective.predictions == (block.index + reach >= end)
            with objective_of(block, MemoryBudget(None), window, None, predictions=False) as objective:  # type: ignore[arg-type]
                assert type(objective) is BlockObjective


@pytest.mark.parametrize("bf16", [False, True])
def test_tuning_brings_the_predictions_nearer(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda _: bf16)
    block = last("llama", tmp_path)
    before = by_hand(block, tmp_path, "llama")
    outcome = reconstruct(block, Tuning(50, predictions=True))
    assert outcome is not None
    assert outcome.predictions
    assert outcome.steps
    after = by_hand(block, tmp_path, "llama")
    held = slice(16, 18)  # the last batch, where there are fewer than eight
    assert float(before[held].mean()) == pytest.approx(outcome.held_out_before, rel=1e-3)
    assert float(after[held].mean()) == pytest.approx(outcome.held_out_after, rel=1e-3)
    assert outcome.held_out_after < 0.9 * outcome.held_out_before

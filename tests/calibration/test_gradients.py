"""Gradients of the whole model and of one block, against small steps of the weights and plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import secateur
from secateur.calibration import gradients
from secateur.calibration.gradients import WHOLE, gradients_of_model, regional_gradients, token_signs
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.system import distributed
from tests.model import tiny

CASES = ["llama", "gpt2", "gemma2", "mixtral"]


def opened(case: str, folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(tiny.save(case, folder / case)), torch.device("cpu"), torch.float32)


def ids(sequences: int = 3) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (sequences, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_the_loaded_model(case: str, tmp_path: Path) -> None:
    streamed, tokens = opened(case, tmp_path), ids()
    found = gradients_of_model(streamed, tokens, WHOLE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / case, dtype=torch.float32)
    layers = model.get_submodule(streamed.checkpoint.family.layers)
    sums = [{need: {n: torch.zeros_like(p) for n, p in x.named_parameters()} for need in WHOLE} for x in layers]
    for number, row in enumerate(tokens):
        for loss, wanted in losses(model(row[None]).logits[0, :-1], row[1:], number):
            model.zero_grad()
            loss.backward(retain_graph=True)
            for index, layer in enumerate(layers):
                for name, parameter in layer.named_parameters():
                    for need, value in wanted(parameter.grad).items():
                        sums[index][need][name] += value / len(tokens)
                    if "fisher" in wanted(parameter.grad):
                        sums[index]["input_fisher"][name] += by_input(name, parameter, case) / len(tokens)
    for index in range(len(layers)):
        for need in WHOLE:
            assert any(bool(g.any()) for g in found[index][need].values())
            for name, expected in sums[index][need].items():
                torch.testing.assert_close(found[index][need][name], expected, rtol=1e-3, atol=1e-6)


def test_only_what_counts_is_looked_at(tmp_path: Path) -> None:
    """Answers alone: the gradient of their mean loss, with everything before them as context."""
    streamed, tokens = opened("llama", tmp_path), ids()
    counts = torch.zeros_like(tokens, dtype=torch.bool)
    counts[0, 4:6] = counts[1, 9:] = True  # the last sequence has nothing that counts
    found = gradients_of_model(streamed, tokens, frozenset({"gradient"}), counts=counts)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    for number in (0, 1):
        logits = model(tokens[number][None]).logits[0, :-1].log_softmax(-1)
        own = -logits.gather(1, tokens[number, 1:, None])[:, 0][counts[number, 1:]]
        (own.mean() / len(tokens)).backward()
    for index, layer in enumerate(model.model.layers):
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(found[index]["gradient"][name], parameter.grad, rtol=1e-3, atol=1e-6)


def by_input(name: str, parameter: torch.Tensor, case: str) -> torch.Tensor:
    """w dl/dw of an entry times the sum of that over its column, entry by entry; nothing outside of Linears."""
    if parameter.dim() < 2 or "router" in name or name.endswith("gate.weight"):
        return torch.zeros_like(parameter)
    slope = (parameter * parameter.grad).detach()
    if parameter.dim() == 3:
        return torch.stack([one * torch.stack([column.sum() for column in one.T]) for one in slope])
    slope = slope.T if case == "gpt2" else slope  # Conv1D
    found = slope * torch.stack([column.sum() for column in slope.T])
    return found.T if case == "gpt2" else found


def losses(logits: torch.Tensor, targets: torch.Tensor, number: int = 0) -> list[tuple[torch.Tensor, Any]]:
    """What is differentiated, and what its gradient g tells."""
    p = logits.softmax(-1)
    each = -p[range(len(targets)), targets].log()
    signed = sum(float(sign) * loss for sign, loss in zip(token_signs(len(each), number), each, strict=True))
    return [
        (each.mean(), lambda g: {"gradient": g, "gradient_size": g.abs()}),
        (signed / len(each) ** 0.5, lambda g: {"fisher": g.square()}),
        (-(p * p.log()).sum(-1).mean(), lambda g: {"entropy_gradient": g.abs()}),
    ]


def test_random_signs_give_the_mean_square_of_the_tokens(tmp_path: Path) -> None:
    """Many draws against a backward pass for each token."""
    streamed, row = opened("llama", tmp_path), ids(1)
    name = "mlp.down_proj.weight"
    needs = frozenset({"fisher", "input_fisher"})
    layer = gradients_of_model(streamed, row.repeat(400, 1), needs)[1]
    found = layer["fisher"][name]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    weight = model.model.layers[1].mlp.down_proj.weight
    each = nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:], reduction="none")
    slopes = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in each]
    expected = torch.stack([slope.square() for slope in slopes]).mean(0)
    assert float(found.sum() / expected.sum()) == pytest.approx(1, abs=0.1)
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.98
    gates = torch.stack([(weight.detach() * slope).sum(0).square() for slope in slopes]).mean(0)
    torch.testing.assert_close(layer["input_fisher"][name].sum(0), gates, rtol=0.25, atol=0.05 * float(gates.max()))


def test_the_gradient_is_the_slope(tmp_path: Path) -> None:
    streamed, tokens = opened("llama", tmp_path), ids(1)
    found = gradients_of_model(streamed, tokens, frozenset({"gradient"}))[1]["gradient"]["mlp.down_proj.weight"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float64)
    weight = model.model.layers[1].mlp.down_proj.weight
    values = []
    with torch.no_grad():
        for change in (1e-4, -2e-4):
            weight[2, 3] += change
            values.append(float(losses(model(tokens).logits[0, :-1], tokens[0, 1:])[0][0]))
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(found[2, 3]), rel=1e-3)


def test_regional_gradients(tmp_path: Path) -> None:
    streamed = opened("llama", tmp_path)
    for block in secateur.walk(streamed, ids(4)):
        before = copy.deepcopy(block.layer.state_dict())
        found = regional_gradients(block)
        assert all(torch.equal(before[name], value) for name, value in block.layer.state_dict().items())
        layer = copy.deepcopy(block.layer)
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
        out = block.stream.forward(layer, block.index, 0, streamed.device)
        torch.stack([row.norm() for row in out]).mean().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad.abs(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["taylor", "taylor_group", "taylor2", "fisher", "gradient_activation"])
def test_every_kind_of_unit_is_cut_by_them(method: str, tmp_path: Path) -> None:
    """KV groups, then query heads, then channels: gradients lose what the block loses."""
    check_run(tmp_path, {"sites": "kv_group,query_head,channel", "sparsity": 0.5, "method": method})


@pytest.mark.parametrize("method", ["taylor", "fisher", "gblm", "wanda_regional"])
def test_weights_too_after_channels_went(method: str, tmp_path: Path) -> None:
    check_run(tmp_path, {"sites": "weight,channel", "sparsity": 0.5, "method": method})


def check_run(folder: Path, values: dict[str, object]) -> None:
    model = tiny.save("llama", folder / "model")
    text = folder / "text.jsonl"
    text.write_text("".join(f'{{"input_ids": {row.tolist()}}}\n' for row in ids(6)), encoding="utf-8")
    values = {"model": str(model), "calibrate": str(text), "samples": 4, "length": 12, **values}
    report = secateur.prune(
        secateur.make_recipe({**values, "evaluate": "none", "speed": False}), folder / "out", quiet=True
    )
    named = [site for site in report["sites"] if site["method"] == values["method"]]
    assert named
    assert all(site["sparsity"] == pytest.approx(0.5, abs=0.02) for site in named)
    secateur.load(folder / "out")


def test_they_are_refused_where_they_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = opened("llama", tmp_path)
    gradients.check_gradients(streamed, frozenset({"regional", "rms"}))
    monkeypatch.setattr(gradients, "fits_in_memory", lambda entries: False)
    with pytest.raises(InputError, match="GB are free; use a method without gradients"):
        gradients.check_gradients(streamed, WHOLE)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(InputError, match="without torchrun"):
        gradients.check_gradients(streamed, WHOLE)

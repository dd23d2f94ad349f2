"""Two optimisers behind one state: each does what torch's own does alone, and what is saved goes on as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from secateur.config.training import make_recovery
from secateur.errors import InputError
from secateur.recovery.muon import BETAS, MOMENTUM, MuonAndAdamW, orthogonal
from secateur.system import accelerator
from tests.model import tiny

RATE = 1e-2


def build() -> Any:
    return copy.deepcopy(tiny.build("llama")).float().train().requires_grad_(True)


def make(model: Any, decay: float = 0.0) -> MuonAndAdamW:
    return MuonAndAdamW(model, "model.layers", {}, RATE, decay)


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    ids = tiny.tokens()
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("model.layers.") and parameter.dim() == 2


def test_a_matrix_goes_equally_far_in_all_directions() -> None:
    model = build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(model, make(model))
    seen = 0
    for name, parameter in model.named_parameters():
        if is_matrix(name, parameter):
            moved = (before[name] - parameter.detach()).double() / (RATE * 0.2 * math.sqrt(max(parameter.shape)))
            lengths = torch.linalg.svdvals(moved)
            live = lengths[lengths > 0.05]  # what is left are directions that had no gradient
            assert len(live) >= 4, name
            assert 0.5 < float(live.median()) < 1.3, name
            assert float(live.max()) < 1.3, name
            seen += 1
    assert seen == 7 * model.config.num_hidden_layers


@pytest.mark.parametrize(("half", "off", "least"), [(False, 1e-3, 0.6), (True, 0.05, 0.5)])
def test_the_step_is_an_orthogonal_factor(
    half: bool, off: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a decomposition in fp64: wide, tall and square matrices, singular values that spread a hundredfold; in
    fp32, and in bf16 as where the processor multiplies that."""
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda device: half)
    torch.manual_seed(1)
    for m, n in ((12, 40), (40, 12), (24, 24)):
        U, _, V = torch.linalg.svd(torch.randn(m, n, dtype=torch.float64), full_matrices=False)
        S = torch.logspace(0, -2, min(m, n), dtype=torch.float64)
        found = orthogonal((U * S @ V).float()).double()
        turned = U.T @ found @ V.T
        assert least < float(turned.diagonal().min()) <= float(turned.diagonal().max()) < 1.25
        assert float((turned - turned.diagonal().diag()).abs().max()) < off


def test_matrices_do_what_the_other_muon_does() -> None:
    """torch's own, which rounds to bf16 on its way."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has a Muon from 2.9 on")
    model, other = build(), build()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    matrices = [p for name, p in other.named_parameters() if is_matrix(name, p)]
    optimizer = make(model, 0.1)
    theirs = torch.optim.Muon(matrices, lr=RATE, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    step(model, optimizer)
    step(other, theirs)
    for (name, one), two, old in zip(model.named_parameters(), other.parameters(), start, strict=True):
        if is_matrix(name, one):
            assert float((one - two).detach().norm() / (one - old).detach().norm()) < 0.05, name


def test_everything_else_does_what_adamw_does() -> None:
    model, other = build(), build()
    step(model, make(model, 0.1))
    step(other, torch.optim.AdamW(other.parameters(), lr=RATE, betas=BETAS, weight_decay=0.1))
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) == (not is_matrix(name, one)), name


def test_a_schedule_reaches_both() -> None:
    model = build()
    optimizer = make(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, optimizer)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_what_was_saved_goes_on_as_it_was() -> None:
    model = build()
    optimizer = make(model)
    for _ in range(2):
        step(model, optimizer)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    step(model, optimizer)
    other = build()
    other.load_state_dict(weights)
    anew = make(other)
    anew.load_state_dict(state)
    step(other, anew)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_adapters_are_refused() -> None:
    with pytest.raises(InputError, match="use optimizer adamw"):
        make_recovery({"how": "lora", "optimizer": "muon"})

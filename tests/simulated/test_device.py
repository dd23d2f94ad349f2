"""The simulated device is as strict as a real one, and as forgetful."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur.errors import InputError
from secateur.system import accelerator
from secateur.system.device import device_name, resolve_device
from tests.simulated import device as sim


@pytest.fixture(autouse=True)
def device() -> torch.device:
    return sim.simulate()


def test_it_refuses_what_a_gpu_refuses(device: torch.device) -> None:
    here, there = torch.ones(3, 4), torch.ones(3, 4, device=device)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([here, there])
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=device).normal_(generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)  # a number may come along
    assert torch.equal(there[torch.tensor([0, 2])].cpu(), here[:2])  # and indices may


def test_what_a_gpu_waits_for_is_counted(device: torch.device) -> None:
    x = torch.ones(3, 4).to(device)
    counts = sim.count()
    y = (x @ x.T).softmax(-1) + 1
    assert counts.waits == counts.to_host == 0
    for wait in (lambda: bool(y.any()), lambda: float(y[0, 0]), y.tolist, y.cpu, y.nonzero, lambda: y[y > 0]):
        before = counts.waits
        wait()
        assert counts.waits == before + 1
    y.to("cpu", non_blocking=True)
    x.copy_(torch.zeros(3, 4))
    assert counts.to_host == (1 + 1) * y.nbytes + y.nbytes
    assert counts.to_device == x.nbytes


def test_modules_move_learn_and_are_copied(device: torch.device) -> None:
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    moved = copy.deepcopy(copy.deepcopy(plain).to(device))
    x = torch.randn(2, 5, 8)
    outs = [model(y) for model, y in ((plain, x), (moved, x.to(device)))]
    for out in outs:
        out.square().mean().backward()
    assert torch.equal(outs[0], outs[1].cpu())
    for own, other in zip(plain.parameters(), moved.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad.cpu())
        other.data = other.data.to(torch.bfloat16).float()
        assert torch.equal(other.detach().cpu(), own.detach().to(torch.bfloat16).float())
    query = torch.randn(1, 4, 6, 8)
    attend = nn.functional.scaled_dot_product_attention
    assert torch.equal(
        attend(query, query, query, is_causal=True), attend(*3 * [query.to(device)], is_causal=True).cpu()
    )
    with torch.autocast(device.type, torch.bfloat16):
        assert moved.linear1(x.to(device)).dtype == torch.bfloat16


def test_its_memory_is_counted_and_ends(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    before = accelerator.allocated_bytes(device)
    x = torch.zeros(1000, device=device)
    view = x[10:].view(-1, 10)
    assert accelerator.allocated_bytes(device) == before + 4000
    del x
    assert accelerator.allocated_bytes(device) == before + 4000
    del view
    assert accelerator.allocated_bytes(device) == before
    monkeypatch.setattr(sim.MEMORY, "total", sim.MEMORY.now + 1000)
    assert accelerator.free_bytes(device) == 1000
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1000, device=device)


def test_it_is_named_as_any_device_is(device: torch.device) -> None:
    assert resolve_device("sim") == torch.device("sim")
    assert resolve_device("sim:0").index == 0
    assert device_name(device) == "simulated device"
    with pytest.raises(InputError, match="there are 1 sim devices, from sim:0 on"):
        resolve_device("sim:1")
    for name in ("meta", "xpu", "hpu", "cuda:7"):
        with pytest.raises(InputError, match="this machine or this build of torch has none"):
            resolve_device(name)
    for name in ("gpu", "sim:", "cuda:x", "auto:1", "../x"):
        with pytest.raises(InputError, match="is unknown; use auto, cpu, cuda"):
            resolve_device(name)

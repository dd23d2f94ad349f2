"""A dense Linear by our kernel: against fp64, tied, moved, learning, compiled, and in a loaded model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.runtime import few_rows
from secateur.runtime.few_rows import FewRows, Limit, fits, speed_up
from secateur.runtime.kernels import jit
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

pytest.importorskip("llvmlite", reason="kernels need llvmlite (the extra `fast`)")
pytestmark = pytest.mark.skipif(not jit.shares_threads(), reason="torch's threads can't be shared here")


def linear(rows: int, columns: int, bias: bool) -> nn.Linear:
    torch.manual_seed(rows)
    return nn.Linear(columns, rows, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize(("rows", "columns", "bias"), [(8, 64, False), (301, 192, True), (1024, 128, True)])
def test_products_against_fp64(rows: int, columns: int, bias: bool) -> None:
    plain = linear(rows, columns, bias)
    ours = FewRows(plain, 16)
    for shape in ((1, columns), (2, 3, columns), (7, columns), (40, columns)):
        x = torch.randn(shape).bfloat16()
        expected = x.double() @ plain.weight.double().T
        expected = expected + plain.bias.double() if bias else expected
        size = x.double().abs() @ plain.weight.double().abs().T
        y = ours(x)
        assert (y.dtype, y.shape) == (torch.bfloat16, expected.shape)
        assert bool(((y.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5 * size).all())


def test_it_reads_the_parameter_that_is_there() -> None:
    ours, x = FewRows(linear(64, 64, True), 4), torch.randn(1, 64).bfloat16()
    before = ours(x)
    ours.weight.mul_(2), ours.bias.mul_(2)
    torch.testing.assert_close(ours(x), 2 * before)
    ours.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16), requires_grad=False)
    assert ours(x).equal(ours.bias[None])
    ours.bias = nn.Parameter(torch.full((64,), 3.0).bfloat16(), requires_grad=False)
    assert ours(x).equal(ours.bias[None]), "another tensor in the same place of the module"
    assert sorted(ours.state_dict()) == ["bias", "weight"]
    ours.float()
    torch.testing.assert_close(ours(x.float()), nn.functional.linear(x.float(), ours.weight, ours.bias))


@pytest.mark.parametrize("bias", [False, True])
def test_a_copy_is_one_of_its_own(bias: bool) -> None:
    """After a product too, which leaves nothing in the module that couldn't be copied."""
    ours, x = FewRows(linear(64, 64, bias), 4), torch.randn(1, 64).bfloat16()
    before = ours(x)
    other = copy.deepcopy(ours)
    ours.weight.zero_()
    assert other(x).equal(before)


def test_gradients_flow_and_nothing_at_all_is_something() -> None:
    ours = FewRows(linear(64, 64, False), 4)
    x = torch.randn(2, 64).bfloat16().requires_grad_()
    ours(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(2, 64), rtol=2e-2, atol=2e-2)
    assert ours(torch.zeros(0, 64).bfloat16()).shape == (0, 64)


def test_it_is_found_by_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(few_rows, "SMALLEST", 64 * 64)
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    assert not fits(linear(64, 60, False)), "columns aren't a multiple of 64"
    assert not fits(linear(64, 64, False).float())
    times = iter([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0]])
    monkeypatch.setattr(few_rows, "race", lambda *works: next(times))
    few_rows.forget()
    model = nn.Sequential(linear(64, 64, False), linear(64, 64, True), linear(8, 64, False))
    try:
        found = speed_up(model)
    finally:
        few_rows.forget()
    assert dict(found) == {(64, 64, Limit(4, 1.0, 2.0)): 2}
    assert [type(module) for module in model] == [FewRows, FewRows, nn.Linear]


def test_a_compressed_model_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its head takes the kernel for a token, stays tied, and what comes out is the dense model's."""
    monkeypatch.setattr(few_rows, "SMALLEST", 256 * 16)
    monkeypatch.setattr(few_rows, "_limit", lambda W: Limit(4))
    torch.manual_seed(0)
    source = save_tiny(tmp_path / "source", hidden_size=64)
    pruned = prune_copy(source, tmp_path / "pruned")
    secateur.compress(pruned, out=tmp_path / "small")
    model = secateur.load(tmp_path / "small", dtype="bfloat16", runtime="compressed")
    assert type(model.lm_head) is FewRows
    assert any(row["kernel_rows"] == 4 for row in model.secateur_runtime["plain"])
    ids = torch.randint(3, 250, (1, 3))
    with torch.inference_mode():
        expected = secateur.load(tmp_path / "small", dtype="bfloat16", runtime="dense")(ids).logits
        assert float((model(ids).logits - expected).norm() / expected.norm()) < 0.02
        found = torch.ops.secateur.few_rows(expected[:, :1, :64].contiguous(), model.lm_head.weight, None)
        assert found.equal(model.lm_head(expected[:, :1, :64].contiguous()))

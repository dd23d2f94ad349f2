"""What is done for accelerators alone, on the simulated one: memory, copies, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.calibration.activations import Activations, MemoryBudget
from secateur.config.recipe import make_recipe
from secateur.errors import ResourceError
from secateur.evaluation import perplexity
from secateur.numerics import precision
from secateur.numerics.moments import Moments
from secateur.system import accelerator
from secateur.system.halving import in_parts
from tests.simulated import device as sim
from tests.simulated.fixtures import no_double as no_double
from tests.small import save_tiny


@pytest.fixture
def device() -> torch.device:
    return sim.simulate()


def states_of(device: torch.device, count: int = 4) -> list[torch.Tensor]:
    return [torch.full((2, 8), float(i), device=device) for i in range(count)]


def test_hidden_states_stay_where_they_were_made(device: torch.device, tmp_path: Path) -> None:
    room = MemoryBudget(64, on_device=3 * 64)
    own = Activations(room, tmp_path / "states.bin")
    counts = sim.count()
    for i, value in enumerate([*states_of(device), torch.ones(2, 8, device=device)]):
        own[i] = value
    assert [own[i].device.type for i in range(5)] == ["sim", "sim", "sim", "cpu", "cpu"]  # then memory, then the file
    assert counts.to_host == 2 * 64
    for i, value in enumerate(states_of(device)):
        own[i] = value + 1
    assert [float(own[i].mean()) for i in range(4)] == [1, 2, 3, 4]
    own[0] = torch.zeros(2, 8)  # nobody does that, but it should be found again
    assert float(own[0].mean()) == 0
    own.close()
    assert (room.left, room.left_on_device) == (64, 3 * 64)


def test_copies_to_the_host_are_waited_for_when_they_are_wanted(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(accelerator, "pinned_like", lambda value: torch.empty(value.shape, dtype=value.dtype))
    monkeypatch.setattr(sim.backend().Event, "synchronize", lambda self: waited.append(1))
    own, counts = Activations(MemoryBudget(None)), sim.count()
    for i, value in enumerate(states_of(device)):
        own[i] = value
    assert (counts.waits, counts.to_host, waited) == (0, 4 * 64, [])
    assert [float(own.to(i, device).mean()) for i in (0, 1)] == [0, 1]
    assert waited == []  # both copies are in the device's order
    assert [float(own[i].mean()) for i in (2, 2, 3)] == [2, 2, 3]
    assert waited == [1, 1]


def test_without_fp64_sums_are_as_good_as_with_it(no_double: None, device: torch.device) -> None:
    assert precision.sums_dtype(torch.device("cpu")) == precision.wide_dtype(torch.device("cpu")) == torch.float64
    assert precision.sums_dtype(device) == precision.wide_dtype(device) == torch.float32
    exact, needs = Moments(6, frozenset({"gram", "mean"})), frozenset({"gram", "mean"})
    here, plain = Moments(6, needs, device), torch.zeros(6, 6)
    torch.manual_seed(0)
    for _ in range(600):
        x = 1 + torch.rand(16, 6)
        exact.update(x)
        here.update(x.to(device))
        plain += x.T @ x
    error = (here.gram.cpu() - exact.gram).abs().max()
    assert error <= 2e-7 * exact.gram.abs().max()
    assert error < 0.2 * (plain / exact.n - exact.gram).abs().max()
    assert torch.allclose(here.mean.cpu(), exact.mean, rtol=2e-7, atol=0)


def test_the_precision_of_sums_is_measured(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    for seconds, expected in (((1.0, 3.9), torch.float64), ((1.0, 4.1), torch.float32)):
        precision.sums_dtype.cache_clear()
        told = iter(seconds)
        monkeypatch.setattr(precision, "_seconds", lambda *_, told=told: next(told))
        assert precision.sums_dtype(device) == expected
        assert precision.sums_dtype(device) == expected  # once
    precision.sums_dtype.cache_clear()


@pytest.mark.parametrize("asked", [{"sites": "channel,query_head,layer", "sparsity": 0.5}, {"sites": "hidden"}])
def test_a_run_needs_no_fp64(asked: dict[str, Any], device: torch.device, no_double: None, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(f"the thing {i} thought {i * i}" for i in range(30)))
    values = {"model": tmp_path / "model", "calibrate": tmp_path / "text.txt", "samples": 4, "length": 16}
    values |= {"sparsity": 0.5, "speed": False, "dtype": "float32", "device": device.type, **asked}
    report = secateur.prune(make_recipe(values), tmp_path / "out", quiet=True)
    assert report["evaluation"]["after"]["perplexity"] > 0


def test_a_lack_of_memory_halves_the_batch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(part: list[int]) -> torch.Tensor:
        if len(part) > 3:
            raise torch.OutOfMemoryError("out")
        return torch.tensor(part)

    with pytest.warns(UserWarning, match="going on with 3 sequences at a time"):
        assert torch.cat(list(in_parts(run, list(range(10)), device))).tolist() == list(range(10))
    with pytest.raises(ResourceError, match="for one sequence"), pytest.warns(UserWarning, match="1 sequences"):
        list(in_parts(lambda part: run([0] * 4), [1, 2], device))

    save_tiny(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(f"the thing {i} thought {i * i}" for i in range(30)))
    told = {"dtype": "float32", "speed": False, "device": device.type}
    whole = secateur.evaluate(tmp_path / "model", str(tmp_path / "text.txt"), **told)
    score, sizes = perplexity.score_rows, []

    def short(rows: Any, *rest: Any) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 4:
            monkeypatch.setattr(sim.MEMORY, "total", sim.MEMORY.now)
            try:
                torch.zeros(2**10, device=device)
            finally:
                monkeypatch.setattr(sim.MEMORY, "total", None)
        return score(rows, *rest)

    monkeypatch.setattr(perplexity, "score_rows", short)
    with pytest.warns(UserWarning, match="not enough memory on sim"):
        halved = secateur.evaluate(tmp_path / "model", str(tmp_path / "text.txt"), **told)
    assert max(sizes) > 4
    assert halved["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-6)


@pytest.mark.parametrize(
    ("told", "fast"),
    [({"avx512_bf16": True, "avx2": True}, True), ({"amx_bf16": False, "avx2": True}, False), ({"bf16": True}, True)],
)
def test_whether_a_cpu_multiplies_bf16(told: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert accelerator.multiplies_bf16(torch.device("cpu")) == fast
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not accelerator.multiplies_bf16(torch.device("cpu")), "a torch that doesn't tell"


@pytest.mark.parametrize("fast", [True, False])
def test_products_of_bf16_numbers_stay_exact(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the processor multiplies them as such or as fp32; and afterwards fp32 is fp32 again."""
    real = accelerator.multiplies_bf16(torch.device("cpu"))
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda _: fast and real)
    torch.manual_seed(0)
    x = torch.randn(700, 300).bfloat16()
    gram, wide = x.double().T @ x.double(), x.float()
    with accelerator.exact_products_of(x, None):
        torch.testing.assert_close((wide.T @ wide).double(), gram, rtol=0, atol=2e-6 * float(gram.max()))
    y = torch.randn(700, 300)
    with accelerator.exact_products_of(x, y):  # one isn't in bf16
        torch.testing.assert_close((y.T @ y).double(), y.double().T @ y.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close((y.T @ y).double(), y.double().T @ y.double(), rtol=0, atol=1e-3)

"""Zeros left out on GPUs: which form is chosen, what is refused, and the kernels in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUTLASS as CUTLASS

import secateur
from secateur.cli.app import main
from secateur.errors import InputError
from secateur.numerics.patterns import Pattern
from secateur.runtime.format import Packed, pack, unpack
from secateur.runtime.gpu import choose as gpu
from secateur.runtime.gpu import matrix, semi_structured
from secateur.runtime.gpu.matrix import TILES, DeviceMatrix, variant_of
from secateur.runtime.gpu.semi_structured import SemiStructuredMatrix
from tests.simulated.device import simulate

ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton: pip install triton")


def two_of_four(rows: int = 64, columns: int = 128, dtype: torch.dtype = BF16) -> Packed:
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return pack(W.where(Pattern.parse("2:4").mask(W.abs()), 0).to(dtype))


def run(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert not done.returncode, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@needs_triton
def test_the_kernels_by_the_interpreter() -> None:
    # torch imports Triton, and Triton reads this when it's imported.
    told = run("pytest", "-n0", "-rs", "tests/runtime/test_gpu_kernels.py", TRITON_INTERPRET="1")
    assert "passed" in told
    assert "skipped" not in told


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_cards(tmp_path: Path) -> None:
    """With the compiler and the assembler that Triton brings, for compute capability 8.0 and 9.0."""
    found = json.loads(run("tests.runtime.compile_kernels", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)))
    assert len(found) == 2 * 4
    assert min(found.values()) > 1000


def test_it_is_off_unless_asked_for_and_refused_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="runtime gpu needs a CUDA device, not cpu; use runtime auto there"):
        secateur.load("embedded", device="cpu", runtime="gpu")
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    with pytest.raises(InputError, match="isn't installed; pip install triton"):
        gpu.check(torch.device("cuda"))
    for runtime, said in (("gpu", "needs a CUDA device"), ("cuda", "--runtime cuda is unknown")):
        with pytest.raises(SystemExit) as stopped:
            main(["generate", "embedded", "Once", "--device", "cpu", "--runtime", runtime])
        told = capsys.readouterr().err
        assert stopped.value.code == 2
        assert said in told
        assert told.count("\n") == 1


def test_two_of_four_is_recognised() -> None:
    packed = two_of_four()
    assert semi_structured.fits(packed)
    W = unpack(packed)
    W[5, 16:19] = 1
    assert not semi_structured.fits(pack(W))
    assert not semi_structured.fits(two_of_four(dtype=torch.float32))
    assert not semi_structured.fits(two_of_four(rows=40))
    assert not semi_structured.fits(two_of_four(columns=96))


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_what_torch_makes_of_two_of_four_is_the_matrix(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch converts on any device, but asks for a CUDA device first.
    monkeypatch.setattr(CUTLASS, "_validate_device_dim_dtype_shape", lambda W: None)
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", CUTLASS.from_dense)
    packed, bias = two_of_four(dtype=dtype), torch.arange(64.0)
    own = SemiStructuredMatrix(packed, bias, torch.device("cpu"))
    assert own.weight.packed.shape == (64, 64)  # half of the columns
    assert own.weight.meta.nbytes == 64 * 128 // 8  # two bits for each value
    assert torch.equal(own.dense(), unpack(packed))
    assert own.nbytes == 64 * 128 * 9 // 8 + bias.nbytes
    assert torch.equal(own.weight.packed.flatten(), packed.values)  # row by row, in the order of their columns
    x = torch.randn(3, 128)  # in another dtype than W's it is multiplied dense
    assert torch.equal(own.times(x), x @ unpack(packed).float().T + bias)


def _chosen(monkeypatch: pytest.MonkeyPatch, packed: Packed, times: dict[str, tuple[float, float]]) -> gpu.Choice:
    """What is chosen where each form takes so long for one row of x and for many; what isn't named can't be made."""

    class Form:
        def __init__(self, name: str) -> None:
            if name not in times:
                raise RuntimeError("this device can't")
            self.name = name

        def times(self, x: Tensor) -> Tensor:
            return x

    def seconds(work: object) -> float:
        form = getattr(work.func, "__self__", None)  # type: ignore[attr-defined]
        x = work.args[0]  # type: ignore[attr-defined]
        assert x.device.type == "sim"
        return times[getattr(form, "name", "dense")][x.shape[0] > 1]

    monkeypatch.setattr(gpu, "matrix_of", lambda packed, bias, device, variant: Form(variant))
    monkeypatch.setattr(gpu, "seconds", seconds)
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "measured_before", lambda kind, about, measure, sound: measure())
    gpu._known.clear()
    return gpu.choose(packed, packed.dtype, simulate())


def test_the_faster_form_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = map(variant_of, TILES)
    W = two_of_four()
    dense = {"dense": (1.0, 10.0)}
    found = _chosen(monkeypatch, W, dense | {first: (0.9, 30.0), second: (0.7, 30.0)})
    assert (found.packed, found.variant, found.limit) == (True, second, matrix.MOST)
    assert (found.seconds_packed, found.seconds_dense) == (0.7, 1.0)
    assert _chosen(monkeypatch, W, dense | {first: (1.02, 30.0)}).variant == first  # it saves memory
    assert not _chosen(monkeypatch, W, dense | {first: (1.1, 30.0), "2:4": (1.1, 5.0)}).packed
    assert not _chosen(monkeypatch, W, dense | {"2:4": (0.5, 11.0)}).packed  # prefill is what it is for
    assert _chosen(monkeypatch, W, dense | {"2:4": (0.9, 6.0), first: (0.95, 30.0)}).variant == "2:4"
    assert _chosen(monkeypatch, W, dense | {"2:4": (0.9, 6.0), first: (0.8, 30.0)}).variant == first
    assert not _chosen(monkeypatch, W, dense).packed  # nothing can be made
    unstructured = pack(torch.ones(64, 128, dtype=BF16).tril())
    assert not _chosen(monkeypatch, unstructured, dense | {"2:4": (0.1, 1.0)}).packed
    assert not _chosen(monkeypatch, two_of_four(dtype=torch.float32), {}).packed  # kernels multiply 16 bits


def test_its_tensors_lie_on_the_device() -> None:
    device = simulate()
    packed = two_of_four()
    own = DeviceMatrix(packed, torch.ones(64), device, TILES[0])
    assert {t.device.type for t in (own.values, own.bitmap, own.starts, own._bias, own.bias)} == {"sim"}
    assert own.nbytes == packed.nbytes + 8 * 64 + 4 * 64
    assert own.starts.cpu().tolist() == list(range(0, 64 * 64, 64))
    with pytest.raises(InputError, match="on cpu doesn't fit a matrix of 128 columns on sim:0"):
        own.times(torch.zeros(1, 128, dtype=BF16))

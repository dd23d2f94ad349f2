"""Products in bytes against a slow spelling of the same rounding in fp64; what they may touch; when they're taken."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from torch import Tensor

from secateur.runtime import choose
from secateur.runtime.format import Packed, mask_of, pack, quantise
from secateur.runtime.kernels import bytes as in_bytes
from secateur.runtime.kernels import jit
from secateur.runtime.kernels.ir import Spec
from secateur.runtime.layouts import PADDING, Pairs, another_form, bytes_fit
from secateur.runtime.matrix import Matrix
from tests.runtime.guarded import Guarded

pytest.importorskip("llvmlite", reason="kernels need llvmlite (the extra `fast`)")
pytestmark = pytest.mark.skipif(not jit.multiplies_bytes(), reason="this processor has no AVX-512 VNNI")


def example(rows: int, columns: int, density: float, group: int | None = None) -> Packed:
    generator = torch.Generator().manual_seed(rows + columns)
    W = torch.randn(rows, columns, generator=generator)
    W = torch.where(torch.rand(rows, columns, generator=generator) < density, W, 0)
    W[2], W[3] = 0, 1.5  # an empty row and a full one
    return quantise(pack(W), group)


def slowly(packed: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every entry of x rounded to 127 steps of the largest of its four neighbours: the product, and its size."""
    assert packed.scales is not None
    W = torch.zeros(packed.rows, packed.columns, dtype=torch.float64)
    W[mask_of(packed)] = packed.values.double()
    W *= packed.scales.double().repeat_interleave(packed.group or packed.columns, 1)[:, : packed.columns]
    four = x.float().reshape(-1, 4)
    rounded = torch.empty(four.shape, dtype=torch.float64)
    for row, values in enumerate(four):
        largest = values.abs().max()
        for place, value in enumerate(values):
            steps = torch.zeros(()) if largest < 1e-36 else (value * torch.tensor(127.0).div(largest)).round()
            rounded[row, place] = steps.double() * float(largest) / 127
    found = rounded.view(x.shape)
    return found @ W.T, found.abs() @ W.abs().T


@pytest.mark.parametrize(("rows", "columns", "density", "group"), [
    (8, 64, 0.5, None), (16, 192, 0.3, None), (24, 320, 0.6, 64), (24, 320, 0.5, 128), (8, 128, 1.0, None),
])  # fmt: skip
def test_products_are_those_of_rounded_inputs(rows: int, columns: int, density: float, group: int | None) -> None:
    packed, bias = example(rows, columns, density, group), torch.randn(rows)
    matrix = Matrix(packed, bias, variant=in_bytes.NAME)
    for batch in (1, 2, 3, 4, 6):
        x = torch.randn(batch, columns).bfloat16()
        x[:, 5] *= 300  # a large one costs its neighbours only
        x[0, :12] = 0
        expected, size = slowly(packed, x)
        room = 2**-7.8 * (expected + bias).abs() + 1e-5 * size + 1e-5  # bf16 of the result; float32 sums
        assert bool(((matrix.times(x).double() - expected - bias).abs() <= room).all())


def test_tiny_and_unsound_entries() -> None:
    packed = example(8, 64, 0.9)
    matrix = Matrix(packed, variant=in_bytes.NAME)
    x = torch.zeros(1, 64).bfloat16()
    x[0, 3] = 1e-39  # its reciprocal would be infinite
    assert not bool(matrix.times(x).any())
    for wrong in (float("nan"), float("inf"), -float("inf")):
        x[0, 9] = wrong
        y = matrix.times(x)[0]
        assert not bool(torch.isfinite(y).any())


def test_other_inputs_go_through_tiles_and_unpacking_is_the_same() -> None:
    packed = example(16, 128, 0.5)
    matrix, usual = Matrix(packed, variant=in_bytes.NAME), Matrix(packed)
    assert matrix.dense().equal(usual.dense())
    x = torch.randn(2, 128)
    torch.testing.assert_close(matrix.times(x), usual.times(x))
    torch.testing.assert_close(matrix.times(x.half()), usual.times(x.half()), rtol=1e-2, atol=1e-2)


def test_threads_share_the_rows_without_gaps() -> None:
    matrix, x, before = Matrix(example(304, 128, 0.5), variant=in_bytes.NAME), torch.randn(2, 128).bfloat16(), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            before.append(matrix.times(x))
    finally:
        torch.set_num_threads(threads)
    assert all(y.equal(before[0]) for y in before)


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are set up by Linux' calls here")
def test_kernels_stay_inside_what_is_theirs() -> None:
    packed = example(8, 128, 0.7)
    matrix = Matrix(packed, variant=in_bytes.NAME)
    assert isinstance(matrix.layout, Pairs)
    bits = matrix.layout.bitmap
    values, bitmap = Guarded(matrix.values.nbytes + PADDING), Guarded(bits.nbytes)
    values.put(matrix.values), bitmap.put(bits)
    fields = list(matrix._operand.layer)
    fields[0], fields[1] = values.address, bitmap.address
    layer = (ctypes.c_int64 * len(fields))(*fields)
    x, target, space = torch.randn(3, 128).bfloat16(), Guarded(3 * 8 * 2), Guarded(4 * 3 * (128 + 8))
    given = Guarded(x.nbytes)
    given.put(x)
    run = jit.kernel(Spec(in_bytes.NAME, "int8", 3)).run_bf16
    assert run is not None
    places = (given.address, target.address, 1, 4, space.address, space.address + 4 * 3 * 128, 3 * 128, 3 * 8)
    run(ctypes.addressof(layer), *places)
    y = torch.frombuffer(target.read(), dtype=torch.bfloat16).view(3, 8)
    assert y.equal(matrix.times(x))


def test_it_is_tried_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = example(16, 128, 0.5)
    assert another_form(packed) == in_bytes.NAME
    assert not bytes_fit(example(12, 128, 0.5)), "rows aren't a multiple of 8"
    assert not bytes_fit(example(16, 120, 0.5)), "nor columns of 64"
    assert not bytes_fit(pack(torch.randn(16, 128).bfloat16()))
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    for answer, variant in (([2.0, 1.0, 3.0], in_bytes.NAME), ([1.0, 1.1, 3.0], None)):
        answers = iter([answer, [1.0, 2.0], [1.0, 12.0, 24.0]])
        with monkeypatch.context() as patch:
            patch.setattr(choose, "race", lambda *works, answers=answers: next(answers))
            found = choose.measure(packed, torch.bfloat16, another_form(packed))
        assert (found.packed, found.variant) == (True, variant)

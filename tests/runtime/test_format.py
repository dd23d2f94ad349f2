"""The packed form of a matrix: nothing is lost, int8 rounds as it says, damaged parts are refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.runtime.format import FLOATS, counts, mask_of, pack, packed_bytes, quantise, unpack
from tests.cases import case

SHAPES = [(1, 1), (3, 7), (5, 8), (4, 64), (6, 130), (2, 257)]


def sparse(
    rows: int, columns: int, dtype: torch.dtype = torch.float32, density: float = 0.5, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator)
    return torch.where(torch.rand(rows, columns, generator=generator) < density, W, 0).to(dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_comes_back(dtype: torch.dtype) -> None:
    for (rows, columns), density in itertools.product(SHAPES, (0.0, 0.5, 1.0)):
        with case(rows, columns, density):
            comes_back(rows, columns, dtype, density)


def comes_back(rows: int, columns: int, dtype: torch.dtype, density: float) -> None:
    W = sparse(rows, columns, dtype, density)
    packed = pack(W)
    assert bits(unpack(packed)).equal(bits(W))
    assert packed.nbytes == packed_bytes(rows, columns, int((W != 0).sum()), dtype.itemsize)


def test_the_layout_is_what_the_page_says() -> None:
    W = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 0, 3, 0], [0, 0, 0, 0, 0, 0, 0, 4, 0, 5]])
    packed = pack(W)
    assert packed.values.tolist() == [1, 2, 3, 4, 5]
    assert packed.bitmap.tolist() == [[0b00001001, 0b01], [0b10000000, 0b10]]


@pytest.mark.parametrize("dtype", FLOATS)
def test_negative_zero_and_what_is_no_number_are_kept(dtype: torch.dtype) -> None:
    W = torch.tensor([[-0.0, 0.0, float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).tiny / 4]]).to(dtype)
    assert bits(unpack(pack(W))).equal(bits(W))
    assert pack(W).values.shape[0] == 5


@pytest.mark.parametrize("group", [None, 64, 128])
@pytest.mark.parametrize("columns", [40, 200, 256])
def test_int8_is_the_nearest_of_255_steps(columns: int, group: int | None) -> None:
    W = sparse(6, columns)
    W[2] = 0
    packed = quantise(pack(W), group)
    found = unpack(packed)
    width = group or columns
    for row in range(6):
        for begin in range(0, columns, width):
            own = W[row, begin : begin + width]
            scale = float(own.abs().max()) / 127
            for entry, back in zip(own.tolist(), found[row, begin : begin + width].tolist(), strict=True):
                expected = 0.0 if scale == 0 else round(entry / scale) * scale
                assert back == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert mask_of(packed).equal(W != 0)


def test_int8_of_tiny_and_of_endless_weights() -> None:
    assert float(unpack(quantise(pack(torch.full((1, 4), 1e-40)))).abs().max()) <= 1e-37
    with pytest.raises(InputError, match="isn't finite"):
        quantise(pack(torch.tensor([[float("inf"), 1.0]])))
    for group in (0, 32, 100):
        with pytest.raises(InputError, match="multiple of 64"):
            quantise(pack(torch.ones(1, 4)), group)


def test_counts() -> None:
    packed = pack(sparse(9, 77))
    assert counts(packed.bitmap).tolist() == mask_of(packed).sum(1).tolist()


def test_parts_that_do_not_fit_together_are_refused() -> None:
    packed = pack(sparse(4, 20))
    int8 = quantise(pack(sparse(4, 20)))
    assert int8.scales is not None
    beyond = packed.bitmap.clone()
    beyond[1, -1] |= 0b10000000  # a column that isn't there
    damaged = [
        (packed, {"values": packed.values[:-1]}),
        (packed, {"values": torch.cat([packed.values, torch.ones(1)]), "bitmap": beyond}),
        (packed, {"values": packed.values[:, None]}),
        (packed, {"values": packed.values.half()}),
        (packed, {"values": packed.values.to(torch.int8)}),  # without scales kernels would read them from nowhere
        (packed, {"values": packed.values.double(), "dtype": torch.float64}),
        (packed, {"bitmap": packed.bitmap[:, :-1]}),
        (packed, {"bitmap": packed.bitmap.to(torch.int8)}),
        (packed, {"bitmap": torch.tensor(1, dtype=torch.uint8)}),
        (packed, {"group": 64}),
        (int8, {"scales": int8.scales[:3]}),
        (int8, {"scales": int8.scales.half()}),
        (int8, {"scales": None}),
    ]
    for whole, wrong in damaged:
        with pytest.raises(InputError, match="damaged"):
            replace(whole, **wrong)


@pytest.mark.parametrize("group", [1, 2, 7, 32, 63, 72, 100, 127, True, 64.0, "64", -64, 0, 2**31])
def test_a_group_that_no_kernel_can_take_is_refused_even_with_its_scales(group: object) -> None:
    packed = quantise(pack(sparse(4, 200)))
    scales = torch.ones(4, max(1, -(-200 // (int(group) or 200))))  # type: ignore[call-overload]
    with pytest.raises(InputError, match="group"):
        replace(packed, scales=scales, group=group)  # type: ignore[arg-type]

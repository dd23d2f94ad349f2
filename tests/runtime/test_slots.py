"""The form in slots: its steps against a slow reading of them, its products against sums in fp64, its limits."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.runtime import layouts
from secateur.runtime.format import pack, quantise
from secateur.runtime.kernels import jit, slots
from secateur.runtime.kernels.ir import Spec
from secateur.runtime.layouts import PADDING, Slots, slots_fit
from secateur.runtime.matrix import Matrix
from tests.runtime.guarded import Guarded
from tests.runtime.pruned import without_smallest

pytest.importorskip("llvmlite", reason="kernels need llvmlite (the extra `fast`)")
if "avx2" not in jit.variants() or not jit.shares_threads():
    pytest.skip("slots need AVX2 and an OpenMP library that can be shared", allow_module_level=True)

SHAPES = [(8, 64, 0.3), (16, 64, 0.0), (24, 192, 0.05), (40, 128, 0.4), (8, 320, 1.0), (520, 704, 0.3)]


def example(rows: int, columns: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    W = torch.randn(rows, columns, generator=generator)
    W = torch.where(torch.rand(rows, columns, generator=generator) < density, W, 0)
    if rows > 8 and density:
        W[2], W[5] = 0, 1.5  # an empty row and a full one, in different groups
    return W.bfloat16()


def read_slowly(layout: Slots, rows: int, columns: int) -> Tensor:
    """W from the streams, number by number, as the text of slots.py says."""
    W = torch.zeros(rows, columns, dtype=torch.bfloat16)
    slots, heads = layout.slots.tolist(), layout.heads.tolist()
    for group in range(rows // 4):
        value, step = layout.offsets[group].tolist()
        column = 0
        while step < int(layout.offsets[group + 1, 1]):
            head = heads[step] & 0xFFFFFFFF
            kept = [(head & 255) // 2, (head >> 8 & 255) // 2, (head >> 16 & 255) // 2, head >> 24 & 15]
            for q in range(4):
                own = slots[16 * step + 4 * q : 16 * step + 4 * q + 4]
                nibbles = [byte >> shift & 15 for byte in own for shift in (0, 4)]
                assert nibbles == sorted(nibbles[: kept[q]]) + [0] * (8 - kept[q])
                for place in nibbles[: kept[q]]:
                    W[4 * group + q, column + place - 1] = layout.values[value]
                    value += 1
            column += head >> 28
            step += 1
        assert column == columns
        assert value == int(layout.offsets[group + 1, 0])
    return W


@pytest.mark.parametrize(("rows", "columns", "density"), SHAPES[:-1])
def test_the_streams_say_what_their_description_says(rows: int, columns: int, density: float) -> None:
    W = example(rows, columns, density)
    assert read_slowly(Slots(pack(W)), rows, columns).equal(W)


@pytest.mark.parametrize(("rows", "columns", "density"), SHAPES)
def test_products_and_unpacking(rows: int, columns: int, density: float) -> None:
    W, bias = example(rows, columns, density), torch.randn(rows) if rows % 16 else None
    matrix = Matrix(pack(W), bias, variant="slots")
    assert matrix.dense().equal(W)
    assert matrix.dense(3, 6).equal(W[3:6])
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, columns).bfloat16()
        bias64 = torch.zeros(()) if bias is None else bias.double()
        expected = x.double() @ W.double().T + bias64
        room = 4e-7 * (x.double().abs() @ W.double().abs().T + bias64.abs()) + 2.0**-8 * expected.abs() + 1e-30
        y = matrix.times(x)
        assert y.dtype == torch.bfloat16
        assert bool(((y.double() - expected).abs() <= room).all())


def test_every_finite_number_is_multiplied_exactly() -> None:
    """As weight and as activation: times one, all bf16 numbers come back; torch may flush denormals."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()]
    every = every[: every.numel() // 64 * 64]
    normal = every.float().abs() >= torch.finfo(torch.float32).tiny
    W = torch.zeros(every.numel(), 64, dtype=torch.bfloat16)
    W[torch.arange(every.numel()), torch.arange(every.numel()) % 64] = every
    matrix = Matrix(pack(W), variant="slots")
    assert matrix.dense().view(torch.int16).equal(W.view(torch.int16)), "-0.0 and denormals too"
    y = matrix.times(torch.ones(1, 64, dtype=torch.bfloat16))[0]
    assert y[normal].equal(every[normal])
    lines = every.view(-1, 64)
    ones = Matrix(pack(torch.eye(64).bfloat16()), variant="slots").times(lines)
    assert ones.flatten()[normal].equal(every[normal])


def test_activations_that_are_not_finite_reach_only_who_keeps_them() -> None:
    W = example(40, 128, 0.3)
    matrix, x = Matrix(pack(W), variant="slots"), torch.randn(1, 128).bfloat16()
    x[0, 7], x[0, 90] = float("inf"), float("nan")
    touched = (W[:, 7] != 0) | (W[:, 90] != 0)
    assert (~matrix.times(x)[0].isfinite()).equal(touched)


def test_activations_of_other_dtypes_go_through_tiles() -> None:
    W = example(40, 128, 0.3)
    matrix = Matrix(pack(W), torch.ones(40), variant="slots")
    for dtype, room in ((torch.float32, 1e-5), (torch.float16, 3e-3)):
        x = torch.randn(3, 128).to(dtype)
        y = matrix.times(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), x.double() @ W.double().T + 1, rtol=room, atol=10 * room)


def test_tiles_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    W, bias, x = example(56, 64, 0.3), torch.randn(56), torch.randn(12, 64).bfloat16()
    expected = x.double() @ W.double().T + bias
    for wide in (False, True):
        matrix = Matrix(pack(W), bias, limit=1, wide=wide, variant="slots")
        for rows in (16, 30):
            monkeypatch.setattr("secateur.runtime.matrix.TILE_BYTES", 1)
            monkeypatch.setattr("secateur.runtime.matrix.TILE_ROWS", rows)
            torch.testing.assert_close(matrix.times(x).double(), expected, rtol=2e-2, atol=0.2)


def test_threads_share_the_rows_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "WOVEN_ROWS", 16)  # several threads weave, too
    W, x = example(520, 704, 0.3), torch.randn(2, 704).bfloat16()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            matrix = Matrix(pack(W), variant="slots")
            assert matrix.dense().equal(W)
            found.append(matrix.times(x))
    finally:
        torch.set_num_threads(before)
    assert all(y.equal(found[0]) for y in found)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_kernels_stay_inside_what_is_theirs(batch: int) -> None:
    if sys.platform != "linux":
        pytest.skip("guard pages are set up by Linux' calls here")
    W = example(8, 128, 0.35)
    matrix = Matrix(pack(W), variant="slots")
    layout = matrix.layout
    assert isinstance(layout, Slots)
    streams = (layout.values, layout.slots, layout.heads, layout.offsets)
    guards = [Guarded(stream.nbytes + (PADDING if stream is layout.values else 0)) for stream in streams]
    for guard, stream in zip(guards, streams, strict=True):
        guard.put(stream)
    values, slots, heads, offsets = (guard.address for guard in guards)
    moved = {"values": values, "slots": slots, "heads": heads, "offsets": offsets}
    fields = [moved.get(name, old) for name, old in zip(layout.names, matrix._operand.layer, strict=True)]
    layer = (ctypes.c_int64 * len(fields))(*fields)
    run = jit.kernel(Spec("slots", "bf16", batch))
    x, target = torch.randn(max(1, batch), 128).bfloat16(), Guarded(max(128, batch) * 8 * 2)
    if not batch:
        run.run(ctypes.addressof(layer), 0, target.address, 1, 4)
        assert torch.frombuffer(target.read(), dtype=torch.bfloat16).view(8, 128).equal(W)
        return
    given, space = Guarded(x.nbytes), Guarded(4 * batch * (128 + 8))
    given.put(x)
    assert run.run_bf16 is not None
    places = (given.address, target.address + 128 * 16 - batch * 16)
    wide = (space.address, space.address + 4 * batch * 128, batch * 128, batch * 8)
    run.run_bf16(ctypes.addressof(layer), *places, 1, 4, *wide)
    y = torch.frombuffer(target.read(), dtype=torch.bfloat16)[-8 * batch :].view(batch, 8)
    torch.testing.assert_close(y.float(), x.float() @ W.float().T, rtol=1e-2, atol=1e-2)


def test_cutting_stays_inside_what_is_its_own() -> None:
    if sys.platform != "linux":
        pytest.skip("guard pages are set up by Linux' calls here")
    packed = pack(torch.randn(8, 320).bfloat16())  # as many steps as there can be: 8 columns each
    starts, rows, steps = 320 * torch.arange(9), 8, 2 * 320 // 8
    sizes = (packed.values.nbytes, packed.bitmap.nbytes + 3, 72, packed.values.nbytes, 16 * steps, 4 * steps, 16)
    guards = [Guarded(size) for size in sizes]
    for guard, tensor in zip(guards, (packed.values, packed.bitmap, starts), strict=False):
        guard.put(tensor)
    jit.cutter()(*(guard.address for guard in guards), rows // 4, 320 // 64)
    assert torch.frombuffer(guards[6].read(), dtype=torch.int64).tolist() == [40, 40]
    layout = Slots(packed)
    for guard, tensor in zip(guards[3:6], (layout.values, layout.slots, layout.heads), strict=True):
        assert bytes(guard.read()) == bytes(tensor.view(torch.uint8).numpy())


def test_what_slots_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(example(40, 128, 0.3))
    assert slots_fit(packed)
    assert slots_fit(pack(torch.zeros(8, 64).bfloat16()))
    assert slots_fit(pack(without_smallest(torch.randn(8, 1024), 0.6).bfloat16())), "where 60 % leave 0.4004"
    assert not slots_fit(pack(example(40, 128, 0.45))), "too full"
    assert not slots_fit(pack(example(40, 128, 0.3)[:36])), "rows aren't a multiple of 8"
    assert not slots_fit(pack(example(40, 128, 0.3)[:, :120].contiguous())), "nor columns of 64"
    assert not slots_fit(pack(example(40, 128, 0.3).half()))
    assert not slots_fit(quantise(packed, None))
    assert not slots_fit(pack(torch.zeros(8, 0).bfloat16()))
    for bad in (float("inf"), float("-inf"), float("nan")):
        values = packed.values.clone()
        values[17] = bad
        assert not slots_fit(replace(packed, values=values))
    monkeypatch.setattr(layouts, "shares_threads", lambda: False)
    assert not slots_fit(packed)
    monkeypatch.undo()
    monkeypatch.setattr(layouts, "variants", lambda: ("portable",))
    assert not slots_fit(packed)


def test_the_instructions_that_make_it_fast_are_there() -> None:
    binding = jit.llvm()
    assert binding is not None
    for batch in (1, slots.MAX_BATCH):
        parsed = binding.parse_assembly(slots.module(Spec("slots", "bf16", batch), False))
        parsed.verify()
        text = jit.assembler("+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2").emit_assembly(parsed)
        assert all(word in text for word in ("vpshufb", "vpunpcklbw", "vfmadd", "vpmovzxbw"))

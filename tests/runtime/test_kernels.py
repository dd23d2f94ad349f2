"""Kernels against sums in fp64, in every variant, format, batch and shape; what they emit; what they may touch.

`avx512` runs here whatever the processor: where it has no expanding loads, LLVM spells them out. So the kernel's
arithmetic is tested everywhere, and the instructions that it's made of by reading the assembly.
"""

from __future__ import annotations

import copy
import ctypes
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from secateur.runtime.format import Packed, mask_of, pack, quantise, unpack
from secateur.runtime.kernels import jit
from secateur.runtime.kernels.bitmap import module
from secateur.runtime.kernels.ir import WIDTH, Spec
from secateur.runtime.kernels.jit import variants
from secateur.runtime.layouts import PADDING, Pairs, slots_fit
from secateur.runtime.matrix import Matrix
from secateur.runtime.pages import HUGE, move_large
from tests.cases import case
from tests.runtime.guarded import Guarded

pytest.importorskip("llvmlite", reason="kernels need llvmlite (the extra `fast`)")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = [*DTYPES, "int8"]
SHAPES = [(1, 1, 1.0), (2, 63, 0.5), (7, 64, 0.5), (5, 130, 0.3), (33, 200, 0.5), (3, 70, 1.0), (40, 129, 0.0)]


def variant_or_skip(variant: str) -> str:
    if variant == "avx2" and "avx2" not in variants():
        pytest.skip("this processor has no AVX2")
    if variant == "avx512" and not {"avx2", "avx512"} & set(variants()):
        pytest.skip("LLVM spells AVX-512's expanding loads out for x86 processors only")
    return variant


def example(rows: int, columns: int, density: float, form: str, seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator)
    W = torch.where(torch.rand(rows, columns, generator=generator) < density, W, 0)
    if rows > 4:
        W[2], W[3] = 0, 1.5  # an empty row and a full one
    if form == "int8":
        return quantise(pack(W), 64 if columns > 100 else None)
    return pack(W.to(DTYPES[form]))


def in_fp64(packed: Packed) -> Tensor:
    if packed.scales is None:
        return unpack(packed).double()
    width = packed.group or packed.columns
    scales = packed.scales.repeat_interleave(width, 1)[:, : packed.columns].double()
    W = torch.zeros(packed.rows, packed.columns, dtype=torch.float64)
    W[mask_of(packed)] = packed.values.double()
    return W * scales


def assert_close(y: Tensor, x: Tensor, W: Tensor, bias: Tensor | None) -> None:
    """Within what fp32 sums may be off: some units in the last place of the sum of absolute products."""
    bias64 = torch.zeros(()) if bias is None else bias.double()
    expected = x.double() @ W.T + bias64
    room = x.double().abs() @ W.abs().T + bias64.abs()
    assert bool(((y.double() - expected).abs() <= 4e-7 * room + 1e-30).all())


@pytest.mark.parametrize("variant", ["avx2", "avx512", "portable"])
@pytest.mark.parametrize("form", FORMATS)
def test_products_and_unpacking(variant: str, form: str) -> None:
    for rows, columns, density in SHAPES:
        with case(rows, columns, density):
            products_and_unpacking(variant, form, rows, columns, density)


def products_and_unpacking(variant: str, form: str, rows: int, columns: int, density: float) -> None:
    packed = example(rows, columns, density, form)
    bias = torch.randn(rows) if rows % 2 else None
    matrix = Matrix(packed, bias, variant=variant_or_skip(variant))
    assert matrix.dense().equal(unpack(packed))
    W = in_fp64(packed)
    for batch in (1, 2, 3, 4, 5, 8):
        x = torch.randn(batch, columns)
        assert_close(matrix.times(x), x, W, bias)


@pytest.mark.parametrize("variant", ["avx2", "avx512", "portable"])
def test_every_bit_pattern_of_a_number_is_read_right(variant: str) -> None:
    """All finite fp16 and bf16 values, denormals too; and what isn't finite stays so."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(1, 65536, dtype=torch.int32).to(torch.int16).view(dtype)
        W = every.reshape(-1, 1)
        W = torch.cat([torch.zeros_like(W), W], 1)
        matrix = Matrix(pack(W), variant=variant_or_skip(variant))
        x = torch.tensor([[0.0, 1.0]])
        y, expected = matrix.times(x)[0], every.float()
        normal = expected.abs() >= torch.finfo(torch.float32).tiny  # torch itself may flush smaller ones
        fine = torch.isfinite(expected) & normal
        assert y[fine].equal(expected[fine])
        assert not bool(torch.isfinite(y[~torch.isfinite(expected)]).any())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("variant", ["avx2", "avx512", "portable"])
def test_kernels_stay_inside_what_is_theirs(variant: str, form: str) -> None:
    """Values (with their padding), bitmap, x and y each end where memory ends: one byte beyond is death."""
    if sys.platform != "linux":
        pytest.skip("guard pages are set up by Linux' calls here")
    packed = example(9, 150, 0.7, form)
    matrix = Matrix(packed, variant=variant_or_skip(variant))
    assert isinstance(matrix.layout, Pairs)
    bits = matrix.layout.bitmap
    guards = [
        Guarded(matrix.values.nbytes + PADDING),
        Guarded(bits.nbytes),
        Guarded(3 * 192 * 4),
        Guarded(27 * 4),
    ]
    x = torch.zeros(3, 192)
    x[:, :150] = torch.randn(3, 150)
    given = matrix._operand._laid_out(x[:, :150]).contiguous()
    values, bitmap, source, target = guards
    values.put(matrix.values), bitmap.put(bits), source.put(given)
    fields = list(matrix._operand.layer)
    fields[0], fields[1] = values.address, bitmap.address
    layer = (ctypes.c_int64 * len(fields))(*fields)
    spec = Spec(matrix.variant or "", matrix.kind, 3)
    jit.kernel(spec).run(ctypes.addressof(layer), source.address, target.address, 1, 4)
    y = torch.frombuffer(target.read(), dtype=torch.float32).view(3, 9)
    assert_close(y, x[:, :150], in_fp64(packed), None)


def test_threads_share_the_rows_without_gaps() -> None:
    packed = example(301, 128, 0.5, "bf16")
    matrix, x = Matrix(packed), torch.randn(2, 128)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(matrix.times(x))
    finally:
        torch.set_num_threads(before)
    assert all(y.equal(found[0]) for y in found)


def test_several_python_threads_may_use_one_matrix() -> None:
    matrix, inputs = Matrix(example(64, 128, 0.5, "fp32")), torch.randn(8, 1, 128)
    expected = [matrix.times(x) for x in inputs]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = matrix.times(inputs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(found[number].equal(expected[number]) for number in range(8))


def test_without_a_shared_library_pythons_threads_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = Matrix(example(100, 96, 0.5, "bf16")), torch.randn(1, 96)
    expected = matrix.times(x)
    monkeypatch.setattr(jit, "_parallel", lambda: None)
    jit.kernel.cache_clear()
    try:
        for threads in (1, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            assert matrix.times(x).equal(expected)
    finally:
        jit.kernel.cache_clear()


@pytest.mark.parametrize("variant", ["avx2", "avx512", "portable"])
def test_bf16_activations_are_widened_and_rounded_as_torch_does_it(variant: str) -> None:
    """The one call for bf16 gives bit for bit what conversions before and after give, NaN and infinities too."""
    packed = example(40, 128, 0.5, "bf16")
    matrix = Matrix(packed, torch.randn(40), variant=variant_or_skip(variant))
    for batch in (1, 3, 8):
        x = torch.randn(batch, 1, 128).bfloat16()
        x[0, 0, 5] = torch.tensor(1e38)  # some sums overflow
        found = matrix.times(x)
        assert found.shape == (batch, 1, 40)
        expected = matrix.times(x.float()).bfloat16()
        assert found.view(torch.int16).equal(expected.view(torch.int16))
    x[0, 0, 6] = float("nan")
    assert matrix.times(x).isnan().equal(matrix.times(x.float()).isnan())


@pytest.mark.parametrize("form", FORMATS)
def test_activations_of_any_dtype_and_any_number_of_rows(form: str) -> None:
    packed = example(20, 100, 0.5, form)
    matrix, W = Matrix(packed, torch.ones(20)), in_fp64(packed)
    for dtype, room in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        for rows in (0, 1, 8, 9, 30):
            x = torch.randn(rows, 100).to(dtype)
            y = matrix.times(x)
            assert (y.dtype, y.shape) == (dtype, (rows, 20))
            torch.testing.assert_close(y.double(), x.double() @ W.T + 1, rtol=room, atol=10 * room)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("wide", [False, True])
def test_tiles_give_what_the_whole_gives(form: str, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, bias, x = example(51, 70, 0.5, form), torch.randn(51), torch.randn(12, 70)
    matrix, W = Matrix(packed, bias, limit=1, wide=wide), in_fp64(packed)
    for dtype, room in ((torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)):
        expected = x.to(dtype).double() @ W.T + bias
        for rows in (64, 14):
            monkeypatch.setattr("secateur.runtime.matrix.TILE_BYTES", 1)
            monkeypatch.setattr("secateur.runtime.matrix.TILE_ROWS", rows)
            y = matrix.times(x.to(dtype))
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), expected, rtol=room, atol=10 * room)


@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_go_through_the_kernel_four_at_a_time(form: str) -> None:
    packed, x = example(51, 130, 0.5, form), torch.randn(23, 130)
    matrix, W = Matrix(packed, limit=23), in_fp64(packed)
    assert_close(matrix.times(x), x, W, None)
    one_by_one = torch.cat([matrix.times(row[None]) for row in x])
    torch.testing.assert_close(matrix.times(x), one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMATS)
def test_a_matrix_keeps_what_it_was_given(form: str) -> None:
    packed = example(21, 83, 0.4, form)
    matrix = Matrix(packed)
    assert copy.deepcopy(matrix) is matrix
    for first, last in ((0, 21), (3, 4), (2, 21), (5, 20), (20, 21), (4, 4)):
        assert matrix.dense(first, last).equal(unpack(packed)[first:last])
    packed.values.zero_(), packed.bitmap.zero_()
    assert int(torch.count_nonzero(matrix.dense())) > 0  # its own copy


@pytest.mark.parametrize("variant", ["avx2", "portable", "slots"])
def test_whatever_torchs_default_dtype_is(variant: str) -> None:
    packed, x = example(16, 64, 0.3, "bf16"), torch.randn(2, 64)
    if variant == "slots" and not slots_fit(packed):
        pytest.skip("no slots on this machine")
    expected = [Matrix(packed, variant=variant_or_skip(variant)).times(x.to(dtype)) for dtype in DTYPES.values()]
    for default in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            matrix = Matrix(packed, variant=variant)
            assert all(matrix.times(x.to(y.dtype)).equal(y) for y in expected)
        finally:
            torch.set_default_dtype(torch.float32)


def test_large_matrices_lie_in_huge_pages() -> None:
    packed = example(21, 83, 0.4, "bf16")
    big = replace(packed, bitmap=packed.bitmap.repeat(20000, 1), values=packed.values.repeat(20000))
    matrix = Matrix(big)
    assert (matrix.values.data_ptr() - PADDING) % HUGE == 0 or sys.platform != "linux"
    assert matrix.dense(21 * 19999, 21 * 20000).equal(unpack(packed))


def test_large_parameters_move_and_stay_tied() -> None:
    model = nn.ModuleList([nn.Embedding(2048, 300), nn.Linear(300, 2048, bias=False), nn.Linear(300, 4)])
    model[1].weight = model[0].weight
    before = [p.detach().clone() for p in model.parameters()]
    move_large(model)
    assert model[1].weight is model[0].weight
    assert all(new.equal(old) for new, old in zip(model.parameters(), before, strict=True))
    assert model[0].weight.data_ptr() % HUGE == 0 or sys.platform != "linux"
    model.requires_grad_(False)[0].weight.zero_()
    assert not bool(model[1].weight.any())


@pytest.mark.parametrize("variant", ["avx2", "avx512", "portable"])
def test_nothing_at_all(variant: str) -> None:
    """Only zeros: no value is stored; no rows or no columns: nothing to compute."""
    matrix = Matrix(pack(torch.zeros(5, 70)), torch.arange(5.0), variant=variant_or_skip(variant))
    assert matrix.times(torch.randn(2, 70)).equal(torch.arange(5.0).repeat(2, 1))
    assert matrix.dense().equal(torch.zeros(5, 70))
    for rows, columns in ((0, 70), (5, 0)):
        empty = Matrix(pack(torch.zeros(rows, columns)), variant=variant_or_skip(variant))
        assert empty.dense().shape == (rows, columns)
        assert empty.times(torch.zeros(2, columns)).equal(torch.zeros(2, rows))


def test_without_kernels_a_matrix_still_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.matrix.variants", lambda: ())
    packed, x = example(20, 100, 0.5, "int8"), torch.randn(3, 100)
    assert_close(Matrix(packed).times(x), x, in_fp64(packed), None)


@pytest.mark.parametrize(("variant", "form", "wanted"), [
    ("avx2", "bf16", ("vpshufb", "vfmadd")),
    ("avx2", "fp16", ("vcvtph2ps", "vfmadd")),
    ("avx512", "bf16", ("vpexpandw", "vfmadd")),
    ("avx512", "fp32", ("vpexpandd", "vfmadd")),
    ("avx512", "int8", ("vpexpandb", "vfmadd")),
])  # fmt: skip
def test_the_instructions_that_make_it_fast_are_there(variant: str, form: str, wanted: tuple[str, ...]) -> None:
    if not {"avx2", "avx512"} & set(variants()):
        pytest.skip("this isn't an x86 processor")
    features = "+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2"
    if variant == "avx512":
        features += ",+avx512f,+avx512bw,+avx512vl,+avx512vbmi,+avx512vbmi2,+avx512dq"
    binding = jit.llvm()
    assert binding is not None
    parsed = binding.parse_assembly(module(Spec(variant, form, 1), False))
    parsed.verify()
    text = jit.assembler(features).emit_assembly(parsed)
    assert all(word in text for word in wanted)


def test_the_processors_own_expanding_loads() -> None:
    if "avx512" not in variants():
        pytest.skip("this processor has no AVX-512 VBMI2; the kernel's arithmetic is tested without it")
    assert Matrix(example(4, 64, 0.5, "bf16")).variant == "avx512"


def test_every_format_has_its_width() -> None:
    assert set(WIDTH) == set(FORMATS)

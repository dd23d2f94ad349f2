"""Kernels for zeros on GPUs, by Triton's interpreter: TRITON_INTERPRET=1 pytest tests/runtime/test_gpu_kernels.py

Triton reads that when it is imported, and torch imports it: test_gpu.py starts a process of its own for this file.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import secateur
from secateur.errors import InputError
from secateur.runtime.format import Packed, pack
from secateur.runtime.gpu.matrix import MOST, TILES, DeviceMatrix, interpreted
from secateur.runtime.linear import PackedLinear
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

pytest.importorskip("triton", reason="kernels for GPUs need Triton: pip install triton")
if not interpreted():
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)

CPU = torch.device("cpu")
TILE = TILES[1]
BF16, FP16 = torch.bfloat16, torch.float16


def sparse(rows: int, columns: int, dtype: torch.dtype, kept: float = 0.4) -> Packed:
    generator = torch.Generator().manual_seed(rows * columns)
    W = torch.randn(rows, columns, generator=generator)
    W[torch.rand(rows, columns, generator=generator) >= kept] = 0
    if rows > 2:
        W[1] = 0
        W[2] = 1
    return pack(W.to(dtype))


def off(matrix: DeviceMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> float:
    """How far the kernel's fp32 sums are from fp64, beside the sum of the sizes of what is added."""
    W, x64 = matrix.dense().double(), x.double()
    y = torch.full((x.shape[0], matrix.rows), torch.nan)
    matrix.multiply(x, y, x.shape[0])
    exact, scale = x64 @ W.T, x64.abs() @ W.abs().T
    if bias is not None:
        exact, scale = exact + bias, scale + bias.abs()
    return float(((y - exact).abs() / scale.clamp_min(1e-30)).max())


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "kept"),
    [
        (1, 1, BF16, 1.0),
        (3, 7, FP16, 0.5),
        (37, 520, BF16, 0.4),  # neither whole tiles of rows nor of bytes
        (33, 261, FP16, 0.3),
        (32, 256, BF16, 0.0),
    ],
)
def test_products_are_those_of_fp64(rows: int, columns: int, dtype: torch.dtype, kept: float) -> None:
    packed, bias = sparse(rows, columns, dtype, kept), torch.randn(rows)
    for own in (None, bias):
        matrix = DeviceMatrix(packed, own, CPU, TILE)
        for count in (1, 2, MOST):
            x = torch.randn(count, columns).to(dtype)
            assert off(matrix, x, own) < 1e-6, (count, own is None)


def test_a_matrix_that_keeps_nothing_gives_the_bias() -> None:
    matrix = DeviceMatrix(pack(torch.zeros(5, 40, dtype=BF16)), torch.arange(5.0), CPU, TILE)
    for count in (1, 3):
        assert torch.equal(
            matrix.times(torch.ones(count, 40, dtype=BF16)), torch.arange(5.0).bfloat16().repeat(count, 1)
        )
    assert not matrix.dense().any()


@pytest.mark.parametrize("tile", TILES)
def test_it_is_unpacked_to_the_bit(tile: tuple[int, int]) -> None:
    W = torch.randn(19, 203)
    W[torch.rand(19, 203) < 0.5] = 0
    W[3, 4], W[5, 202] = torch.nan, torch.inf
    for dtype in (BF16, FP16):
        matrix = DeviceMatrix(pack(W.to(dtype)), None, CPU, tile)
        assert torch.equal(matrix.dense().view(torch.int16), W.to(dtype).view(torch.int16))
        assert torch.equal(matrix.dense(2, 7).view(torch.int16), W[2:7].to(dtype).view(torch.int16))
        assert torch.equal(matrix.dense(dtype=torch.float32).nan_to_num(), W.to(dtype).float().nan_to_num())


def test_other_rows_and_dtypes_go_through_the_dense_matrix() -> None:
    matrix = DeviceMatrix(sparse(16, 64, BF16), None, CPU, TILE)
    many = torch.randn(MOST + 1, 64).bfloat16()
    assert torch.equal(matrix.times(many), many @ matrix.dense().T)
    assert torch.equal(matrix.times(many[:2].float()), many[:2].float() @ matrix.dense().float().T)
    assert matrix.times(many[:0]).shape == (0, 16)
    assert matrix.times(many[:4].view(2, 2, 64)).shape == (2, 2, 16)
    for wrong in (torch.zeros(1, 63, dtype=BF16), torch.zeros(1, 64, dtype=BF16, device="meta")):
        with pytest.raises(InputError, match="doesn't fit a matrix of 64 columns on cpu"):
            matrix.times(wrong)


def test_a_model_runs_from_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "attention_bias": True}
    dense = prune_copy(save_tiny(tmp_path / "tiny", **sizes), tmp_path / "half")
    secateur.compress(dense, tmp_path / "small", quiet=True)
    with pytest.raises(InputError, match="aren't compressed"):
        secateur.load(dense, runtime="gpu", device="cpu")
    values = {"device": "cpu", "dtype": "float32"}
    assert not _packed(secateur.load(tmp_path / "small", runtime="gpu", **values))  # they multiply 16 bits
    values["dtype"] = "bfloat16"
    W = secateur.load(tmp_path / "small", runtime="dense", **values).bfloat16()
    W.save_pretrained(tmp_path / "bf16")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bf16" / file).write_bytes((dense / file).read_bytes())
    secateur.compress(tmp_path / "bf16", tmp_path / "small16", quiet=True)
    small = secateur.load(tmp_path / "small16", runtime="gpu", **values)
    assert len(_packed(small)) >= 14
    assert {shape["kernel"] for shape in small.secateur_runtime["shapes"]} == {"triton 4x128"}
    assert small.secateur_runtime["kernel"] == "triton"
    ids = torch.randint(3, 250, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine, plain, exact = (model(ids).logits.float() for model in (small, W, copy.deepcopy(W).float()))
    # The interpreter rounds to bf16 by cutting bits off, so its errors are twice as large.
    assert (mine - exact).norm() <= 3 * (plain - exact).norm()
    assert all(torch.equal(tensor, W.state_dict()[name]) for name, tensor in small.state_dict().items())


def _packed(model: torch.nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]

"""compressed-tensors, as llm-compressor and vLLM write it: FP8, INT8, packed integers, NVFP4, MXFP4 and MXFP8.

What a tensor is stored as shows in what lies beside it, for `w = (q - z) * scale`:

- `weight` float8 or int8, `weight_scale` per tensor, row, group of columns or block; of float8 in groups of 32 also
  exponents of two (MXFP8);
- `weight_packed` int32 (out, in * bits / 32) with `weight_shape`, the codes moved up by half of their range;
- `weight_packed` uint8 (out, in / 2), two FP4 codes a byte, `weight_scale` per 16 columns, to be divided by
  `weight_global_scale` (NVFP4), or exponents of two per 32 (MXFP4).

`weight_zero_point` may come with integers (packed along the rows where the codes are packed), and `weight_g_idx`, the
group of each column. Formats with sparsity or rotations of the weights are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from secateur.model.containers.packing import E2M1, nibbles, unpack, words
from secateur.model.containers.scales import SCALES, grains, spread
from secateur.model.containers.tensors import FLOAT8, FLOATS, Plain, Tensors
from secateur.model.json_files import Json

MOST_BITS = 8
MOST_GROUPS = 64  # of configurations
FP4_GROUPS = (16, 32)


@dataclass(frozen=True)
class Named:
    """The numbers that a configuration names, of all its groups of modules."""

    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """w = (q - z) * scale, fp32, in the shape of `codes`; `sizes`: how many neighbours share a scale, by axis."""
    values = codes.float()
    if zero is not None:
        values = values - spread(zero if zero.dtype != torch.uint8 else zero.int(), values.shape, sizes)
    return values * spread(scale, values.shape, sizes)


def plan(tensors: Tensors, config: Json) -> Iterator[Plain]:
    named = _named(tensors, config)
    for name in tensors.ending(".weight_packed"):
        whole = tensors.headers[f"{name}.weight_packed"].dtype == "U8"
        yield _four_bits(tensors, name) if whole else _packed(tensors, name, named)
    for name in tensors.ending(".weight", (*FLOAT8, "I8")):
        yield _naive(tensors, name, named)


def _named(tensors: Tensors, config: Json) -> Named:
    if config.get("transform_config"):
        raise tensors.bad("has transform_config: the weights are rotated, which is not read")
    sparse = config.get("sparsity_config") or {}
    if not isinstance(sparse, dict) or sparse.get("format", "dense") != "dense":
        raise tensors.bad("has sparsity_config: weights stored without their zeros are not read")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) > MOST_GROUPS:
        raise tensors.bad("has no config_groups")
    weights = [group.get("weights") for group in groups.values() if isinstance(group, dict)]
    found = [scheme for scheme in weights if isinstance(scheme, dict)]

    def numbers(key: str, most: int) -> tuple[int, ...]:
        return tuple({n: None for s in found if type(n := s.get(key)) is int and 0 < n <= most})

    blocks = [s["block_structure"] for s in found if isinstance(s.get("block_structure"), list)]
    pairs = [(b[0], b[1]) for b in blocks if len(b) == 2 and all(type(n) is int and 0 < n <= 2**16 for n in b)]
    return Named(numbers("num_bits", MOST_BITS), numbers("group_size", 2**20), tuple(dict.fromkeys(pairs)))


def _naive(tensors: Tensors, name: str, named: Named) -> Plain:
    weight, scale, zero = (f"{name}.weight{end}" for end in ("", "_scale", "_zero_point"))
    shape = tensors.shape(weight, (*FLOAT8, "I8"), 2)
    scales = SCALES if tensors.headers[weight].dtype in FLOAT8 else FLOATS  # powers of two are MXFP8's
    sizes = _sizes(tensors, scale, shape, named, scales)
    parts = [weight, scale]
    if zero in tensors:
        tensors.expect(zero, ("I8", "U8", "I32", *FLOATS), tensors.shape(scale, scales))
        parts.append(zero)

    def make() -> Tensor:
        z = tensors.read(zero) if zero in tensors else None
        return dequantise(tensors.read(weight), tensors.read(scale), z, sizes)

    return Plain(weight, shape, tuple(parts), make)


def _sizes(
    tensors: Tensors, scale: str, shape: tuple[int, ...], named: Named, dtypes: Sequence[str] = FLOATS
) -> tuple[int, ...]:
    """How many neighbours share a scale: by the blocks that are named, or by the groups of columns."""
    found = tensors.shape(scale, dtypes)
    for rows, columns in named.blocks:
        if found == (-(-shape[0] // rows), -(-shape[1] // columns)):
            return rows, columns
    return grains(tensors, scale, shape, [(), named.sizes], dtypes)


def _packed(tensors: Tensors, name: str, named: Named) -> Plain:
    packed, scale, zero = (f"{name}.weight_{part}" for part in ("packed", "scale", "zero_point"))
    rows, columns = _stated_shape(tensors, f"{name}.weight_shape")
    given = tensors.shape(packed, ("I32",), 2)
    bits = next((n for n in named.bits if given == (rows, words(columns, n))), None)
    if bits is None:
        said = f"which isn't {rows} x {columns} numbers of {' or '.join(map(str, named.bits)) or 'no stated'} bits"
        raise tensors.wrong(packed, f"has the shape {list(given)}, {said}")
    index = f"{name}.weight_g_idx" if f"{name}.weight_g_idx" in tensors else None
    groups = tensors.shape(scale, FLOATS, 2)
    parts = [packed, scale, f"{name}.weight_shape"]
    if index is None:
        sizes = _sizes(tensors, scale, (rows, columns), named)
    else:
        tensors.expect(index, ("I32", "I64"), (columns,))
        tensors.expect(scale, FLOATS, (rows, groups[1]))
        sizes, parts = (1, 1), [*parts, index]
    if zero in tensors:
        tensors.expect(zero, ("I32",), (words(groups[0], bits), groups[1]))
        parts.append(zero)
    asymmetric = zero in tensors
    make = partial(_unpacked, tensors, name, (rows, columns, bits), groups, sizes, asymmetric, index is not None)
    return Plain(f"{name}.weight", (rows, columns), tuple(parts), make)


def _unpacked(
    tensors: Tensors,
    name: str,
    size: tuple[int, int, int],
    groups: tuple[int, ...],
    sizes: tuple[int, ...],
    asymmetric: bool,
    ordered: bool,
) -> Tensor:
    _, columns, bits = size
    half = 1 << (bits - 1)
    codes = unpack(tensors.read(f"{name}.weight_packed"), bits, columns) - half
    scale = tensors.read(f"{name}.weight_scale")
    zero = None
    if asymmetric:
        zero = unpack(tensors.read(f"{name}.weight_zero_point"), bits, groups[0], dim=0) - half
    if ordered:
        of = tensors.index(f"{name}.weight_g_idx", groups[1])
        scale, zero = scale[:, of], None if zero is None else zero[:, of]
    return dequantise(codes, scale, zero, sizes)


def _stated_shape(tensors: Tensors, name: str) -> tuple[int, int]:
    tensors.expect(name, ("I64", "I32"), (2,))
    rows, columns = (int(n) for n in tensors.read(name))
    if not (0 < rows <= 2**31 and 0 < columns <= 2**31):
        raise tensors.wrong(name, f"says {rows} x {columns}")
    return rows, columns


def _four_bits(tensors: Tensors, name: str) -> Plain:
    packed, scale, whole = (f"{name}.weight_{part}" for part in ("packed", "scale", "global_scale"))
    rows, half = tensors.shape(packed, ("U8",), 2)
    shape = (rows, 2 * half)
    sizes = grains(tensors, scale, shape, [(), FP4_GROUPS], (*FLOAT8, *FLOATS, "U8", "F8_E8M0"))
    parts = [packed, scale]
    if whole in tensors:
        if tensors.shape(whole, FLOATS) not in ((), (1,)):
            raise tensors.wrong(whole, "isn't a single number")
        parts.append(whole)

    def make() -> Tensor:
        values = torch.tensor(E2M1)[nibbles(tensors.read(packed))] * spread(tensors.read(scale), shape, sizes)
        return values / tensors.read(whole).float() if whole in tensors else values

    return Plain(f"{name}.weight", shape, tuple(parts), make)

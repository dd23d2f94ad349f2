"""Time, memory and disk that pruning a model takes on a machine, by formulas: of the model only shapes are read.

The formulas count the arithmetic of each part of a run (docs/scaling.md has them) and divide it by how fast this
machine multiplies matrices, which is measured for a third of a second. docs/expect.md says how far to trust them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from secateur.config.presets import PRESETS
from secateur.model.checkpoint import Checkpoint
from secateur.model.linears import linears_of
from secateur.report.schema.model import Forecast, ForecastRow
from secateur.system import accelerator
from secateur.system.device import device_name, pruning_dtype, resolve_device

LIBRARIES = 650_000_000  # bytes of Python, torch and transformers
FREE_SHARE = 0.6  # of what is free, for hidden states
EFFICIENCY = 0.45  # of a large product's speed that a run reaches with all that surrounds its products
TUNED_TOKENS = 2048  # of a step of reconstruction
ADMM_STEPS = 45  # of ALPS, with the conjugate gradients after it
EVALUATED = 50_000  # tokens that both models are judged on
PROBE, PROBE_SECONDS = 1024, 0.3


@dataclass(frozen=True)
class Shape:
    """What the cost of a run depends on.

    Args:
        layers: their number.
        linears: (out, in, name of the input) of the Linears of one layer, the largest.
        hidden: width of the stream.
        outside: parameters outside of the layers.
        parameters: all.
        bytes_on_disk: of the weights.
        length: tokens of a calibration sequence; `samples`: how many.
    """

    layers: int
    linears: tuple[tuple[int, int, str], ...]
    hidden: int
    outside: int
    parameters: int
    bytes_on_disk: int
    samples: int = 128
    length: int = 512

    @property
    def tokens(self) -> int:
        return self.samples * self.length

    @property
    def block(self) -> int:
        """Entries of one layer's Linears."""
        return sum(out * width for out, width, _ in self.linears)

    @property
    def inputs(self) -> list[int]:
        """Widths of the distinct inputs of one layer's Linears."""
        return list({name: width for _, width, name in self.linears}.values())


@dataclass(frozen=True)
class Machine:
    """What a run has: fp32 FLOP a second of large products, free memory and free disk in bytes, processes, and how
    many times as fast the products are that it takes in bf16."""

    name: str
    flops: float
    memory: int
    disk: int
    processes: int = 1
    halves: float = 1.0


@dataclass(frozen=True)
class Way:
    """A kind of run: what is cut, and by which preset."""

    cut: str
    quality: str


WAYS = (Way("weight", "fast"), Way("weight", "balanced"), Way("weight", "best"), Way("channel", "balanced"))


def forecast(checkpoint: Checkpoint, samples: int = 128, length: int = 512) -> Forecast:
    """What pruning a checkpoint takes here, for each of `WAYS`."""
    shape, machine, device = shape_of(checkpoint, samples, length), this_machine(), resolve_device("auto")
    times = _probe(device, torch.bfloat16) / machine.flops
    if pruning_dtype("auto", device, checkpoint.config) is torch.bfloat16:
        machine = replace(machine, halves=times)
    return {
        "machine": machine.name,
        "flops_per_second": machine.flops,
        "bf16_times_as_fast": times,
        "free_memory_bytes": machine.memory,
        "free_disk_bytes": machine.disk,
        "samples": samples,
        "length": shape.length,
        "rows": [row(shape, machine, way) for way in WAYS],
    }


def shape_of(checkpoint: Checkpoint, samples: int = 128, length: int = 512) -> Shape:
    """The shape of a checkpoint whose calibration has so many sequences."""
    layers = list(checkpoint.template.get_submodule(checkpoint.family.layers).children())
    every = [[(*linear.shape, linear.source) for linear in linears_of(layer, checkpoint.family)] for layer in layers]
    inside = sum(checkpoint.layer_parameters(index) for index in range(checkpoint.layers))
    context = getattr(checkpoint.config, "max_position_embeddings", None) or length
    return Shape(
        checkpoint.layers,
        tuple(max(every, key=lambda own: sum(out * width for out, width, _ in own))),
        int(checkpoint.config.hidden_size),
        checkpoint.parameters - inside,
        checkpoint.parameters,
        checkpoint.bytes_on_disk,
        samples,
        min(length, context),
    )


def this_machine() -> Machine:
    """What is measured and free here; the first CUDA device counts where there is one."""
    device = resolve_device("auto")
    free = accelerator.free_bytes(device)
    return Machine(device_name(device), _probe(device), free, shutil.disk_usage(Path.cwd()).free)


def row(shape: Shape, machine: Machine, way: Way) -> ForecastRow:
    """One kind of run on one machine."""
    shape = replace(shape, samples=round(shape.samples * (1 + PRESETS[way.quality].general)))
    seconds = flops_of(shape, way, machine.processes, machine.halves) / (machine.flops * EFFICIENCY)
    states = hidden_bytes(shape, way)
    budget = int(FREE_SHARE * machine.memory)
    memory = working_bytes(shape, way) + min(states, budget)
    return {
        "cut": way.cut,
        "quality": way.quality,
        "seconds": seconds,
        "evaluation_seconds": 4 * shape.parameters * EVALUATED / (machine.flops * EFFICIENCY),
        "memory_bytes": memory,
        "least_memory_bytes": working_bytes(shape, way),
        "disk_bytes": 2 * shape.bytes_on_disk + max(0, states - budget),
        "fits": memory <= machine.memory and 2 * shape.bytes_on_disk <= machine.disk,
    }


def flops_of(shape: Shape, way: Way, processes: int = 1, halves: float = 1.0) -> float:
    """FLOP of the prune stage, as one of so many processes has them: forward passes are shared, solves by Linear, and
    what goes of a structured site is decided by all. Those of passes and steps count less by how much faster they
    are."""
    quick = _passes(way) * _forward(shape) + _tuning(shape, way)
    shared = shape.layers * (quick / halves + _grams(shape, way))
    solved = shape.layers * _solves(shape, way)
    return shared / processes + solved / (min(processes, len(shape.linears)) if way.cut == "weight" else 1)


def working_bytes(shape: Shape, way: Way) -> int:
    """Memory that a run can't do without: all but the hidden states."""
    preset = PRESETS[way.quality]
    dense = preset.target != "pruned"
    block = 4 * shape.block * (1 + dense)
    block += 12 * shape.block if preset.reconstruct else 0  # gradients and two moments of Adam
    statistics = 8 * sum(width**2 for width in shape.inputs) * (1 + dense)
    solve = 3 * 8 * max(shape.inputs) ** 2
    return LIBRARIES + 4 * shape.outside + block + statistics + solve


def hidden_bytes(shape: Shape, way: Way) -> int:
    """Hidden states of all sequences, of the dense stream too where a target needs it."""
    streams = 2 if PRESETS[way.quality].target != "pruned" else 1
    return 4 * shape.tokens * shape.hidden * (streams + (PRESETS[way.quality].reconstruct > 0))


def _forward(shape: Shape) -> float:
    """Of all tokens through one layer: its Linears, and attention over the sequence."""
    return shape.tokens * (2.0 * shape.block + 4.0 * shape.length * shape.hidden)


def _passes(way: Way) -> int:
    """Forward passes of a block: for statistics and to move on; anew for each group of Linears; the dense stream."""
    preset = PRESETS[way.quality]
    sequential = preset.sequential and way.cut == "weight"
    return 2 + (2 if sequential else 0) + (preset.target != "pruned")


def _grams(shape: Shape, way: Way) -> float:
    """Second moments of each distinct input, with the dense stream's too where a target needs them."""
    crossed = 2 if PRESETS[way.quality].target != "pruned" else 1
    return sum(2.0 * shape.tokens * width**2 for width in shape.inputs) * crossed


def _solves(shape: Shape, way: Way) -> float:
    """Factors in fp64, which counts twice, then the solver's sweeps."""
    if way.cut != "weight":
        widest = max(shape.inputs)
        return 2 * 3.0 * widest**3 + 2.0 * shape.hidden * widest**2
    if PRESETS[way.quality].weights == "sparsegpt":
        return 2 * sum(2.0 * width**3 for width in shape.inputs) + sum(_square(line) for line in shape.linears)
    spectrum = 2 * sum(9.0 * width**3 for width in shape.inputs)
    return spectrum + sum(4.0 * ADMM_STEPS * _square(line) for line in shape.linears)


def _square(line: tuple[int, int, str]) -> float:
    """Entries of a Linear by the width of its input: half of its product with a Gram matrix."""
    out, width, _ = line
    return float(out) * width**2


def _tuning(shape: Shape, way: Way) -> float:
    """Steps forward and backward."""
    return 6.0 * shape.block * TUNED_TOKENS * PRESETS[way.quality].reconstruct


def _probe(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP a second of a product of square matrices."""
    a = torch.ones(PROBE, PROBE, device=device, dtype=dtype)
    rates: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < PROBE_SECONDS or len(rates) < 3:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # waits for a GPU
        rates.append(2 * PROBE**3 / (time.perf_counter() - start))
    return max(rates[1:])


def llama(layers: int, hidden: int, channels: int, heads: tuple[int, int, int], vocabulary: int, tied: bool) -> Shape:
    """The shape of a Llama of so many sizes, in bf16, for tables.

    Args:
        heads: query heads, KV heads, size of a head.
    """
    queries, groups, size = heads
    own: Sequence[tuple[int, int, str]] = (
        (queries * size, hidden, "attention"),
        (groups * size, hidden, "attention"),
        (groups * size, hidden, "attention"),
        (hidden, queries * size, "out"),
        (channels, hidden, "ffn"),
        (channels, hidden, "ffn"),
        (hidden, channels, "down"),
    )
    outside = vocabulary * hidden * (1 if tied else 2) + hidden
    parameters = layers * (sum(out * width for out, width, _ in own) + 2 * hidden) + outside
    return Shape(layers, tuple(own), hidden, outside, parameters, 2 * parameters)

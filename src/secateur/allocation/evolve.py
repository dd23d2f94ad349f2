"""Weighs whole spreads of sparsity for `allocation.evolve`: every site cut at every level once, then put together.

Each site is scored once and cut and refitted at every level, on the untouched model's statistics, with zeros in the
place of what goes. A spread is then weighed by one pass of a few sequences through layers that are put together from
these pieces. They lie in the work area, so memory holds a layer at a time.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.allocation.divergence import SEQUENCES, Candidate, compare
from secateur.allocation.evolutionary_search import (
    DEPTH,
    LEVELS,
    Gene,
    Spread,
    Weighing,
    evolve,
    layers_gone,
    nearest,
)
from secateur.allocation.job import Job, key_of, local_cut, pools_of
from secateur.allocation.levels import always, changed, put_values, write_levels
from secateur.calibration.activations import MemoryBudget
from secateur.calibration.gradients import hand_over
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import Block, walk
from secateur.config.quantities import parse_search
from secateur.cut.counts import multiple
from secateur.cut.weights import cut_weights
from secateur.errors import InputError
from secateur.model.site_kinds import REFITTED, UNIT_KINDS
from secateur.model.sites import Site
from secateur.model.surgery import zero
from secateur.system import distributed
from secateur.system.memory import fits_in_memory

ROUGH = 4  # one batch in this many, at least one, for a first look


def evolved(job: Job) -> dict[str, float]:
    """Key -> the fraction that goes, found by a search as long as the recipe says; `layers.3.layer` for a whole one.

    Raises:
        InputError: whole experts, for whom there are no zeros that mean that they are gone.
    """
    if job.rules.unit_kinds - REFITTED:
        raise InputError("allocate evolve can't try whole experts; use --allocate global, or other sites")
    keys, genes, start = _genes(job)
    with _Pieces.of(job, keys, genes) as pieces:
        best = _search(job, genes, start, pieces)
    gone = layers_gone(best.best, genes)
    return {
        key: levels / gene.levels
        for key, gene, levels in zip(keys, genes, best.best, strict=True)
        if gene.pool == DEPTH or gene.layer not in gone
    }


def _search(job: Job, genes: tuple[Gene, ...], start: Spread, pieces: _Pieces) -> Weighing:
    """Until the recipe's number of weighings or minutes is over."""
    most, seconds = parse_search(job.config.search)
    begun = None if job.noted is None else Weighing(tuple(job.noted[0]), job.noted[1], job.noted[2])
    rough = 1 / ROUGH if pieces.batches >= ROUGH else 1.0
    end = time.monotonic() + (seconds or float("inf"))
    if begun is not None and begun.weighed >= (most or float("inf")):
        return begun
    for now in evolve(genes, start, pieces.weigh, rough, job.config.seed, begun):
        job.step(f"{now.weighed:.0f} weighings, KL {now.cost:.4g}")
        job.note([list(now.best), now.cost, now.weighed])
        begun = now
        if now.weighed >= (most or float("inf")) or distributed.share_object(time.monotonic() > end, 0):
            break
    assert begun is not None
    return begun


def _genes(job: Job) -> tuple[list[str], tuple[Gene, ...], Spread]:
    """Every site, or all weights of a layer, and every layer that may go: key and gene; and where a search begins.

    That's the spread that is the same in every layer that stays. Where layers go, sites of all of them have genes.
    """
    every = range(job.streamed.checkpoint.layers) if job.drops else job.kept
    free = [layer for layer in every if layer not in job.rules.protected]
    keys: list[str] = []
    genes: list[Gene] = []
    shares: list[float] = []
    for number, kinds in enumerate(pools_of(job)):
        for layer in free:
            for kind in sorted(kinds):
                parameters, levels, least = _size(job, layer, kind)
                if not levels:
                    continue
                key, size = key_of(layer, kind), parameters / levels
                keys.append(key)
                shares.append(local_cut(job, key, kind) / parameters)
                # Far from where the others are nothing is tried: its pieces would cost and hardly ever be used.
                most = min(levels - max(1, least), round(2 * shares[-1] * levels) + 2)
                genes.append(Gene(str(number), levels, size, most, layer, kind))
    there = [gene.layer in job.kept for gene in genes]
    start = iter(nearest(tuple(compress(genes, there)), tuple(compress(shares, there))))
    spread = [next(start) if stays else 0 for stays in there]
    for layer in free if job.drops else ():
        keys.append(key_of(layer, "layer"))
        genes.append(Gene(DEPTH, 1, 1.0, 1, layer))
        spread.append(int(layer not in job.kept))
    return keys, tuple(genes), tuple(spread)


def _size(job: Job, layer: int, kind: str) -> tuple[int, int, int]:
    """(parameters, levels, levels that stay) of a kind of site of a layer."""
    if kind not in UNIT_KINDS:
        return sum(x.shape[0] * x.shape[1] for x in job.linears(layer)), LEVELS, 0
    sites = [site for site in job.sites(layer) if site.kind == kind]
    if not sites:
        return 0, 0, 0
    site = sites[0]
    levels = min(LEVELS, site.units // math.lcm(site.groups, multiple(job.config, site)))  # what goes together
    return sum(s.units * s.params_per_unit for s in sites), levels, -(-site.least * levels // site.units)


@dataclass
class _Pieces:
    """Every site at every level, and what is needed to weigh them together.

    Args:
        layers: those that a spread may leave in.
        folder: one file for each level of each site: parameters of its layer, and masks of the units that stay.
        start: batches, what enters the first layer, and how layers are called.
        final: what leaves the last layer of the untouched model, by batch.
    """

    job: Job
    keys: list[str]
    genes: tuple[Gene, ...]
    layers: tuple[int, ...]
    folder: Path
    start: Stream
    final: dict[int, Tensor]
    _layers: dict[tuple[int, Spread], nn.Module] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, job: Job, keys: list[str], genes: tuple[Gene, ...]) -> Iterator[_Pieces]:
        """Cuts all of them, in one walk through the untouched model; the files are gone at the end."""
        budget, tokens = job.budget or MemoryBudget(None), job.tokens[:SEQUENCES]
        layers = tuple(range(job.streamed.checkpoint.layers)) if job.drops else job.kept
        final: dict[int, Tensor] = {}
        with tempfile.TemporaryDirectory(prefix="levels-", dir=job.work, ignore_cleanup_errors=True) as name:
            folder = Path(name)

            def keep(stream: Stream) -> None:
                final.update(enumerate(stream.states))

            for block in walk(job.streamed, tokens, layers=layers, budget=budget, work=folder, at_end=keep):
                with torch.enable_grad():
                    hand_over(block, job.gradients, job.rules.gradient_needs)
                for key, gene in zip(keys, genes, strict=True):
                    if gene.pool != DEPTH and gene.layer == block.index:
                        _cut_levels(job, block, gene, folder / key)
                job.step(f"levels of layer {block.index}")
                del block
            start = Stream.start(job.streamed, batches_of(tokens), budget, folder / "start.bin")
            try:
                yield cls(job, keys, genes, layers, folder, start, final)
            finally:
                start.states.close()

    @property
    def batches(self) -> int:
        return len(self.start.batches)

    @torch.no_grad()
    def weigh(self, spread: Spread, roughly: bool) -> float:
        """KL(untouched || cut) in nats per token."""
        streamed, start = self.job.streamed, self.start
        batches = {i: start.batches[i] for i in range(0, self.batches, ROUGH if roughly else 1)}
        hidden = {i: start.states[i].to(streamed.device) for i in batches}
        gone = layers_gone(spread, self.genes)
        for index in (index for index in self.layers if index not in gone):
            layer = self._layer(index, spread)
            hidden = {i: start.calls_of(i)[index](layer, hidden[i]) for i, ids in batches.items()}
        own = Candidate(0, "spread", 0.0)
        counts = None
        if self.job.counts is not None:
            flags = batches_of(self.job.counts[:SEQUENCES])
            counts = {i: flags[i] for i in batches}
        return compare(streamed, batches, {None: self.final, own: hidden}, counts)[own]

    def _layer(self, index: int, spread: Spread) -> nn.Module:
        """Layer `index` as this spread cuts it; those that were used last are kept where memory allows."""
        own = [
            (key, level)
            for key, gene, level in zip(self.keys, self.genes, spread, strict=True)
            if gene.pool != DEPTH and gene.layer == index
        ]
        place = (index, tuple(level for _, level in own))
        layer = self._layers.pop(place, None)
        if layer is None:
            layer = self.job.streamed.load(index)
            for key, level in own:
                if level:
                    _put(layer, self.job.sites(index), load_file(self.folder / key / f"{level}.safetensors"))
        if fits_in_memory(3 * self.job.streamed.checkpoint.parameters):
            self._layers[place] = layer
            if len(self._layers) > 2 * len(self.layers):
                self._layers.pop(next(iter(self._layers)))
        return layer


@torch.no_grad()
def _cut_levels(job: Job, block: Block, gene: Gene, folder: Path) -> None:
    """Writes a file for each level of one kind of site, or of all weights, of a block, which stays as it is."""
    folder.mkdir()
    if gene.kind in UNIT_KINDS:
        sites = [site for site in job.sites(block.index) if site.kind == gene.kind]
        write_levels(job, block, sites, {level: level / gene.levels for level in range(1, gene.most + 1)}, folder)
        return
    untouched, method = copy.deepcopy(block.layer), job.rules.weight_method
    assert method is not None
    for level in range(1, gene.most + 1):
        cut_weights(block, method, job.rules.pattern, always(level / gene.levels))
        save_file(changed(block.layer, untouched), folder / f"{level}.safetensors")
        block.layer.load_state_dict(untouched.state_dict())


@torch.no_grad()
def _put(layer: nn.Module, sites: list[Site], piece: dict[str, Tensor]) -> None:
    """Makes a layer what one of its sites, at one level, makes of it."""
    masks = put_values(layer, sites, piece)
    for site, keep in masks:
        zero(layer, site, keep)

"""The walk: through a model block by block, seeing the input of every Linear, with the edits so far.

    for block in walk(outer, tokens):
        for linear, moments in block.statistics(frozenset({"gram"})):
            linear.weight = my_solver(linear.weight, moments)

This is the only place that knows about block-by-block forward passes, where activations live, how many
processes share the sequences, and which blocks an interrupted run has already finished. A block is read
from disk when its turn comes; after the loop body it is run once more, edited, so that the next block sees
what the edited ones before it produce.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.hooks import Seen, watch
from secateur.calibration.routing import arguments_of, routing_of
from secateur.calibration.source import LayerSource
from secateur.calibration.stream import Stream, batches_of
from secateur.model.architectures import join
from secateur.model.linears import Linear, linears_of, renumbered
from secateur.model.streamed import StreamedModel
from secateur.numerics.moments import Moments
from secateur.numerics.routing import Routing
from secateur.numerics.token_samples import TokenSamples
from secateur.system import accelerator, distributed
from secateur.system.halving import piecewise


@dataclass
class Block:
    """One decoder layer in memory, open for edits.

    Args:
        index: its place in the checkpoint.
        layer: the module; edit it in place.
        stream: hidden states that enter it, from the edited blocks before.
        dense: the same layer untouched with the hidden states of the untouched model, where asked for.
        gradients: need -> a layer whose parameters are gradients, see `calibration.gradients`.
        experts: the untouched layer's number of each expert that is left, once some were removed.
        basis: columns (its hidden size, this one's) in which this model's stream is written, where that isn't the
            untouched one's.
        reference_layer: the untouched layer with the experts that were merged since: what those are to reproduce.
    """

    index: int
    layer: nn.Module
    streamed: StreamedModel
    stream: Stream
    dense: tuple[nn.Module, Stream] | None = None
    gradients: dict[str, nn.Module] = field(default_factory=dict)
    experts: tuple[int, ...] | None = None
    basis: Tensor | None = None
    reference_layer: nn.Module | None = None

    @property
    def linears(self) -> list[Linear]:
        """The layer's prunable weight matrices, in the order in which data reaches them."""
        return linears_of(self.layer, self.streamed.checkpoint.family)

    @torch.no_grad()
    def moments(self, sources: Sequence[str], needs: frozenset[str], every: int = 1) -> dict[str, Moments]:
        """Gathers statistics of the inputs of the named Linears, in one pass over the calibration sequences.

        Args:
            sources: `Linear.source` names; Linears that read the same tensor share one entry.
            needs: see `numerics.moments.NEEDS`; `cross` and `drift` need the dense stream, and `drift` is
                gathered only for the Linears that write to the residual stream.
            every: one batch in this many is looked at.
        """
        device, producers = self.streamed.device, self._residual_writers()
        shapes = {linear.source: linear.shape for linear in self.linears}
        untouched = {name: linear.shape for name, linear in self._dense_linears.items()} if self.dense else shapes
        found = {}
        for name in dict.fromkeys(sources):
            asked = needs if name in producers else needs - {"drift"}
            # Where units were cut before, the dense model's inputs are wider.
            found[name] = Moments(shapes[name][1], asked, device, untouched[name][1], drift_features=shapes[name][0])
        for i in range(0, len(self.stream.batches) if needs else 0, every):
            look = self._gather_pairs if needs & {"cross", "drift"} else self._gather
            piecewise(
                partial(look, i, "drift" in needs), found, len(self.stream.batches[i]), device, self.stream.room
            )
        for name in found:
            distributed.all_reduce(found[name].tensors())
            own = found[name].token_samples
            if own is not None and distributed.world() > 1:
                parts = [distributed.share_object(own, rank) for rank in range(distributed.world())]
                found[name].token_samples = TokenSamples.join(parts)
        return found

    def routing(self, needs: frozenset[str]) -> Routing:
        """Gathers which experts the calibration tokens are routed to; `needs`: any of `numerics.routing.ROUTING`."""
        family = self.streamed.checkpoint.family
        assert family.experts is not None
        return routing_of(self.layer, family.experts.path, self.stream, self.index, self.streamed.device, needs)

    def entering(self, path: str) -> Iterator[Tensor]:
        """Yields what enters the module at `path`, (sequences, tokens, hidden) for each batch of this rank."""
        calls = arguments_of(self.layer, path, self.stream, self.index, self.streamed.device)
        return (states for states, *_ in calls)

    def _dense_name(self, name: str) -> str:
        """What the untouched layer calls a Linear: where experts were removed, the others have moved up."""
        return name if self.experts is None else renumbered(name, self.experts)

    @property
    def _reference(self) -> nn.Module:
        """The layer whose outputs are to be reproduced."""
        assert self.dense is not None
        return self.dense[0] if self.reference_layer is None else self.reference_layer

    @property
    def _dense_linears(self) -> dict[str, Linear]:
        """The untouched layer's Linears by their names in the edited one."""
        dense = {linear.name: linear for linear in linears_of(self._reference, self.streamed.checkpoint.family)}
        return {linear.name: dense[self._dense_name(linear.name)] for linear in self.linears}

    def untouched(self, linear: Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the same Linear of the untouched layer."""
        own = self._dense_linears[linear.name]
        return own.weight, own.bias

    def original(self, linear: Linear, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias whose output on the dense model's inputs is what `linear`, with `weight` now, should
        give: its own as long as it has all its inputs, those of the untouched layer once some were cut."""
        own = self._dense_linears[linear.name] if self.dense is not None else linear
        if own.shape[1] != weight.shape[1]:
            return own.weight, own.bias
        return weight, None if linear.bias is None else linear.bias.clone()

    def _gather(self, batch: int, _drift: bool, rows: slice, waiting: dict[str, Moments]) -> None:
        """Adds some sequences of a batch to statistics, and takes away those that have them."""
        found, widths = dict(waiting), {name: moments.features for name, moments in waiting.items()}

        def see(name: str, x: Tensor, _residual: Tensor | None) -> None:
            with accelerator.exact_products_of(x):
                found[name].update(x)
            waiting.pop(name, None)

        watch(self.layer, widths, self.stream, self.index, batch, self.streamed.device, see, rows=rows)

    def _gather_pairs(self, batch: int, drift: bool, rows: slice, waiting: dict[str, Moments]) -> None:
        """The same for sequences of both models, token for token."""
        assert self.dense is not None, "targets of the dense model ask for walk(..., dense=True)"
        family = self.streamed.checkpoint.family
        writer = join(family.attention.path, family.attention.o) if drift else None
        # An expert of the dense model is asked about the tokens that the edited model sends there.
        routes: dict[str, Tensor] = {}

        def seen(layer: nn.Module, stream: Stream, widths: dict[str, int]) -> dict[str, Seen]:
            inputs: dict[str, Seen] = {}

            def keep(name: str, x: Tensor, residual: Tensor | None) -> None:
                inputs[name] = (x, residual)

            watch(layer, widths, stream, self.index, batch, self.streamed.device, keep, writer, routes, rows)
            return inputs

        mine = seen(self.layer, self.stream, {name: moments.features for name, moments in waiting.items()})
        if self.experts is not None:
            for path, chosen in routes.items():
                routes[path] = torch.tensor(self.experts, device=chosen.device)[chosen]
        widths = {self._dense_name(name): moments.target_features for name, moments in waiting.items()}
        theirs = seen(self._reference, self.dense[1], widths)
        for name, (x, residual) in mine.items():
            target, wanted = theirs[self._dense_name(name)]
            if self.basis is not None and wanted is not None:
                wanted = wanted @ self.basis.to(wanted)
            lacks = None if residual is None or wanted is None else wanted - residual
            with accelerator.exact_products_of(x, target, lacks):
                waiting[name].update(x, target, lacks)
            del waiting[name]

    def _residual_writers(self) -> frozenset[str]:
        """The Linears whose output is added to the residual stream as it is."""
        family = self.streamed.checkpoint.family
        if not family.adds_plainly(self.streamed.checkpoint.config):
            return frozenset()
        return frozenset({join(family.attention.path, family.attention.o), join(family.ffn.path, family.ffn.down)})

    def stages(self, needs: frozenset[str], sequential: bool = False) -> Iterator[list[tuple[Linear, Moments]]]:
        """Yields the Linears with the statistics of their inputs, in groups that may be edited side by side.

        Args:
            needs: see `numerics.moments.NEEDS`.
            sequential: one group per distinct input (q, k and v; o; gate and up; down), each gathered after
                the groups before it were edited; otherwise one group, gathered once.
        """
        groups: dict[str, list[Linear]] = {}
        for linear in self.linears:
            groups.setdefault(linear.source, []).append(linear)
        if not sequential:
            found = self.moments(list(groups), needs)
            yield [(linear, found[linear.source]) for linear in self.linears]
            return
        for source, members in groups.items():
            found = self.moments([source], needs)
            yield [(linear, found[source]) for linear in members]

    def statistics(self, needs: frozenset[str], sequential: bool = False) -> Iterator[tuple[Linear, Moments]]:
        """Yields every Linear with the statistics of its inputs: `stages` without the grouping."""
        for stage in self.stages(needs, sequential):
            yield from stage


def walk(
    streamed: StreamedModel,
    tokens: Tensor,
    *,
    layers: Sequence[int] | None = None,
    dense: bool = False,
    finished: Callable[[int], nn.Module | None] = lambda index: None,
    edited: Callable[[nn.Module, int], None] = lambda layer, index: None,
    at_end: Callable[[Stream], None] = lambda stream: None,
    budget: MemoryBudget | None = None,
    work: Path | None = None,
) -> Iterator[Block]:
    """Yields every block in order, read from disk in its turn; edits in the loop body are what the next block sees.

        >>> import torch, secateur
        >>> model, tokens = secateur.open_for_walk("embedded", device="cpu"), torch.arange(128).view(2, 64)
        >>> for block in walk(model, tokens, layers=[0, 1]):
        ...     linear, moments = list(block.statistics(frozenset({"gram"})))[-1]
        ...     print(block.index, linear.name, tuple(linear.shape), tuple(moments.gram.shape), moments.n)
        ...     linear.weight = 0.5 * linear.weight
        0 mlp.down_proj (192, 512) (512, 512) 128
        1 mlp.down_proj (192, 512) (512, 512) 128

    Args:
        streamed: the opened checkpoint.
        tokens: calibration token ids, int64 (sequences, length), the same on every rank.
        layers: the blocks to visit (all others are skipped as if removed); None = all.
        dense: carry the untouched model's hidden states along, for targets that need them.
        finished: gives the edited layer of a block that an earlier run has finished, which then isn't yielded
            again, or None.
        edited: called with each block when its edits are done and its weights are rounded as they'll be saved.
        at_end: called with the hidden states that leave the last block.
        budget: bytes of hidden states that may stay in memory, None = all; `work`: folder for those that may not.
    """
    budget = budget or MemoryBudget(None)
    batches = batches_of(tokens)
    stream = Stream.start(streamed, batches, budget, work and work / "edited.bin")
    reference = Stream.start(streamed, batches, budget, work and work / "dense.bin") if dense else None
    streamed.release()  # read again at the end, if it's asked for
    visited = range(streamed.checkpoint.layers) if layers is None else layers
    source = LayerSource(streamed)
    try:
        for index in range(streamed.checkpoint.layers):
            if index not in visited and reference is None:
                continue
            layer = finished(index) if index in visited else None
            if index in visited and layer is None:
                layer = source.take(index)
                block = Block(index, layer, streamed, stream)
                if reference is not None:
                    block.dense = (copy.deepcopy(layer), reference)
                yield block
                agree(layer)
                round_to_stored(layer, streamed, index)
                edited(layer, index)
                original = block.dense[0] if block.dense is not None else None
                del block
            else:
                original = source.take(index) if reference is not None else None
            if layer is not None:
                stream.advance(layer, index, streamed.device)
            if reference is not None and original is not None:
                reference.advance(original, index, streamed.device)
            layer = original = None  # before the next one is read
        at_end(stream)
    finally:
        source.close()
        stream.states.close()
        if reference is not None:
            reference.states.close()


def agree(layer: nn.Module) -> None:
    """Makes every rank continue with rank 0's edits, bit by bit, whatever machines the others are."""
    distributed.broadcast([parameter.data for parameter in layer.parameters()], 0)


@torch.no_grad()
def round_to_stored(layer: nn.Module, streamed: StreamedModel, index: int) -> None:
    """Rounds a layer's weights to the dtype they are saved in, so that later blocks see what will be loaded."""
    checkpoint = streamed.checkpoint
    for name, parameter in layer.named_parameters():
        stored = checkpoint.stored_dtype(index, name)
        if stored != parameter.dtype:
            parameter.data = parameter.data.to(stored).to(parameter.dtype)

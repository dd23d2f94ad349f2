"""Experts that go, merged into those that stay: against loops over tokens and experts in fp64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration import stream as streaming
from secateur.calibration.walk import Block, walk
from secateur.cut.merging import remove_and_merge
from secateur.model.checkpoint import Checkpoint
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.system import distributed
from tests.model import tiny

EXPERTS, CHANNELS = 4, 24
KEEP = torch.tensor([True, False, True, False])
# Which expert each one is a copy of, in another order of its hidden units, and how noisy.
KIN = {1: 2, 3: 0}


@pytest.fixture(autouse=True)
def _two_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 2 * tiny.TOKENS)


def orders(index: int) -> dict[int, Tensor]:
    """Expert -> place of each of its hidden units in the expert that it was made from."""
    generator = torch.Generator().manual_seed(index)
    return {unit: torch.randperm(CHANNELS, generator=generator) for unit in KIN}


def related(case: str, noise: float) -> Any:
    """A tiny mixture in which two experts descend from the two others."""
    model = tiny.build(case)
    generator = torch.Generator().manual_seed(7)
    for index, layer in enumerate(model.model.layers):
        experts = getattr(layer.mlp, "experts", None)
        for unit, origin in KIN.items() if experts is not None else ():
            order = orders(index)[unit]
            up, down = experts.gate_up_proj, experts.down_proj
            both = torch.cat([half[order] for half in up[origin].chunk(2)])
            up[unit] = both + noise * torch.randn(both.shape, generator=generator) * both.std()
            down[unit] = down[origin][:, order]
            down[unit] += noise * torch.randn(down[unit].shape, generator=generator) * down.std()
    return model


def blocks_of(model: Any, folder: Path, dense: bool = False) -> Iterator[tuple[Block, Site]]:
    """The blocks with experts, each with a layer of its own to edit: the next one sees the untouched model."""
    model.save_pretrained(folder)
    streamed = StreamedModel(Checkpoint.open(folder), torch.device("cpu"), torch.float32)
    for block in walk(streamed, tiny.tokens(), dense=dense):
        own = replace(block, layer=copy.deepcopy(block.layer))
        for site in sites_of(block.layer, streamed.checkpoint.family, block.index, streamed.checkpoint.head_dim):
            if site.kind == "expert":
                yield own, site


@dataclass
class Slow:
    """A mixture in fp64, token by token: router (experts, hidden), up and down per expert."""

    router: Tensor
    up: list[Tensor]
    down: list[Tensor]

    @classmethod
    def of(cls, mlp: nn.Module) -> Slow:
        up, down = mlp.get_parameter("experts.gate_up_proj"), mlp.get_parameter("experts.down_proj")
        return cls(mlp.get_parameter("gate.weight").double(), list(up.double()), list(down.double()))

    def write(self, unit: int, x: Tensor) -> Tensor:
        left, right = (self.up[unit] @ x).view(2, -1)
        return self.down[unit] @ (left / (1 + (-left).exp()) * right)

    def routes(self, x: Tensor) -> dict[int, float]:
        """The two experts that a token takes, and their gates."""
        odds = [float((row @ x).exp()) for row in self.router]
        best = sorted(range(len(odds)), key=lambda unit: -odds[unit])[:2]
        return {unit: odds[unit] / sum(odds[other] for other in best) for unit in best}

    def output(self, x: Tensor) -> Tensor:
        return sum((gate * self.write(unit, x) for unit, gate in self.routes(x).items()), torch.zeros_like(x))


def inputs(model: Any, index: int) -> Tensor:
    """What the experts of a layer read in the whole model, (tokens, hidden) fp64."""
    seen: list[Tensor] = []
    wide = copy.deepcopy(model).double()
    wide.set_experts_implementation("eager")  # the others refuse fp64
    wide.model.layers[index].mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1)))
    tiny.logits(wide, tiny.tokens())
    return seen[0]


def error(slow: Slow, dense: Slow, x: Tensor) -> float:
    missing = sum(float((dense.output(token) - slow.output(token)).square().sum()) for token in x)
    return missing / sum(float(dense.output(token).square().sum()) for token in x)


def pruned(dense: Slow, units: list[int]) -> Slow:
    return Slow(dense.router[units], [dense.up[u] for u in units], [dense.down[u] for u in units])


@pytest.mark.parametrize("case", ["mixtral", "qwen3-moe"])
def test_it_is_what_loops_over_tokens_say(case: str, tmp_path: Path) -> None:
    model = related(case, 0.3)
    taken = 0
    for block, site in blocks_of(model, tmp_path):
        x, dense = inputs(model, block.index), Slow.of(model.model.layers[block.index].mlp)
        done = remove_and_merge(block, site, KEEP)
        tokens = [sum(unit in dense.routes(token) for token in x) for unit in range(EXPERTS)]
        outputs = torch.stack([torch.cat([dense.write(unit, token) for token in x]) for unit in range(EXPERTS)])
        unmerged, joined = pruned(dense, [0, 2]), pruned(dense, [0, 2])
        for merge in done.merges:
            assert merge.into == KIN[merge.unit]
            a, b = outputs[merge.unit], outputs[merge.into]
            assert merge.likeness == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-4)
            back = orders(block.index)[merge.unit].argsort()
            whole, own = sum(tokens[u] for u in (merge.unit, merge.into)), [0, 2].index(merge.into)
            up = torch.cat([half[back] for half in dense.up[merge.unit].chunk(2)])
            down = dense.down[merge.unit][:, back]
            joined.up[own] = (tokens[merge.into] * joined.up[own] + tokens[merge.unit] * up) / whole
            joined.down[own] = (tokens[merge.into] * joined.down[own] + tokens[merge.unit] * down) / whole
        # Every choice of merges there is.
        errors = {}
        for made in itertools.product((False, True), repeat=2):
            parts = [joined if yes else unmerged for yes in made]
            mixed = Slow(
                unmerged.router, [p.up[i] for i, p in enumerate(parts)], [p.down[i] for i, p in enumerate(parts)]
            )
            errors[made] = error(mixed, dense, x)
        said = {merge.into: merge.taken for merge in done.merges}
        chosen = (said[0], said[2])
        assert done.error_removed == pytest.approx(errors[False, False], rel=1e-4)
        assert done.error == pytest.approx(errors[chosen], rel=1e-4)
        assert errors[chosen] <= errors[False, False]
        nearby = [(not chosen[0], chosen[1]), (chosen[0], not chosen[1])]
        assert errors[chosen] <= min(errors[other] for other in nearby) * (1 + 1e-4)
        after = Slow.of(block.layer.mlp)
        for own, yes in enumerate(chosen):
            want = joined if yes else unmerged
            torch.testing.assert_close(after.up[own], want.up[own], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(after.down[own], want.down[own], rtol=1e-5, atol=1e-6)
        assert torch.equal(after.router, unmerged.router)
        assert block.experts == (0, 2)
        taken += sum(chosen)
    assert taken


@pytest.mark.parametrize("keep", [[0, 1], [1, 3], [0, 1, 2], [2, 3]])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_never_worse_than_removal(keep: list[int], noise: float, tmp_path: Path) -> None:
    """Of strangers too, and of several that go into one; the error that is reported is the one that is left."""
    model = related("mixtral", noise)
    stays = torch.zeros(EXPERTS, dtype=torch.bool)
    stays[keep] = True
    for block, site in blocks_of(model, tmp_path):
        x, dense = inputs(model, block.index), Slow.of(model.model.layers[block.index].mlp)
        done = remove_and_merge(block, site, stays)
        assert [merge.unit for merge in done.merges] == [unit for unit in range(EXPERTS) if unit not in keep]
        assert done.error_removed == pytest.approx(error(pruned(dense, keep), dense, x), rel=1e-4)
        left = error(Slow.of(block.layer.mlp), dense, x)
        assert left == pytest.approx(done.error, rel=1e-4)
        assert left <= done.error_removed * (1 + 1e-6)
        assert (left < done.error_removed * (1 - 1e-6)) == any(merge.taken for merge in done.merges)


def test_sums_go_over_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added up over the ranks is all that decides: twice everything is the same choice."""
    model = related("mixtral", 0.3)
    blocks = [blocks_of(model, tmp_path / name) for name in ("one", "two")]  # they close what they hold when they go
    block, site = next(blocks[0])
    alone = remove_and_merge(block, site, KEEP)
    times = []

    def two(tensors: list[Tensor]) -> None:
        times.append(len(tensors))
        for tensor in tensors:
            tensor.mul_(2)

    monkeypatch.setattr(distributed, "all_reduce", two)
    other, site = next(blocks[1])
    both = remove_and_merge(other, site, KEEP)
    assert times == [2, 3]
    assert [merge.taken for merge in both.merges] == [merge.taken for merge in alone.merges]
    assert (both.error, both.error_removed) == pytest.approx((alone.error, alone.error_removed))
    for name, value in block.layer.named_parameters():
        torch.testing.assert_close(other.layer.get_parameter(name), value)


def test_what_is_inside_a_merged_expert_is_compared_with_the_merged_one(tmp_path: Path) -> None:
    """The dense model's side of a target is the expert as it was merged, on the dense model's tokens: in the first
    block both read the same."""
    blocks = blocks_of(related("mixtral", 0.3), tmp_path, dense=True)  # it closes what it holds when it goes
    block, site = next(blocks)
    assert block.dense is not None
    untouched = copy.deepcopy(block.dense[0])
    done = remove_and_merge(block, site, KEEP)
    assert any(merge.taken for merge in done.merges)
    consumers = [linear for linear in block.linears if "experts" in linear.name]
    found = block.moments([linear.name for linear in consumers], frozenset({"gram", "cross"}))
    for linear in consumers:
        torch.testing.assert_close(found[linear.name].cross, found[linear.name].gram, rtol=1e-5, atol=1e-6)
        assert torch.equal(block.original(linear, linear.weight[:, :8])[0], linear.weight)
    # What the block itself has to reproduce stays what it was.
    for name, value in block.dense[0].named_parameters():
        assert torch.equal(value, untouched.get_parameter(name))

"""Cuts with the dense model as their target come nearer to it than cuts with their own output as target."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration.stream import Stream
from secateur.calibration.walk import Block, walk
from secateur.cut.units import UnitRules, cut_units
from secateur.cut.weights import cut_weights
from secateur.methods import METHODS
from secateur.model.architectures import join
from secateur.model.biases import add_biases, bias_flags
from secateur.model.checkpoint import Checkpoint
from secateur.model.sites import Site
from secateur.model.streamed import StreamedModel
from secateur.numerics.patterns import Pattern
from secateur.numerics.targets import Target
from tests.model import tiny

SEQUENCES = 12
UNITS = ["llama", "llama-bias", "gpt2", "opt", "neox", "gemma2", "granite", "opt-post"]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], StreamedModel]:
    torch.set_num_threads(1)

    def get(case: str) -> StreamedModel:
        return StreamedModel(Checkpoint.open(tiny.save(case, tmp_path / case)), torch.device("cpu"), torch.float32)

    return get


def half(site: Site) -> tuple[int, ...]:
    """Every other unit, of each group."""
    return tuple(range(0, site.units, 2))


def rules(target: Target, biased: frozenset[str], planned: bool) -> UnitRules:
    return UnitRules(
        method=METHODS["obs"],
        keep_count=lambda site: len(half(site)) // site.multiple * site.multiple,
        planned=half if planned else lambda site: None,
        refit=True,
        biased=biased,
        target=target,
    )


def consumers(streamed: StreamedModel) -> tuple[str, str]:
    family = streamed.checkpoint.family
    return join(family.attention.path, family.attention.o), join(family.ffn.path, family.ffn.down)


def outputs(layer: nn.Module, index: int, stream: Stream, names: tuple[str, str]) -> dict[str, Tensor]:
    """What attention's and the FFN's last Linear put out, (tokens, hidden) fp64."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        layer.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, n=name: seen[n].append(out.flatten(0, -2))
        )
        for name in names
    ]
    with torch.no_grad():
        for i in range(len(stream.batches)):
            stream.forward(layer, index, i, torch.device("cpu"))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(out).double() for name, out in seen.items()}


def distance(block: Block, consumer: str) -> float:
    """How far the reader's output is from the dense model's: with the residual stream that it's added to, where it
    is added as it is."""
    assert block.dense is not None
    names = attention, _ = consumers(block.streamed)
    layer, stream = block.dense
    mine, theirs = outputs(block.layer, block.index, block.stream, names), outputs(layer, block.index, stream, names)
    lacks = theirs[consumer] - mine[consumer]
    if block.streamed.checkpoint.family.adds_plainly(block.streamed.checkpoint.config):
        pairs = zip(stream.states, block.stream.states, strict=True)
        lacks = lacks + torch.cat([(d - m).flatten(0, -2).double() for d, m in pairs])
        if consumer != attention:
            lacks = lacks + theirs[attention] - mine[attention]
    return float(lacks.square().mean())


@pytest.mark.parametrize("case", UNITS)
@pytest.mark.parametrize("kind", ["channel", "kv_group"])
@pytest.mark.parametrize("add", [False, True])
def test_structured_refits(case: str, kind: str, add: bool, opened: Callable[[str], StreamedModel]) -> None:
    """The same units go, so that only the refit differs: then least squares can't lose, but for its ridge."""
    streamed = opened(case)
    names = consumers(streamed)
    biased = frozenset(names) if add else frozenset()
    flags = bias_flags(streamed.checkpoint, biased) if add else {}
    consumer = names[0] if kind == "kv_group" else names[1]
    for block in walk(streamed, tiny.tokens(SEQUENCES), layers=[0, 1, 2], dense=True):
        add_biases(block.layer, streamed.checkpoint, flags)
        walked, found = block.layer, {}
        for target in ("pruned", "dense", "residual"):
            block.layer = copy.deepcopy(walked)
            cut_units(block, frozenset({kind}), rules(target, biased, planned=True))
            found[target] = distance(block, consumer)
        plain = streamed.checkpoint.family.adds_plainly(streamed.checkpoint.config)
        best = "residual" if plain else "dense"
        assert all(found[best] <= found[other] * 1.001 for other in found), (block.index, found)
        if block.index == 0:  # where both models see the same
            assert found[best] == pytest.approx(found["pruned"], rel=1e-3)
        else:
            assert found[best] < found["pruned"]
            assert plain == (found["residual"] != found["dense"])
        block.layer = walked  # which the walk goes on with
        cut_units(block, frozenset({kind}), rules("pruned", biased, planned=True))


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3-moe", "mixtral"])
def test_both_kinds_and_then_weights(case: str, opened: Callable[[str], StreamedModel]) -> None:
    """As a run does: heads, channels, then single weights of what is left; every choice by score."""
    streamed, ids = opened(case), tiny.tokens(SEQUENCES)
    errors = {}
    for target in ("pruned", "residual"):
        for block in walk(streamed, ids, dense=True):
            assert block.dense is not None
            errors[target] = drift(block.stream, block.dense[1])
            cut_units(block, frozenset({"kv_group", "channel"}), rules(target, frozenset(consumers(streamed)), False))
            cuts = cut_weights(
                block, METHODS["sparsegpt"], Pattern(), lambda name: 0.3, sequential=True, target=target
            )
            assert all(torch.isfinite(p).all() for p in block.layer.parameters())
            assert all(0 <= cut.error < 1 for cut in cuts if cut.error is not None)
    # What enters the last block is nearer to the dense model's hidden state.
    assert errors["residual"] < errors["pruned"]


def drift(mine: Stream, theirs: Stream) -> float:
    pairs = list(zip(mine.states, theirs.states, strict=True))
    return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)

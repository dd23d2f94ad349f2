"""Whole experts: removing one equals a router that never chooses it, and the numbers by which they're scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from secateur.calibration import stream as streaming
from secateur.calibration.walk import Block, walk
from secateur.cut.experts import norms_of, remove_experts, score_experts
from secateur.errors import UnsupportedModelError
from secateur.methods import METHODS
from secateur.model.architectures import ExpertModules, Family, family_of
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import remove, unit_parameters, zero
from secateur.system import distributed
from tests.model import tiny

MIXTURES = ("mixtral", "qwen3-moe")
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


def anatomy(model: PreTrainedModel) -> tuple[Family, ExpertModules, nn.ModuleList]:
    family = family_of(model.config)
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    assert family.experts is not None
    return family, family.experts, layers


def expert_site(layer: nn.Module, family: Family, index: int) -> Site | None:
    found = [site for site in sites_of(layer, family, index, 12) if site.kind == "expert"]
    assert len(found) <= 1
    return found[0] if found else None


def mixtures(model: PreTrainedModel) -> list[tuple[nn.Module, Site]]:
    """The layers that have experts, and their sites."""
    family, _, layers = anatomy(model)
    sites = [(layer, expert_site(layer, family, index)) for index, layer in enumerate(layers)]
    return [(layer, site) for layer, site in sites if site is not None]


class NeverChosen(nn.Module):
    """A router whose logits for some experts are -inf; everything else is the router's own."""

    def __init__(self, router: nn.Module, gone: Tensor) -> None:
        super().__init__()
        self.router, self.gone = router, gone

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        linear = functional.linear
        with pytest.MonkeyPatch.context() as patch:
            masked: Callable[..., Tensor] = lambda x, W: linear(x, W).masked_fill(self.gone, -torch.inf)  # noqa: E731
            patch.setattr(functional, "linear", masked)
            found: tuple[Tensor, ...] = self.router(hidden)
        return found


def keeps(layer: int) -> Tensor:
    """Other experts in each layer, one or two."""
    keep = torch.ones(4, dtype=torch.bool)
    keep[[[0], [1, 3], [2], [3, 0]][layer]] = False
    return keep


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", MIXTURES)
def test_a_removed_expert_equals_one_that_is_never_chosen(case: str, how: str) -> None:
    dense, masked, removed = (tiny.build(case) for _ in range(3))
    for model in (dense, masked, removed):
        model.set_experts_implementation(how)
    _, e, _ = anatomy(dense)
    gone = 0
    for layer, site in mixtures(removed):
        keep = keeps(site.layer)
        gone += int((~keep).sum()) * site.params_per_unit
        remove(layer, [(site, keep)])
        assert layer.get_submodule(e.path).num_experts == int(keep.sum())
        assert layer.get_submodule(e.router).num_experts == int(keep.sum())
        assert layer.get_submodule(e.router).top_k == site.least == 2
    for layer, site in mixtures(masked):
        path, _, leaf = e.router.rpartition(".")
        setattr(layer.get_submodule(path), leaf, NeverChosen(layer.get_submodule(e.router), ~keeps(site.layer)))
    assert removed.num_parameters() == dense.num_parameters() - gone
    ids = tiny.tokens(2)
    want = tiny.logits(masked, ids)
    torch.testing.assert_close(tiny.logits(removed, ids), want, atol=1e-5, rtol=1e-5)
    assert (want - tiny.logits(dense, ids)).abs().max() > 0.05


@pytest.mark.parametrize("case", MIXTURES)
def test_what_an_expert_owns(case: str) -> None:
    model = tiny.build(case)
    family, e, layers = anatomy(model)
    plain = [index for index, layer in enumerate(layers) if expert_site(layer, family, index) is None]
    assert plain == ([1] if case == "qwen3-moe" else [])
    layer, site = mixtures(model)[-1]
    assert (site.name, site.units, site.least) == ("layers.3.expert", 4, 2)
    assert site.params_per_unit == 3 * 24 * 32 + 32
    own, experts = unit_parameters(layer, site), layer.get_submodule(e.path)
    row = layer.get_submodule(e.router).weight[2]
    parts = [experts.gate_up_proj[2].flatten(), experts.down_proj[2].flatten(), row]
    torch.testing.assert_close(own[2], torch.cat(parts), rtol=0, atol=0)


def test_what_experts_cannot_be() -> None:
    layer, site = mixtures(tiny.build("mixtral"))[0]
    one = torch.tensor([True, False, False, False])
    with pytest.raises(UnsupportedModelError, match=r"0\.expert: 2 units or more must stay, the plan keeps 1"):
        remove(layer, [(site, one)])
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.expert: an expert of zeros would still be chosen"):
        zero(layer, site, one)


# ----------------------------------------------------------------------------- what they are scored by

EVERYTHING = frozenset({"expert_outputs"})


@pytest.fixture(autouse=True)
def _two_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences then come as a batch of two and a batch of one."""
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 2 * tiny.TOKENS)


def expert_blocks(streamed: StreamedModel, dense: bool = False) -> Iterator[tuple[Block, Site]]:
    """Every block that has experts, in a walk through the calibration tokens."""
    for block in walk(streamed, tiny.tokens(), dense=dense):
        site = expert_site(block.layer, streamed.checkpoint.family, block.index)
        if site is not None:
            yield block, site


def slowly(case: str, index: int) -> tuple[list[int], list[float], list[float], list[float]]:
    """Tokens, gate sums, output sums and REAP scores of one layer's experts in fp64, token by token and expert by
    expert, from the inputs of the whole model's block alone: nothing of the router's or the experts' code."""
    model = tiny.build(case).double()
    model.set_experts_implementation("eager")  # the others refuse fp64
    _, e, layers = anatomy(model)
    seen: list[Tensor] = []
    block = layers[index].get_submodule(e.path.rpartition(".")[0])
    block.register_forward_pre_hook(lambda _m, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    tiny.logits(model, tiny.tokens())
    up, down = (layers[index].get_parameter(f"{e.path}.{part}") for part in (e.up, e.down))
    router, count = layers[index].get_parameter(f"{e.router}.weight"), len(down)
    tokens, gates, outputs = [0] * count, [0.0] * count, [0.0] * count
    for x in seen[0]:
        odds = [float((router[j] @ x).exp()) for j in range(count)]
        best = sorted(range(count), key=lambda j, odds=odds: -odds[j])[:2]
        for j in best:
            # Both classes divide the chosen ones by their sum (Qwen3-MoE as it is configured here).
            gate = odds[j] / sum(odds[k] for k in best)
            left, right = (up[j] @ x).view(2, -1)
            written = down[j] @ (left / (1 + (-left).exp()) * right)
            tokens[j] += 1
            gates[j] += gate
            outputs[j] += gate * sum(float(v) ** 2 for v in written) ** 0.5
    return tokens, gates, outputs, [o / max(1, n) for o, n in zip(outputs, tokens, strict=True)]


@pytest.mark.parametrize("case", MIXTURES)
def test_the_walk_counts_what_a_plain_loop_counts(case: str, opened: Callable[[str], StreamedModel]) -> None:
    for block, site in expert_blocks(opened(case)):
        tokens, gates, outputs, scores = slowly(case, block.index)
        found = block.routing(EVERYTHING)
        assert found.seen == 3 * tiny.TOKENS
        assert found.tokens.tolist() == tokens
        assert sum(tokens) == 2 * found.seen
        assert found.gates.tolist() == pytest.approx(gates, rel=1e-4)
        assert found.outputs.tolist() == pytest.approx(outputs, rel=1e-4)
        assert score_experts(block, site, METHODS["reap"], 0).tolist() == pytest.approx(scores, rel=1e-4)
        shares = [n / found.seen for n in tokens]
        assert score_experts(block, site, METHODS["expert_frequency"], 0).tolist() == pytest.approx(shares)
        owned = unit_parameters(block.layer, site).double().square().sum(1).sqrt()
        torch.testing.assert_close(norms_of(block.layer, site), owned, rtol=1e-6, atol=0)


def test_sums_go_over_the_ranks_and_nothing_is_run_for_nothing(
    opened: Callable[[str], StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = expert_blocks(opened("mixtral"))  # it closes what it holds when it goes
    block, site = next(blocks)
    alone = block.routing(EVERYTHING)

    def two(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tensor.mul_(2)

    monkeypatch.setattr(distributed, "all_reduce", two)
    both = block.routing(EVERYTHING)
    assert both.seen == 2 * alone.seen
    assert torch.equal(both.outputs, 2 * alone.outputs)
    assert torch.equal(both.tokens, 2 * alone.tokens)

    def never(*_: object) -> Tensor:
        raise AssertionError("a forward pass that nobody needs")

    monkeypatch.setattr(streaming.Stream, "forward", never)
    for name in ("magnitude", "random"):
        assert score_experts(block, site, METHODS[name], 0).shape == (4,)


def test_targets_look_at_the_experts_that_are_left(opened: Callable[[str], StreamedModel]) -> None:
    """In the first block both models see the same, so what an expert that stays reads is the same too, unless it
    is compared with another."""
    blocks = expert_blocks(opened("mixtral"), dense=True)
    block, site = next(blocks)
    remove_experts(block, site, torch.tensor([False, True, True, True]))
    remove_experts(block, replace(site, units=3), torch.tensor([True, False, True]))
    assert block.experts == (1, 3)
    assert block.dense is not None
    consumers = {linear.name: linear for linear in block.linears if "experts" in linear.name}
    found = block.moments(list(consumers), frozenset({"gram", "cross"}))
    assert len(consumers) == 4
    for name, moments in found.items():
        assert moments.n > 0
        torch.testing.assert_close(moments.cross, moments.gram, rtol=1e-5, atol=1e-6, msg=name)
    for place, number in enumerate(block.experts):
        consumer = consumers[f"mlp.experts.down_proj[{place}]"]
        dense, _ = block.original(consumer, consumer.weight[:, :8])
        assert torch.equal(dense, block.dense[0].get_parameter("mlp.experts.down_proj")[number])

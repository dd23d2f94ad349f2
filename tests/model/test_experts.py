"""Whole experts: removing one equals a router that never chooses it, and the numbers by which they're scored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from secateur.errors import UnsupportedModelError
from secateur.model.families import Experts, Family, family_of
from secateur.model.sites import Site, sites_of
from secateur.model.surgery import remove, unit_parameters, zero

MIXTURES = ("mixtral", "qwen3-moe")
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


def anatomy(model: PreTrainedModel) -> tuple[Family, Experts, nn.ModuleList]:
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

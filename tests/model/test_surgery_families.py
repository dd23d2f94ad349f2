"""Removing equals zeroing, for every architecture, every kind of site and every kind of layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.errors import UnsupportedModelError
from secateur.model.architectures import Family, family_of, join
from secateur.model.depth import shallow_config
from secateur.model.linears import has_weight, linears_of, submodule
from secateur.model.sites import Site, head_counts, sites_of
from secateur.model.surgery import drop, remove, renumber, set_heads, silence, unit_parameters, zero
from tests.cases import case as within
from tests.model import tiny

UNITS = ("channel", "query_head", "kv_group")
BLOCKS = ("attention", "ffn")


def anatomy(model: PreTrainedModel) -> tuple[Family, int, nn.ModuleList]:
    """Family, head size and layers of a model in memory."""
    config, family = model.config, family_of(model.config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return family, head_dim, layers


def choose(site: Site, seed: int) -> Tensor:
    """About half of the units, equally many in each group, other ones in each layer."""
    size = site.units // site.groups
    noise = torch.rand(site.groups, size, generator=torch.Generator().manual_seed(seed))
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return (ranks < max(site.multiple, size // 2 // site.multiple * site.multiple)).flatten()


def cut(model: PreTrainedModel, kind: str, how: str) -> int:
    """Zeroes or removes units of one kind in every layer; returns the parameters that this takes away."""
    family, head_dim, layers = anatomy(model)
    gone = 0
    for index, layer in enumerate(layers):
        sites = [s for s in sites_of(layer, family, index, head_dim) if s.kind == kind]
        # Experts of one layer must keep equally many channels, not the same ones.
        chosen = [(s, choose(s, 10 * index + (s.expert or 0))) for s in sites]
        if how == "zero":
            for site, keep in chosen:
                zero(layer, site, keep)
        else:
            remove(layer, chosen)
            if kind != "channel" and chosen:
                counts = head_counts(layer, family, head_dim)
                set_heads(layer.get_submodule(family.attention.path), *counts, head_dim)
        gone += sum(int((~keep).sum()) * site.params_per_unit for site, keep in chosen)
    return gone


def generated(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits with a cache: a prompt at once, then token by token."""
    cache = DynamicCache(config=model.config)
    parts = [ids[:, :9], *ids[:, 9:].split(1, dim=1)]
    with torch.no_grad():
        return torch.cat([model(input_ids=p, past_key_values=cache, use_cache=True).logits for p in parts], dim=1)


def assert_same(model: PreTrainedModel, reference: PreTrainedModel, family: Family) -> None:
    ids = tiny.tokens(2)
    want = tiny.logits(reference, ids)
    torch.testing.assert_close(tiny.logits(model, ids), want, atol=3e-5, rtol=1e-5)
    if family.causal:
        torch.testing.assert_close(generated(model, ids), want, atol=3e-5, rtol=1e-5)


def assert_sizes(model: PreTrainedModel) -> None:
    """What each module says of its size is what its weight has."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
            assert module.bias is None or module.bias.shape == (module.out_features,)
        elif isinstance(module, Conv1D):
            assert (module.nx, module.nf) == module.weight.shape
            assert module.bias.shape == (module.nf,)
        elif hasattr(module, "intermediate_dim"):
            assert module.down_proj.shape == (module.num_experts, module.hidden_dim, module.intermediate_dim)
            assert module.gate_up_proj.shape == (module.num_experts, 2 * module.intermediate_dim, module.hidden_dim)


@pytest.mark.parametrize("case", tiny.CASES)
def test_removed_units_equal_zeroed_units(case: str) -> None:
    for kind in UNITS:
        with within(kind):
            removed_is_zeroed(case, kind)


def removed_is_zeroed(case: str, kind: str) -> None:
    dense, zeroed, removed = (tiny.build(case) for _ in range(3))
    family, head_dim, layers = anatomy(removed)
    grouped = head_counts(layers[0], family, head_dim)
    has_kind = kind != "query_head" or grouped[0] > grouped[1]
    assert has_kind == any(s.kind == kind for s in sites_of(layers[0], family, 0, head_dim))
    if not has_kind:
        return
    cut(zeroed, kind, "zero")
    gone = cut(removed, kind, "remove")
    assert removed.num_parameters() == dense.num_parameters() - gone
    # A KV group is one of one in Gemma's multi-query attention: nothing can go.
    assert gone > 0 or (kind == "kv_group" and grouped[1] == 1)
    assert_sizes(removed)
    assert_same(removed, zeroed, family)
    if gone:
        assert (tiny.logits(removed, tiny.tokens(2)) - tiny.logits(dense, tiny.tokens(2))).abs().max() > 0.05


@pytest.mark.parametrize("case", tiny.CASES)
def test_kinds_can_be_cut_one_after_the_other(case: str) -> None:
    zeroed, removed = tiny.build(case), tiny.build(case)
    cut(zeroed, "kv_group", "zero")
    cut(removed, "kv_group", "remove")
    family, head_dim, layers = anatomy(removed)
    for layer in layers:
        heads, kv_heads = head_counts(layer, family, head_dim)
        kinds = [s.kind for s in sites_of(layer, family, 0, head_dim)]
        assert ("query_head" in kinds) == (heads > kv_heads)
    assert_same(removed, zeroed, family)
    for kind in ("query_head", "channel"):
        cut(removed, kind, "remove")
    assert_sizes(removed)
    got = tiny.logits(removed, tiny.tokens(2))
    assert torch.isfinite(got).all()
    if family.causal:
        torch.testing.assert_close(generated(removed, tiny.tokens(2)), got, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("case", tiny.CASES)
def test_silent_and_dropped_sub_blocks_add_nothing_to_the_stream(case: str) -> None:
    for block in BLOCKS:
        with within(block):
            adds_nothing(case, block)


def adds_nothing(case: str, block: str) -> None:
    silent, dropped, hooked = (tiny.build(case) for _ in range(3))
    family, head_dim, layers = anatomy(silent)
    for index in (0, 1, 3):
        site = next(s for s in sites_of(layers[index], family, index, head_dim) if s.kind == block)
        silence(layers[index], site)
        before = dropped.num_parameters()
        drop(anatomy(dropped)[2][index], site, family)
        assert dropped.num_parameters() == before - site.params_per_unit
        hook_out(anatomy(hooked)[2][index], family, block)
    assert_same(silent, hooked, family)
    assert_same(dropped, hooked, family)
    left = anatomy(dropped)[2][0]
    assert [s.kind for s in sites_of(left, family, 0, head_dim) if s.kind in BLOCKS] == [
        b for b in BLOCKS if b != block
    ]
    assert all(linear.weight.numel() for linear in linears_of(left, family))


def hook_out(layer: nn.Module, family: Family, block: str) -> None:
    """Makes the last module before the residual sum give zeros, found without the table's help for `drop`:
    the reader itself, or, for experts, the module around them."""
    consumer = join(family.attention.path, family.attention.o)
    if block == "ffn":
        consumer = join(family.ffn.path, family.ffn.down)
        if submodule(layer, consumer) is None:
            consumer = "mlp"
    layer.get_submodule(consumer).register_forward_hook(lambda _m, _args, out: torch.zeros_like(out))


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_model_without_some_layers(case: str) -> None:
    for kept in ((0, 2), (1, 2, 3)):
        with within(kept):
            runs_without(case, kept)


def runs_without(case: str, kept: tuple[int, ...]) -> None:
    whole = tiny.build(case)
    family, _, layers = anatomy(whole)
    changes = shallow_config(whole.config, kept)
    config = type(whole.config).from_dict(changes)
    assert config.num_hidden_layers == len(kept)
    small = type(whole)(config).eval()
    state = {}
    for name, tensor in whole.state_dict().items():
        place = name.removeprefix(f"{family.layers}.").split(".")[0]
        if not (name.startswith(f"{family.layers}.") and int(place) not in kept):
            at = f"{family.layers}.{place}."
            new = f"{family.layers}.{kept.index(int(place))}." if name.startswith(at) and place.isdigit() else at
            state[name.replace(at, new)] = tensor
    small.load_state_dict(state)
    in_memory = tiny.build(case)
    own = anatomy(in_memory)[2]
    for index in range(tiny.LAYERS):
        if index not in kept:
            layers[index].register_forward_hook(lambda _m, args, out: args[0])
    ids = tiny.tokens(2)
    torch.testing.assert_close(tiny.logits(small, ids), tiny.logits(whole, ids), atol=1e-5, rtol=1e-5)
    if family.causal:
        torch.testing.assert_close(generated(small, ids), tiny.logits(small, ids), atol=3e-5, rtol=1e-5)
    moved = own[kept[1]]
    renumber(moved, 1)
    assert {m.layer_idx for m in moved.modules() if hasattr(m, "layer_idx")} == {1}


def test_layers_that_compute_with_their_place_are_not_dropped() -> None:
    config = tiny.build("gpt2").config
    config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(UnsupportedModelError, match="scale_attn_by_inverse_layer_idx"):
        shallow_config(config, (0, 2))
    assert shallow_config(config, range(tiny.LAYERS))["n_layer"] == tiny.LAYERS


def test_uneven_experts_and_uneven_groups_are_refused() -> None:
    family, head_dim, layers = anatomy(tiny.build("mixtral"))
    sites = [s for s in sites_of(layers[0], family, 0, head_dim) if s.kind == "channel"]
    masks = [torch.arange(s.units) < (8 if s.expert else 16) for s in sites]
    with pytest.raises(UnsupportedModelError, match="equally many channels"):
        remove(layers[0], list(zip(sites, masks, strict=True)))
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.channel\[0\]: experts run only with multiples of 8"):
        remove(layers[0], [(s, torch.arange(s.units) < 12) for s in sites])
    heads = next(s for s in sites_of(layers[0], family, 0, head_dim) if s.kind == "query_head")
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.query_head: each of the 2 KV groups"):
        remove(layers[0], [(heads, torch.tensor([True, True, True, False]))])


@pytest.mark.parametrize("case", tiny.CASES)
def test_what_a_unit_owns(case: str) -> None:
    family, head_dim, layers = anatomy(tiny.build(case))
    for site in sites_of(layers[1], family, 1, head_dim):
        own = unit_parameters(layers[1], site)
        assert own.shape == (site.units, site.params_per_unit)
        if site.kind in UNITS:
            keep = torch.ones(site.units, dtype=torch.bool)
            keep[0] = False
            zero(layers[1], site, keep)
            after = unit_parameters(layers[1], site)
            assert not after[0].any()
            assert torch.equal(after[1:], own[1:])
    assert has_weight(layers[1], join(family.attention.path, family.attention.o))


@pytest.mark.parametrize("case", tiny.CASES)
def test_bias_flags_give_their_readers_a_bias(case: str) -> None:
    family = anatomy(tiny.build(case))[0]
    consumers = [join(family.attention.path, family.attention.o), join(family.ffn.path, family.ffn.down)]
    for flag in dict(family.bias_flags).values():
        config = copy.deepcopy(tiny.build(case).config)
        for value in (True, False):
            setattr(config, flag, value)
            layer = anatomy(type(tiny.build(case))(config))[2][1]
            for consumer in consumers:
                if dict(family.bias_flags).get(consumer) == flag:
                    assert (layer.get_submodule(consumer).bias is not None) == value, consumer

"""Architectures that the table doesn't list: read layer by layer, cut, saved, and loaded as their own classes do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from secateur.analysis.inspect import inspect
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import walk
from secateur.cut.prove import prove_removal
from secateur.errors import UnsupportedModelError, VerificationError
from secateur.model.checkpoint import Checkpoint
from secateur.model.detection.cache import detected
from secateur.model.result_config import new_config
from secateur.model.round_trip import load_as_user
from secateur.model.save import write_block, write_checkpoint
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import remove, update_heads, zero
from secateur.model.uneven import layer_widths
from tests.cases import case as within
from tests.model import tiny
from tests.model.detection.cases import CASES, KINDS, save


@pytest.fixture(scope="module", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in folders:
            folders[case] = save(case, tmp_path_factory.mktemp(case))
        return folders[case]

    return get


def some_of(site: Site) -> Tensor:
    """Half of the units of each group, not the first ones."""
    size = site.units // site.groups
    least = max(1, size // 2 // site.multiple * site.multiple, site.least)
    return (torch.arange(site.units) % size) >= size - least


@pytest.mark.parametrize("case", CASES)
def test_a_walk_gives_the_logits_of_from_pretrained(case: str, folder_of: Callable[[str], Path]) -> None:
    streamed = StreamedModel(Checkpoint.open(folder_of(case)), torch.device("cpu"), torch.float32)
    model, ids = load_as_user(folder_of(case))[0], tiny.tokens(2)
    got: list[Tensor] = []

    def read(stream: Stream) -> None:
        got.extend(streamed.logits(own, stream.states[i]) for i, own in enumerate(batches_of(ids)))

    for block in walk(streamed, ids, at_end=read):
        sources = [linear.source for linear in block.linears]
        assert all(moments.gram.any() for moments in block.moments(sources, frozenset({"gram"})).values())
    torch.testing.assert_close(torch.cat(got), tiny.logits(model, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_taken_out_saved_and_loaded_equals_zeroed(
    case: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(folder_of(case))
    offered = {site.kind for sites in checkpoint.sites for site in sites} - {"layer"}
    assert offered == KINDS[case]
    for kind in sorted(offered - {"expert"}):
        with within(case, kind):
            taken_out_equals_zeroed(checkpoint, kind, tmp_path / kind)


def taken_out_equals_zeroed(checkpoint: Checkpoint, kind: str, out: Path) -> None:
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    zeroed, family = load_as_user(checkpoint.path)[0], checkpoint.family
    layers, blocks, widths = zeroed.get_submodule(family.layers), out / "blocks", {}
    blocks.mkdir(parents=True)
    for index in range(checkpoint.layers):
        layer = streamed.load(index)
        cuts = [(site, some_of(site)) for site in sites_of(layer, family, index, 0) if site.kind == kind]
        for site, keep in cuts:
            zero(layers[index], site, keep)
        remove(layer, cuts)
        update_heads(layer, family, 0)
        write_block(blocks, layer, checkpoint, index)
        widths[index] = layer_widths(layer, family, checkpoint.config, 0)
    kept = range(checkpoint.layers)
    final = out / "final"
    final.mkdir()
    write_checkpoint(final, streamed, blocks, list(kept), new_config(checkpoint, list(kept), widths))
    model, ids = load_as_user(final)[0], tiny.tokens(2)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in zeroed.parameters())
    want = tiny.logits(zeroed, ids)
    torch.testing.assert_close(tiny.logits(model, ids), want, atol=1e-3 * float(want.abs().max()), rtol=1e-3)
    again = Checkpoint.open(final)
    assert {s.kind for own in again.sites for s in own} <= {*KINDS_OF_ALL, "layer"}


KINDS_OF_ALL = {"channel", "query_head", "kv_group", "latent", "expert"}


def test_inspect_says_what_was_detected(folder_of: Callable[[str], Path]) -> None:
    found = inspect(folder_of("latent"))
    assert found["found"] == "detected"
    assert {row["kind"] for row in found["sites"]} == {"weight", "layer", *KINDS["latent"]}
    legal = {row["kind"]: row["legal"] for row in found["sites"]}
    assert not any("modelling file" in text for text in legal.values())  # one key says experts' and shared widths


def test_a_hybrid_with_a_norm_in_each_head_loads_as_its_own_class() -> None:
    """Layers of either mixer have keys of their own; that the epsilons of a copy are smaller must not matter."""
    own = {**CASES["latent"], "linear_num_heads": 4, "linear_head_dim": 8, "layer_group_size": 2}
    changes = {**own, "model_type": "bailing_hybrid", "num_experts": 4, "first_k_dense_replace": 1}
    config = AutoConfig.for_model(changes.pop("model_type"), **changes)
    assert set(detected(config).stock) == {"channel", "query_head", "kv_group", "latent", "expert"}


def test_a_class_whose_layers_are_no_chain_is_refused_in_a_line(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.model.detection import rows

    def refuse(_seen: Any) -> None:
        raise ValueError("something happens between its layers")

    monkeypatch.setattr(rows, "_check_chain", refuse)
    config = Checkpoint.open(folder_of("grouped")).whole_config
    with pytest.raises(UnsupportedModelError, match="detection found no way \\(something happens"):
        rows.propose(copy.deepcopy(config))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")])
def test_what_is_found_does_not_depend_on_who_asks(
    around: Callable[[], Any],
    folder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The round-trip check opens a result without gradients, and what it finds is kept for everybody."""
    from secateur.model.detection import cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Checkpoint.open(folder_of("state-space")).whole_config
    monkeypatch.setattr(cache, "_found", {})
    with around():
        found = cache.detected(config)
    assert [units.kinds for anatomy in found.anatomies for units in anatomy.units] == [("kv_group",)]
    assert torch.is_grad_enabled()


def test_fewer_heads_of_latent_attention_compute_in_every_way_of_its_class(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Eager attention repeats keys by what the configuration says of their heads, though no shape does."""
    taken_out_equals_zeroed(Checkpoint.open(folder_of("latent")), "kv_group", tmp_path)
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["num_key_value_heads"] == config["num_attention_heads"] == 2
    model, ids = load_as_user(tmp_path / "final")[0], tiny.tokens(1)
    want = tiny.logits(model, ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(tiny.logits(model, ids), want, atol=1e-4, rtol=1e-4)


def test_what_was_found_is_found_in_the_cache(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from secateur.model.detection import cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_found", {})
    config = Checkpoint.open(folder_of("state-space")).whole_config
    monkeypatch.setattr(cache, "_found", {})
    monkeypatch.setattr(cache, "propose", lambda _config: pytest.fail("looked at again"))
    assert cache.detected(config).kinds == (0,) * tiny.LAYERS
    (file,) = cache.folder().glob("*.json")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "kinds": "all"}))  # a damaged file is as good as none
    monkeypatch.setattr(cache, "_found", {})
    with pytest.raises(pytest.fail.Exception):
        cache.detected(config)


def test_a_router_that_is_torn_between_experts_is_no_fault(
    folder_of: Callable[[str], Path],
) -> None:
    """Where experts score nearly alike, rounding in half precision chose others, and right cuts were refused."""
    from secateur.cut import prove

    checkpoint = Checkpoint.open(folder_of("latent"))
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.bfloat16)
    for block in walk(streamed, tiny.tokens(8), layers=(0, 1)):
        sites = [s for s in sites_of(block.layer, checkpoint.family, block.index, 0) if s.kind == "latent"]
        if block.index == 1:
            gate = block.layer.get_parameter("mlp.gate.weight")
            gate.data.copy_(gate[:1] * (1 + 2**-6 * torch.randn(4, 1, generator=torch.Generator().manual_seed(0))))
            block.layer.get_submodule("mlp.gate").e_score_correction_bias.zero_()
            block.layer.get_parameter("mlp.experts.down_proj").data.mul_(4)
        prove_removal(block, [(site, some_of(site)) for site in sites])
    assert {kind for _, kind in streamed.proved} == {"latent"}
    seen = torch.tensor([[0, 1], [1, 2]] * 200)
    outputs = [torch.ones(400, 8), torch.ones(400, 8)]
    outputs[1][3] = 5.0  # one token, sent elsewhere, is let off; a hundred aren't, nor one that was sent alike
    for other, off in (({3}, 0.0), (range(100), 4.0), ({7}, 4.0)):
        flipped = seen.clone()
        flipped[list(other), 1] = 3
        assert prove._difference(outputs, [seen, flipped]) == off


def test_a_run_compares_with_zeros_before_it_cuts(folder_of: Callable[[str], Path]) -> None:
    """A row that is wrong in the large would be found on the model's own layer."""
    from dataclasses import replace

    checkpoint = Checkpoint.open(folder_of("vision"))
    family = checkpoint.family
    (anatomy,) = family.anatomies
    swapped = [  # k in the place of v and the other way about is right; rows of q in groups aren't
        replace(u, owned=tuple(o for o in u.owned if "k_proj" not in o.parameter), sizes=())
        if u.kind == "head"
        else u
        for u in anatomy.units
    ]
    wrong = replace(checkpoint, family=replace(family, anatomies=(replace(anatomy, units=tuple(swapped)),)))
    for opened, right in ((checkpoint, True), (wrong, False)):
        streamed = StreamedModel(opened, torch.device("cpu"), torch.float32)
        blocks = walk(streamed, tiny.tokens(2))
        block = next(blocks)
        (site,) = (s for s in sites_of(block.layer, opened.family, 0, 0) if s.kind == "kv_group")
        if right:
            prove_removal(block, [(site, some_of(site))])
            assert streamed.proved == {(0, "kv_group")}
        else:
            with pytest.raises((VerificationError, RuntimeError)):
                prove_removal(block, [(site, some_of(site))])

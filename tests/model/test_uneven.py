"""Models whose layers differ in width: configuration, building, loading with plain transformers, generation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from secateur.calibration.walk import walk
from secateur.model import modeling_secateur
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class, stock_class
from secateur.model.linears import linears_of
from secateur.model.sites import head_counts, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import drop, remove, set_heads
from secateur.model.uneven import layer_overrides, layer_widths, legal_heads, uneven_config, uniform_config
from tests.cases import case as within
from tests.model import tiny
from tests.model.test_surgery_families import anatomy, assert_sizes, choose, generated

# What goes in each layer. Attention is dropped in layer 0, where transformers asks the cache for its length.
PLAN = (("attention", "channel"), ("kv_group", "ffn"), ("query_head", "channel"), ())


def prune(model: PreTrainedModel, plan: tuple[tuple[str, ...], ...]) -> None:
    family, head_dim, layers = anatomy(model)
    for index, kinds in enumerate(plan):
        for kind in kinds:
            sites = [s for s in sites_of(layers[index], family, index, head_dim) if s.kind == kind]
            if kind in ("attention", "ffn"):
                drop(layers[index], sites[0], family)
            else:
                remove(layers[index], [(s, choose(s, index)) for s in sites])
            if kind in ("kv_group", "query_head"):
                counts = head_counts(layers[index], family, head_dim)
                set_heads(layers[index].get_submodule(family.attention.path), *counts, head_dim)


def all_widths(model: PreTrainedModel) -> dict[int, dict[str, Any]]:
    family, head_dim, layers = anatomy(model)
    return {i: layer_widths(layer, family, model.config, head_dim) for i, layer in enumerate(layers)}


def save_uneven(model: PreTrainedModel, folder: Path) -> Path:
    """Writes a pruned model as its own class would, with its configuration and the modelling file."""
    family, head_dim, _ = anatomy(model)
    config = uneven_config(model.config.to_dict(), family, all_widths(model), head_dim)
    made = AutoConfig.for_model(**config)
    assert json.dumps(config)
    fresh = model_class(made)(made)
    assert_sizes(fresh)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)
    shutil.copy(str(modeling_secateur.__file__), folder / "modeling_secateur.py")
    # What save_pretrained wrote must mean the same as what was asked for.
    again = AutoConfig.from_pretrained(folder)
    written = uneven_config(again.to_dict(), family, all_widths(model), head_dim)
    for key in ("transformers_version", "dtype", "_name_or_path"):
        written.pop(key), config.pop(key)
    assert written == config
    return folder


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    """case -> (the pruned model in memory, the folder that it was saved in)."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def get(case: str) -> tuple[PreTrainedModel, Path]:
        if case not in made:
            model = tiny.build(case)
            prune(model, PLAN)
            made[case] = model, save_uneven(model, tmp_path_factory.mktemp(f"uneven-{case}"))
        return made[case]

    return get


@pytest.mark.parametrize("case", tiny.CASES)
def test_the_bundled_class_loads_what_surgery_made(
    case: str, uneven: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = uneven(case)
    config = AutoConfig.from_pretrained(folder)
    loaded, info = model_class(config).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded).__name__ == f"Pruned{type(model).__name__}"
    assert loaded.num_parameters() == model.num_parameters()
    assert_sizes(loaded)
    ids = tiny.tokens(2)
    want = tiny.logits(model, ids)
    torch.testing.assert_close(tiny.logits(loaded, ids), want, atol=1e-6, rtol=1e-6)
    if anatomy(model)[0].causal:
        torch.testing.assert_close(generated(loaded, ids), want, atol=3e-5, rtol=1e-5)
        _check_generation(loaded, ids[:, :6])


def _check_generation(model: PreTrainedModel, ids: Tensor) -> None:
    """`generate` gives the same tokens with a growing cache, a static one and none, also in another
    attention implementation that's chosen after loading."""
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    plain = model.generate(ids, attention_mask=mask, use_cache=False, **how)
    assert plain.shape == (len(ids), ids.shape[1] + 8)
    assert torch.equal(model.generate(ids, attention_mask=mask, **how), plain)
    assert torch.equal(model.generate(ids, attention_mask=mask, cache_implementation="static", **how), plain)
    before = tiny.logits(model, ids)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(tiny.logits(model, ids), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(ids, attention_mask=mask, **how), plain)


LOAD_ALL = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

found = {}
for case, folder in json.loads(sys.argv[1]).items():
    auto = AutoModelForMaskedLM if case == "bert" else AutoModelForCausalLM
    ids = torch.tensor(json.loads(sys.argv[2]))
    model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        found[case] = model(input_ids=ids).logits
    if case in sys.argv[4].split():
        base = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        with torch.no_grad():
            found[case + " base"] = base(input_ids=ids).last_hidden_state
            found[case + " hidden"] = model.base_model(input_ids=ids).last_hidden_state
        again = Path(sys.argv[3]).parent / f"again-{case}"
        model.save_pretrained(again)
        found[case + " again"] = auto.from_pretrained(again, trust_remote_code=True).eval()(input_ids=ids).logits.data
assert "secateur" not in sys.modules
save_file({name: value.contiguous() for name, value in found.items()}, sys.argv[3])
"""


def test_plain_transformers_loads_the_folders(
    uneven: Callable[[str], tuple[PreTrainedModel, Path]], tmp_path: Path
) -> None:
    """In a process that has never heard of this package, with nothing but the folders."""
    # One case for each architecture: the others differ in nothing that loading sees.
    cases = [case for case in tiny.CASES if "-" not in case or case == "qwen3-moe"]
    folders = {case: str(uneven(case)[1]) for case in cases}
    ids, out = tiny.tokens(2), tmp_path / "logits.safetensors"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [json.dumps(folders), json.dumps(ids.tolist()), str(out), "llama gpt2 opt bert mixtral qwen3-moe"]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = load_file(out)
    for case in cases:
        want = tiny.logits(uneven(case)[0], ids)
        torch.testing.assert_close(found[case], want, atol=1e-5, rtol=1e-5, msg=lambda m, c=case: f"{c}: {m}")
    for case in arguments[3].split():
        assert torch.equal(found[f"{case} base"], found[f"{case} hidden"]), case
        torch.testing.assert_close(found[f"{case} again"], found[case], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", tiny.CASES)
def test_an_uneven_checkpoint_opens_and_is_walked(
    case: str, uneven: Callable[[str], tuple[PreTrainedModel, Path]]
) -> None:
    model, folder = uneven(case)
    checkpoint = Checkpoint.open(folder)
    streamed, ids = StreamedModel(checkpoint, torch.device("cpu"), torch.float32), tiny.tokens(2)
    family, head_dim, layers = anatomy(model)
    assert (checkpoint.family, checkpoint.head_dim, checkpoint.layers) == (family, head_dim, tiny.LAYERS)
    got: list[Tensor] = []
    for block in walk(streamed, ids, at_end=lambda stream: got.append(streamed.logits(ids, stream.states[0]))):
        layer = layers[block.index]
        assert [(x.name, x.shape) for x in block.linears] == [(x.name, x.shape) for x in linears_of(layer, family)]
        assert layer_widths(block.layer, family, checkpoint.config, head_dim) == all_widths(model)[block.index]
    torch.testing.assert_close(got[0], tiny.logits(model, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", tiny.CASES)
def test_equal_layers_get_a_stock_configuration_where_there_is_one(case: str) -> None:
    for kinds in (("channel",), ("kv_group", "channel")):
        with within(kinds):
            gets_a_stock_configuration(case, kinds)


def gets_a_stock_configuration(case: str, kinds: tuple[str, ...]) -> None:
    model = tiny.build(case)
    family, head_dim, layers = anatomy(model)
    prune(model, (kinds,) * tiny.LAYERS)
    old = model.config.to_dict()
    new = uniform_config(old, family, all_widths(model), head_dim)
    same_heads = head_counts(layers[0], family, head_dim)[0] == model.config.num_attention_heads
    if family.heads == "fixed" and not same_heads:
        assert new is None
        return
    assert new is not None
    config = AutoConfig.for_model(**new)
    stock = stock_class(config)(config).eval()
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(tiny.logits(stock, tiny.tokens(2)), tiny.logits(model, tiny.tokens(2)))
    assert "auto_map" not in new
    assert new["architectures"] == [type(stock).__name__]


def test_equal_layers_that_skip_something_are_uneven() -> None:
    model = tiny.build("llama")
    prune(model, (("ffn",),) * tiny.LAYERS)
    family, head_dim, _ = anatomy(model)
    assert uniform_config(model.config.to_dict(), family, all_widths(model), head_dim) is None


def test_overrides_name_only_what_differs() -> None:
    model = tiny.build("qwen3-moe")
    prune(model, PLAN)
    family, head_dim, layers = anatomy(model)
    found = [layer_overrides(layer, family, model.config, head_dim) for layer in layers]
    assert found == [
        {"moe_intermediate_size": 8, "skip": ["attention"]},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["ffn"]},
        {"num_attention_heads": 2, "moe_intermediate_size": 8},
        {},
    ]


# Three heads don't divide a hidden size of 32: Llama's configuration refuses that, Mistral's doesn't.
RELABELLED = {
    "llama-mha": ((1, 2, 3, 4), (1, 2, 4), "mistral"),
    "llama-bias": ((1, 2, 4), (1, 2, 4), None),
    "gemma2": ((1, 2, 4), (1, 2, 4), None),
}


@pytest.mark.parametrize("case", tiny.CASES)
def test_legal_head_counts_are_those_that_build_and_compute(case: str) -> None:
    """Every count is tried for real: units are removed, the configuration is built, the weights loaded."""
    family, head_dim, layers = anatomy(tiny.build(case))
    heads, kv_heads = head_counts(layers[0], family, head_dim)
    legal = legal_heads(family, tiny.build(case).config.to_dict(), head_dim)
    kinds = (
        {"kv_group": (kv_heads, 1), "query_head": (heads, kv_heads)} if heads > kv_heads else {"kv_group": (heads, 1)}
    )
    for kind, (units, step) in kinds.items():
        accepted = []
        for count in range(step, units + 1, step):
            model = tiny.build(case)
            _, _, layers = anatomy(model)
            for index, layer in enumerate(layers):
                site = next(s for s in sites_of(layer, family, index, head_dim) if s.kind == kind)
                keep = (torch.arange(site.units // site.groups) < count // site.groups).repeat(site.groups)
                remove(layer, [(site, keep)])
                counts = head_counts(layer, family, head_dim)
                set_heads(layer.get_submodule(family.attention.path), *counts, head_dim)
            new = uniform_config(model.config.to_dict(), family, all_widths(model), head_dim)
            if new is None:
                continue
            config = AutoConfig.for_model(**new)
            stock = stock_class(config)(config).eval()
            stock.load_state_dict(model.state_dict())
            ids = tiny.tokens(1)
            torch.testing.assert_close(tiny.logits(stock, ids), tiny.logits(model, ids))
            accepted.append(count)
            assert (config.model_type != model.config.model_type) == (
                head_counts(layers[0], family, head_dim)[0] not in legal.own
            )
        found = legal.kv_groups if kind == "kv_group" else legal.query_heads
        assert accepted == list(found), kind
        assert units in found
    if family.heads == "fixed":
        assert legal.kv_groups == (kv_heads,)
    if case in RELABELLED:
        assert (legal.kv_groups, legal.own, legal.relabelled) == RELABELLED[case]

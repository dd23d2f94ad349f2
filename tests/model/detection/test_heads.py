"""Heads that aren't free of each other, or of what the model hands to layers: slopes, runs, keys of other layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

import secateur
from secateur.config.recipe import make_recipe
from secateur.model.classes import stock_class
from secateur.model.detection.copies import small_copy
from secateur.model.detection.trace import trace
from secateur.model.detection.units import find_units
from secateur.model.modeling_secateur import hand_on_heads
from secateur.model.round_trip import load_as_user
from tests.small import byte_tokenizer


def test_only_slopes_of_the_heads_that_are_left_are_handed_on() -> None:
    seen: list[torch.Tensor] = []

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor, alibi: torch.Tensor) -> torch.Tensor:
            seen.append(alibi)
            return x

    layer = Layer()
    hand_on_heads(layer, {"all": 4, "kept": [1, 3], "arguments": [["alibi", 0]]})
    layer(torch.zeros(1), alibi=torch.arange(8.0)[:, None, None])  # two texts of four heads
    assert seen[0].flatten().tolist() == [1, 3, 5, 7]


def bloom(folder: Path) -> Path:
    config = AutoConfig.for_model("bloom", vocab_size=259, hidden_size=32, n_head=4, n_layer=2)
    torch.manual_seed(0)
    model: PreTrainedModel = stock_class(config)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_slopes_survive_half_precision_and_a_second_cut(tmp_path: Path) -> None:
    """In half precision layers are read again from their files, which don't say which heads are left."""
    rows = [{"text": f"the thing number {i} thought that {i * i * 31 % 9973} was then; " * 3} for i in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told: dict[str, Any] = {"calibrate": tmp_path / "text.jsonl", "samples": 6, "length": 32, "evaluate": "none"}
    told |= {"sites": "kv_group", "speed": False, "refit": False, "explain": False, "allow_little_text": True}
    source, kept = bloom(tmp_path / "whole"), []
    for number, (sparsity, dtype) in enumerate([(0.25, "bfloat16"), (0.34, "float32")]):
        out = tmp_path / f"cut{number}"
        recipe = make_recipe({**told, "model": source, "sparsity": sparsity, "dtype": dtype})
        secateur.prune(recipe, out, quiet=True)  # the gate compares what is loaded with what was in memory
        own = json.loads((out / "config.json").read_text())["secateur_widths"]["own"]
        kept.append([own[str(layer)]["heads"]["kept"] for layer in range(2)])
        source = out
    for before, after in zip(*kept, strict=True):
        assert len(before) == 3
        assert len(after) == 2
        assert set(after) < set(before)
    model = load_as_user(source)[0]
    ids = torch.arange(20, 32)[None]
    for layer in model.transformer.h:  # slopes of other heads are other slopes
        layer.secateur_heads["kept"].reverse()
    turned = model(ids, use_cache=False).logits
    for layer in model.transformer.h:
        layer.secateur_heads["kept"].reverse()
    assert (model(ids, use_cache=False).logits - turned).abs().max() > 1e-3


def test_query_heads_go_where_keys_are_those_of_another_layer() -> None:
    config = AutoConfig.for_model(
        "gemma3n_text",
        vocab_size=160,
        vocab_size_per_layer_input=160,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=[40] * 4,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=8,
        pad_token_id=0,
    )
    config.architectures = ["Gemma3nForCausalLM"]
    model = small_copy(config, 4)
    seen = trace(model)
    visit = seen.visits[3]
    assert visit is not None
    units, _ = find_units(model, seen.layers, 3, visit, set())
    (heads,) = (u for u in units if u.kind == "head")
    # Any half of the heads would do in number, but heads of one group must go on reading their own keys.
    assert (heads.runs, heads.kinds) == (2, ("query_head",))


@pytest.mark.parametrize("runs", [0, 2, 4])
def test_how_many_runs_heads_lie_in_is_found(runs: int) -> None:
    from secateur.model.anatomy import Item, Segment
    from secateur.model.detection.layout import Blocks, segments_of

    heads, each = 8, 8 // (runs or 1)
    order = [h for run in range(runs or 1) for _ in "qvk" for h in range(run * each, (run + 1) * each)]
    labels = [("head", head) for head in order for _ in range(3)]
    laid = Blocks(3, heads, runs or heads, runs)
    segments = segments_of(labels, laid)
    one = Item("head", 3)
    assert segments == ((Segment("group", (one,) * 3),) if runs else (Segment("head", (one,)),) * 3)
    if runs:
        assert segments_of(labels, Blocks(3, heads, heads)) is None

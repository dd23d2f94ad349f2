"""Experts of other forms: proved on a small copy, cut, saved and loaded like a router that never chooses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.stream import Stream, of_sequences
from secateur.calibration.walk import walk
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import stock_class
from secateur.model.detection.copies import small_copy
from secateur.model.detection.experts import find_experts
from secateur.model.detection.proof_of_experts import _never, wrong_with
from secateur.model.detection.trace import trace
from secateur.model.linears import linears_of
from secateur.model.result_config import new_config
from secateur.model.round_trip import load_as_user
from secateur.model.save import write_block, write_checkpoint
from secateur.model.sites import sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import remove, update_heads
from secateur.model.uneven import layer_widths
from tests.model import tiny
from tests.model.detection.cases import TEXT

# Rows of all experts in one matrix; and choices of the router that hand on what they get.
FORMS: dict[str, dict[str, Any]] = {
    "flat": {
        "model_type": "dbrx",
        "vocab_size": tiny.VOCABULARY,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 5, "moe_top_k": 2},
    },
    "idle choices": {
        **{key: value for key, value in TEXT.items() if key not in ("head_dim", "num_hidden_layers")},
        "model_type": "longcat_flash",
        "num_layers": 2,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "ffn_hidden_size": 40,
        "expert_ffn_hidden_size": 16,
        "n_routed_experts": 5,
        "zero_expert_num": 3,
        "moe_topk": 3,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 8,
    },
}


def build(form: str) -> PreTrainedModel:
    return made(FORMS[form])


def made(changes: dict[str, Any]) -> PreTrainedModel:
    changes = dict(changes)
    config = AutoConfig.for_model(changes.pop("model_type"), **changes)
    model = stock_class(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise, alpha=0.2)
            else:
                parameter.copy_(noise / 4)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("form", FORMS)
def test_experts_of_other_forms(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build(form).save_pretrained(tmp_path / "whole")
    checkpoint = Checkpoint.open(tmp_path / "whole")
    row, family = checkpoint.family.experts, checkpoint.family
    assert row is not None
    assert not checkpoint.family.failed
    assert (row.form, row.rows, row.least) == (("flat", 24, 2) if form == "flat" else ("gated", 0, 3))
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    ids, want = tiny.tokens(2), load_as_user(tmp_path / "whole")[0]
    blocks, widths = tmp_path / "blocks", {}
    blocks.mkdir()
    masks = []
    for block in walk(streamed, ids):
        (site,) = (s for s in sites_of(block.layer, family, block.index, 0) if s.kind == "expert")
        assert (site.units, site.least) == (5, row.least)
        seen = block.routing(frozenset({"expert_outputs"}))
        assert int(seen.tokens.sum()) <= row.least * seen.seen  # choices that are no experts don't count
        assert bool((seen.outputs[seen.tokens > 0] > 0).all())
        keep = torch.tensor([True, False, True, True, block.index == 0])
        layer = want.get_submodule(family.layers)[block.index]
        family.mark(want)
        masks.append(_never(layer, row, ~keep))
        remove(block.layer, [(site, keep)])
        update_heads(block.layer, family, 0)
        write_block(blocks, block.layer, checkpoint, block.index)
        widths[block.index] = layer_widths(block.layer, family, checkpoint.config, 0)
    final = tmp_path / "final"
    final.mkdir()
    write_checkpoint(final, streamed, blocks, [0, 1], new_config(checkpoint, [0, 1], widths))
    dense = tiny.logits(want, ids)
    for mask in masks:
        mask.__enter__()
    masked = tiny.logits(want, ids)
    for mask in reversed(masks):
        mask.__exit__(None, None, None)
    torch.testing.assert_close(tiny.logits(load_as_user(final)[0], ids), masked, atol=1e-4, rtol=1e-4)
    assert (masked - dense).abs().max() > 1e-3


def test_a_row_that_forgets_something_of_an_expert_is_not_offered() -> None:
    changes = dict(FORMS["idle choices"])
    model = small_copy(AutoConfig.for_model(changes.pop("model_type"), **changes), 2)
    path = trace(model).layers
    row = find_experts(model, path, 0, model.config)
    assert row is not None
    assert not isinstance(row, str)
    assert wrong_with(model, path, 0, row) is None
    for lacking in (replace(row, also=()), replace(row, choices=()), replace(row, sizes=())):
        assert wrong_with(model, path, 0, lacking) is not None


HASHED: dict[str, Any] = {
    **{key: value for key, value in TEXT.items() if key != "num_hidden_layers"},
    "model_type": "deepseek_v4",
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "layer_types": ["sliding_attention"] * 2,
    "mlp_layer_types": ["hash_moe", "moe"],
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "o_groups": 2,
    "o_lora_rank": 6,
    "hc_mult": 3,
    "index_n_heads": 2,
    "index_head_dim": 8,
}


@torch.no_grad()
def test_layers_of_a_model_with_two_kinds_of_routers_and_several_states_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = made(HASHED)
    model.save_pretrained(tmp_path / "whole")
    checkpoint = Checkpoint.open(tmp_path / "whole")
    layers = list(checkpoint.template.get_submodule(checkpoint.family.layers).children())
    # A table of tokens chooses in the first: its experts stay all, and their weights may go nevertheless.
    kinds = [{site.kind for site in own} for own in checkpoint.sites]
    assert ["expert" in own for own in kinds] == [False, True]
    assert any("no router is known that would choose others" in why for why in checkpoint.family.failed)
    for layer, own in zip(layers, checkpoint.sites, strict=True):
        names = {linear.name for linear in linears_of(layer, checkpoint.family)}
        assert {"mlp.experts.gate_up_proj[3]", "mlp.experts.down_proj[0]"} <= names
        assert {site.consumer for site in own if site.kind == "channel"} <= names
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    ids = torch.randint(0, tiny.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    stream = Stream.start(streamed, [ids], MemoryBudget(None), None)
    for index in range(len(layers)):
        stream.advance(streamed.load(index), index, streamed.device)
    assert stream.states[0].shape == (3, 7, 3, 32)
    for row in range(3):
        hidden = of_sequences(stream.states[0], ids.shape, slice(row, row + 1))
        found, want = streamed.logits(ids[row : row + 1], hidden), model(input_ids=ids[row : row + 1]).logits
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_sequences_of_a_batch_are_found_wherever_a_class_has_them() -> None:
    flat = torch.arange(3 * 7 * 2).view(3, 7, 2)
    for hidden in (flat, flat.expand(4, 3, 7, 2), flat[:, :, None].expand(3, 7, 4, 2)):
        found = of_sequences(hidden, torch.Size((3, 7)), slice(1, 3), tokens=5)
        assert sorted(set(found.flatten().tolist())) == flat[1:3, :5].flatten().tolist()

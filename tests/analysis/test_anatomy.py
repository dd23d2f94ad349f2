"""What `inspect` says, against numbers worked out by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

import secateur
from secateur.analysis.inspect import inspect
from secateur.cut.units import mask_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.sites import sites_of
from secateur.model.surgery import update_heads
from secateur.report.terminal.tables import print_anatomy
from tests.model import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """case -> folder of the tiny model of that name."""
    folders: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in folders:
            folders[case] = tiny.save(case, tmp_path_factory.mktemp(case))
        return folders[case]

    return get


def row(found: dict[str, Any], kind: str, nth: int = 0) -> dict[str, Any]:
    return [r for r in found["sites"] if r["kind"] == kind][nth]


def test_stories3m(shared: Path) -> None:
    """d 192, FFN 512, 6 layers, 6 heads of 32 in 2 groups, 4096 tokens, embeddings tied, context 512."""
    found = inspect(shared / "models/stories3M-fp16")
    attention = 192 * 192 * 2 + 192 * 64 * 2
    ffn = 3 * 192 * 512
    linear = 6 * (attention + ffn)
    total = linear + 6 * 2 * 192 + 4096 * 192 + 192
    assert found["parameters"] == total == 3_148_224
    assert found["linear_parameters"] == linear
    assert [p["parameters"] for p in found["parts"]] == [6 * attention, 6 * ffn, 6 * 384, 4096 * 192 + 192]
    assert sum(p["share"] for p in found["parts"]) == pytest.approx(1)
    assert found["flops_per_token"] == 2 * (linear + 4096 * 192)
    assert found["flops_per_token_at_context"] - found["flops_per_token"] == 6 * 4 * 512 * 192
    assert found["kv_cache_bytes_per_token"] == 6 * 2 * 2 * 32 * 2
    assert (found["architecture"], found["dtype"], found["context"]) == ("Llama", "float16", 512)
    assert [r["kind"] for r in found["sites"]] == [
        "weight", "channel", "query_head", "kv_group", "hidden", "attention", "ffn", "layer",
    ]  # fmt: skip
    # Each dimension: a column or row of every matrix, a gain of every norm, and both ends, which come apart.
    hidden = row(found, "hidden")
    each = 6 * (2 * 192 + 2 * 64 + 3 * 512 + 2) + 1 + 2 * 4096
    assert (hidden["units"], hidden["params_per_unit"], hidden["legal"]) == (192, each, "6 to 192 by 6")
    channel, head, group, layer = (row(found, kind) for kind in ("channel", "query_head", "kv_group", "layer"))
    assert (channel["units"], channel["params_per_unit"]) == (6 * 512, 3 * 192)
    assert (head["units"], head["params_per_unit"], head["keep"]) == (36, 2 * 32 * 192, [2, 4, 6])
    assert (group["units"], group["params_per_unit"], group["keep"]) == (12, attention // 2, [1, 2])
    assert layer["share"] == pytest.approx((linear + 6 * 384) / total)
    assert row(found, "weight")["keep"] == ["2:4", "4:8"]


def test_ffn_of_172_takes_2_4_only(shared: Path) -> None:
    found = inspect(shared / "models/stories260K")
    assert row(found, "weight")["keep"] == ["2:4"]
    assert row(found, "kv_group")["legal"] == "1, 2, 3, 4; 3 as mistral"


def test_mixture_of_experts(made: Callable[[str], Path]) -> None:
    """qwen3-moe: layer 1 is a plain FFN of 44; the others choose 2 of 4 experts of 24; heads of 12, hidden 32."""
    found = inspect(made("qwen3-moe"))
    attention = 2 * (4 * 12 * 32) + 2 * (2 * 12 * 32)
    expert, dense, head = 3 * 24 * 32, 3 * 44 * 32, 61 * 32
    routed = 2 * expert + 4 * 32
    assert found["flops_per_token"] == 2 * (4 * attention + 3 * routed + dense + head)
    assert found["linear_parameters"] == 4 * attention + 3 * 4 * expert + dense
    assert found["kv_cache_bytes_per_token"] == 4 * 2 * 2 * 12 * 2
    plain, experts = row(found, "channel", 0), row(found, "channel", 1)
    assert (plain["per_layer"], plain["units"], plain["keep"]["step"]) == ("44", 44, 1)
    assert (experts["per_layer"], experts["units"], experts["legal"]) == ("24 an expert", 3 * 4 * 24, "8 to 24 by 8")
    assert row(found, "weight")["per_layer"] == "7 or 12 Linears"
    whole = row(found, "expert")
    assert (whole["per_layer"], whole["units"], whole["params_per_unit"]) == ("4", 3 * 4, expert + 32)
    assert (whole["legal"], whole["keep"]) == ("2 to 4", {"from": 2, "to": 4, "step": 1})
    assert "expert" in {entry["kind"] for entry in found["speed"]}
    assert "expert" not in {entry["kind"] for entry in inspect(made("gpt2"))["speed"]}


def test_gpt2(made: Callable[[str], Path]) -> None:
    """Conv1D, fused qkv, biases, no grouped attention, learned positions; hidden 32, FFN 128, context 64."""
    found = inspect(made("gpt2"))
    linear = 4 * (4 * 32 * 32 + 2 * 32 * 128)
    assert found["linear_parameters"] == linear
    assert found["flops_per_token"] == 2 * (linear + 61 * 32)
    assert found["flops_per_token_at_context"] - found["flops_per_token"] == 4 * 4 * 64 * 32
    assert [p["parameters"] for p in found["parts"][:2]] == [
        4 * (4 * 32 * 32 + 4 * 32),
        4 * (2 * 32 * 128 + 128 + 32),
    ]
    assert found["parameters"] == linear + 4 * (4 * 32 + 128 + 32) + 4 * 4 * 32 + 61 * 32 + 64 * 32 + 2 * 32
    assert row(found, "channel")["params_per_unit"] == 2 * 32 + 1
    assert row(found, "kv_group")["params_per_unit"] == 4 * 8 * 32 + 3 * 8
    assert row(found, "kv_group")["legal"] == "4; fewer with modelling file"
    assert not [r for r in found["sites"] if r["kind"] == "query_head"]


def test_windows_bound_the_attention(made: Callable[[str], Path]) -> None:
    """Heads 4 x 12, context 64, windows of 7 in every layer (mistral) or in every other one (gemma 3)."""
    for case, positions in (("mistral", 4 * 7), ("gemma3", 2 * 7 + 2 * 64)):
        found = inspect(made(case))
        assert found["flops_per_token_at_context"] - found["flops_per_token"] == 4 * positions * 48


def test_projections_around_the_layers_count(made: Callable[[str], Path]) -> None:
    found = inspect(made("opt-post"))  # embeddings of 24 around layers of 32
    assert found["flops_per_token"] == 2 * (found["linear_parameters"] + 2 * 24 * 32 + 61 * 24)


def test_an_encoder_has_no_cache(made: Callable[[str], Path]) -> None:
    assert inspect(made("bert"))["kv_cache_bytes_per_token"] == 0


def test_a_model_that_is_cut_already(made: Callable[[str], Path], tmp_path: Path) -> None:
    streamed = secateur.open_for_walk(made("gpt2"))
    with secateur.save(streamed, tmp_path / "cut") as put:
        for block in secateur.walk(streamed, tiny.tokens(2)):
            for site in sites_of(block.layer, streamed.checkpoint.family, block.index, 8):
                if site.kind == "kv_group":
                    secateur.remove(block.layer, [(site, mask_of((0, 1, 3), 4))])
            update_heads(block.layer, streamed.checkpoint.family, 8)
            put(block)
    group = row(inspect(tmp_path / "cut"), "kv_group")
    assert (group["per_layer"], group["legal"], group["keep"]) == ("3", "1 to 3 with modelling file", [])
    assert inspect(tmp_path / "cut")["kv_cache_bytes_per_token"] == 4 * 2 * 3 * 8 * 2


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_architecture_adds_up_and_prints(case: str, made: Callable[[str], Path]) -> None:
    found = inspect(made(case))
    json.dumps(found)
    assert sum(p["parameters"] for p in found["parts"]) == found["parameters"] == tiny.build(case).num_parameters()
    for kind in ("channel", "kv_group", "layer"):
        assert 0 < row(found, kind)["share"] < 1
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width, markup=False)
        print_anatomy(found, console)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert any(line.startswith("channel") for line in lines)


@pytest.mark.parametrize(
    ("case", "kind"),
    [("llama", "query_head"), ("llama-mha", "kv_group"), ("gemma", "query_head"), ("mixtral", "channel")],
)
def test_legal_counts_load(case: str, kind: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    """Each count that `inspect` names is cut, saved, and loaded by plain transformers as it is."""
    keep = row(inspect(made(case)), kind)["keep"]
    counts = keep if isinstance(keep, list) else list(range(keep["from"], keep["to"] + 1, keep["step"]))
    ids = tiny.tokens(2)
    for count in counts:
        streamed = secateur.open_for_walk(made(case))
        family, head_dim = streamed.checkpoint.family, streamed.checkpoint.head_dim
        folder = tmp_path / str(count)
        with secateur.save(streamed, folder) as put:
            for block in secateur.walk(streamed, ids):
                masks = []
                for site in sites_of(block.layer, family, block.index, head_dim):
                    if site.kind == kind:
                        each, size = count // site.groups, site.units // site.groups
                        chosen = tuple(g * size + u for g in range(site.groups) for u in range(each))
                        masks.append((site, mask_of(chosen, site.units)))
                secateur.remove(block.layer, masks)
                update_heads(block.layer, family, head_dim)
                put(block)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert type(model).__module__.startswith("transformers.")
        assert model.num_parameters() == Checkpoint.open(folder).parameters
        assert torch.isfinite(tiny.logits(model, ids)).all()

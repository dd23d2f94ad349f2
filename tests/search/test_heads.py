"""KV groups and query heads of one layer together: what the search puts together is what `prune` cuts."""

from __future__ import annotations

from pathlib import Path

import torch

import secateur
from secateur.config.searching import make_search
from secateur.pipeline.inputs import memory_for
from secateur.search.latency import shape_for
from secateur.search.levels import put_together, write_pieces
from secateur.search.planned import plan_of
from secateur.search.prepared import job_of, opened
from secateur.search.space import BOTH, LEVELS, Piece, heads_of, space_of
from secateur.search.wanted import measures_of
from secateur.system.monitor import Monitor
from tests.search.text import write_text
from tests.small import save_tiny

CPU = torch.device("cpu")


def test_both_are_cut_and_refitted_as_prune_does(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 32}
    save_tiny(tmp_path / "model", context=64, **heads)
    write_text(tmp_path, 100)
    told = {"model": str(tmp_path / "model"), "calibrate": str(tmp_path / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"evaluate": "none", "speed": False, "general_text": 0, "explain": False, "device": "cpu"}
    settings = make_search({**told, "sites": "query_head,kv_group", "quality": "fast", "target": "pruned"})
    monitor = Monitor(CPU, True)
    inputs, kinds = opened(settings, CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), tmp_path)
    space = space_of(job, kinds)
    both = sorted(piece for piece in space.saves if piece.layer == 0 and piece.kind == BOTH)
    assert [heads_of(piece) for piece in both] == [
        (Piece(0, "kv_group", kv), Piece(0, "query_head", 1)) for kv in (1, 2)
    ]
    assert [space.shares[piece] for piece in both] == [1 - 0.75 * 0.5, 1 - 0.5 * 0.5]
    write_pieces(job, space, tmp_path / "levels")

    candidate = (Piece(0, BOTH, 2 * LEVELS + 1), Piece(1, "kv_group", 1))
    plan = plan_of(inputs, candidate, tmp_path / "levels")
    assert [(entry.site, entry.units, len(entry.keep or ())) for entry in plan.entries] == [
        ("layers.0.kv_group", 4, 2),
        ("layers.0.query_head", 4, 2),
        ("layers.1.kv_group", 4, 3),
    ]
    recipe = settings.replaying(plan.sites, plan.sparsities)
    secateur.prune(recipe, tmp_path / "out", plan=plan, quiet=True)
    pruned = secateur.load(tmp_path / "out", device="cpu").model.layers[0].state_dict()
    mine = put_together(job, tmp_path / "levels", 0, candidate).state_dict()
    dense = secateur.load(tmp_path / "model", device="cpu").model.layers[0]
    assert {name: value.shape for name, value in mine.items()} == {n: v.shape for n, v in pruned.items()}
    for name, value in mine.items():
        torch.testing.assert_close(value, pruned[name], rtol=1e-4, atol=1e-5)
    read = mine["self_attn.o_proj.weight"]
    assert not any(torch.equal(read[:, :4], dense.self_attn.o_proj.weight[:, 4 * n : 4 * n + 4]) for n in range(8))

    measures, [shape] = measures_of(space, inputs.streamed), shape_for(job, candidate[:1]).layers[:1]
    gone = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in shape.parameters())
    assert measures.saves["params"][candidate[0]] == gone == 32 * 4 * (2 * 6 + 2 * 2)

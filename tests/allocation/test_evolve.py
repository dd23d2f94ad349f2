"""A search over whole spreads: the budget holds, what is weighed is the cut model, nothing gets worse."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.allocation import evolve as evolution
from secateur.allocation.evolutionary_search import DEPTH, Gene, child_of, evolve, layers_gone, nearest
from secateur.allocation.evolve import _genes, _Pieces
from secateur.allocation.job import Job
from secateur.config.configuration import resolve
from secateur.config.quantities import parse_search
from secateur.config.recipe import make_recipe
from secateur.cut.rules import Rules
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from tests.small import save_tiny

# ----------------------------------------------------------------------------- the search alone

GENES = tuple(Gene("a", 8, 10.0, 6) for _ in range(4))
MIXED = (*GENES, Gene("a", 4, 40.0, 3), Gene("b", 8, 1.0, 7), Gene("b", 8, 1.0, 7))


def gone(genes: tuple[Gene, ...], spread: tuple[int, ...], pool: str) -> float:
    return sum(gene.size * levels for gene, levels in zip(genes, spread, strict=True) if gene.pool == pool)


def test_children_keep_the_budget_of_each_pool() -> None:
    generator, spread = torch.Generator().manual_seed(0), (2, 2, 2, 2, 1, 3, 3)
    seen = set()
    for _ in range(2000):
        child = child_of(spread, MIXED, generator)
        assert all(0 <= levels <= gene.most for levels, gene in zip(child, MIXED, strict=True))
        assert gone(MIXED, child, "a") == gone(MIXED, spread, "a")
        assert gone(MIXED, child, "b") == gone(MIXED, spread, "b")
        seen.add(child)
        spread = child
    assert len(seen) > 100


DEEP = (*(Gene("a", 8, 10.0, 6, i, "channel") for i in range(5)), *(Gene(DEPTH, 1, 1.0, 1, i) for i in range(5)))


def test_a_layer_that_goes_leaves_its_cuts_to_the_one_that_stays() -> None:
    generator, spread = torch.Generator().manual_seed(0), (2, 3, 0, 4, 0, 0, 0, 1, 0, 1)
    lost, seen = 9, set()
    for _ in range(2000):
        spread = child_of(spread, DEEP, generator)
        gone = layers_gone(spread, DEEP)
        assert len(gone) == 2
        assert sum(spread[:5]) == lost
        assert all(spread[i] == 0 for i in gone)
        seen.add(gone)
    assert len(seen) == 10


def test_layers_that_are_not_alike_stay_in_their_places() -> None:
    genes = (DEEP[0], DEEP[1]._replace(levels=4), DEEP[5], DEEP[6])
    generator = torch.Generator().manual_seed(0)
    assert {child_of((3, 0, 0, 1), genes, generator) for _ in range(50)} == {(3, 0, 0, 1)}


def test_it_finds_what_trying_everything_finds() -> None:
    def cost(spread: tuple[int, ...], roughly: bool = False) -> float:
        a, b, c, d = spread
        return a**2 + 3 * b**2 + 0.5 * c**2 + d**2 + 2 * a * d  # a and d cost more together

    start = (3, 3, 3, 3)
    every = (s for s in itertools.product(range(7), repeat=4) if sum(s) == sum(start))
    want = min(every, key=cost)
    found = list(itertools.islice(evolve(GENES, start, cost, 0.25, 0), 60))
    costs = [now.cost for now in found]
    assert costs == sorted(costs, reverse=True)
    assert cost(found[-1].best) == cost(want)
    again = list(itertools.islice(evolve(GENES, start, cost, 0.25, 0), 60))
    assert again == found
    assert list(itertools.islice(evolve(GENES, start, cost, 0.25, 0, found[20]), 39)) == found[21:]


def test_the_start_is_near_what_is_asked_and_sums_up() -> None:
    genes = tuple(Gene("a", 16, 5.0, 14) for _ in range(5))
    spread = nearest(genes, (0.3,) * 5)  # 4.8 levels each
    assert sum(spread) == 24
    assert set(spread) == {4, 5}
    assert nearest(genes, (1.0,) * 5) == (14,) * 5
    assert nearest(genes, (0.0,) * 5) == (0,) * 5


# ----------------------------------------------------------------------------- on a real model


def told(shared: Path, **changes: Any) -> dict[str, Any]:
    text = str(shared / "data" / "tinystories" / "calibrate.jsonl")
    own = {"model": str(shared / "models" / "stories260K"), "calibrate": text, "samples": 16, "length": 64}
    own |= {"general_text": 0}  # what a search finds for a text is looked at on that text
    return {**own, "evaluate": "none", "speed": False, "allocate": "evolve", "search": "30", **changes}


def job_of(shared: Path, **changes: Any) -> Job:
    recipe = make_recipe(told(shared, **changes))
    checkpoint = Checkpoint.open(recipe.model)
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    tokens = secateur.calibrate(checkpoint, recipe.calibrate, recipe.samples, recipe.length).tokens
    config = resolve(recipe)
    return Job(config, Rules.from_recipe(config, checkpoint), streamed, tokens, tuple(range(checkpoint.layers)))


def test_what_is_weighed_is_the_divergence_of_the_cut_model(shared: Path, tmp_path: Path) -> None:
    """Against transformers, with the units of least magnitude zeroed by hand."""
    job = job_of(shared, sites="channel,kv_group", sparsity=0.5, method="magnitude", refit=False)
    job = job._replace(work=tmp_path)
    keys, genes, _ = _genes(job)
    assert len(keys) == 10
    spread = tuple((place * 3 + 1) % (gene.most + 1) for place, gene in enumerate(genes))
    with _Pieces.of(job, keys, genes) as pieces:
        got = pieces.weigh(spread, False)
        assert pieces.weigh((0,) * len(genes), False) == pytest.approx(0, abs=1e-6)
        assert pieces.weigh(spread, False) == got  # with what is kept in memory
    assert not list(tmp_path.iterdir())

    dense, cut = (
        AutoModelForCausalLM.from_pretrained(job.streamed.checkpoint.path, dtype=torch.float32) for _ in range(2)
    )
    for key, gene, levels in zip(keys, genes, spread, strict=True):
        _, number, kind = key.split(".")
        layer, share = cut.model.layers[int(number)], levels / gene.levels
        with torch.no_grad():
            if kind == "channel":
                mlp = layer.mlp
                size = (mlp.gate_proj.weight**2).sum(1) + (mlp.up_proj.weight**2).sum(1)
                size = size + (mlp.down_proj.weight**2).sum(0)
                count = size.numel() - int((1 - share) * size.numel() + 0.5)
                mlp.down_proj.weight[:, size.argsort(stable=True)[:count]] = 0
            else:
                a = layer.self_attn
                q, o = a.q_proj.weight.view(4, -1), a.o_proj.weight.view(-1, 4, 16)
                size = (q**2).sum(1) + (a.k_proj.weight.view(4, -1) ** 2).sum(1)
                size = size + (a.v_proj.weight.view(4, -1) ** 2).sum(1) + (o**2).sum((0, 2))
                o[:, size.argsort(stable=True)[: round(share * 4)]] = 0
    ids = job.tokens[: evolution.SEQUENCES]
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (dense, cut))
    assert got == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert got > 0.01


def test_whole_layers_are_searched_too(shared: Path, tmp_path: Path) -> None:
    """Of all pairs that may go, with each weighed against transformers' model without them, it finds the best."""
    job = job_of(shared, sites="layer", sparsity=0.4, search="60")
    job = job._replace(work=tmp_path, kept=(0, 1, 2))
    ids = job.tokens[: evolution.SEQUENCES]

    def divergence(gone: tuple[int, ...]) -> float:
        dense, cut = (
            AutoModelForCausalLM.from_pretrained(job.streamed.checkpoint.path, dtype=torch.float32) for _ in range(2)
        )
        cut.model.layers = torch.nn.ModuleList(x for i, x in enumerate(cut.model.layers) if i not in gone)
        with torch.no_grad():
            p, q = (m(input_ids=ids, use_cache=False).logits.double().log_softmax(-1) for m in (dense, cut))
        return float((p.exp() * (p - q)).sum(-1).mean())

    want = {gone: divergence(gone) for gone in itertools.combinations(range(5), 2)}
    keys, genes, start = _genes(job)
    assert layers_gone(start, genes) == {3, 4}
    with _Pieces.of(job, keys, genes) as pieces:
        for gone in want:
            spread = tuple(int(gene.layer in gone) for gene in genes)
            assert pieces.weigh(spread, False) == pytest.approx(want[gone], rel=1e-3)
    found = tuple(sorted(int(key.split(".")[1]) for key, share in evolution.evolved(job).items() if share))
    assert found == min(want, key=lambda gone: want[gone])


@pytest.mark.parametrize(
    "asked",
    [
        {"sites": "layer,channel", "sparsity": {"layer": 0.2, "channel": 0.25}},
        {"sites": "channel", "sparsity": 0.5},
        {"sites": "channel,kv_group", "sparsity": 0.25},
        {"sites": "weight", "sparsity": 0.5, "method": "wanda"},
    ],
)
def test_as_much_goes_as_asked_and_it_diverges_less(asked: dict[str, Any], shared: Path, tmp_path: Path) -> None:
    report = secateur.prune(make_recipe(told(shared, **asked)), tmp_path / "out", quiet=True)
    local = secateur.prune(make_recipe(told(shared, **asked, allocate="local")), tmp_path / "local", quiet=True)
    if "weight" in asked["sites"]:
        assert report["sparsity"]["linear_weights"] == pytest.approx(0.5, abs=0.01)
    else:
        after, want = report["parameters"]["after"], local["parameters"]["after"]
        assert abs(after - want) < 0.02 * want
    assert len(set(report["allocation"]["shares"].values())) > 1
    lines = (shared / "data" / "tinystories" / "calibrate.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:20]))
    how: dict[str, Any] = {"against": told(shared)["model"], "speed": False}
    found, rival = (
        secateur.evaluate(tmp_path / name, str(tmp_path / "some.jsonl"), **how)["kl"] for name in ("out", "local")
    )
    assert found < 1.1 * rival


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model", num_hidden_layers=4)
    text = [json.dumps({"text": f"the {i} that {i * i} " * 4}) for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(text))
    asked = {"model": str(tmp_path / "model"), "calibrate": str(tmp_path / "text.jsonl"), "samples": 8, "length": 16}
    asked |= {"sites": "channel", "sparsity": 0.5, "allocate": "evolve", "search": "40", "evaluate": "none"}
    recipe = make_recipe({**asked, "speed": False})
    secateur.prune(recipe, tmp_path / "straight", quiet=True)
    weighed, real = [], _Pieces.weigh

    def counted(self: _Pieces, spread: tuple[int, ...], roughly: bool) -> float:
        weighed.append(spread)
        if len(weighed) == stop_at:
            raise KeyboardInterrupt
        return real(self, spread, roughly)

    monkeypatch.setattr(_Pieces, "weigh", counted)
    stop_at = 25
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(recipe, tmp_path / "out", quiet=True)
    assert (tmp_path / "out").exists()
    stop_at, first = -1, len(weighed)
    secateur.prune(recipe, tmp_path / "out", resume=True, quiet=True)
    assert len(weighed) - first < 60
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_experts_are_refused(shared: Path) -> None:
    job = job_of(shared, sites="channel", sparsity=0.5)
    rules = replace(job.rules, unit_kinds=frozenset({"expert"}))
    with pytest.raises(InputError, match="can't try whole experts"):
        evolution.evolved(job._replace(rules=rules))


def test_how_long_is_a_number_or_a_time() -> None:
    assert parse_search("25") == (25, None)
    assert parse_search("2h") == (None, 7200)
    for wrong in ("0", "soon", "2.5", "-1"):
        with pytest.raises(InputError, match="isn't understood"):
            make_recipe({"model": "m", "sparsity": 0.5, "sites": "channel", "allocate": "evolve", "search": wrong})


def test_the_search_ends_below_where_it_began(shared: Path, tmp_path: Path) -> None:
    job = job_of(shared, sites="channel", sparsity=0.5, search="40")._replace(work=tmp_path)
    keys, genes, start = _genes(job)
    shares = evolution.evolved(job)
    found = tuple(round(shares[key] * gene.levels) for key, gene in zip(keys, genes, strict=True))
    with _Pieces.of(job, keys, genes) as pieces:
        assert pieces.weigh(found, False) < pieces.weigh(start, False)


def test_a_time_ends_the_search(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(shared, sites="kv_group", sparsity=0.25, search="1s")
    clock = iter(range(10_000))
    monkeypatch.setattr(evolution.time, "monotonic", lambda: float(next(clock)))
    steps: list[str] = []
    shares = evolution.evolved(job._replace(step=steps.append))
    assert set(shares) == {f"layers.{i}.kv_group" for i in range(5)}
    assert sum("weighings" in step for step in steps) == 2

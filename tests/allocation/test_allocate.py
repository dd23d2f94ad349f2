"""Sparsity spread over layers: the same parameters go as with `local`, from where it costs least."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import secateur
from secateur.allocation.curves import Curve, height, hull, smooth, spread
from secateur.allocation.divergence import Candidate, divergences
from secateur.allocation.owl import outliers, owl
from secateur.allocation.ranked import curve_of
from secateur.errors import InputError
from secateur.model.sites import sites_of
from secateur.model.surgery import zero
from tests.cases import case
from tests.model import tiny


def test_spread_is_the_best_of_all_ways() -> None:
    """Against every way to take whole steps, on convex curves."""
    curves = {
        "a": Curve(6, 1, 10.0, tuple((k / 6, k * k * 1.0) for k in range(1, 7))),
        "b": Curve(6, 2, 5.0, tuple((k / 6, k * k * 0.3) for k in range(1, 7))),
        "c": Curve(4, 1, 10.0, tuple((k / 4, k**3 * 0.7) for k in range(1, 5))),
    }
    for target in (20, 40, 60, 80):
        found = spread(curves, target, most=1.0)
        taken = {name: round(share * curves[name].units) for name, share in found.items()}
        gone = sum(curves[name].parameters * count for name, count in taken.items())
        assert abs(gone - target) <= 5
        best = min(
            cost(curves, dict(zip(curves, counts, strict=True)))
            for counts in itertools.product(range(6), range(0, 5, 2), range(4))
            if sum(c * curves[n].parameters for n, c in zip(curves, counts, strict=True)) == gone
        )
        assert cost(curves, taken) == pytest.approx(best)


def cost(curves: dict[str, Curve], taken: dict[str, int]) -> float:
    return sum(height([(0, 0), *curves[n].points], count / curves[n].units) for n, count in taken.items())


def test_no_site_goes_whole() -> None:
    curves = {"free": Curve(4, 1, 1.0, ((1.0, 0.0),)), "dear": Curve(100, 1, 1.0, ((1.0, 100.0),))}
    assert spread(curves, 50, most=1.0) == {"free": 0.75, "dear": 0.47}
    assert spread(curves, 1000)["free"] == 0.75
    assert spread(curves, 1000)["dear"] == 0.9


def test_dents_are_bridged_and_falls_are_held() -> None:
    assert hull([(0.25, 3), (0.5, 1), (1, 8)]) == [(0, 0), (0.5, 3), (1, 8)]
    assert hull([(0.5, 0.1), (1, 0.05)]) == [(0, 0), (1, 0.1)]


def test_few_points_become_a_smooth_curve() -> None:
    """Exactly, where the cost is a power of the fraction."""
    found = smooth([(x, 3 * x**2.5) for x in (0.125, 0.25, 0.5, 0.75)])
    assert len(found) == 100
    for x, y in found:
        assert y == pytest.approx(3 * x**2.5, rel=1e-6)
    assert smooth([(0.5, 1.0)]) == ((0.5, 1.0),)


def test_curves_of_scores() -> None:
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert curve_of(scores) == ((0.25, 0.1), (0.5, 0.3), (0.75, 0.6), (1.0, 1.0))
    assert curve_of(scores, running=True) == ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1.0, 1.0))
    assert curve_of(torch.zeros(3))[-1] == (1.0, 0.0)
    assert len(curve_of(torch.rand(10_000))) <= 256


def test_owl() -> None:
    found = owl([0.01, 0.02, 0.05], 0.5)
    assert sum(found) / 3 == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)
    assert max(found) - min(found) == pytest.approx(0.16)
    assert owl([0.2, 0.2], 0.3) == [0.3, 0.3]
    assert outliers(torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 20])) == (1, 8)


def test_divergences_are_those_of_the_cut_model(tmp_path: Path) -> None:
    """Against a whole model in memory with the same units zeroed."""
    streamed = secateur.open_for_walk(tiny.save("llama", tmp_path / "llama"))
    tokens = torch.randint(3, tiny.VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(0))
    checkpoint = streamed.checkpoint

    def cut(module: torch.nn.Module, index: int, kind: str, level: float) -> None:
        sites = sites_of(module, checkpoint.family, index, checkpoint.head_dim)
        site = next(s for s in sites if s.kind == kind)
        zero(module, site, torch.arange(site.units) >= round(level * site.units))

    candidates = [Candidate(0, "channel", 0.5), Candidate(2, "query_head", 0.5), Candidate(3, "channel", 0.25)]
    found = divergences(
        streamed,
        tokens,
        candidates,
        lambda b, kind, level: cut(b.layer, b.index, kind, level),
        range(checkpoint.layers),
    )
    for candidate, kl in zip(candidates, found, strict=True):
        models = [AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32) for _ in range(2)]
        cut(models[1].model.layers[candidate.layer], candidate.layer, candidate.kind, candidate.level)
        with torch.no_grad():
            p, q = (model(tokens).logits.double().log_softmax(-1) for model in models)
        assert kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


def values(shared: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": shared / "models" / "stories260K",
        "calibrate": shared / "data" / "tinystories" / "eval.jsonl",
        "samples": 8,
        "length": 64,
        "evaluate": "none",
        "speed": False,
        "explain": False,
        **changes,
    }


CUTS: dict[str, dict[str, Any]] = {
    "channels": {"sites": "channel", "sparsity": 0.25},
    "two kinds": {"sites": "channel,query_head", "sparsity": 0.5, "method": "obs"},
    "weights": {"sites": "weight", "sparsity": 0.5, "method": "wanda"},
    "both": {"sites": "weight,channel", "sparsity": {"weight": 0.5, "channel": 0.25}, "method": "wanda"},
}


@pytest.mark.parametrize("cuts", CUTS)
def test_as_many_parameters_go_as_with_local(cuts: str, shared: Path, tmp_path: Path) -> None:
    def report(allocate: str) -> dict[str, Any]:
        recipe = secateur.make_recipe(values(shared, allocate=allocate, **CUTS[cuts]))
        return secateur.prune(recipe, tmp_path / allocate, dry_run=True, quiet=True)

    def gone(report: dict[str, Any]) -> int:
        return report["parameters"]["nonzero_before"] - report["parameters"]["nonzero_after"]

    local = report("local")
    for how in ("global", "owl", "sensitivity"):
        with case(how):
            found = report(how)
            assert gone(found) == pytest.approx(gone(local), rel=0.02)
            assert found["allocation"]["how"] == how
            assert found["allocation"]["shares"]
            kept = [site["kept"] for site in found["sites"]]
            assert kept != [site["kept"] for site in local["sites"]]
            assert min(kept) > 0


def test_it_loads_and_protected_layers_stay(shared: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = {"sites": "channel", "sparsity": 0.4, "allocate": "sensitivity", "protect": "0,-1", "round_to": 4}
    recipe = secateur.make_recipe(values(shared, **settings))
    report = secateur.prune(recipe, tmp_path / "out", quiet=True)
    assert {site["layer"] for site in report["sites"]} == {1, 2, 3}
    assert all(site["kept"] % 4 == 0 for site in report["sites"])
    secateur.load(tmp_path / "out")
    # A replay takes the plan's own.
    plan = secateur.Plan.read(tmp_path / "out" / "plan.json")
    again = secateur.prune(recipe, tmp_path / "again", plan=plan, quiet=True)
    assert [site["kept"] for site in again["sites"]] == [site["kept"] for site in report["sites"]]
    assert again["allocation"] == {"how": "plan", "shares": {}}


@pytest.mark.parametrize(
    "settings", [{"sites": "layer", "sparsity": 0.4}, {"pattern": "2:4"}, {"allocate": "fair", "sparsity": 0.5}]
)
def test_what_cannot_be_spread_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="allocate"):
        secateur.make_recipe({"model": "x", "allocate": "global", **settings})


def test_sensitivity_of_every_site(shared: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from secateur.cli.app import app

    model, text = str(shared / "models" / "stories260K"), str(shared / "data" / "tinystories" / "eval.jsonl")
    small = ["--calibrate", text, "--samples", "2", "--length", "64", "--levels", "0.25,0.5"]
    page = tmp_path / "map.html"
    result = CliRunner().invoke(app, ["sensitivity", model, *small, "--page", str(page), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert {row["kind"] for row in found["sites"]} == {"channel", "query_head", "kv_group", "weight"}
    by_place = {(row["layer"], row["kind"], row["level"]): row["kl"] for row in found["sites"]}
    for layer in range(5):
        assert 0 < by_place[layer, "channel", 0.25] < by_place[layer, "channel", 0.5]
    html = page.read_text(encoding="utf-8")
    from tests.report.html_reader import Reader

    Reader(html)
    assert html.count("<rect") == len(found["sites"])
    shown = CliRunner().invoke(app, ["sensitivity", model, *small, "--sites", "channel", "-q"])
    assert shown.exit_code == 0
    assert "channel (obs)" in shown.output
    with pytest.raises(InputError, match="exists already"):
        CliRunner().invoke(app, ["sensitivity", model, "--page", str(page)], catch_exceptions=False)

"""Several passes are told as one: by the original model's numbers, and so that one pass could repeat the shape."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.calibration.walk import Block
from secateur.config.plan import Plan
from secateur.config.recipe import make_recipe
from secateur.cut.block import BlockCuts
from secateur.cut.evidence import Evidence
from secateur.cut.units import UnitCut
from secateur.errors import InputError
from secateur.model.sites import Site
from secateur.pipeline import one_shot
from secateur.pipeline.lineage import Lineage, joined
from secateur.pipeline.schedule import gone_after, pruning_steps
from secateur.workspace.folder import STEPS, WORK
from secateur.workspace.journal import last_finished
from tests.small import save_tiny

LAYERS = 5
MODEL = "stories260K"


def told(shared: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": str(shared / "models" / MODEL),
        "calibrate": str(shared / "data" / "tinystories" / "calibrate.jsonl"),
        "samples": 8,
        "length": 32,
        "evaluate": "none",
        "speed": False,
        **changes,
    }


def prune(shared: Path, out: Path, resume: bool = False, plan: Plan | None = None, **changes: Any) -> dict[str, Any]:
    return secateur.prune(make_recipe(told(shared, **changes)), out, plan=plan, resume=resume, quiet=True)


# ----------------------------------------------------------------------------- the schedule


def test_the_schedule_is_the_formula() -> None:
    assert [gone_after(k, 4, "linear") for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    cubic = [gone_after(k, 4, "cubic") for k in (1, 2, 3, 4)]
    assert cubic == pytest.approx([1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1])


def recipe(**changes: Any) -> Any:
    return make_recipe({"model": "m", "steps": 4, "schedule": "linear", **changes})


def test_every_step_is_told_its_share() -> None:
    found = pruning_steps(recipe(sites="channel,layer", sparsity={"channel": 0.4, "layer": 0.2}))
    assert [s.recipe.sparsity["channel"] for s in found] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [s.recipe.sparsity["layer"] for s in found] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert [s.share for s in found] == [0.25, 0.5, 0.75, 1]
    assert all(s.recipe.steps == 1 for s in found)


def test_an_n_m_pattern_goes_weight_by_weight() -> None:
    assert [(s.number, s.recipe.pattern) for s in pruning_steps(recipe(pattern="2:4"))] == [
        (2, "3:4"),
        (3, "3:4"),
        (4, "2:4"),
    ]
    both = pruning_steps(
        recipe(sites="weight,channel", pattern="2:4", sparsity={"channel": 0.5}, method="sparsegpt,obs")
    )
    assert [s.recipe.sites for s in both] == [("channel",)] + [("weight", "channel")] * 3
    assert [s.recipe.method for s in both] == [("obs",)] + [("sparsegpt", "obs")] * 3
    assert [s.recipe.pattern for s in both] == ["free", "3:4", "3:4", "2:4"]


def test_one_step_is_the_recipe_itself() -> None:
    plain = make_recipe({"model": "m", "sparsity": 0.5})
    assert [s.recipe for s in pruning_steps(plain)] == [plain]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": "kv_group,query_head", "sparsity": 0.5}, "can't both go step by step"),
        ({"sites": "channel,expert", "sparsity": 0.5}, "can't both go step by step"),
        ({"sparsity": 0.5, "dry_run": True}, "leave out --dry-run or --steps"),
        ({"sparsity": 0.5, "plan": Plan({}, {}, (0,))}, "leave out --steps"),
    ],
)
def test_what_cannot_go_step_by_step(changes: dict[str, Any], message: str, shared: Path, tmp_path: Path) -> None:
    how = {key: changes[key] for key in ("dry_run", "plan") if key in changes}
    recipe = make_recipe(told(shared, steps=2, **{key: changes[key] for key in changes.keys() - how.keys()}))
    with pytest.raises(InputError, match=message):
        secateur.prune(recipe, tmp_path / "out", quiet=True, **how)
    assert not (tmp_path / "out").exists()


def test_a_schedule_has_a_step_at_least() -> None:
    with pytest.raises(InputError, match="steps = 0"):
        make_recipe({"model": "m", "sparsity": 0.5, "steps": 0})


# ----------------------------------------------------------------------------- two cuts as one


def cut(units: int, keep: tuple[int, ...], layer: int = 0, mark: float = 0.0) -> UnitCut:
    site = Site("channel", layer, units, (), "down", 1, 1)
    gone = [unit for unit in range(units) if unit not in keep]
    # Each row says of which unit, by the numbers of its own cut, it is.
    row = tuple((unit,) for unit in gone)
    figures = tuple(mark + unit for unit in gone)
    evidence = Evidence(figures, figures, figures, row, row, row, row) if gone else None
    return UnitCut(site, keep, tuple(mark + unit for unit in range(units)), mark, mark, mark, evidence)


def test_two_cuts_are_one_by_the_first_ones_numbers() -> None:
    random.seed(1)
    for _ in range(50):
        first_keep = tuple(sorted(random.sample(range(12), random.randint(2, 12))))
        then_keep = tuple(sorted(random.sample(range(len(first_keep)), random.randint(1, len(first_keep)))))
        found = joined(cut(12, first_keep), cut(len(first_keep), then_keep, mark=100.0))
        names = list(range(12))
        left = [[names[i] for i in first_keep][j] for j in then_keep]
        assert list(found.keep) == left
        assert found.site.units == 12
        gone = [unit for unit in names if unit not in left]
        assert found.evidence is None if not gone else len(found.evidence.bits) == len(gone)
        for row, unit in enumerate(gone):
            later = unit in first_keep
            place = first_keep.index(unit) if later else unit
            assert found.evidence.bits[row] == (100.0 + place if later else place)
            assert found.evidence.predictors[row] == (unit,)  # by name
            assert found.evidence.places[row] == (place,)  # of tokens, which no cut renumbers
            assert found.scores[unit] == found.evidence.bits[row]


def test_a_lineage_comes_back_from_json() -> None:
    first = Lineage.of(Path("m"), 4)
    blocks = [BlockCuts(i, {}, [cut(6, (0, 2, 3), i)]) for i in (0, 1, 3)]
    second = first.after((0, 1, 3), blocks, {2: 0.5, 3: 0.7})
    third = second.after((0, 2), [BlockCuts(i, {}, [cut(3, (1, 2), i, 10.0)]) for i in (0, 2)], {1: 0.25})
    assert third.layers == (0, 3)
    assert [c.keep for b in third.blocks.values() for c in b.units] == [(2, 3), (2, 3)]
    assert [c.site.layer for b in third.blocks.values() for c in b.units] == [0, 3]
    assert third.layer_scores == {2: 0.5, 3: 0.7, 1: 0.25}
    assert third.units(Site("channel", 1, 2, (), "down", 1, 1)) == 6
    assert Lineage.from_json(json.loads(json.dumps(third.to_json()))) == third


def test_two_sites_of_a_kind_in_one_layer_are_told_apart() -> None:
    """A layer with two mixers has heads of either, and experts beside a shared one have channels of both."""

    def labelled(found: UnitCut) -> UnitCut:
        return replace(found, site=replace(found.site, label="mamba"))

    main, other = cut(6, (0, 2, 3), 0), labelled(cut(4, (1, 3), 0))
    first = Lineage.of(Path("m"), 1).after((0,), [BlockCuts(0, {}, [main, other])])
    assert [c.keep for c in first.blocks[0].units] == [(0, 2, 3), (1, 3)]
    second = first.after((0,), [BlockCuts(0, {}, [cut(3, (1,), 0), labelled(cut(2, (1,), 0))])])
    assert [(c.site.label, c.keep) for c in second.blocks[0].units] == [("", (2,)), ("mamba", (3,))]
    assert [second.units(replace(other.site, units=1, label=label)) for label in ("", "mamba")] == [6, 4]


# ----------------------------------------------------------------------------- runs on a real model


SITES = {
    "channels": {"sites": "channel", "sparsity": 0.5},
    "channels, globally": {"sites": "channel,kv_group", "sparsity": 0.5, "allocate": "global"},
    "layers and heads": {"sites": "layer,query_head", "sparsity": {"layer": 0.4, "query_head": 0.5}},
    "sub-blocks": {"sites": "ffn,attention,channel", "sparsity": {"ffn": 0.4, "attention": 0.2, "channel": 0.25}},
}


@pytest.mark.parametrize("name", SITES)
def test_the_plan_of_all_steps_cuts_the_same_in_one(name: str, shared: Path, tmp_path: Path) -> None:
    """Without a refit nothing but the choice of units depends on the way, so the bytes are the same."""
    report = prune(shared, tmp_path / "out", steps=2, refit=False, **SITES[name])
    plan = Plan.read(tmp_path / "out" / "plan.json")
    prune(shared, tmp_path / "again", plan=plan, refit=False, sites=plan.sites, sparsity=plan.sparsities)
    found, want = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "again"))
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], want[key]) for key in found)
    steps = report["steps"]
    assert [step["step"] for step in steps] == [0, 1, 2]
    counts = [step["parameters"] for step in steps]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == report["parameters"]["after"] == sum(t.numel() for t in found.values())
    assert not (tmp_path / "out" / WORK).exists()


@pytest.mark.parametrize("name", ["channels", "layers and heads"])
def test_as_much_goes_as_at_once(name: str, shared: Path, tmp_path: Path) -> None:
    gradual = prune(shared, tmp_path / "gradual", steps=2, **SITES[name])
    at_once = prune(shared, tmp_path / "once", **SITES[name])
    assert gradual["parameters"] == at_once["parameters"]
    counts = [
        {site["name"]: site["kept"] for site in r["sites"] if site["kind"] != "layer"} for r in (gradual, at_once)
    ]
    if name == "channels":
        assert counts[0] == counts[1]
    evidence = json.loads((tmp_path / "gradual" / "evidence.json").read_text())
    for site in evidence["sites"]:
        own = next(s for s in gradual["sites"] if s["name"] == site["site"])
        assert len(site["removed"]) == own["units"] - own["kept"]


def test_zeros_become_more_and_stay(shared: Path, tmp_path: Path) -> None:
    report = prune(shared, tmp_path / "out", steps=3, schedule="linear", method="magnitude", sparsity=0.6)
    once = prune(shared, tmp_path / "once", method="magnitude", sparsity=0.6)
    counts = [step["nonzero_parameters"] for step in report["steps"]]
    assert counts == sorted(counts, reverse=True)
    assert report["sparsity"]["linear_weights"] == pytest.approx(0.6, abs=1e-3)
    # Magnitudes are the same after every step, and so is what is least.
    found, want = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "once"))
    assert all(torch.equal(found[key], want[key]) for key in found)
    assert once["parameters"] == report["parameters"]


def test_a_recovery_comes_after_every_step(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "tinystories" / "eval.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:20]))
    recover = {"how": "distill", "steps": 6, "batch": 4, "length": 64, "learning_rate": 1e-3}
    asked = {"sites": "channel", "sparsity": 0.5, "steps": 2, "evaluate": str(tmp_path / "some.jsonl")}
    report = prune(shared, tmp_path / "out", **asked, recover=recover)
    first, second, third = report["steps"]
    assert list(first["perplexity"]) == ["original"]
    for step in (second, third):
        assert step["perplexity"]["recovered"] <= step["perplexity"]["pruned"]
    assert first["perplexity"]["original"] < third["perplexity"]["recovered"]
    assert third["perplexity"]["recovered"] == report["evaluation"]["after"]["perplexity"]
    assert report["recovery"]["teacher"]["path"] == str(shared / "models" / MODEL)
    assert report["model"]["path"] == str(shared / "models" / MODEL)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Step by step" in page
    assert "Step by step" in (tmp_path / "out" / "README.md").read_text()


# ----------------------------------------------------------------------------- stopped on the way


@pytest.mark.parametrize("after", [3, 7, 12])
def test_stopped_in_any_step_it_ends_with_the_same_bytes(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 3 of step 1, layer 2 of step 2, in step 3 of a model with five layers."""
    save_tiny(tmp_path / "model", num_hidden_layers=LAYERS)
    rows = [{"text": f"the thing number {i} thought that {i * i} was that then, or {i % 7}"} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"model": str(tmp_path / "model"), "calibrate": str(tmp_path / "text.jsonl"), "samples": 8, "length": 16}
    own |= {"sites": "channel", "sparsity": 0.5, "steps": 3, "schedule": "linear", "evaluate": "none"}
    asked = make_recipe(own)
    want = secateur.prune(asked, tmp_path / "straight", quiet=True)
    cut_block, calls = one_shot.cut_block, 0

    def stops_there(block: Block, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return cut_block(block, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "cut_block", stops_there)
        with pytest.raises(KeyboardInterrupt):
            secateur.prune(asked, tmp_path / "out", quiet=True)
    step, layer = divmod(after - 2, LAYERS)
    assert last_finished(tmp_path / "out" / WORK) == f"layer {layer}" + (f" of step {step + 1}" if step < 2 else "")
    if after == 7:
        assert not (tmp_path / "out" / WORK / STEPS / "1" / "blocks").exists()
    with pytest.raises(InputError, match="schedule was"):
        secateur.prune(make_recipe(own | {"schedule": "cubic"}), tmp_path / "out", resume=True, quiet=True)
    calls = 0
    monkeypatch.setattr(one_shot, "cut_block", stops_there)
    after = 100
    found = secateur.prune(asked, tmp_path / "out", resume=True, quiet=True)
    assert calls == LAYERS * 3 - (step * LAYERS + layer + 1)
    for name in ("model.safetensors", "config.json", "plan.json", "recipe.yaml", "evidence.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert found["steps"] == want["steps"]
    assert found["sites"] == want["sites"]
    assert not (tmp_path / "out" / WORK).exists()

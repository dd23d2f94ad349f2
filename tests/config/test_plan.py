"""The plan: read, written, edited by hand and replayed; what can't be carried out is refused before a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.config.plan import Entry, Plan
from secateur.errors import InputError

MODEL = {"model_type": "llama", "layers": 3, "digest": "d"}
CALIBRATION = {"source": "stdlib", "seed": 0}
CHANNELS = Entry("layers.1.channel", "channel", 1, 4, 0.5, "obs", keep=(0, 3))
WEIGHTS = Entry("layers.0.mlp.down_proj", "weight", 0, 100, 0.5, "wanda", pattern="2:4")


def plan(*entries: Entry, layers: tuple[int, ...] = (0, 1), model: dict[str, Any] | None = None) -> Plan:
    return Plan(model or MODEL, CALIBRATION, layers, entries or (CHANNELS, WEIGHTS))


def complaint(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("entries", [(CHANNELS, WEIGHTS), (CHANNELS,), ()])
def test_round_trip(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    made = Plan(MODEL, CALIBRATION, (0, 2), entries)
    file = tmp_path / "plan.json"
    file.write_text(made.to_json(), encoding="utf-8")
    assert Plan.read(file) == made
    assert Plan.read(str(file)).to_json() == made.to_json()


def test_one_entry_a_line() -> None:
    lines = plan().to_json().splitlines()
    assert sum("layers.1.channel" in line and '"keep": [0, 3]' in line for line in lines) == 1
    assert not any("null" in line for line in lines)


def test_what_a_recipe_takes_from_it() -> None:
    other = Entry("layers.0.channel", "channel", 0, 4, 0.25, "obs", keep=(0, 1, 2))
    made = plan(CHANNELS, other, WEIGHTS)
    assert made.sites == ("channel", "weight")
    assert made.sparsities == {"channel": 0.5, "weight": 0.5}
    assert made.entry("layers.0.channel") is other
    assert made.entry("layers.2.channel") is None
    only_layers = Plan(MODEL, CALIBRATION, (0, 2), ())
    assert only_layers.sites == ("layer",)
    assert 0 < only_layers.sparsities["layer"] < 1


def test_a_good_plan_passes() -> None:
    plan().check("llama", 3)
    plan().check("llama", 3, {"layers.1.channel", "layers.0.mlp.down_proj"})
    Plan(MODEL, CALIBRATION, (2,), ()).check("llama", 3)


def test_another_model() -> None:
    assert complaint(lambda: plan().check("mistral", 3)) == (
        "the plan is for llama with 3 layers, the model is mistral with 3 layers"
    )
    assert "the model is llama with 4 layers" in complaint(lambda: plan().check("llama", 4))
    assert "names layers.1.channel, which the model doesn't have" in complaint(
        lambda: plan().check("llama", 3, {"layers.0.mlp.down_proj"})
    )


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0, 1), (0, 3), (-1, 0)])
def test_bad_layers(layers: tuple[int, ...]) -> None:
    assert "must be ascending, distinct and below 3" in complaint(lambda: plan(layers=layers).check("llama", 3))


@pytest.mark.parametrize("keep", [(), (3, 0), (0, 0), (0, 4), (-1, 0), None])
def test_bad_units(keep: tuple[int, ...] | None) -> None:
    bad = plan(Entry("layers.1.channel", "channel", 1, 4, 0.5, "obs", keep=keep))
    assert "kept units must be ascending, distinct and below 4" in complaint(lambda: bad.check("llama", 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "chanel"}, "kind 'chanel' must be weight, channel, query_head, kv_group"),
        ({"layer": 2}, "layer 2 is not one of the layers that stay"),
        ({"layer": 0}, "layer 0 is not one of the layers that stay"),
    ],
)
def test_bad_entries(change: dict[str, Any], says: str) -> None:
    bad = plan(Entry(**{**CHANNELS.__dict__, **change}))
    assert says in complaint(lambda: bad.check("llama", 3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sparsity": 1.0}, "sparsity 1 is not between 0 and 1"),
        ({"sparsity": -0.5}, "is not between 0 and 1"),
        ({"sparsity": float("nan")}, "sparsity nan is not between 0 and 1"),
        ({"method": "obs"}, "method 'obs' must be one of magnitude, wanda, "),
        ({"method": "none"}, "method 'none' must be one of"),
        ({"pattern": "4:2"}, "pattern '4:2' is unknown"),
    ],
)
def test_bad_weights(change: dict[str, Any], says: str) -> None:
    bad = plan(Entry(**{**WEIGHTS.__dict__, **change}))
    assert says in complaint(lambda: bad.check("llama", 3))


def test_what_a_replay_could_not_keep_apart_is_refused() -> None:
    other = Entry("layers.1.mlp.down_proj", "weight", 1, 100, 0.5, "wanda", pattern="free")
    assert "weights name pattern 2:4 and free; a run has one" in complaint(
        lambda: plan(WEIGHTS, other).check("llama", 3)
    )
    assert "the plan names layers.1.channel 2 times" in complaint(lambda: plan(CHANNELS, CHANNELS).check("llama", 3))


def raw(**changes: Any) -> dict[str, Any]:
    return {**json.loads(plan().to_json()), **changes}


def entry(**changes: Any) -> dict[str, Any]:
    return {**json.loads(plan().to_json())["entries"][0], **changes}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "plan version None is unknown; this is version 1"),
        (raw(version=2), "plan version 2 is unknown"),
        ({k: v for k, v in raw().items() if k != "layers"}, "is not a plan, it lacks 'layers'"),
        (raw(layers=["0"]), 'is not a plan ("0" where a whole number should be)'),
        (raw(layers=5), "5 where a list should be"),
        (raw(entries={}), "{} where a list should be"),
        (raw(entries=["x"]), '"x" where an object should be'),
        (raw(entries=[entry(keep="all")]), '"all" where a list should be'),
        (raw(entries=[entry(keep=[0, 1.5])]), "1.5 where a whole number should be"),
        (raw(entries=[entry(keep=[True])]), "true where a whole number should be"),
        (raw(entries=[entry(layer="1")]), '"1" where a whole number should be'),
        (raw(entries=[entry(pattern=24)]), "24 where a text should be"),
        (raw(entries=[entry(sparsity="lots")]), '("lots" where a number should be)'),
        (raw(entries=[entry(colour="red")]), "(an entry has no 'colour')"),
        (raw(entries=[{k: v for k, v in entry().items() if k != "units"}]), "it lacks 'units'"),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, says: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert says in complaint(lambda: Plan.read(file))


def test_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "no such plan file" in complaint(lambda: Plan.read(tmp_path / "nowhere.json"))
    assert "no such plan file" in complaint(lambda: Plan.read(tmp_path))
    file = tmp_path / "plan.json"
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not valid JSON" in complaint(lambda: Plan.read(file))

"""A sweep file: what its trials are, what they are called, and what is refused before any of them begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.config.sweep import MOST_TRIALS, load_sweep, make_sweep
from secateur.errors import InputError
from tests.cases import case

BASE = {"model": "embedded", "sites": "channel", "sparsity": 0.25}


def names(**told: Any) -> list[str]:
    return [trial.name for trial in make_sweep({"base": BASE, **told}).trials]


def test_a_grid_is_every_combination_and_listed_trials_come_after_it() -> None:
    found = make_sweep(
        {
            "base": BASE,
            "grid": {"method": ["obs", "activation"], "seed": [0, 1]},
            "trials": [{"name": "gentle", "sparsity": 0.1}, {"sites": ["layer"], "method": "block_influence"}],
            "trial_cpus": 2,
        }
    )
    assert [trial.name for trial in found.trials] == [
        "method-obs_seed-0",
        "method-obs_seed-1",
        "method-activation_seed-0",
        "method-activation_seed-1",
        "gentle",
        "sites-layer_method-block_influence".replace("block_influence", "block-influence"),
    ]
    assert [(t.recipe.method, t.recipe.seed, t.recipe.sparsity) for t in found.trials[1:5:3]] == [
        (("obs",), 1, 0.25),
        ((), 0, 0.1),
    ]
    assert found.resources.trial_cpus == 2


def test_names_tell_values_apart_and_stay_when_trials_are_added() -> None:
    assert names(grid={"sparsity": [0.125, "50%"], "refit": [True, False]})[:2] == [
        "sparsity-0.125_refit-yes",
        "sparsity-0.125_refit-no",
    ]
    assert names(trials=[{}]) == ["base"]
    mapped = {"sites": ["channel", "query_head"], "sparsity": {"channel": 0.25, "query_head": 0.5}}
    assert names(trials=[mapped]) == ["sites-channel+query-head_sparsity-channel0.25+query-head0.5"]
    few, more = (names(grid={"sparsity": values}) for values in ([0.25, 0.250000001], [0.3, 0.25, 0.250000001]))
    assert len(set(few)) == 2  # both are spelled 0.25
    assert set(few) < set(more)
    told = make_sweep({"base": {**BASE, "model": Path("embedded")}, "grid": {"model": [Path("embedded")]}})
    assert told.trials[0].changes == {"model": "embedded"}  # sweep.json can have it
    long = names(trials=[{"sites": "layer", "protect": list(range(90)), "method": "block_influence"}])
    assert len(long[0]) <= 100


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"gird": {}}, "sweep key 'gird' is unknown; did you mean 'grid'?"),
    ({}, "the sweep has no trial"),
    ({"grid": {"seed": []}}, "grid key 'seed' has no values"),
    ({"grid": {"seed": 0}}, "grid.seed = 0: input should be a valid list"),
    ({"trials": ["obs"]}, "trials.0 = 'obs': input should be a valid dictionary"),
    ({"trials": [{}], "trial_cpus": 0}, "trial_cpus = 0: input should be greater than or equal to 1"),
    ({"trials": [{}], "retries": 1000}, "retries = 1000"),
    ({"grid": {"seed": list(range(40)), "samples": list(range(1, 40))}}, "the sweep has 1,560 trials; at most 1,000"),
    ({"grid": {f"k{n}": list(range(50)) for n in range(500)}}, f"at most {MOST_TRIALS:,} are taken"),
    ({"grid": {"sparsty": [0.1]}}, "trial sparsty-0.1: recipe key 'sparsty' is unknown; did you mean 'sparsity'?"),
    ({"grid": {"method": ["obs", "wnada"]}}, "trial method-wnada: method 'wnada' is unknown; did you mean 'wanda'?"),
    ({"grid": {"sparsity": [0.5, 1.5]}}, "trial sparsity-1.5: sparsity 1.5 for channel is not between 0 and 1"),
    ({"trials": [{"model": "nowhere"}]}, "trial model-nowhere: nowhere: no such folder"),
    ({"trials": [{"name": "a", "calibrate": "gone.txt"}]}, "trial a: data file 'gone.txt' does not exist"),
    ({"trials": [{"name": "a", "tasks": "gone.jsonl"}]}, "trial a: task file 'gone.jsonl' does not exist"),
    ({"trials": [{"name": "a", "seed": 1}, {"name": "A", "seed": 2}]}, "two trials are called a"),
    ({"trials": [{"name": "a"}, {"name": "b", "seed": 0}]}, "trials a and b are told the same"),
    ({"trials": [{"name": "../a"}]}, "trial name '../a': give at most 100 letters"),
    ({"trials": [{"name": ".secateur"}]}, "trial name '.secateur'"),
    ({"trials": [{"name": "a."}]}, "trial name 'a.'"),
    ({"trials": [{"name": 3}]}, "trial name '3'"),
    ({"trials": [{"name": "Compare.html"}]}, "is a file of the sweep itself"),
]


def test_what_cannot_be_run_is_refused_in_one_line_that_names_it() -> None:
    for told, says in REFUSED:
        with case(says):
            with pytest.raises(InputError) as refused:
                make_sweep({"base": BASE, **told})
            assert says in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_file_is_hostile_until_it_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    for text, says in (
        (None, "no such sweep file"),
        ("- a\n- b\n", "a sweep is a mapping of keys such as 'base' and 'grid'"),
        ("base: {model: embedded\n", "is not valid YAML"),
        ("base: &b {model: embedded}\ntrials: [*b]\n", "aliases (*name) aren't taken"),
        ("? [base]\n: 1\n", "a key is a word"),
        ("base: " + "[" * 5000, "is nested too deeply"),
        ("#" * (2**20 + 1), "has more than 1,048,576 bytes"),
        ("base: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (
            "base: {model: embedded, sites: channel}\ngrid: {sparsity: [0.5, .nan]}\n",
            "trial sparsity-nan: sparsity nan",
        ),
    ):
        with case(says):
            if text is not None:
                file.write_text(text, encoding="utf-8")
            with pytest.raises(InputError, match=r"^[^\n]+$") as refused:
                load_sweep(file)
            assert says in str(refused.value)
            assert str(refused.value).startswith(str(file))


def test_flags_take_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "base: {model: embedded, sites: channel, sparsity: 0.5}\ntrials: [{}]\ntrial_cpus: 4\n", encoding="utf-8"
    )
    told = load_sweep(file, {"trial_cpus": 1, "trial_gpus": 0.5}).resources
    assert (told.trial_cpus, told.trial_gpus, told.retries) == (1, 0.5, 2)

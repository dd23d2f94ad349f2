"""The recipe: one schema for flags and YAML, strict, and every mistake named in one line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from secateur.cli import app as cli
from secateur.config.configuration import resolve
from secateur.config.recipe import Recipe, load_recipe, make_recipe
from secateur.errors import InputError


def recipe(**values: Any) -> Recipe:
    return make_recipe({"model": "somewhere", "sparsity": 0.25, **values})


def complaint(**values: Any) -> str:
    with pytest.raises(InputError) as caught:
        recipe(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_defaults_are_the_protocol() -> None:
    made = recipe()
    assert (made.samples, made.length, made.seed) == (128, 512, 0)
    assert made.sites == ("weight",)
    assert made.calibrate == "stdlib"
    assert made.refit
    assert made.evaluate is None


def test_every_key_is_a_flag_of_prune() -> None:
    sections = {"recover", "export"}  # for recipes only: the command line has commands of these names
    assert set(Recipe.model_fields) - sections <= set(inspect.signature(cli.prune).parameters)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("sparsty", "sparsity"), ("site", "sites"), ("calibration", "calibrate"), ("n_samples", "samples")],
)
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    assert complaint(**{key: 1}) == f"recipe key '{key}' is unknown; did you mean '{nearest}'?"


def test_key_like_no_other_lists_all() -> None:
    assert "known are model, sites, sparsity" in complaint(zzzzzz=1)


@pytest.mark.parametrize("text", ["weight,channel", ["channel", "weight"], ("weight", "channel"), "channel, weight"])
def test_sites_in_any_spelling(text: Any) -> None:
    assert recipe(sites=text).sites == ("weight", "channel")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sites": "chanel"}, "site 'chanel' is unknown; did you mean 'channel'?"),
        ({"sites": ""}, "no site given"),
        ({"sites": 3}, "valid string"),
        ({"method": "wandda"}, "method 'wandda' is unknown; did you mean 'wanda'?"),
        ({"pattern": "4:2"}, "pattern '4:2' is unknown"),
        ({"pattern": "two:four"}, "use free or N:M"),
        ({"samples": 0}, "samples = 0: input should be greater than or equal to 1"),
        ({"samples": "many"}, "samples = 'many': input should be a valid integer"),
        ({"samples": True}, "samples = True"),
        ({"samples": 1.5}, "samples = 1.5"),
        ({"length": 1}, "length = 1"),
        ({"seed": -1}, "seed = -1"),
        ({"round_to": 0}, "round_to = 0"),
        ({"refit": "yes"}, "refit = 'yes': input should be a valid boolean"),
        ({"bias": "some"}, "input should be 'own', 'add' or 'none'"),
        ({"protect": "first"}, "protect first: layers are whole numbers"),
        ({"protect": [1.5]}, "valid integer"),
        ({"memory": "plenty"}, "'plenty' is not a size; write it like 2GB"),
        ({"model": 3}, "model = 3: input should be a valid string"),
        ({"calibrate": None}, "calibrate = None"),
    ],
)
def test_bad_values(values: dict[str, Any], says: str) -> None:
    assert says in complaint(**values)


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, float("nan"), "nan", "inf", "-inf", "1e9"])
def test_sparsity_outside_of_0_to_1(value: Any) -> None:
    assert "is not between 0 and 1; 0.25 removes a quarter" in complaint(sparsity=value)


@pytest.mark.parametrize(
    "value", ["much", "", "50%%", "0,25", True, [0.5], "weight:much", "weight:", {"weight": None}]
)
def test_sparsity_that_is_no_number(value: Any) -> None:
    assert "is not a number" in complaint(sparsity=value)


def test_no_sparsity() -> None:
    assert "no sparsity given" in complaint(sparsity=None)


def test_sparsity_for_each_kind() -> None:
    made = recipe(sites="channel,layer", sparsity="channel:0.25, layer:0.1")
    assert made == recipe(sites=["channel", "layer"], sparsity={"channel": 0.25, "layer": 0.1})
    assert (made.sparsity_for("channel"), made.sparsity_for("layer")) == (0.25, 0.1)
    assert recipe(sites="channel,layer", sparsity="0.3").sparsity_for("layer") == 0.3


def test_sparsity_must_name_the_sites_there_are() -> None:
    assert "says nothing for site 'layer'" in complaint(sites="channel,layer", sparsity={"channel": 0.2})
    assert "names 'layer', but sites are channel" in complaint(
        sites="channel", sparsity={"channel": 0.2, "layer": 0.2}
    )


def test_pattern_decides_the_sparsity_of_weights() -> None:
    assert recipe(pattern="2:4", sparsity=None).sparsity_for("weight") == 0.5
    assert recipe(pattern="2:4", sparsity=0.5).sparsity_for("weight") == 0.5
    assert recipe(pattern="1:3", sparsity=0.667).sparsity_for("weight") == pytest.approx(2 / 3)
    both = recipe(pattern="2:4", sites="weight,channel", sparsity=0.25)
    assert (both.sparsity_for("weight"), both.sparsity_for("channel")) == (0.5, 0.25)


def test_pattern_against_sparsity_or_sites() -> None:
    assert "pattern 2:4 removes 0.5, but sparsity says 0.7" in complaint(pattern="2:4", sparsity=0.7)
    assert "pattern 2:4 removes 0.5, but sparsity says 0.7" in complaint(
        pattern="2:4", sites="weight,channel", sparsity={"weight": 0.7, "channel": 0.25}
    )
    assert "pattern 2:4 is for single weights, but sites are channel" in complaint(pattern="2:4", sites="channel")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("weight", "alps"),
        ("channel", "obs"),
        ("query_head", "obs"),
        ("kv_group", "obs"),
        ("layer", "leave_one_out"),
    ],
)
def test_default_methods(kind: str, expected: str) -> None:
    assert recipe(sites=kind).method_for(kind).name == expected


def test_the_residual_target_goes_linear_by_linear() -> None:
    assert resolve(recipe(method="sparsegpt")).sequential is False
    assert resolve(recipe(method="sparsegpt", target="residual")).sequential is True
    assert resolve(recipe(method="sparsegpt", target="dense")).sequential is False
    assert resolve(recipe(sites="channel", sequential=False)).target == "residual"
    assert "residual goes Linear by Linear" in complaint(quality="balanced", sequential=False)


def test_masks_are_found_while_tuning_only_where_there_is_time_for_it() -> None:
    assert resolve(recipe(quality="best")).masks == "gradual"
    assert resolve(recipe(quality="best", reconstruct=20)).masks == "kept"
    assert resolve(recipe(quality="best", reconstruct=20, masks="gradual")).masks == "gradual"
    assert resolve(recipe(method="wanda", reconstruct=400)).masks == "kept"
    assert "add --reconstruct" in complaint(masks="gradual", quality="balanced")


def test_reconstruction_needs_a_sequence_to_stop_by() -> None:
    assert "use --samples 2 or more" in complaint(quality="best", samples=1)
    assert resolve(recipe(quality="best", reconstruct=0, samples=1)).steps == 0
    assert resolve(recipe(quality="best")).steps == 360


def test_methods_go_to_the_sites_they_can_score() -> None:
    made = recipe(sites="weight,channel,layer", method="block_influence,wanda")
    assert [made.method_for(k).name for k in made.sites] == ["wanda", "wanda", "block_influence"]
    made = recipe(sites="weight,channel", method="sparsegpt,wanda")
    assert [made.method_for(k).name for k in made.sites] == ["sparsegpt", "wanda"]
    made = recipe(sites="weight,layer", method="magnitude")
    assert [made.method_for(k).name for k in made.sites] == ["magnitude", "leave_one_out"]


def test_methods_that_would_do_nothing() -> None:
    assert complaint(sites="channel", method="sparsegpt").startswith(
        "method 'sparsegpt' doesn't score channel; methods that do: magnitude, wanda, obs, mi, flap, "
    )
    assert "methods that do: block_influence, entropy_increase, layer_mi, leave_one_out" in complaint(
        sites="layer", method="obs"
    )
    assert "'sparsegpt' has nothing to do: 'wanda' scores weight already" in complaint(method="wanda,sparsegpt")


def test_missing_model() -> None:
    with pytest.raises(InputError, match="no model given"):
        make_recipe({"sparsity": 0.5})


def test_yaml_round_trip(tmp_path: Path) -> None:
    made = recipe(
        sites="channel,layer", sparsity={"channel": 0.25, "layer": 1e-5}, method="obs", protect="0,-1", memory="2GB",
        model=tmp_path / "ein Modell: ä", evaluate="none", refit=False,
    )  # fmt: skip
    assert load_recipe(written(tmp_path, made.to_yaml())) == made


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "model: a\nsites: [channel]\nsparsity: 0.25\nsamples: 64\n")
    made = load_recipe(file, {"model": "b", "sparsity": "0.5"})
    assert (made.model, made.sparsity, made.samples, made.sites) == ("b", 0.5, 64, ("channel",))


def test_one_value_needs_no_list(tmp_path: Path) -> None:
    made = load_recipe(written(tmp_path, "model: a\nsites: channel\nsparsity: 0.25\nmethod: obs\nprotect: 0\n"))
    assert (made.sites, made.method, made.protect) == (("channel",), ("obs",), (0,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a recipe is a mapping"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("model: [a\n", "is not valid YAML"),
        ("model: a\nsparsity: 0.5\nmodel: b\n", "key 'model' is there twice"),
        ("model: a\nsparsity: 0.5\n1: 2\n", "recipe key '1' is unknown"),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("model: a\nsparsity: {weight: 0.5, weight: 0.6}\n", "key 'weight' is there twice"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_recipe(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe file"):
        load_recipe(tmp_path / "nowhere.yaml")
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(InputError, match="is not valid YAML"):
        load_recipe(file)


@pytest.mark.parametrize(("given", "meant"), [("half", "half"), ("block", "block"), ("2", 2), (3, 3)])
def test_a_window_is_a_name_or_a_number_of_blocks(given: str | int, meant: str | int) -> None:
    assert recipe(quality="best", window=given).window == meant


@pytest.mark.parametrize("given", ["halves", "0", 0, -1, True, 1.5, "1.5"])
def test_another_window_is_refused(given: Any) -> None:
    assert "half, block, or a number of blocks" in complaint(quality="best", window=given)


def test_a_window_without_reconstruction_is_refused() -> None:
    assert "add --reconstruct" in complaint(quality="balanced", window="half")
    assert recipe(quality="balanced", reconstruct=50, window="half").window == "half"


@pytest.mark.parametrize("key", ["protect", "sites", "calibrate", "x\ud800"])
def test_half_a_surrogate_pair_is_refused_in_one_line(key: str) -> None:
    with pytest.raises(InputError):
        recipe(**{key: "\ud800"})

"""What was meant: words of other libraries, typing errors, percentages, and addresses of the hub."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.config.fields import SITE_KINDS
from secateur.config.recipe import make_recipe
from secateur.config.suggestions import ALIASES, closest, nearest
from secateur.errors import InputError
from secateur.model.hub import id_of


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("head", "query_head"),
        ("heads", "query_head"),
        ("KV-head", "kv_group"),
        ("mlp", "channel"),
        ("neurons", "channel"),
        ("moe", "expert"),
        ("chanel", "channel"),
        ("Layer", "layer"),
        ("zzzz", None),
    ],
)
def test_sites_by_other_names(word: str, meant: str | None) -> None:
    assert closest(word, SITE_KINDS) == meant


def test_an_alias_counts_only_where_its_word_is_known() -> None:
    assert nearest("head", ["fast", "best"]) == "; known are fast, best"
    assert not set(ALIASES) & {*SITE_KINDS, "lm", "logits", "hidden", "adamw", "local", "evolve"}


@pytest.mark.parametrize(("given", "meant"), [("50%", 0.5), (" 12.5 % ", 0.125), ("channel:25%", {"channel": 0.25})])
def test_sparsity_in_percent(given: str, meant: Any) -> None:
    assert make_recipe({"model": "x", "sites": "channel", "sparsity": given}).sparsity == meant


@pytest.mark.parametrize("given", ["%", "many%", "50%%"])
def test_a_percentage_without_a_number(given: str) -> None:
    with pytest.raises(InputError, match="is not a number"):
        make_recipe({"model": "x", "sparsity": given})


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/org/name",
        "https://huggingface.co/org/name/",
        "https://huggingface.co/org/name/tree/main",
        "http://www.huggingface.co/org/name?library=transformers",
        "hf.co/org/name",
    ],
)
def test_an_address_is_taken_as_its_id(address: str) -> None:
    assert id_of(address) == "org/name"
    assert make_recipe({"model": address, "sparsity": 0.5}).model == "org/name"


@pytest.mark.parametrize(
    "other", ["org/name", "path/to/model", "https://huggingface.co/org/name/tree/dev", "https://elsewhere.org/a/b"]
)
def test_other_names_stay_as_they_are(other: str) -> None:
    assert id_of(other) == other

"""Wishes: what is understood, and what is said of what isn't."""

from __future__ import annotations

import pytest

from secateur.config.searching import make_search
from secateur.config.wishes import parse_wish, parse_wishes
from secateur.errors import InputError


def test_what_is_understood() -> None:
    wish = parse_wish(" latency = 0.7x ")
    assert (wish.about, wish.amount, wish.relative, wish.of_cost) == ("latency", 0.7, True, True)
    assert parse_wish("size=100MB").limit(5e8) == 1e8
    assert parse_wish("latency=12ms").limit(1.0) == pytest.approx(0.012)
    assert parse_wish("params<=75%").limit(200) == 150
    assert parse_wish("memory=1.5GiB").amount == 1.5 * 2**30
    held = parse_wish("perplexity<=1.1x").held
    assert held(10.9, 10)
    assert not held(11.1, 10)
    task = parse_wish("task:some/questions.jsonl>=0.98x")
    assert task.file == "some/questions.jsonl"
    assert task.held(0.49, 0.5)
    assert not task.held(0.48, 0.5)
    assert [wish.about for wish in parse_wishes(["params=0.5x,latency=0.7x", "perplexity<=20"])] == [
        "params",
        "latency",
        "perplexity",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("small", "isn't understood"),
        ("parms=0.5x", "did you mean 'params'"),
        ("params=1.2x", "asks for nothing to be cut"),
        ("params=0x", "asks for nothing"),
        ("params>=0.5x", "write params<=0.5x"),
        ("task:a.jsonl<=0.9x", "write task>=0.9x"),
        ("size=many", "size=0.7x or size=100MB"),
        ("latency=fast", "latency=0.7x or latency=12ms"),
        ("perplexity<=good", "write perplexity like"),
        ("task:a.jsonl>=12", "at most 1"),
    ],
)
def test_what_isnt(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_wish(text)
    assert "\n" not in str(caught.value)


def test_two_about_the_same_thing() -> None:
    with pytest.raises(InputError, match="about the same thing"):
        parse_wishes(["params=0.5x", "params=1M"])
    assert len(parse_wishes(["task:a.jsonl>=0.9x", "task:b.jsonl>=0.9x"])) == 2


def test_what_search_decides_isnt_told() -> None:
    with pytest.raises(InputError, match="sparsity is what search decides"):
        make_search({"model": "m", "want": "params=0.5x", "sparsity": 0.5})
    with pytest.raises(InputError, match="site 'weight' isn't searched"):
        make_search({"model": "m", "want": "params=0.5x", "sites": "weight,layer"})
    with pytest.raises(InputError, match="did you mean 'want'"):
        make_search({"model": "m", "wants": "params=0.5x"})
    settings = make_search({"model": "m", "want": "params=0.5x", "method": "reap,obs", "samples": 8})
    recipe = settings.replaying(("channel",), {"channel": 0.3})
    assert (recipe.method, recipe.quality, recipe.samples) == ((), "fast", 8)

"""Whether a cut was worth it follows from what it gave and what it cost."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.report.html import page
from secateur.report.verdict import verdict
from tests.report import fixtures
from tests.report.html_reader import Reader


def at(rise: float, report: dict[str, Any]) -> dict[str, Any]:
    """The report, as if perplexity had risen so much."""
    sides = report["evaluation"]
    sides["after"] = {**sides["after"], "perplexity": rise * sides["before"]["perplexity"]}
    return report


@pytest.mark.parametrize(
    ("rise", "judgement", "said"),
    [
        (0.98, "Worth it", "which is better than before"),
        (1.003, "Worth it", "no loss that shows"),
        (1.03, "Worth it", "(+3.0%), a small loss"),
        (1.15, "A fair trade", "Training makes up for some of it"),
        (1.6, "Not yet worth it", "a large loss"),
        (3.0, "Not worth it", "Prune less, or train it: secateur recover."),
    ],
)
def test_of_a_smaller_model_it_is_what_it_costs(rise: float, judgement: str, said: str) -> None:
    report = at(rise, fixtures.structured())
    found = verdict(report)
    assert found is not None
    assert found.judgement == judgement
    assert said in found.why
    assert found.why.startswith("18.8% fewer parameters, 18.8% less on disk, decoding 1.14× as fast; perplexity")
    assert f"{judgement}. 18.8% fewer parameters" in Reader(page.render(report)).text


def test_zeros_give_nothing_by_themselves() -> None:
    found = verdict(at(1.01, fixtures.unstructured()))
    assert found is not None
    assert found.judgement == "Not yet worth it"
    assert found.why.startswith("Nothing is smaller or faster; perplexity")
    assert found.why.endswith("The zeros pay after secateur compress.")


def test_trained_already_is_not_told_to_train() -> None:
    found = verdict(at(1.6, fixtures.structured() | {"recovery": {"how": "lora"}}))
    assert found is not None
    assert found.why.endswith("Prune less.")


def test_without_an_evaluation_there_is_none() -> None:
    assert verdict(fixtures.partial()) is None
    assert verdict({}) is None

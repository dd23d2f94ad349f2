"""The criteria on a real model, by the benchmark's own protocol, held to figures measured with other code.

pytest -m slow tests/test_criteria_figures.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "criteria.py"
RATIOS = ("0.125", "0.25", "0.5")
MARGIN = 1.03
# FFN channels of stories260K at 12.5, 25 and 50 %: perplexity without and with refit. None: no figure.
FIGURES: dict[str, tuple[tuple[float | None, ...], tuple[float | None, ...]]] = {
    "magnitude": ((8.63, 18.4, 73), (5.55, 8.17, 26.6)),
    "wanda": ((5.63, 9.16, 33), (5.12, 7.03, 18.5)),
    "flap": ((5.68, 9.30, 38), (5.12, 7.05, 17.8)),
    "flap + its bias": ((5.61, 9.01, 27.2), ()),
    "obs": ((5.83, 9.44, 32), (5.11, 6.82, 17.3)),
    "mi": ((None, None, None), (5.11, 6.82, 17.3)),
    "taylor": ((6.07, 11.2, 48), (5.27, 7.78, 23.8)),
    "taylor2": ((5.95, 10.6, 44), (5.25, 7.52, 20.9)),
    "gate_fisher": ((5.95, 10.6, 44), (5.25, 7.52, 20.9)),  # those of taylor2: second order too, of a unit as a whole
}
SHORT = {
    ("taylor", "0.5", "none"): "54.7, with other draws of the calibration text 49.7 and 54.9",
    ("taylor2", "0.25", "none"): "11.7",
    ("taylor2", "0.5", "none"): "50.0",
    ("taylor2", "0.5", "refit"): "23.3",
}


@pytest.fixture(scope="module")
def measured(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float, str], float]:
    """(criterion, ratio, repair) -> perplexity."""
    out = tmp_path_factory.mktemp("criteria")
    command = [sys.executable, str(BENCHMARK), "--models", str(whole / "models" / "stories260K")]
    methods = "magnitude,wanda,flap,obs,mi,taylor,taylor2,gate_fisher,mi_pairs,random"
    subprocess.run([*command, "--methods", methods, "--ratios", ",".join(RATIOS), "--out", str(out)], check=True)
    (model,) = json.loads((out / "criteria.json").read_text(encoding="utf-8"))
    return {(row["method"], row["ratio"], row["repair"]): row["perplexity"] for row in model["rows"]}


CELLS = [
    pytest.param(
        *(name, ratio, repair, figure),
        id=f"{name} {ratio} {repair}",
        marks=[pytest.mark.xfail(reason=SHORT[name, ratio, repair], strict=True)]
        if (name, ratio, repair) in SHORT
        else [],
    )
    for name, pairs in FIGURES.items()
    for repair, figures in zip(("none", "refit"), pairs, strict=True)
    for ratio, figure in zip(RATIOS, figures, strict=False)
    if figure is not None
]


@pytest.mark.parametrize(("name", "ratio", "repair", "figure"), CELLS)
def test_each_figure_is_matched_or_beaten(
    name: str, ratio: str, repair: str, figure: float, measured: dict[tuple[str, float, str], float]
) -> None:
    assert measured[name, float(ratio), repair] <= MARGIN * figure


def test_mi_is_at_least_level_with_the_best_other(measured: dict[tuple[str, float, str], float]) -> None:
    for ratio in map(float, RATIOS):
        others = [value for (name, r, repair), value in measured.items() if r == ratio and repair == "refit"]
        assert measured["mi", ratio, "refit"] <= 1.005 * min(others)


def test_pairs_are_no_better_than_chance(measured: dict[tuple[str, float, str], float]) -> None:
    """Said of the method wherever it is offered."""
    for ratio in map(float, RATIOS):
        assert measured["mi_pairs", ratio, "refit"] > 1.05 * measured["obs", ratio, "refit"]
        assert measured["mi_pairs", ratio, "none"] > 0.8 * measured["random", ratio, "none"]

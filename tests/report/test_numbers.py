"""Numbers as people read them, and the geometry of the pictures."""

from __future__ import annotations

import itertools
import math

import pytest

from secateur.report import facts
from secateur.report import numbers as fmt
from secateur.report.html import charts
from tests.report import fixtures


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fmt.number(4.7512), "4.751"),
        (fmt.number(2550.4), "2,550"),
        (fmt.number(0.0000123), "1.23e-05"),
        (fmt.number(0), "0"),
        (fmt.number(None), "–"),
        (fmt.number(math.inf), "inf"),
        (fmt.count(3147264), "3,147,264"),
        (fmt.short(3147264), "3.15 M"),
        (fmt.size(6294528), "6.29 MB"),
        (fmt.size(12), "12 bytes"),
        (fmt.percent(0.25), "25.0%"),
        (fmt.percent(None), "–"),
        (fmt.seconds(0.411), "0.41 s"),
        (fmt.seconds(245), "4 min 05 s"),
        (fmt.seconds(7800), "2 h 10 min"),
        (fmt.seconds(59.99), "60.0 s"),
        (fmt.ratio(1.876), "1.88×"),
        (fmt.ratio(0.0123), "0.0123×"),
        (fmt.ratio(536.8), "537×"),
        (fmt.change(0.89), "−11.0%"),
        (fmt.change(1.0), "±0.0%"),
        (fmt.change(5.36), "+436%"),
    ],
)
def test_format(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_tally_weighs_sites_by_their_units() -> None:
    tally = facts.Tally([{"units": 100, "kept": 50, "sparsity": 0.5}, {"units": 300, "kept": 300, "sparsity": 0.0}])
    assert tally.sparsity == pytest.approx(0.125)
    assert facts.Tally([{"sparsity": 0.5}, {"sparsity": 0.0}]).sparsity == pytest.approx(0.25)
    assert facts.Tally([]).sparsity is None


def test_small_gains_of_speed_are_not_called_gains() -> None:
    report = {"evaluation": {"before": {"decode_tokens_per_s": 100.0}, "after": {"decode_tokens_per_s": 104.0}}}
    assert [row.verdict for row in facts.comparison(report)] == ["same"]
    report["evaluation"]["after"]["decode_tokens_per_s"] = 120.0
    assert [row.verdict for row in facts.comparison(report)] == ["better"]


def test_boxes_fill_from_the_bottom_by_the_fraction_removed() -> None:
    chart = charts.removal_chart(fixtures.unstructured(layers=8))
    assert chart is not None
    assert len(chart.boxes) == 56
    site = fixtures.unstructured(layers=8)["sites"][0]
    assert chart.boxes[0].fill / chart.boxes[0].height == pytest.approx(site["sparsity"], abs=1e-3)
    assert all(box.x + box.width <= 100 and box.y + box.height <= chart.height for box in chart.boxes)


@pytest.mark.parametrize("layers", [1, 6, 32, 80, 126])
def test_the_chart_fits_the_page_and_its_labels_dont_collide(layers: int) -> None:
    chart = charts.removal_chart(fixtures.unstructured(layers))
    assert chart is not None
    for screen, ticks in (
        (charts.PAGE_WIDTH, chart.ticks),
        (charts.NARROW, [tick for tick in chart.ticks if not tick.fine]),
    ):
        gaps = [(b.x - a.x) / 100 * screen for a, b in itertools.pairwise(ticks)]
        assert all(gap >= 25 for gap in gaps)


def test_error_panels_share_one_scale() -> None:
    panels = charts.error_panels(fixtures.structured())
    assert [panel.title for panel in panels] == ["FFN channels", "Query heads"]
    assert [panel.grid[-1].text for panel in panels] == ["0.4", "0.4"]
    first = panels[0]
    assert len(first.before) == len(first.after) == len(first.links) == 6
    assert all(after.y > before.y for before, after in first.links)  # lower on the page: a smaller error
    assert charts.error_panels(fixtures.layer_drop()) == []


def test_figures_of_a_column_have_one_precision() -> None:
    assert fmt.numbers([13.746, 15.2, None]) == ["13.75", "15.20", "–"]
    assert fmt.numbers([0.0989, 3.232, 0.0]) == ["0.099", "3.232", "0.000"]
    assert fmt.numbers([506.6, 1099.4]) == ["507", "1,099"]
    assert fmt.numbers([0.0003, 12.0]) == ["0.0003", "12.0000"]
    assert fmt.numbers([0.001, 0.001]) == ["0.001", "0.001"]
    assert fmt.numbers([None]) == ["–"]

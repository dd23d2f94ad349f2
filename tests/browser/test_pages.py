"""The pages in a real browser: they fit the screen, can be seen and reached, and nothing in them fails.

Screenshots go to out/pages, to be looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.browser import looks
from tests.browser.made import NAMES, ROOT, pages

WIDTHS = (390, 768, 1280)
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NEEDS = "needs the extra 'browser': pip install -e '.[browser]'"


class Shown(NamedTuple):
    """A page in the browser, and what its console has said."""

    name: str
    page: Any
    said: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason=NEEDS)
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium in the PATH: apt-get install chromium-headless-shell")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program)
        yield running
        running.close()


@pytest.fixture(scope="module")
def made(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(
    scope="module", params=[(name, scheme) for name in NAMES for scheme in ("light", "dark")], ids="-".join
)
def shown(request: pytest.FixtureRequest, browser: Any, made: dict[str, Path]) -> Iterator[Shown]:
    name, scheme = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": WIDTHS[-1], "height": 900})
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith("file:") or said.append(f"asked for {asked.url}"))
    page.goto(made[name].as_uri())
    yield Shown(f"{name}-{scheme}", page, said)
    context.close()


def test_it_fits_every_screen(shown: Shown) -> None:
    (ROOT / "out" / "pages").mkdir(parents=True, exist_ok=True)
    for state in ("as it opens", "all open"):
        if state == "all open":
            shown.page.evaluate(looks.OPEN_ALL)
        for width in WIDTHS:
            shown.page.set_viewport_size({"width": width, "height": 900})
            assert shown.page.evaluate(looks.FITS) == [], f"{state}, {width} pixels"
            if state == "as it opens":
                shown.page.screenshot(path=ROOT / "out" / "pages" / f"{shown.name}-{width}.png", full_page=True)
    assert shown.said == []


def test_every_picture_can_be_seen(shown: Shown) -> None:
    shown.page.evaluate(looks.OPEN_ALL)
    assert shown.page.evaluate(looks.SEEN) == []


def test_the_keyboard_reaches_everything(shown: Shown) -> None:
    shown.page.evaluate(looks.OPEN_ALL)
    wanted = set(map(str, range(shown.page.evaluate(looks.NUMBER))))
    reached: set[str] = set()
    for _ in range(2 * len(wanted) + 10):
        if reached == wanted:
            break
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate(looks.STOP) or "")
        reached.discard("")
    assert reached == wanted


SORT = """() => {
  const table = document.querySelector('table.sorts'), head = table.tHead.rows[0].cells[3];
  const values = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[3].textContent));
  const found = [2, 1].map(() => { head.querySelector('button').click(); return [head.ariaSort, values()]; });
  return found;
}"""


def test_tables_sort_both_ways(shown: Shown) -> None:
    if not shown.name.startswith("report-32"):
        pytest.skip("one page is enough")
    (down, falling), (up, rising) = shown.page.evaluate(SORT)
    assert (down, up) == ("descending", "ascending")
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    assert falling[0] > falling[-1]


def test_axe_finds_nothing_serious(shown: Shown) -> None:
    package = pytest.importorskip("axe_playwright_python", reason=NEEDS)
    if shown.name.startswith("report-32"):
        pytest.skip("the same page as 'report', of which axe would look at ten times as many cells")
    shown.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    shown.page.evaluate(looks.OPEN_ALL)
    shown.page.evaluate((resources.files(package.__name__) / "axe.min.js").read_text(encoding="utf-8"))
    rules = ["color-contrast"] if shown.name.endswith("dark") else None  # the rest is the same as in light
    how = {"resultTypes": ["violations"], "iframes": False, **({"runOnly": rules} if rules else {})}
    found = shown.page.evaluate("how => axe.run(document, how)", how)["violations"]
    serious = [
        f"{rule['id']}: {node['html'][:120]} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]
    assert not serious

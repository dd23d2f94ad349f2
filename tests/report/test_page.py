"""The page renders from any report, fetches nothing, escapes everything, and holds the numbers."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from secateur.report.html import page
from tests.report import fixtures
from tests.report.html_reader import Reader


@pytest.fixture(params=fixtures.ALL, ids=str)
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return fixtures.ALL[request.param]()


def test_needs_no_network(report: dict[str, Any]) -> None:
    html = page.render(report)
    read = Reader(html)
    anchors = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    for tag, attributes in read.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed", "base", "use"}
        if tag == "a":  # leads to a heading of the page
            assert str(attributes.pop("href"))[1:] in anchors
        fetched = {"src", "href", "srcset", "data", "action", "xlink:href", "poster"} & set(attributes)
        assert not fetched, f"<{tag}> has {fetched}"
        assert not any(name.startswith("on") for name in attributes)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in html
    assert not re.search(r"url\(|@import|https?://", html)


def test_well_formed_and_without_loose_ends(report: dict[str, Any]) -> None:
    read = Reader(page.render(report))
    assert read.tags[0][0] == "html"
    for word in ("None", "nan", "Undefined", "{{", "%}", "{'"):
        assert word not in read.text


def test_stays_small(report: dict[str, Any]) -> None:
    assert len(page.render(report)) < 250_000


def test_stays_small_with_the_evidence_of_32_layers() -> None:
    report = fixtures.structured()
    report["sites"] = [
        site | {"layer": layer, "name": f"layers.{layer}.{site['kind']}"}
        for layer in range(32)
        for site in report["sites"][:2]
    ]
    html = page.render(report, fixtures.evidence(32))
    assert html.count('<svg class="matrix"') == 24
    assert len(html.encode()) < 300_000
    assert "is known by 1 (50.0%), 2 (25.0%)" in html  # for a mouse
    assert html.count("1 (50.0%), 2 (25.0%)") > html.count("is known by 1 (50.0%), 2 (25.0%)")  # and in words


def test_a_models_words_are_escaped() -> None:
    html = page.render(fixtures.structured())
    assert html.count("<script") == 1  # the page's own
    assert "&lt;/div&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;" in html
    assert "</div><script>alert('x')</script> & <b>bold</b>" in Reader(html).text


@pytest.mark.parametrize("key", ["command", "recipe_yaml", "created"])
def test_every_other_text_is_escaped_too(key: str) -> None:
    assert "<img" not in page.render(fixtures.structured() | {key: '"><img src=x>'})


def test_names_from_files_are_escaped() -> None:
    report = fixtures.structured()
    bad = "<img src=x>"
    report["model"]["path"] = report["evaluation"]["data"] = report["calibration"]["source"] = bad
    report["versions"][bad] = report["device"]["name"] = bad
    report["warnings"] = [bad]
    for site in report["sites"]:
        site["kind"] = site["name"] = site["method"] = bad
    assert "<img" not in page.render(report)


def test_holds_the_numbers_of_a_structured_cut() -> None:
    text = Reader(page.render(fixtures.structured())).text
    for number in ("4.751", "8.893", "1.87×", "3,147,264", "2,554,368", "−18.8%", "0.6312", "5.12 MB", "40.9 s"):
        assert number in text
    assert "25.0% of FFN channels (obs) in 6 layers; 33.3% of query heads (obs) in 6 layers" in text
    assert "layer 3, FFN channels: 25.0% removed, 384 of 512 kept" in text
    assert "requested FFN channels 25.0%, Query heads 33.0%" in text
    assert "0.1 1 layers.3.channel" in text  # the one solve whose damping rose
    assert "Damping rose to 0.1" in text
    assert "tiny-stories" in text
    assert "models/tiny --method obs" in text


def test_holds_the_numbers_of_an_unstructured_cut() -> None:
    text = Reader(page.render(fixtures.unstructured())).text
    assert "Non-zero parameters" in text
    assert "layer 31, mlp.down_proj:" in text
    assert text.count("removed, ") >= 224  # one hint per Linear
    assert "stored as zeros" in text
    assert "Damping was 0.01 in all 224 solves" in text
    assert "stdlib-prose 9.12 12.34 1.35×" in text


def test_a_dropped_layer_is_drawn_whole() -> None:
    html = page.render(fixtures.layer_drop())
    assert html.count(">cut</text>") == 2
    assert html.count('class="cut"') == 2
    text = Reader(html).text
    assert "2 of 12 layers (leave-one-out): 7, 8" in text
    assert "modelling file" in text
    assert "saved as SecateurForCausalLM; the original was GPT2LMHeadModel" in text


def test_contents_are_the_headings() -> None:
    for made in (fixtures.structured, fixtures.layer_drop):
        html = page.render(made())
        headings = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', html)
        assert re.findall(r'<li><a href="#(.*?)">(.*?)</a>', html) == headings
        assert len({anchor for anchor, _ in headings}) == len(headings) > 4
        assert html.count("<h2") == len(headings)


def test_a_partial_run_says_what_is_missing() -> None:
    text = Reader(page.render(fixtures.partial())).text
    assert "The pruned model was not evaluated in this run." in text
    assert "method: wanda" in text  # the recipe, though its YAML was not kept
    assert "Before and after" in text
    assert "inf" in text


def test_any_single_key_may_be_missing_or_none() -> None:
    whole = fixtures.structured()
    for key in whole:
        Reader(page.render({name: value for name, value in whole.items() if name != key}))
        Reader(page.render(whole | {key: None}))


def test_any_key_of_a_part_may_be_missing() -> None:
    whole = fixtures.structured()
    parts = [key for key, value in whole.items() if isinstance(value, dict)]
    for part in parts:
        for key in whole[part]:
            Reader(page.render(whole | {part: {k: v for k, v in whole[part].items() if k != key}}))
    for part in ("sites", "samples", "stages", "reconstruction"):
        for key in whole[part][0]:
            cut = [{k: v for k, v in item.items() if k != key} for item in whole[part]]
            Reader(page.render(whole | {part: cut}))


def test_experts_are_added_up_by_layer() -> None:
    report = fixtures.unstructured(layers=4)
    report["sites"] = [
        site | {"name": f"layers.{site['layer']}.mlp.experts.{e}.down_proj", "linear": f"mlp.experts.{e}.down_proj"}
        for site in report["sites"]
        if site["linear"] == "mlp.down_proj"
        for e in range(300)
    ]
    html = page.render(report)
    assert html.count('class="kept"') == 4
    assert "mlp.experts.*.down_proj" in html
    assert "1,200 sites added up by layer" in html
    assert len(html) < 50_000


def test_written_whole_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = page.write(fixtures.structured(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == page.render(fixtures.structured())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "report.html"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(report: object, evidence: object = None) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(page, "render", fails)
    with pytest.raises(OSError, match="no space"):
        page.write({}, tmp_path)
    assert not list(tmp_path.iterdir())

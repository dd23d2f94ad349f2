"""Why units went: written by a real run, read back by the command and the function, drawn on the page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.errors import InputError
from secateur.pipeline.results.evidence import EVIDENCE
from secateur.report import numbers as fmt
from secateur.report.terminal.explained import print_explanation
from tests.report.html_reader import Reader

VALUES: dict[str, Any] = {
    "sites": "channel,query_head",
    "sparsity": {"channel": 0.25, "query_head": 0.5},
    "samples": 16,
    "length": 64,
    "evaluate": "none",
    "speed": False,
}


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("explain") / "out"
    values = VALUES | {
        "model": shared / "models" / "stories260K",
        "calibrate": shared / "data" / "tinystories" / "eval.jsonl",
        "method": "mi",
    }
    secateur.prune(secateur.make_recipe(values), out, quiet=True)
    return out


def test_every_removed_unit_has_its_evidence(done: Path) -> None:
    evidence = json.loads((done / EVIDENCE).read_text(encoding="utf-8"))
    plan = secateur.Plan.read(done / "plan.json")
    assert len(evidence["sites"]) == 10
    for site in evidence["sites"]:
        entry = plan.entry(site["site"])
        assert entry is not None
        assert entry.keep is not None
        gone = sorted(set(range(entry.units)) - set(entry.keep))
        assert [unit["unit"] for unit in site["removed"]] == gone
        for unit in site["removed"]:
            assert unit["bits"] >= 0
            assert 0 <= unit["restored"] <= 1
            assert 0 <= unit["energy"] < 1
            assert {predictor for predictor, _ in unit["carriers"]} <= set(entry.keep)
            shares = [share for _, share in unit["carriers"]]
            assert shares == sorted(shares, reverse=True)
            assert len(unit["fired"]) == 5
            sizes = [abs(fired["value"]) for fired in unit["fired"]]
            assert sizes == sorted(sizes, reverse=True)
            assert all(fired["token"] for fired in unit["fired"])
    assert EVIDENCE in json.loads((done / "report.json").read_text(encoding="utf-8"))["files"]


def test_the_tokens_are_those_at_which_the_unit_is_largest(done: Path, shared: Path) -> None:
    """Seen anew in the dense model, whose first block nothing was cut before."""
    streamed = secateur.open_for_walk(shared / "models" / "stories260K")
    text = str(shared / "data" / "tinystories" / "eval.jsonl")
    calibration = secateur.calibrate(streamed.checkpoint, text, 16, 64)
    evidence = json.loads((done / EVIDENCE).read_text(encoding="utf-8"))
    site = next(s for s in evidence["sites"] if s["site"] == "layers.0.query_head")
    seen: list[torch.Tensor] = []
    walk = secateur.walk(streamed, calibration.tokens)
    block = next(walk)
    consumer = block.layer.get_submodule("self_attn.o_proj")
    handle = consumer.register_forward_pre_hook(lambda m, args: seen.append(args[0].flatten(0, 1)))
    for i in range(len(block.stream.batches)):
        block.stream.forward(block.layer, 0, i, streamed.device)
    handle.remove()
    x = torch.cat(seen).detach()
    for unit in site["removed"]:
        own = x[:, unit["unit"] * 8 : (unit["unit"] + 1) * 8].abs().amax(1)
        assert abs(unit["fired"][0]["value"]) == pytest.approx(own.max().item(), rel=1e-3)
        ids = calibration.tokens.flatten()[int(own.argmax())]
        token = streamed.checkpoint.tokenizer().decode([int(ids)])
        assert unit["fired"][0]["token"].strip() == token.strip()


def test_the_command_answers(done: Path) -> None:
    everything = call(str(done))
    assert len(everything["sites"]) == 10
    assert "removed" not in everything["sites"][0]
    layer = call(str(done), "--layer", "2")
    assert {site["site"] for site in layer["sites"]} == {"layers.2.channel", "layers.2.query_head"}
    unit = layer["sites"][1]["removed"][0]
    one = call(str(done), "--layer", "2", "--unit", str(unit["unit"]), "--site", "channel")["unit"]
    assert one["bits"] == unit["bits"]
    predictor = unit["carriers"][0][0]
    kept = call(str(done), "--layer", "2", "--unit", str(predictor), "--site", "channel")["unit"]
    assert kept["kept"]
    assert unit["unit"] in [entry[0] for entry in kept["carries"]]
    for arguments in ([], ["--layer", "2"], ["--layer", "2", "--unit", str(unit["unit"]), "--site", "channel"]):
        shown = CliRunner().invoke(app, ["explain", str(done), *arguments])
        assert shown.exit_code == 0, shown.output
        assert "bits" in shown.output


def test_numbers_are_whole_in_a_narrow_window(done: Path) -> None:
    shown = io.StringIO()
    found = secateur.explain(done, layer=2)
    print_explanation(found, Console(file=shown, width=80))
    for site in found["sites"]:
        every = fmt.numbers(unit["bits"] for unit in site["removed"])
        for bits, unit in zip(every, site["removed"], strict=True):
            assert f"  {bits}  " in shown.getvalue()
            assert f"{fmt.percent(unit['energy'])}  {fmt.percent(unit['restored'])}  " in shown.getvalue()


def call(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["explain", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_the_page_has_a_section_and_a_picture_of_each_site(done: Path) -> None:
    html = (done / "report.html").read_text(encoding="utf-8")
    Reader(html)
    assert "Why these units" in html
    assert len(re.findall(r'<svg class="matrix"', html)) == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layer": 9}, "layers with cuts: 0, 1, 2, 3, 4"),
        ({"layer": 1, "unit": 3}, "name one with --site"),
        ({"layer": 1, "unit": 999, "site": "channel"}, "units 0 to 171"),
        ({"unit": 3}, "add --layer"),
    ],
)
def test_what_is_not_there_is_said(done: Path, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        secateur.explain(done, **arguments)


def test_folders_without_evidence(done: Path, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        secateur.explain(tmp_path)
    values = VALUES | {
        "model": shared / "models" / "stories260K",
        "calibrate": shared / "data" / "tinystories" / "eval.jsonl",
        "explain": False,
    }
    secateur.prune(secateur.make_recipe(values), tmp_path / "out", quiet=True, dry_run=True)
    assert not (tmp_path / "out" / EVIDENCE).exists()
    with pytest.raises(InputError, match="without --no-explain"):
        secateur.explain(tmp_path / "out")


def test_layers_and_weights_say_what_the_report_knows(shared: Path, tmp_path: Path) -> None:
    values = VALUES | {
        "model": shared / "models" / "stories260K",
        "calibrate": shared / "data" / "tinystories" / "eval.jsonl",
        "sites": "weight,layer",
        "method": "wanda,block_influence",
        "sparsity": 0.2,
    }
    secateur.prune(secateur.make_recipe(values), tmp_path / "out", quiet=True, dry_run=True)
    found = secateur.explain(tmp_path / "out")
    assert len(found["layers"]) == 5
    assert len(found["linears"]) == 28
    assert CliRunner().invoke(app, ["explain", str(tmp_path / "out")]).exit_code == 0

"""secateur bench: every form is measured, what isn't is said, and the sentences follow the figures."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import secateur
from secateur.benchmarking import turns
from secateur.benchmarking.bench import _forms
from secateur.benchmarking.energy import Energy
from secateur.benchmarking.findings import decode_speeds, headline, judge, verdicts
from secateur.benchmarking.machine import machine
from secateur.cli import app as cli
from secateur.errors import InputError
from secateur.report.html.bench import bench_page, charts, left_out, print_bench
from secateur.system.monitor import Monitor
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    dense = save_tiny(folder / "dense", context=128)
    return dense, prune_copy(dense, folder / "half")


@pytest.fixture(scope="module")
def found(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the command line prints as JSON, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("bench") / "out"
    dense, half = models
    words = ["bench", half, "--against", dense, "--batches", "1,2", "--contexts", "16,999", "--tokens", 4]
    words += ["--no-compile", "--threads", 1, "--json", "--out", out]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    assert not ended.value.code
    return json.loads(printed.getvalue()), out


def test_it_takes_as_many_steps_as_it_announces(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[str, tuple[int, list[str]]] = {}

    @contextlib.contextmanager
    def stage(monitor: Monitor, name: str, total: int) -> Iterator[Callable[[str], None]]:
        stages[name] = (total, [])
        yield stages[name][1].append

    monkeypatch.setattr(Monitor, "stage", stage)
    report = secateur.bench(models[0], batches=(1, 2), contexts=(16,), tokens=4, compile=False, threads=1, quiet=True)
    total, told = stages["bench"]
    assert told[:4] == [told[0].replace("loaded", what) for what in ("loaded", "batch 1", "batch 2", "done")]
    assert len(told) == total
    # A model without zeros has no compressed form.
    assert [form["name"] for form in report["forms"]] == ["model, eager"]
    assert any("no compressed form: no matrix has enough zeros" in note for note in report["notes"])


def test_every_form_has_its_figures(found: tuple[dict[str, Any], Path]) -> None:
    report, out = found
    assert [form["name"] for form in report["forms"]] == ["dense, eager", "pruned, eager", "compressed, eager"]
    for form in report["forms"]:
        assert "error" not in form
        assert form["load_seconds"] > 0
        assert form["peak_memory_bytes"] > form["memory_before_model_bytes"] > 0
        measured = [row for row in form["rows"] if "skipped" not in row]
        assert [(row["batch"], row["context"]) for row in measured] == [(1, 16), (2, 16)]
        for row in measured:
            assert row["decode_tokens_per_s"] == pytest.approx(row["batch"] / row["seconds_a_step"])
            assert row["prefill_tokens_per_s"] == pytest.approx(16 * row["batch"] / row["first_token_seconds"])
            assert row["fastest_segment"] <= row["seconds_a_step"] <= row["slowest_segment"]
    dense, pruned, compressed = report["forms"]
    assert compressed["bytes_on_disk"] < pruned["bytes_on_disk"] == dense["bytes_on_disk"]
    assert compressed["runtime"]["shapes"]
    assert left_out(report["forms"]) == [
        f"batch {n}, context 999 left out: 999 + 16 tokens are more than the model's context of 128" for n in (1, 2)
    ]
    assert json.loads((out / "bench.json").read_text()) == report


def test_the_page_has_a_bar_for_each_figure_and_fetches_nothing(found: tuple[dict[str, Any], Path]) -> None:
    report, out = found
    text = (out / "bench.html").read_text()
    assert text == bench_page(report)
    drawn = charts(report["forms"])
    assert [len(chart.strokes) for chart in drawn] == [3, 3]
    for chart, batch in zip(drawn, (1, 2), strict=True):  # bars begin at zero, so their lengths are as the figures
        speeds = decode_speeds(report["forms"], batch, 16)
        ratio = {stroke.width / speeds[stroke.label] for stroke in chart.strokes}
        assert max(ratio) == pytest.approx(min(ratio), rel=0.02)
    assert "default-src 'none'" in text
    assert text.count("<script") == 1
    assert "http" not in text.replace("http-equiv", "")


def test_names_are_escaped(found: tuple[dict[str, Any], Path]) -> None:
    assert "<b>x</b>" not in bench_page(found[0] | {"model": "<b>x</b>"})


@pytest.mark.slow
def test_compiled_forms_are_measured_too(models: tuple[Path, Path]) -> None:
    report = secateur.bench(models[1], batches=(1,), contexts=(16,), tokens=4, threads=1, quiet=True)
    names = [form["name"] for form in report["forms"]]
    assert names == [
        *("model, eager", "model, torch.compile", "model, torch.compile, frozen"),
        *("compressed, eager", "compressed, torch.compile"),
    ]
    assert all(form["rows"][0]["decode_tokens_per_s"] > 0 for form in report["forms"])


def test_the_table_has_every_form(found: tuple[dict[str, Any], Path]) -> None:
    console = Console(file=io.StringIO(), width=200, markup=False)
    print_bench(found[0], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("compressed, eager ") >= 4  # two batches, two sentences
    assert found[0]["headline"] in text
    assert text.splitlines()[0].startswith(("warning: the machine was busy", found[0]["headline"]))
    assert "decode tok/s" in text
    assert "× dense, eager" in text
    assert "no difference measured" in text or "faster" in text or "slower" in text
    assert "left out: 999 + 16 tokens" in text


def test_a_compressed_model_gets_its_dense_twin(models: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small"
    secateur.compress(models[1], small, quiet=True)
    forms = _forms(small, None, tmp_path, True, [])
    assert [(form.name, form.runtime) for form in forms] == [
        *(("model, eager", "dense"), ("model, torch.compile", "dense"), ("model, torch.compile, frozen", "dense")),
        *(("compressed, eager", "auto"), ("compressed, torch.compile", "auto")),
    ]
    assert [form.folder for form in forms] == [tmp_path / "dense"] * 3 + [small] * 2
    assert (tmp_path / "dense" / "model.safetensors").is_file()


@pytest.mark.parametrize(("words", "message"), [
    (("--batches", "1,x"), "--batches 1,x: give whole numbers"),
    (("--contexts", "0"), "--contexts 0: give whole numbers"),
    (("--tokens", "1"), "at least 4 tokens"),
])  # fmt: skip
def test_wrong_numbers(
    models: tuple[Path, Path], words: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", str(models[0]), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_that_breaks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        secateur.bench(tmp_path / "nowhere", quiet=True)


def form(name: str, side: str, speed: float | None) -> dict[str, Any]:
    row = {"batch": 1, "context": 8, **({"skipped": "no"} if speed is None else {"decode_tokens_per_s": speed})}
    return {"name": name, "side": side, "rows": [row]}


@pytest.mark.parametrize(("speed", "words"), [
    (21.0, ("2.10 times as fast as dense, eager: faster", "the fastest of them, 1.40 times as fast as")),
    (15.1, ("1.51 times", "the fastest of them, as fast as dense, compiled: no difference measured")),
    (10.1, ("as fast as dense, eager: no difference measured", ": SLOWER")),
    (5.0, ("0.50 times as fast as dense, eager: SLOWER",)),
])  # fmt: skip
def test_verdicts_follow_the_figures(speed: float, words: tuple[str, ...]) -> None:
    forms = [
        form("dense, eager", "dense", 10.0),
        form("dense, compiled", "dense", 15.0),
        form("packed", "compressed", speed),
    ]
    said = verdicts(forms)
    assert len(said) == 1
    assert all(word in said[0] for word in words)


@pytest.mark.parametrize(("seconds", "words"), [
    (1.0, "; its first token takes 0.50 of the time"),
    (2.02, "; its first token: no difference measured"),
    (3.0, "; its first token takes 1.50 of the time, LONGER"),
])  # fmt: skip
def test_verdicts_say_how_long_the_first_token_takes(seconds: float, words: str) -> None:
    forms = [form("dense, eager", "dense", 10.0), form("packed", "compressed", 20.0)]
    for measured, first in zip(forms, (2.0, seconds), strict=True):
        measured["rows"][0]["first_token_seconds"] = first
    assert verdicts(forms)[0].endswith(": faster" + words)


def test_what_overlaps_is_no_difference_and_every_row_has_its_verdict() -> None:
    forms = [form("dense, eager", "dense", 10.0), form("packed", "compressed", 25.0)]
    for one, found in zip(forms, ([5.0, 14.0], [12.0, 30.0]), strict=True):
        one["rows"][0]["decode_range"] = found
    assert verdicts(forms) == ["batch 1, context 8: packed decodes as fast as dense, eager: no difference measured"]
    judge(forms)
    assert "verdict" not in forms[0]["rows"][0]
    assert forms[1]["rows"][0]["verdict"] == "no difference measured"
    assert forms[1]["rows"][0]["against_first"] == 2.5
    forms[1]["rows"][0]["decode_range"] = [20.0, 30.0]
    judge(forms)
    assert forms[1]["rows"][0]["verdict"] == "faster"
    assert (
        headline(forms)
        == "Packed decodes 2.50 times (1.43 to 6.00) as fast as dense, eager: faster (batch 1, context 8)"
    )
    assert headline(forms[:1]) == ""
    assert verdicts(forms)[0].endswith("2.50 times (1.43 to 6.00) as fast as dense, eager: faster")


def test_forms_that_dont_fit_together_are_measured_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(turns, "bytes_on_disk", lambda folder: 10**9)
    monkeypatch.setattr(turns, "_in_turns", lambda forms, *_: calls.append(len(forms)) or [{} for _ in forms])
    both = [turns.Form("dense", Path("a"), "eager"), turns.Form("model", Path("b"), "eager")]
    for free in (10**10, 10**9):
        monkeypatch.setattr(turns.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert turns.measure_forms(both, {}, lambda text: None) == [{}, {}]
    assert calls == [2, 1, 1]


def test_verdicts_without_figures() -> None:
    assert verdicts([form("dense, eager", "dense", None)]) == []
    broken = form("packed", "compressed", None) | {"rows": [], "error": "it broke"}
    assert verdicts([form("dense, eager", "dense", 1.0), broken]) == ["packed wasn't measured: it broke"]


def zone(root: Path, name: str, value: int, size: int = 1000) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "energy_uj").write_text(f"{value}\n")
    (root / name / "max_energy_range_uj").write_text(f"{size}\n")
    return root / name / "energy_uj"


def test_energy_adds_up_packages_and_mends_counters_that_started_over(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 900), zone(tmp_path, "intel-rapl:1", 10)
    part = zone(tmp_path, "intel-rapl:0:0", 5)
    energy = Energy(tmp_path)
    assert energy.why_not == ""
    begin = energy.read()
    first.write_text("100"), second.write_text("60"), part.write_text("999")
    assert energy.joules(begin, energy.read()) == pytest.approx(250e-6)


def test_energy_says_why_there_is_none(tmp_path: Path) -> None:
    energy = Energy(tmp_path)
    assert "no energy counters" in energy.why_not
    assert energy.joules(energy.read(), energy.read()) is None
    zone(tmp_path, "intel-rapl:0", 1).write_text("not a number")
    assert "can't be read" in Energy(tmp_path).why_not


def test_the_machine_is_described_in_full() -> None:
    facts = machine(3)
    assert facts["threads"] == 3
    assert facts["packages"]["torch"]
    assert facts["memory_bytes"] > 0

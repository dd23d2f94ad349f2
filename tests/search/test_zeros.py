"""Zeros of single weights beside everything else that may go: bytes are those of the files without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.allocation.job import Job
from secateur.calibration.activations import MemoryBudget
from secateur.calibration.walk import walk
from secateur.config.plan import Plan
from secateur.config.searching import SearchSettings, make_search
from secateur.cut.weights import cut_weights
from secateur.errors import InputError
from secateur.evaluation.speed import Trial
from secateur.methods import METHODS
from secateur.model.streamed import StreamedModel
from secateur.pipeline.inputs import Inputs
from secateur.report.terminal.search import looked_at as looked
from secateur.runtime.in_memory import without_zeros
from secateur.runtime.linear import PackedLinear
from secateur.search import latency
from secateur.search.form import Form
from secateur.search.forms import best_form
from secateur.search.found import Found, TimedCandidate
from secateur.search.latency import Seconds
from secateur.search.levels import put_together, write_pieces
from secateur.search.prepared import job_of, opened
from secateur.search.refine import Tried
from secateur.search.search import search
from secateur.search.space import Candidate, Piece, space_of
from secateur.search.trial import Against, Trials, evaluated, fitted_on
from secateur.search.wanted import measures_of
from secateur.search.zero_forms import zero_forms
from secateur.search.zeros import Zeros, zeros_of
from secateur.system.monitor import Monitor
from tests.runtime.pruned import prune_copy
from tests.search.clock import Clock
from tests.search.interrupted import interrupted
from tests.search.text import write_text
from tests.small import save_tiny

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SearchSettings:
    folder = tmp_path_factory.mktemp("zeros")
    save_tiny(folder / "model", context=64, num_hidden_layers=3, intermediate_size=192, **SHAPE)
    write_text(folder, 100)
    told = {"model": str(folder / "model"), "calibrate": str(folder / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"evaluate": "none", "speed": False, "general_text": 0, "explain": False, "device": "cpu", "trials": 8}
    told |= {"sites": "channel,query_head", "quality": "fast", "refit": False, "zeros": "0.25,0.5,2:4"}
    return make_search({**told, "want": "size=0.7x"})


def other(settings: SearchSettings, **changes: Any) -> SearchSettings:
    return make_search({**settings.model_dump(exclude_unset=True), **changes})


def test_zeros_and_units_are_found_together_made_and_left_out(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = interrupted(settings, tmp_path / "out", monkeypatch)
    assert [form["type"] for form in found["formats"]] == ["no zeros", "zeros 0.25", "zeros 0.5", "zeros 2:4"]
    [form] = (form for form in found["formats"] if form["chosen"])
    [wish], [chosen] = found["wishes"], [one for one in found["candidates"] if one["chosen"]]
    [file] = (tmp_path / "out" / "export").glob("*.safetensors")
    assert form["best"] == chosen["measured"]
    assert wish["held"]
    assert wish["got"] == sum(path.stat().st_size for path in file.parent.glob("*.safetensors"))
    assert chosen["takes"]["size"] == pytest.approx(file.stat().st_size, rel=0.02)

    # What is stored without its zeros is the model beside it; the plan says what went.
    plan = Plan.read(tmp_path / "out" / "plan.json")
    weights = [entry for entry in plan.entries if entry.kind == "weight"]
    assert {entry.pattern for entry in weights} == {"2:4" if "2:4" in form["type"] else "free"}
    assert len(weights) == 3 * 7
    ids = torch.arange(20)[None]
    stored, beside = (secateur.load(tmp_path / "out" / name, device="cpu") for name in ("export", ""))
    torch.testing.assert_close(stored(ids).logits, beside(ids).logits, atol=1e-5, rtol=1e-5)
    for entry in weights:
        weight = beside.get_parameter(f"model.{entry.site}.weight")
        assert float((weight == 0).float().mean()) == pytest.approx(entry.sparsity, abs=0.02)
        assert weight.numel() == entry.units
    again = secateur.prune(secateur.load_recipe(tmp_path / "out" / "recipe.yaml"), tmp_path / "again", plan=plan)
    assert again["parameters"]["after"] == sum(p.numel() for p in beside.parameters())


def test_zeros_alone_may_be_all_that_goes(settings: SearchSettings, tmp_path: Path) -> None:
    easy = other(settings, want="size=0.75x", zeros="0.5", sites="query_head")
    found = search(easy, tmp_path / "out", quiet=True)
    [chosen] = (one for one in found["candidates"] if one["chosen"])
    assert chosen["pieces"] == []
    assert chosen["measured"] == found["formats"][1]["kl"]
    assert chosen["measured"] > 0
    assert found["wishes"][0]["held"]
    assert {entry.kind for entry in Plan.read(tmp_path / "out" / "plan.json").entries} == {"weight"}
    refused = {"size=0.01x": "with all gone that may go there are still", "size=1GB": "the model has .* already"}
    refused["size=0.7x,memory=1GB"] = "'memory=1GB': the model has"
    for want, said in refused.items():
        with pytest.raises(InputError, match=said):
            search(other(settings, want=want), tmp_path / "hard", quiet=True)
        assert not (tmp_path / "hard").exists()


def found_in(form: Form, kl: float, seconds: float, *pieces: Piece) -> Found:
    looked = TimedCandidate(pieces, Seconds(1.0, 1.0), Seconds(0.7, 1.0), Seconds(seconds, 1.0))
    tried = (Tried(pieces, kl, kl),)
    return Found(form.space, form.measures, {}, tried, pieces, (looked,))


def test_what_is_too_slow_gives_way_to_what_isnt_and_time_ends_the_forms(settings: SearchSettings) -> None:
    inputs, job, kinds = opened_job(settings)
    space = space_of(job, kinds)
    forms = zero_forms(["0.3", "0.4", "0.5", "0.6"], measures_of(space, inputs.streamed), job, space)
    wishes, piece = other(settings, want="latency=0.7x").wishes, Piece(0, "channel", 1)
    # KL beside what the form loses alone, seconds, and what goes: more zeros than suffice aren't looked at.
    outcomes: dict[str, tuple[float, float, Candidate]] = {
        "no zeros": (9.0, 0.7, (piece,)),
        "zeros 0.3": (1.0, 0.9, (piece,)),
        "zeros 0.4": (2.0, 0.72, (piece,)),
        "zeros 0.5": (3.0, 0.6, ()),
    }

    def best(over: Callable[[], bool]) -> Found:
        def within(form: Form, _: Any) -> Found:
            kl, seconds, pieces = outcomes[form.name]
            return found_in(form, kl, seconds, *pieces)

        return best_form(wishes, forms, lambda form: nullcontext(lambda some: [0.0 for _ in some]), within, over)

    found = best(lambda: False)
    assert found.form is not None
    assert found.form.name == "zeros 0.4"
    assert [one.form.name for one in found.others if one.form] == ["zeros 0.5"]
    assert [fact["kl"] for fact in found.formats] == [0.0, 0.0, 0.0, 0.0, None]
    early = best(lambda: True)
    assert early.form is not None
    assert early.form.name == "no zeros"
    assert early.others == ()


def test_layers_that_are_protected_get_no_zeros(settings: SearchSettings) -> None:
    inputs, job, kinds = opened_job(other(settings, protect="0"))
    space = space_of(job, kinds)
    assert latency.sparse_places(job, ()) == [1, 2]
    assert latency.sparse_places(job, (Piece(1, "layer", 1),)) == [1]
    few, all_ = (
        next(f for f in zero_forms(["0.5"], measures_of(space, inputs.streamed), j, space) if f.zeros)
        for j in (job, opened_job(settings)[1])
    )
    saved = [form.measures.gone["size"] for form in (few, all_)]
    assert saved[0] == pytest.approx(2 / 3 * saved[1], rel=0.01)


def test_what_is_best_as_a_model_is_the_result(settings: SearchSettings, tmp_path: Path) -> None:
    told = other(settings, evaluate=settings.calibrate, trials=6, want="size=0.65x", zeros="0.25,0.5,0.75")
    found = search(told, tmp_path / "out", quiet=True)
    made = {form["type"]: form["perplexity"] for form in found["formats"] if form["perplexity"] is not None}
    [form] = (form for form in found["formats"] if form["chosen"])
    assert found["perplexity"] is not None
    assert len(made) > 1
    assert made[form["type"]] == min(made.values()) == pytest.approx(found["perplexity"]["after"])
    least = min(one["best"] for one in found["formats"] if one["best"] is not None)
    assert next(iter(made)) == next(one["type"] for one in found["formats"] if one["best"] == least)
    lines = [line for line in looked(found) if "after the repair" in line]
    assert len(lines) == len(made)
    assert [line.endswith(", chosen") for line in lines] == [name == form["type"] for name in made]


def test_seconds_are_those_of_models_without_their_zeros(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that knows the shapes, and half of the zeros."""

    def trial(job: Any, shape: Any, zeros: Zeros | None = None, *_: Any) -> Clock:
        value = sum(p.numel() for layer in shape.layers for p in layer.parameters()) / 1000
        return Clock(value * (1 if zeros is None else 1 - 0.5 * zeros.share))

    monkeypatch.setattr(latency, "_trial", trial)
    monkeypatch.setattr(latency, "enough", lambda runs, seconds: runs >= 1)
    found = search(other(settings, want="latency=0.7x", sites="query_head"), tmp_path / "out", quiet=True)
    [wish], [form] = found["wishes"], [one for one in found["formats"] if one["chosen"]]
    assert wish["held"]
    assert form["type"] != "no zeros"
    share = zeros_of(form["type"].removeprefix("zeros ")).share
    assert wish["got"] == pytest.approx(found["timed"][-1]["measured"]["latency"])
    [chosen] = (one for one in found["candidates"] if one["chosen"])
    assert chosen["takes"]["latency"] == pytest.approx(wish["got"], rel=0.05)
    assert chosen["pieces"]
    assert wish["got"] is not None
    assert wish["got"] < found["whole"]["latency"] * (1 - 0.5 * share)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["export"]["to"] == "compressed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_memory_runs_as_its_compressed_folder(tmp_path: Path, dtype: str) -> None:
    folder = prune_copy(save_tiny(tmp_path / "tiny"), tmp_path / "half")
    secateur.compress(folder, tmp_path / "packed", quiet=True)
    model, stored = (secateur.load(tmp_path / name, device="cpu", dtype=dtype) for name in ("half", "packed"))
    names = [
        name
        for name, module in model.named_modules()
        if name.startswith("model.layers") and hasattr(module, "weight")
    ]
    without_zeros(model, names, torch.float32)
    ids = torch.arange(16)[None]
    torch.testing.assert_close(
        model(ids).logits, stored(ids).logits, atol=2e-2 if dtype == "bfloat16" else 1e-5, rtol=0
    )
    packed, also = ([m.matrix for m in one.modules() if isinstance(m, PackedLinear)] for one in (model, stored))
    assert [(m.values.dtype, m.nbytes) for m in packed] == [(m.values.dtype, m.nbytes) for m in also]
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds == {type(module).__name__ for module in stored.modules()}


def opened_job(settings: SearchSettings) -> tuple[Inputs, Job, frozenset[str]]:
    inputs, kinds = opened(settings, CPU, Monitor(CPU, True))
    return inputs, job_of(inputs, Monitor(CPU, True), MemoryBudget(None), Path()), kinds


def logits(streamed: StreamedModel, ids: torch.Tensor, layer_of: Callable[[int], nn.Module]) -> torch.Tensor:
    hidden, calls = streamed.embed(ids)
    for index in range(streamed.checkpoint.layers):
        hidden = calls[index](layer_of(index), hidden)
    return streamed.logits(ids, hidden).double().log_softmax(-1)


@torch.no_grad()
def test_a_candidate_is_measured_with_zeros_that_suit_what_is_left_of_it(
    settings: SearchSettings, tmp_path: Path
) -> None:
    """Beside a walk by hand: zeros solved for what leaves the layers before it, on other text than is measured."""
    inputs, job, kinds = opened_job(other(settings, samples=300))
    space, tokens = space_of(job, kinds), inputs.calibration.tokens
    assert not {*map(tuple, fitted_on(tokens).tolist())} & {*map(tuple, evaluated(tokens).tolist())}
    write_pieces(job, space, tmp_path / "levels")
    [form] = (form for form in zero_forms(["0.5"], measures_of(space, inputs.streamed), job, space) if form.zeros)
    assert form.zeros is not None
    pattern, candidate = form.zeros.pattern, (Piece(1, "channel", 3),)
    with Trials.of(job, tmp_path / "levels", tmp_path) as plain:
        against = Against(inputs.streamed, plain.before[-1])
        assert form.trials is not None
        with form.trials(tmp_path / "levels", tmp_path, against, lambda text: None) as trials:
            alone, cut = trials.evaluate([(), candidate])

    def solved(pieces: Candidate) -> dict[int, nn.Module]:
        layers = {}
        for block in walk(inputs.streamed, fitted_on(tokens)):
            own = block
            if any(piece.layer == block.index for piece in pieces):
                own = type(block)(
                    block.index,
                    put_together(job, tmp_path / "levels", block.index, pieces),
                    block.streamed,
                    block.stream,
                )
            for one in {id(own): own, id(block): block}.values():
                cut_weights(one, METHODS["sparsegpt"], pattern, lambda name: 0.5)
            layers[block.index] = own.layer
        return layers

    ids = evaluated(tokens)
    whole = logits(inputs.streamed, ids, inputs.streamed.load)
    for pieces, measured in (((), alone), (candidate, cut)):
        own = logits(inputs.streamed, ids, solved(pieces).__getitem__)
        assert measured == pytest.approx(float((whole.exp() * (whole - own)).sum(-1).mean()), rel=1e-3)
    assert cut != alone


def test_units_go_only_where_the_pattern_still_fits(settings: SearchSettings, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", context=64, num_hidden_layers=2, intermediate_size=48, **SHAPE)
    inputs, job, kinds = opened_job(other(settings, model=str(tmp_path / "model")))
    space = space_of(job, kinds)
    measures = measures_of(space, inputs.streamed)
    free, two = (partial(zero_forms, [told], measures, job, space)()[1] for told in ("0.5", "2:4"))
    assert free.space.saves == space.saves
    kept = {piece.level for piece in two.space.saves if piece.kind == "channel"}
    assert kept == {2, 4, 6}  # of 48 channels 36, 24 and 12 are left; others leave no multiple of 4
    assert {*two.measures.saves["size"]} == {*two.space.saves}
    for told, said in (
        ("3:7", "pattern 3:7 does not fit"),
        ("0.02", "zeros 0.02: leaving out so few saves no bytes"),
    ):
        with pytest.raises(InputError, match=said):
            zero_forms([told], measures, job, space)


def test_a_shape_is_timed_without_zeros_where_layers_get_some(
    settings: SearchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job, _ = opened_job(other(settings, protect="0"))
    made: list[nn.Module] = []

    def trial(model: nn.Module) -> Trial:
        made.append(model)
        return Trial(model)

    monkeypatch.setattr(latency, "enough", lambda runs, seconds: runs >= 1)
    monkeypatch.setattr(latency, "Trial", trial)
    for told in ("0.5", "2:4"):
        whole, own = latency.time_of(job, (Piece(1, "layer", 1), Piece(2, "channel", 4)), zeros_of(told))
        assert min(*whole, *own) > 0
        packed = {name: m.matrix for name, m in made[-1].named_modules() if isinstance(m, PackedLinear)}
        assert {name.split(".")[2] for name in packed} <= {"1"}
        zeros = [
            m for name, m in made[-1].named_modules() if name.startswith("model.layers.1") and hasattr(m, "weight")
        ]
        shares = [float((m.weight == 0).float().mean()) for m in zeros if m.weight.dim() == 2]
        assert shares == pytest.approx([0.5] * 7, abs=0.02)


def test_shares_are_told_once() -> None:
    assert make_search({"model": "m", "want": "size=0.5x", "zeros": 0.5}).zeros == ("0.5",)
    told = make_search({"model": "m", "want": "size=0.5x", "zeros": [0.5, ".50", "2:4", " 2:4 "]})
    assert told.zeros == ("0.5", "2:4")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zeros": "1.5"}, "zeros '1.5' isn't understood"),
        ({"zeros": "0"}, "zeros '0' isn't understood"),
        ({"zeros": [124]}, "in YAML put N:M in quotes"),
        ({"recover_steps": 10}, "leave recover_steps out"),
        ({"zeros": "4:2"}, "pattern '4:2' is unknown"),
        ({"want": "params=0.5x"}, "zeros is for wishes about size, memory, latency or prefill"),
        ({"sites": "channel,hidden"}, "aren't searched together"),
        ({"precision": "q8_0"}, "precision and zeros aren't searched together"),
        ({"export": {"to": "padded"}}, "leave export out"),
        ({"finalists": 2}, "leave finalists out"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_search({"model": "m", "want": "size=0.5x", "zeros": "0.5,2:4", **changes})

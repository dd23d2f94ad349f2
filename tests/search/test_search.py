"""A search on a real model: what it measures is the cut model, what it saves is saved, it goes on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur
from secateur.config.plan import Plan
from secateur.config.searching import SearchSettings, make_search
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.flops import flops_of
from secateur.pipeline.inputs import memory_for
from secateur.search import latency, trial
from secateur.search import make as making
from secateur.search import search as room
from secateur.search.levels import write_pieces
from secateur.search.planned import plan_of
from secateur.search.prepared import job_of, opened
from secateur.search.search import search
from secateur.search.space import BOTH, LEVELS, Candidate, Piece, space_of
from secateur.search.trial import Trials, evaluated, few_of
from secateur.search.wanted import limits_of, measures_of
from secateur.system.monitor import Monitor
from tests.model import tiny
from tests.search.clock import Clock
from tests.search.text import write_text
from tests.small import save_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with text."""
    folder = tmp_path_factory.mktemp("search")
    save_tiny(folder / "model", num_hidden_layers=4, intermediate_size=32, context=64)
    write_text(folder)
    return folder


def settings(desk: Path, **changes: Any) -> SearchSettings:
    told = {"model": str(desk / "model"), "calibrate": str(desk / "text.jsonl"), "samples": 8, "length": 32}
    told |= {"evaluate": "none", "speed": False, "general_text": 0, "trials": 12, "explain": False, "device": "cpu"}
    return make_search({**told, **changes})


def test_what_is_measured_is_the_pruned_model_and_what_is_saved_is_saved(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against checkpoints that `prune --plan` makes, with the units zeroed and nothing refitted."""
    few = 3
    monkeypatch.setattr(trial, "FEW", few * 32)
    monkeypatch.setattr(trial, "ENOUGH", few * 32)
    told = settings(desk, method="magnitude", refit=False, sites="channel,query_head,kv_group,attention,ffn,layer")
    monitor = Monitor(CPU, True)
    inputs, kinds = opened(told, CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), tmp_path)
    space = space_of(job, kinds)
    assert set(space.kinds) == {"channel", "query_head", "kv_group", "attention", "ffn", "layer", BOTH}
    measures = measures_of(space, inputs.streamed)
    write_pieces(job, space, tmp_path / "levels")
    some: list[Candidate] = [
        (Piece(0, "kv_group", 1), Piece(1, "channel", 3), Piece(2, "query_head", 1), Piece(3, "channel", 6)),
        (Piece(0, "channel", 7), Piece(1, "attention", 1), Piece(2, "ffn", 1)),
        (Piece(0, "query_head", 1), Piece(2, "layer", 1), Piece(3, "channel", 2)),
        (Piece(0, BOTH, LEVELS + 1), Piece(1, "query_head", 1), Piece(2, BOTH, LEVELS + 1), Piece(2, "channel", 2)),
    ]
    assert all(piece in space.saves for candidate in some for piece in candidate)
    with Trials.of(job, tmp_path / "levels", tmp_path) as trials:
        got = trials.evaluate(some)
        assert trials.evaluate(some) == got  # with what is kept in memory
        assert trials.evaluate([()]) == [0.0]
        got_roughly = trials.roughly(some)
    ids = evaluated(job.tokens)
    assert ids.shape[1] == 32
    assert len(ids) > few
    dense = secateur.load(desk / "model", device="cpu")
    for number, candidate in enumerate(some):
        out, plan = tmp_path / str(number), plan_of(inputs, candidate, tmp_path / "levels")
        recipe = told.replaying(plan.sites, plan.sparsities)
        (tmp_path / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        secateur.prune(recipe, out, plan=Plan.read(tmp_path / "plan.json"), quiet=True)
        pruned = secateur.load(out, device="cpu")
        with torch.no_grad():
            p, q = (
                model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1) for model in (dense, pruned)
            )
        each = (p.exp() * (p - q)).sum(-1)
        assert got[number] == pytest.approx(float(each.mean()), rel=1e-3)
        assert got_roughly[number] == pytest.approx(float(each[:few].mean()), rel=1e-3)
        assert got[number] > 0.01
        assert measures.left("params", candidate) == Checkpoint.open(out).parameters
        assert measures.left("flops", candidate) == flops_of(out)


def test_a_wish_that_nothing_keeps_says_what_there_is(desk: Path) -> None:
    monitor = Monitor(CPU, True)
    told = settings(desk, sites="channel", want="params=0.2x,size=100GB")
    inputs, kinds = opened(told, CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), desk)
    space = space_of(job, kinds)
    measures = measures_of(space, inputs.streamed)
    with pytest.raises(InputError, match=r"params=0.2x': with all gone .* there are still [\d,]+ parameters"):
        limits_of(told.wishes, measures, space)
    with pytest.raises(InputError, match=r"size=100GB': the model has [\d,]+ bytes already"):
        limits_of(told.wishes[1:], measures, space)
    with pytest.raises(InputError, match="have none of them"):
        opened(settings(desk, sites="expert", want="params=0.5x"), CPU, monitor)


def test_a_search_keeps_its_wishes_and_its_plan_replays(desk: Path, tmp_path: Path) -> None:
    told = settings(desk, want=("params=0.85x", "memory=0.9x"), evaluate=str(desk / "text.jsonl"))
    found = search(told, tmp_path / "out", quiet=True)
    assert all(wish["held"] for wish in found["wishes"])
    assert found["wishes"][0]["got"] == Checkpoint.open(tmp_path / "out").parameters
    [chosen] = [candidate for candidate in found["candidates"] if candidate["chosen"]]
    assert chosen["measured"] == min(candidate["measured"] for candidate in found["candidates"])
    assert chosen["takes"]["params"] == found["wishes"][0]["got"]
    assert found["perplexity"] is not None
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == json.loads(json.dumps(found))
    assert not (tmp_path / "out" / ".secateur").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["files"]) == {path.name for path in (tmp_path / "out").iterdir()}
    assert ".secateur" not in (tmp_path / "out" / "report.json").read_text()

    recipe = secateur.load_recipe(tmp_path / "out" / "recipe.yaml")
    secateur.prune(recipe, tmp_path / "again", plan=Plan.read(tmp_path / "out" / "plan.json"), quiet=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
    search(told, tmp_path / "out", overwrite=True, quiet=True)  # an earlier result may be replaced


def test_an_interrupted_search_goes_on(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = settings(desk, want="params=0.8x", sites="channel,kv_group,layer")
    straight = search(told, tmp_path / "straight", quiet=True)
    measured: list[tuple[str, Candidate]] = []
    stop_at = 30

    def counting(name: str, real: Callable[[Trials, Sequence[Candidate]], list[float]]) -> Any:
        def counted(self: Trials, candidates: Sequence[Candidate]) -> list[float]:
            if len(measured) == stop_at:
                raise KeyboardInterrupt
            measured.extend((name, candidate) for candidate in candidates)
            return real(self, candidates)

        return counted

    for name in ("evaluate", "roughly"):
        monkeypatch.setattr(Trials, name, counting(name, getattr(Trials, name)))
    with pytest.raises(KeyboardInterrupt):
        search(told, tmp_path / "out", quiet=True)
    levels = tmp_path / "out" / ".secateur" / "levels"
    shutil.rmtree(next(levels.iterdir()))  # lost since: it is made again
    with pytest.raises(InputError, match="interrupted run"):
        search(told, tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="seed was 0, is 1"):
        search(
            settings(desk, want="params=0.8x", sites=told.sites, seed=1), tmp_path / "out", resume=True, quiet=True
        )

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stop_at = -1
    with monkeypatch.context() as patch:
        patch.setattr(room, "_write", dies)  # the model is made by then
        with pytest.raises(KeyboardInterrupt):
            search(told, tmp_path / "out", resume=True, quiet=True)
    every = len(measured)
    assert len(set(measured)) == every  # nothing twice
    monkeypatch.setattr(making, "prune", dies)  # nor is the model made again
    found = search(told, tmp_path / "out", resume=True, quiet=True)
    assert len(measured) == every
    for key in ("candidates", "pieces", "wishes"):
        assert found[key] == straight[key]  # type: ignore[literal-required]
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_without_wishes_the_front_is_a_page_and_plans_that_replay(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "enough", lambda runs, seconds: runs >= 1)
    told = settings(desk, sites="channel,kv_group,layer", trials=20)
    found = search(told, tmp_path / "out", quiet=True)
    front = [candidate for candidate in found["candidates"] if candidate["front"]]
    assert len(front) >= 4
    for about in ("params", "latency", "prefill"):
        assert found["whole"][about] > 0
    by_size = sorted(front, key=lambda one: (one["takes"]["params"], one["measured"]))
    beaten = {  # by another in size, and in both times
        one["plan"]
        for one in front
        if all(
            any(o["takes"][a] <= one["takes"][a] and o["measured"] < one["measured"] for o in found["candidates"])
            for a in ("params", "latency", "prefill")
        )
    }
    assert not beaten
    smallest = by_size[0]
    assert smallest["plan"] is not None
    plan = Plan.read(tmp_path / "out" / smallest["plan"])
    recipe = told.replaying(plan.sites, plan.sparsities)
    secateur.prune(recipe, tmp_path / "small", plan=plan, quiet=True)
    assert Checkpoint.open(tmp_path / "small").parameters == smallest["takes"]["params"]
    page = (tmp_path / "out" / "search.html").read_text(encoding="utf-8")
    assert page.count('<g tabindex="0" role="img"') == 4 * len(found["candidates"])
    assert all(str(one["plan"]) in page for one in front)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["files"] == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )  # what --overwrite may replace


def test_seconds_are_tabled_checked_and_corrected(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that knows the shapes: 1 ms a parameter of the layers, a fifth more where they differ."""

    def seconds(job: Any, shape: Any) -> float:
        return sum(p.numel() for layer in shape.layers for p in layer.parameters()) / 1000

    whole: list[float] = []

    def trial(job: Any, shape: Any, *_: Any) -> Clock:
        value = seconds(job, shape)
        whole.append(value)
        # What the sum doesn't know: layers that differ run a fifth slower than a table of like ones says.
        uneven = len({tuple(tuple(p.shape) for p in layer.parameters()) for layer in shape.layers}) > 1
        return Clock(value * 1.2 if uneven else value)

    monkeypatch.setattr(latency, "_trial", trial)
    monkeypatch.setattr(latency, "enough", lambda runs, seconds: runs >= 3)
    found = search(settings(desk, sites="channel,kv_group", want="latency=0.7x"), tmp_path / "out", quiet=True)
    first, last = found["timed"][0], found["timed"][-1]
    assert len(found["timed"]) > 1
    assert first["measured"]["latency"] > 1.05 * first["predicted"]["latency"]
    limit = 0.7 * first["whole"]["latency"]
    assert abs(last["measured"]["latency"] / limit - 1) < abs(first["measured"]["latency"] / limit - 1)
    [wish] = found["wishes"]
    assert (wish["got"], wish["limit"]) == (last["measured"]["latency"], pytest.approx(limit))


def test_a_shape_is_timed_on_this_machine(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor(CPU, True)
    inputs, kinds = opened(settings(desk, sites="layer,ffn"), CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), tmp_path)
    space = space_of(job, kinds)
    shape = latency.shape_for(job, (Piece(0, "layer", 1), Piece(2, "ffn", 1)))
    assert len(shape.layers) == 3
    monkeypatch.setattr(latency, "enough", lambda runs, seconds: runs >= 5)
    whole, half = latency.time_of(job, (Piece(0, "layer", 1), Piece(1, "layer", 1), Piece(2, "layer", 1)))
    assert 0 < half.latency < whole.latency
    assert latency.cut_alike(space, "layer", 1) == (Piece(0, "layer", 1), Piece(2, "layer", 1))
    table = latency.Timings(whole, {("layer", 1): latency.Seconds(0.25, 0.5)})
    assert latency.Timings.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert table.of_pieces(space, "prefill", 2.0)[Piece(3, "layer", 1)] == 1.0


def test_limits_of_quality_choose_the_smallest_that_keeps_them(desk: Path, tmp_path: Path) -> None:
    text = str(desk / "text.jsonl")
    told = settings(desk, sites="channel,kv_group,layer", want="perplexity<=1.5x", trials=15, evaluate=text)
    found = search(told, tmp_path / "out", quiet=True)
    [wish] = found["wishes"]
    assert found["perplexity"] is not None
    assert wish["got"] == found["perplexity"]["after"]
    assert wish["held"] == (found["perplexity"]["after"] <= 1.5 * found["perplexity"]["before"])
    assert "latency" not in found["whole"]
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("family", ["qwen3-moe", "neox"])
def test_what_is_measured_holds_for_other_families(family: str, tmp_path: Path) -> None:
    """Experts, channels inside of experts, a layer without experts; a parallel residual."""
    tiny.save(family, tmp_path / "model")
    rows = [json.dumps({"input_ids": row.tolist()}) for row in tiny.tokens(16, 24)]
    (tmp_path / "ids.jsonl").write_text("\n".join(rows), encoding="utf-8")
    told = settings(tmp_path, calibrate=str(tmp_path / "ids.jsonl"), length=24, refit=False)
    monitor = Monitor(CPU, True)
    inputs, kinds = opened(told, CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, inputs.streamed.device), tmp_path)
    space = space_of(job, kinds)
    measures = measures_of(space, inputs.streamed)
    assert ("expert" in space.kinds) == (family == "qwen3-moe")
    write_pieces(job, space, tmp_path / "levels")
    wanted = ["expert" if "expert" in space.kinds else "channel", "ffn", "channel", "attention"]
    inner = next(piece for piece in space.saves if piece.layer == 3 and piece.kind == "channel")
    taken = [next(p for p in space.saves if (p.layer, p.kind) == place) for place in enumerate(wanted)]
    candidate = tuple(sorted({*taken, inner}))
    with Trials.of(job, tmp_path / "levels", tmp_path) as trials:
        [got] = trials.evaluate([candidate])
    plan = plan_of(inputs, candidate, tmp_path / "levels")
    secateur.prune(told.replaying(plan.sites, plan.sparsities), tmp_path / "out", plan=plan, quiet=True)
    dense, pruned = (secateur.load(tmp_path / name, device="cpu") for name in ("model", "out"))
    ids = evaluated(job.tokens)
    with torch.no_grad():
        p, q = (model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1) for model in (dense, pruned))
    assert got == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=2e-3)
    assert measures.left("params", candidate) == Checkpoint.open(tmp_path / "out").parameters
    assert measures.left("flops", candidate) == flops_of(tmp_path / "out")


def test_pieces_alone_are_measured_on_all_text_where_the_first_of_it_has_few_predictions(desk: Path) -> None:
    monitor = Monitor(CPU, True)
    inputs, _ = opened(settings(desk, samples=8), CPU, monitor)
    job = job_of(inputs, monitor, memory_for(inputs.config, CPU), desk)
    long = job._replace(tokens=torch.zeros(12, 512, dtype=torch.int64))
    assert few_of(long) == 1
    counts = torch.zeros(12, 512, dtype=torch.bool)
    counts[:, -60:] = True  # 120 of the first two sequences: short answers
    every = few_of(long._replace(counts=counts))
    assert every > 1
    counts[:, -70:] = True
    assert few_of(long._replace(counts=counts)) == 1
    own = inputs.checkpoint.whole_config
    named = own.architectures
    try:
        own.architectures = ["LlamaForSequenceClassification"]
        assert few_of(long) == every
    finally:
        own.architectures = named

"""Attention and FFN sub-blocks that go whole: chosen by what the model loses without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.analysis.explain import explain
from secateur.calibration.layer_scores import ModelPart, leave_out, loss_without
from secateur.config.plan import Plan
from secateur.config.recipe import make_recipe
from secateur.errors import InputError
from secateur.model.architectures import family_of, join
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline import one_shot
from secateur.pipeline.prune import prune
from tests.model import tiny

SMALL = "stories260K"


def slow_loss(case: str, tokens: torch.Tensor, gone: frozenset[ModelPart]) -> float:
    """The whole model with zeroed output matrices, token by token in fp64; nothing shared with the walk."""
    model = tiny.build(case).eval()
    family = family_of(model.config)
    a, f, e = family.attention, family.ffn, family.experts
    for index, kind in gone:
        layer = model.get_submodule(f"{family.layers}.{index}")
        ffn = f"{e.path}.{e.down}" if e is not None else join(f.path, f.down)
        consumer = join(a.path, a.o) if kind == "attention" else ffn
        for name, parameter in layer.named_parameters():
            if name == consumer or name.startswith(f"{consumer}."):
                parameter.data.zero_()
    total = []
    for row in tokens:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        total += [-float(logits[i, row[i + 1]]) for i in range(len(row) - 1)]
    return sum(total) / len(total)


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "mixtral"])
def test_losses_are_those_of_the_whole_model_without_the_part(case: str, tmp_path: Path) -> None:
    streamed = StreamedModel(Checkpoint.open(tiny.save(case, tmp_path / case)), torch.device("cpu"), torch.float32)
    tokens = tiny.tokens(3)
    sets = [{(1, "attention")}, {(2, "ffn")}, {(0, "ffn"), (0, "attention")}, {(3, "attention"), (1, "ffn")}, set()]
    candidates: list[frozenset[ModelPart]] = [frozenset(c) for c in sets]
    found = loss_without(streamed, tokens, candidates)
    for gone, loss in zip(candidates, found, strict=True):
        assert loss == pytest.approx(slow_loss(case, tokens, gone), rel=1e-5), gone
    assert len(set(found)) == len(found)


def test_the_best_ones_go_given_what_has_gone(tmp_path: Path) -> None:
    streamed = StreamedModel(Checkpoint.open(tiny.save("llama", tmp_path / "m")), torch.device("cpu"), torch.float32)
    tokens, before = tiny.tokens(3), frozenset({(0, "layer")})
    allowed = [(i, "ffn") for i in (1, 2, 3)]
    chosen, losses = leave_out(streamed, tokens, 1, allowed, before=before)
    by_hand = {part: loss_without(streamed, tokens, [before | {part}])[0] for part in allowed}
    assert losses == pytest.approx(by_hand)
    assert chosen == {min(by_hand, key=lambda part: by_hand[part])}


@pytest.fixture(scope="module")
def pruned(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    source, out = shared / "models" / SMALL, tmp_path_factory.mktemp("sub") / "out"
    sparsity = {"attention": 0.2, "ffn": 0.4, "channel": 0.25}
    report = prune(make_recipe(settings(source) | {"sites": list(sparsity), "sparsity": sparsity}), out, quiet=True)
    return source, out, report


def settings(source: Path) -> dict[str, Any]:
    text = source.parents[1] / "data" / "tinystories" / "calibrate.jsonl"
    own = {"model": str(source), "calibrate": str(text), "samples": 8, "length": 64}
    return {**own, "evaluate": "none", "speed": False}


def test_a_run_drops_them_and_the_result_loads(pruned: tuple[Path, Path, dict[str, Any]]) -> None:
    source, out, report = pruned
    assert report["gate"]["max_logit_difference"] <= report["gate"]["tolerance"]
    assert report["gate"]["cache_equals_no_cache"]
    kinds = {kind: [s for s in report["sites"] if s["kind"] == kind] for kind in ("attention", "ffn")}
    assert [len(rows) for rows in kinds.values()] == [5, 5]
    assert [sum(not s["kept"] for s in rows) for rows in kinds.values()] == [1, 2]
    for rows in kinds.values():
        assert all(s["score"] > 0 for s in rows)
    # The first kind is chosen alone: the lowest loss goes.
    gone = next(s for s in kinds["attention"] if not s["kept"])
    assert gone["score"] == min(s["score"] for s in kinds["attention"])
    tensors = load_file(out / "model.safetensors")
    held = sum(t.numel() for t in tensors.values())
    assert report["parameters"]["after"] == held
    left = {name: t for name, t in tensors.items() if f"layers.{gone['layer']}.self_attn." in name}
    assert left  # of no size, so that a class that expects more refuses to load
    assert not any(t.numel() for t in left.values())
    before = load_file(source / "model.safetensors")
    assert any(f"layers.{gone['layer']}.self_attn." in name for name in before)
    model = secateur.load(out)
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_its_plan_repeats_it(pruned: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    source, out, _ = pruned
    plan = Plan.read(out / "plan.json")
    assert len(plan.dropped) == 3
    told = settings(source) | {"sites": list(plan.sites), "sparsity": plan.sparsities}
    report = prune(make_recipe(told), tmp_path / "again", plan=plan, quiet=True)
    first, second = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {s["method"] for s in report["sites"] if s["kind"] == "ffn"} == {"plan"}


def test_a_plan_keeps_none_of_a_sub_block(pruned: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    data = json.loads((pruned[1] / "plan.json").read_text())
    next(e for e in data["entries"] if e["kind"] == "ffn")["keep"] = [0]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="goes whole"):
        Plan.read(tmp_path / "plan.json").check("llama", 5)


def test_explain_lists_them(pruned: tuple[Path, Path, dict[str, Any]]) -> None:
    found = explain(pruned[1])
    assert {row["kind"] for row in found["layers"]} == {"attention", "ffn"}


def test_what_is_left_of_a_block_can_be_tuned(shared: Path, tmp_path: Path) -> None:
    """It makes up for a part of what the sub-block did."""
    asked = {"sites": "attention", "sparsity": 0.2, "quality": "balanced", "reconstruct": 30, "samples": 16}
    asked["calibrate"] = "stdlib"  # which the model knows little of, so that there is more to gain
    report = prune(make_recipe(settings(shared / "models" / SMALL) | asked), tmp_path / "out", quiet=True)
    (tuned,) = report["reconstruction"]
    assert tuned["held_out_after"] < 0.9 * tuned["held_out_before"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sparsity": 0.05}, "the least is 0.2"),
        ({"sparsity": 0.9, "protect": [0]}, "at most 4 may"),
        ({"sparsity": 0.2, "method": "block_influence"}, "methods that do: leave_one_out"),
        ({"sparsity": 0.2, "allocate": "global"}, "sub-blocks go whole"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], words: str, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        prune(
            make_recipe(settings(shared / "models" / SMALL) | {"sites": "attention"} | asked),
            tmp_path / "o",
            quiet=True,
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_was_stopped_goes_on_with_layers_that_lack_sub_blocks(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished layers are read again: in a resumed run, and to be proved where the run computes in less than fp32."""
    tiny.save("llama", tmp_path / "model")
    (tmp_path / "ids.jsonl").write_text(
        "".join(f"{json.dumps({'input_ids': row})}\n" for row in tiny.tokens(3).tolist())
    )
    told = {"model": str(tmp_path / "model"), "calibrate": str(tmp_path / "ids.jsonl"), "samples": 3, "dtype": dtype}
    told |= {"sites": ["attention", "ffn", "channel"], "sparsity": {"attention": 0.25, "ffn": 0.25, "channel": 0.5}}
    recipe = make_recipe(
        {**told, "length": tiny.tokens(3).shape[1], "evaluate": "none", "speed": False, "device": "cpu"}
    )
    prune(recipe, tmp_path / "straight", quiet=True)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one_shot, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            prune(recipe, tmp_path / "out", quiet=True)
    prune(recipe, tmp_path / "out", quiet=True, resume=True)
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()

"""Tuning a block: zeros stay, held-out sequences decide, nothing depends on chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from secateur.calibration import stream as streaming
from secateur.calibration.activations import Activations, MemoryBudget
from secateur.calibration.walk import Block, walk
from secateur.config.presets import Masks
from secateur.model.checkpoint import Checkpoint
from secateur.model.sites import Site, sites_of
from secateur.model.streamed import StreamedModel
from secateur.model.surgery import remove, update_heads
from secateur.numerics.patterns import Pattern
from secateur.reconstruct import tune as module
from secateur.reconstruct.masks import GradualUnits, GradualWeights
from secateur.reconstruct.sequences import SequenceBatch, in_turn, split
from secateur.reconstruct.tune import Tuned, Tuning, rate_of, reconstruct
from secateur.reconstruct.window import parts
from tests.model import tiny

SHORT = Tuning(steps=50)
HELD = range(56, 64)  # of 66 sequences in batches of eight, the eighth batch
OTHERS = [*range(56), 64, 65]


@pytest.fixture(autouse=True)
def _eight_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 8 * tiny.TOKENS)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., StreamedModel]:
    def get(case: str, dtype: torch.dtype = torch.float32) -> StreamedModel:
        return StreamedModel(Checkpoint.open(tiny.save(case, tmp_path / case)), torch.device("cpu"), dtype)

    return get


def second_block(
    streamed: StreamedModel,
    cut: Callable[[Block], None],
    sequences: int = 66,
    work: Path | None = None,
    budget: int | None = None,
) -> Iterator[Block]:
    """Block 1 cut, on the stream that leaves a cut block 0."""
    for block in walk(
        streamed, tiny.tokens(sequences), layers=[0, 1], dense=True, work=work, budget=MemoryBudget(budget)
    ):
        cut(block)
        if block.index == 1:
            yield block
            return


def masked(pattern: str = "free") -> Callable[[Block], None]:
    def cut(block: Block) -> None:
        for linear in block.linears:
            W = linear.weight
            linear.weight = W * Pattern.parse(pattern).mask(W.abs(), 0.5)

    return cut


def without_channels(block: Block) -> None:
    family = block.streamed.checkpoint.family
    site = next(s for s in sites_of(block.layer, family, block.index, 8) if s.kind == "channel")
    mask = torch.ones(site.units, dtype=torch.bool)
    mask[:20] = False
    remove(block.layer, [(site, mask)])


def copies(block: Block) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in block.layer.named_parameters()}


def tuned(streamed: StreamedModel, cut: Callable[[Block], None], tuning: Tuning = SHORT) -> tuple[Tuned, dict, dict]:
    """(outcome, parameters before, parameters after)."""
    for block in second_block(streamed, cut):
        before = copies(block)
        outcome = reconstruct(block, tuning)
        assert outcome is not None
        assert all(p.grad is None for p in block.layer.parameters())
        return outcome, before, copies(block)
    raise AssertionError


def error_of(block: Block, sequences: Sequence[int]) -> float:
    """By hand: both layers on both streams, relative to each token, the mean of them."""
    assert block.dense is not None
    pairs = []
    for layer, stream in ((block.layer, block.stream), block.dense):
        with torch.no_grad():
            outs = [stream.forward(layer, block.index, i, torch.device("cpu")) for i in range(len(stream.batches))]
        pairs.append(torch.cat(outs)[list(sequences)].double())
    return relative(*pairs)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).square().sum(-1) / theirs.square().sum(-1)).mean())


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "neox", "gemma2", "mixtral", "qwen3-moe"])
def test_zeros_stay_and_everything_else_moves(case: str, opened: Callable[..., StreamedModel]) -> None:
    streamed = opened(case)
    prunable: set[str] = set()

    def cut(block: Block) -> None:
        masked()(block)
        prunable.update(linear.parameter_name for linear in block.linears)

    outcome, before, after = tuned(streamed, cut)
    assert 0 < outcome.steps <= 50
    assert outcome.held_out_after < 0.95 * outcome.held_out_before
    assert outcome.after < outcome.before
    for name, old in before.items():
        new = after[name]
        assert torch.isfinite(new).all()
        if name in prunable:
            assert (old == 0).float().mean() > 0.4
            assert torch.equal(new == 0, old == 0), name
        assert not torch.equal(new, old), name  # norm gains and biases too


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_n_of_m_is_kept(pattern: str, opened: Callable[..., StreamedModel]) -> None:
    streamed = opened("llama")
    for block in second_block(streamed, masked(pattern)):
        assert reconstruct(block, SHORT).steps
        assert all(Pattern.parse(pattern).holds(linear.weight != 0) for linear in block.linears)


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("pattern", ["free", "2:4"])
def test_a_gradual_mask_is_of_the_shape_asked_for(
    case: str, pattern: str, opened: Callable[..., StreamedModel]
) -> None:
    """Exact counts in every Linear, from a start without zeros; what a block had to beat was a mask at once."""
    shape, starts = Pattern.parse(pattern), []

    def cut(block: Block) -> None:
        starts.append(GradualWeights(block, shape, lambda name: 0.5))
        masked(pattern)(block)

    for block in second_block(opened(case), cut):
        outcome = reconstruct(block, Tuning(steps=100), masks=starts[1])
        assert outcome is not None
        assert outcome.steps > 60
        assert outcome.held_out_after < 0.95 * outcome.held_out_before
        for linear in block.linears:
            zeros = linear.weight == 0
            assert int(zeros.sum()) == round(0.5 * zeros.numel())
            assert shape.holds(~zeros)


def test_a_gradual_mask_takes_the_least_of_that_moment(opened: Callable[..., StreamedModel]) -> None:
    """Scores of weights and inputs as they are when it chooses; each mask takes all that the one before took."""
    for block in second_block(opened("llama"), lambda block: None):
        masks = GradualWeights(block, Pattern.parse("free"), lambda name: 0.5)
        own = replace(block, layer=masks.layer)
        before: dict[str, Tensor] = {}
        for part in (0.01, 0.3, 1.0):
            found = own.moments([linear.source for linear in own.linears], frozenset({"rms"}), every=5)
            scores = {linear.name: linear.weight.abs() * found[linear.source].rms for linear in own.linears}
            masks.advance(part, block)
            masks.hold()
            for linear in own.linears:
                gone = linear.weight == 0
                assert scores[linear.name][gone].max() <= scores[linear.name][~gone].min()
                assert not (before.get(linear.name, gone) & ~gone).any()
                before[linear.name] = gone
            assert masks.settled == (part == 1.0)
        assert all(int(gone.sum()) == round(0.5 * gone.numel()) for gone in before.values())


def about_half(site: Site) -> Tensor:
    """The first units of each group, as many as are legal."""
    per = site.units // site.groups
    kept = -(-(per // 2) // site.multiple) * site.multiple
    return (torch.arange(per) < kept).repeat(site.groups)


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("kind", ["channel", "query_head", "kv_group"])
def test_units_go_bit_by_bit(case: str, kind: str, opened: Callable[..., StreamedModel]) -> None:
    """The least important first; the layer that is left computes what the masked one did, and beats the cut one."""
    masks, seen = [], {}

    def cut(block: Block) -> None:
        streamed = block.streamed
        masks.append(GradualUnits(block))
        mine = [s for s in sites_of(block.layer, streamed.checkpoint.family, block.index, 8) if s.kind == kind]
        halves = [(site, about_half(site)) for site in mine]
        for site, mask in halves:
            keep = tuple(mask.nonzero().flatten().tolist())
            masks[-1].take(site, keep, tuple(float(unit) for unit in range(site.units)))
        if halves:
            remove(block.layer, halves)
            update_heads(block.layer, streamed.checkpoint.family, 8)
        seen["sites"] = mine

    for block in second_block(opened(case), cut):
        if not seen["sites"]:
            pytest.skip(f"{case} has no {kind}")
        outcome = reconstruct(block, Tuning(steps=100), masks=masks[1])
        assert outcome is not None
        assert outcome.steps > 60
        assert outcome.held_out_after < 0.95 * outcome.held_out_before
        assert error_of(block, HELD) == pytest.approx(outcome.held_out_after, rel=1e-4)


def test_structured_cuts_are_tuned_without_masks(opened: Callable[..., StreamedModel]) -> None:
    outcome, before, after = tuned(opened("llama"), without_channels)
    assert outcome.held_out_after < 0.95 * outcome.held_out_before
    assert after["mlp.down_proj.weight"].shape == (32, 24) == before["mlp.down_proj.weight"].shape
    assert not (after["mlp.down_proj.weight"] == 0).any()


def test_errors_are_those_of_the_outputs(opened: Callable[..., StreamedModel]) -> None:
    for block in second_block(opened("llama"), masked()):
        expected = error_of(block, OTHERS), error_of(block, HELD)
        outcome = reconstruct(block, SHORT)
        assert (outcome.before, outcome.held_out_before) == pytest.approx(expected, rel=1e-4)
        expected = error_of(block, OTHERS), error_of(block, HELD)
        assert (outcome.after, outcome.held_out_after) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rate", [1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_does_not_help_is_undone(rate: float, dtype: torch.dtype, opened: Callable[..., StreamedModel]) -> None:
    outcome, before, after = tuned(opened("llama", dtype), masked(), Tuning(steps=50, rate=rate))
    assert outcome.steps == 0
    assert outcome.before == outcome.after
    assert outcome.held_out_before == outcome.held_out_after
    assert all(torch.equal(after[name], old) for name, old in before.items())


@pytest.mark.parametrize("rate", [1e-9, 0.02, 0.3])
def test_held_out_is_never_worse(rate: float, opened: Callable[..., StreamedModel]) -> None:
    for block in second_block(opened("gpt2"), masked()):
        before = error_of(block, HELD)
        outcome = reconstruct(block, Tuning(steps=30, rate=rate))
        assert error_of(block, HELD) <= before * (1 + 1e-6)
        assert outcome.held_out_after <= outcome.held_out_before


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_twice_the_same_bytes(case: str, opened: Callable[..., StreamedModel]) -> None:
    streamed = opened(case)
    first, second = (tuned(streamed, masked()) for _ in range(2))
    assert first[0] == second[0]
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])
    other = tuned(streamed, masked(), Tuning(steps=50, seed=1))
    assert any(not torch.equal(first[2][name], other[2][name]) for name in first[2])


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_tuned_in_fp32(case: str, dtype: torch.dtype, opened: Callable[..., StreamedModel]) -> None:
    outcome, before, after = tuned(opened(case, dtype), masked())
    assert outcome.held_out_after < 0.95 * outcome.held_out_before
    assert all(value.dtype == dtype for value in after.values())
    assert all(torch.equal(after[n] == 0, old == 0) for n, old in before.items() if old.dim() > 1 and "norm" not in n)


def test_the_scale_of_weights_does_not_matter() -> None:
    """Powers of two, so that the steps are exactly scaled too."""
    parameters = {
        "fc.weight": nn.Parameter(torch.randn(4, 4)),
        "fc.bias": nn.Parameter(torch.zeros(4)),
        "norm.bias": nn.Parameter(torch.zeros(4)),
        "other.bias": nn.Parameter(torch.randn(4)),
    }
    scales = module._scales(parameters)
    larger = module._scales({name: nn.Parameter(8 * p.detach()) for name, p in parameters.items()})
    assert scales["fc.bias"] == scales["fc.weight"]
    assert scales["norm.bias"] == module.ZERO_SCALE
    for name in ("fc.weight", "fc.bias", "other.bias"):
        assert larger[name] == pytest.approx(8 * scales[name])


@pytest.mark.parametrize("budget", [None, 0, 20_000])
def test_targets_keep_to_the_budget_and_leave_nothing(
    budget: int | None, opened: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    for block in second_block(opened("llama"), masked(), work=work, budget=budget):
        room, files = MemoryBudget(budget), sorted(work.glob("*"))
        expected = reconstruct(block, Tuning(steps=3), room)
        assert expected is not None
        assert room.left == budget
        assert sorted(work.glob("*")) == files
        assert "targets.bin" not in [f.name for f in files]


@pytest.mark.parametrize("where", ["loss", "error"])
def test_an_exception_leaves_no_file_and_no_half_tuned_block(
    where: str, opened: Callable[..., StreamedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, seen, loss = tmp_path / "work", [], module.BlockObjective.loss

    def fails(*given: object) -> Tensor:
        seen.append((work / "targets.bin").exists())
        if where == "loss" and len(seen) < 4:
            return loss(*given)
        raise KeyboardInterrupt

    for block in second_block(opened("llama"), masked(), work=work, budget=0):
        before, room = copies(block), MemoryBudget(0)
        monkeypatch.setattr(module.BlockObjective, where, fails)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(block, SHORT, room)
        assert all(seen)
        assert not (work / "targets.bin").exists()
        assert room.left == 0
        assert all(torch.equal(copies(block)[name], old) for name, old in before.items())
        assert all(p.grad is None for p in block.layer.parameters())


def test_a_single_batch_is_divided_and_a_single_sequence_left_alone(
    opened: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = opened("llama")
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 100 * tiny.TOKENS)
    for block in second_block(streamed, masked(), sequences=40):
        expected = error_of(block, range(35)), error_of(block, range(35, 40))
        outcome = reconstruct(block, SHORT)
        assert (outcome.before, outcome.held_out_before) == pytest.approx(expected, rel=1e-4)
        assert outcome.held_out_after == pytest.approx(error_of(block, range(35, 40)), rel=1e-4)
        assert outcome.steps
    for block in second_block(streamed, masked(), sequences=1):
        before = copies(block)
        assert reconstruct(block, SHORT) is None
        assert all(torch.equal(copies(block)[name], old) for name, old in before.items())


@pytest.mark.parametrize("sizes", [[], [1], [2], [8], [9], [4, 1], [4] * 7, [4] * 8, [4] * 17 + [1]])
def test_sequences_are_divided_without_overlap(sizes: list[int]) -> None:
    tuned_parts, held = split(sizes)
    every = [(p.batch, row) for p in [*tuned_parts, *held] for row in range(sizes[p.batch])[p.rows]]
    assert sorted(every) == [(b, row) for b, size in enumerate(sizes) for row in range(size)]
    assert bool(held) == (sum(sizes) > 1)
    if len(sizes) > 8:
        share = sum(sizes[p.batch] for p in held) / sum(sizes)
        assert 1 / 16 < share <= 1 / 8


def test_every_part_has_its_turn() -> None:
    parts = [SequenceBatch(i, slice(0, 2)) for i in range(5)]
    turns = in_turn(parts, seed=3)
    rounds = [[next(turns) for _ in range(5)] for _ in range(3)]
    assert all(sorted(p.batch for p in r) == list(range(5)) for r in rounds)
    assert len({tuple(p.batch for p in r) for r in rounds}) > 1
    again = in_turn(parts, seed=3)
    assert [next(again) for _ in range(15)] == [p for r in rounds for p in r]
    assert [next(in_turn([], 0)) for _ in range(3)] == [None] * 3


def test_steps_end_at_nothing() -> None:
    assert module._cosine(0, 100) == 1
    assert module._cosine(50, 100) == pytest.approx(0.5)
    assert module._cosine(100, 100) == module._cosine(200, 100) == pytest.approx(0)


def test_an_error_without_sequences_is_none_and_overflow_is_no_gain() -> None:
    streamed = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    objective = module.BlockObjective(SimpleNamespace(streamed=streamed), Activations(MemoryBudget(None)), [])
    assert objective.error(torch.nn.Identity(), []) is None
    assert not (math.nan < math.inf)


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "mixtral"])
@pytest.mark.parametrize("gradual", [False, True])
def test_halves_are_tuned_one_after_the_other(case: str, gradual: bool, opened: Callable[..., StreamedModel]) -> None:
    """Every matrix is in exactly one half; both end with the zeros asked for, and with less error than the cut."""
    starts: list[GradualWeights] = []

    def cut(block: Block) -> None:
        starts.append(GradualWeights(block, Pattern.parse("free"), lambda name: 0.5))
        masked()(block)

    for block in second_block(opened(case), cut):
        family = block.streamed.checkpoint.family
        matrices = {linear.parameter_name for linear in block.linears}
        first, second = parts(block.layer, family, "half")
        assert first | second == set(dict(block.layer.named_parameters()))
        assert first & matrices
        assert second & matrices
        assert not first & second & matrices
        outcome = reconstruct(block, Tuning(100, window="half"), masks=starts[1] if gradual else None)
        assert outcome is not None
        assert outcome.held_out_after < 0.95 * outcome.held_out_before
        for linear in block.linears:
            assert (linear.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_a_half_in_work_leaves_the_other_alone(
    opened: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "parts", lambda layer, family, window: parts(layer, family, window)[:1])
    for block in second_block(opened("llama"), masked()):
        before = copies(block)
        reconstruct(block, Tuning(50, window="half"))
        changed = {name for name, p in block.layer.named_parameters() if not torch.equal(p, before[name])}
        assert any("self_attn" in name for name in changed)
        assert not any("mlp" in name for name in changed)


def test_a_window_of_two_is_judged_behind_the_next_block(opened: Callable[..., StreamedModel]) -> None:
    """The error is that of the next block's output, by hand, and the next block isn't touched."""

    def behind(block: Block) -> float:
        assert block.dense is not None
        following, outs = block.streamed.load(2), []
        for layer, stream in ((block.layer, block.stream), block.dense):
            for i, ids in enumerate(stream.batches):
                hidden = stream.forward(layer, 1, i, torch.device("cpu"))
                outs.append(stream.calls[ids.shape][2](following, hidden).detach().double())
        half = len(outs) // 2
        held = [i for i in range(half) if i == 7]
        ours, theirs = torch.cat([outs[i] for i in held]), torch.cat([outs[half + i] for i in held])
        return relative(ours, theirs)

    for block in second_block(opened("llama"), masked()):
        cut = behind(block)
        outcome = reconstruct(block, Tuning(50, window=2))
        assert outcome is not None
        assert outcome.held_out_before == pytest.approx(cut, rel=1e-5)
        assert outcome.held_out_after == pytest.approx(behind(block), rel=1e-5)
        assert outcome.held_out_after < 0.95 * cut


@pytest.mark.parametrize(
    ("masks", "hidden", "rate"), [("kept", 32, 0.04), ("kept", 256, 0.01), ("kept", 4096, 0.005)]
)
def test_a_wide_model_moves_less_from_what_was_solved(masks: Masks, hidden: int, rate: float) -> None:
    assert rate_of(masks, hidden) == pytest.approx(rate)
    assert rate_of("gradual", hidden) == 0.04

"""Statistics of two models at once, against plain hooks on the whole dense and the whole edited model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.calibration import stream as streaming
from secateur.calibration.walk import Block, walk
from secateur.model.architectures import FAMILIES, Family, family_of, join
from secateur.model.checkpoint import Checkpoint
from secateur.model.linears import submodule
from secateur.model.streamed import StreamedModel
from tests.model import tiny

NEEDS = frozenset({"gram", "mean", "cross", "drift"})


@pytest.fixture(autouse=True)
def _two_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 2 * tiny.TOKENS)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], StreamedModel]:
    def get(case: str) -> StreamedModel:
        folder = tiny.save(case, tmp_path / case)
        return StreamedModel(Checkpoint.open(folder), torch.device("cpu"), torch.float32)

    return get


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).double()


class Seen:
    """What hooks see of one layer of a whole model."""

    def __init__(self, model: PreTrainedModel, family: Family, index: int, ids: Tensor) -> None:
        self.layer = model.get_submodule(f"{family.layers}.{index}")
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.routed: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        handles = [self.layer.register_forward_hook(self._hook(""))]
        for name, module in self.layer.named_modules():
            if name:
                handles.append(module.register_forward_hook(self._hook(name)))
        tiny.logits(model, ids)
        for handle in handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self.inputs[name] = flat(args[0])
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, Tensor):
                self.outputs[name] = flat(out)
            if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
                self.routed[name] = (module, *args[:2])

        return hook

    def added(self, family: Family) -> tuple[Tensor, Tensor]:
        """What attention and FFN write: their last Linear's output, or that of the whole experts module."""
        ffn = join(family.ffn.path, family.ffn.down)
        ffn = ffn if ffn in self.outputs else family.ffn.path
        return self.outputs[join(family.attention.path, family.attention.o)], self.outputs[ffn]


@pytest.mark.parametrize("case", tiny.CASES)
def test_sub_blocks_are_added_as_they_are_where_the_table_says_so(case: str) -> None:
    model = tiny.build(case)
    family = family_of(model.config)
    for index in range(tiny.LAYERS):
        seen = Seen(model, family, index, tiny.tokens())
        attention, ffn = seen.added(family)
        plain = seen.inputs[""] + attention + ffn
        same = torch.allclose(seen.outputs[""], plain, rtol=1e-4, atol=1e-4)
        assert same == family.adds_plainly(model.config), (case, index)


def test_the_cases_cover_the_table() -> None:
    assert {family_of(tiny.build(case).config).name for case in tiny.CASES} == {f.name for f in FAMILIES}


def edit(block: Block, names: set[str] | None = None) -> None:
    generator = torch.Generator().manual_seed(block.index)
    for linear in block.linears:
        if names is None or linear.name in names:
            noise = torch.randn(linear.shape, generator=generator)
            linear.weight = 0.8 * linear.weight + 0.05 * noise


def compare(block: Block, dense: PreTrainedModel, edited: PreTrainedModel, ids: Tensor) -> None:
    """Every moment of every Linear of a block, as the edited model stands now."""
    family, checkpoint = block.streamed.checkpoint.family, block.streamed.checkpoint
    edited.get_submodule(f"{family.layers}.{block.index}").load_state_dict(block.layer.state_dict())
    mine, theirs = (Seen(model, family, block.index, ids) for model in (edited, dense))
    (_, own_ffn), (_, ffn) = mine.added(family), theirs.added(family)
    drifts = {}
    if family.adds_plainly(checkpoint.config):
        drifts[join(family.attention.path, family.attention.o)] = theirs.inputs[""] - mine.inputs[""]
        if join(family.ffn.path, family.ffn.down) in mine.outputs:
            before = theirs.outputs[""] - ffn, mine.outputs[""] - own_ffn
            drifts[join(family.ffn.path, family.ffn.down)] = before[0] - before[1]
    found = block.moments([linear.source for linear in block.linears], NEEDS)
    for name, moments in found.items():
        x, target = inputs_of(name, mine, theirs)
        assert moments.n == len(x)
        n = max(1, len(x))
        expected = {
            "gram": x.T @ x / n,
            "mean": x.sum(0) / n,
            "cross": target.T @ x / n,
            "target_mean": target.sum(0) / n,
        }
        assert ("drift" in moments.needs) == (name in drifts), name
        if name in drifts:
            expected |= {"drift": drifts[name].T @ x / n, "drift_mean": drifts[name].sum(0) / n}
        for key, value in expected.items():
            torch.testing.assert_close(
                getattr(moments, key).double(),
                value,
                rtol=1e-4,
                atol=1e-4 * float(value.abs().max() + 1),
                msg=lambda m, k=key, n=name: f"{block.index} {n} {k}: {m}",
            )


def inputs_of(name: str, mine: Seen, theirs: Seen) -> tuple[Tensor, Tensor]:
    """Inputs of a Linear in both models; an expert's at the tokens that the edited model routes to it."""
    if "[" not in name:
        return mine.inputs[name], theirs.inputs[name]
    path, _, part = name.rpartition(".")
    part, expert = part.rstrip("]").split("[")
    chosen = mine.routed[path][2]
    tokens = [t for t, own in enumerate(chosen.tolist()) if int(expert) in own]
    rows = []
    for seen in (mine, theirs):
        module, hidden, _ = seen.routed[path]
        x = hidden.reshape(-1, hidden.shape[-1])[tokens]
        if part == "down_proj":
            gate, up = (x @ module.gate_up_proj[int(expert)].T).chunk(2, -1)
            x = nn.functional.silu(gate) * up
        rows.append(x.double())
    return rows[0], rows[1]


@pytest.mark.parametrize(
    "case",
    ["llama", "llama-bias", "gpt2", "opt", "opt-post", "neox", "neox-serial", "gemma2", "mixtral", "qwen3-moe"],
)
def test_both_streams_are_those_of_the_whole_models(case: str, opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened(case), tiny.tokens()
    dense, edited = tiny.build(case), tiny.build(case)
    for block in walk(streamed, ids, dense=True):
        compare(block, dense, edited, ids)
        edit(block, {linear.name for linear in block.linears[:2]})  # as in the middle of a sequential cut
        compare(block, dense, edited, ids)
        edit(block)
        edited.get_submodule(f"{streamed.checkpoint.family.layers}.{block.index}").load_state_dict(
            block.layer.state_dict()
        )


def test_only_what_was_asked_for_is_seen(opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened("llama"), tiny.tokens()
    for block in walk(streamed, ids, layers=[0], dense=True):
        edit(block, {"self_attn.q_proj"})
        every = block.moments([linear.source for linear in block.linears], NEEDS)
        for name, moments in every.items():
            alone = block.moments([name], NEEDS)[name]
            assert all(torch.equal(a, b) for a, b in zip(alone.tensors(), moments.tensors(), strict=True)), name


def test_a_block_without_attention_has_the_drift_of_its_input(opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened("llama"), tiny.tokens()
    for block in walk(streamed, ids, layers=[0, 1], dense=True):
        if block.index == 0:
            edit(block)
            continue
        assert block.dense is not None
        for layer in (block.layer, block.dense[0]):
            layer.self_attn = Nothing()
        assert submodule(block.layer, "self_attn.o_proj") is None
        moments = block.moments(["mlp.down_proj"], NEEDS)["mlp.down_proj"]
        pairs = zip(block.dense[1].states, block.stream.states, strict=True)
        lacks = torch.cat([flat(theirs - mine) for theirs, mine in pairs])
        torch.testing.assert_close(moments.drift_mean.double(), lacks.mean(0), rtol=1e-4, atol=1e-5)


class Nothing(nn.Module):
    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None

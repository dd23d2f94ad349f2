"""The walk computes what the whole model computes, for every architecture, and sees what hooks see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secateur.calibration import stream as streaming
from secateur.calibration.activations import MemoryBudget
from secateur.calibration.stream import Stream, batches_of
from secateur.calibration.walk import walk
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class
from secateur.model.streamed import StreamedModel
from tests.model import tiny

GRAM = frozenset({"gram"})


@pytest.fixture(autouse=True)
def _two_sequences_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences then come as a batch of two and a batch of one."""
    monkeypatch.setattr(streaming, "TOKENS_PER_BATCH", 2 * tiny.TOKENS)


def whole(checkpoint: Checkpoint) -> PreTrainedModel:
    return model_class(checkpoint.config).from_pretrained(checkpoint.path, dtype=torch.float32).eval()


def hooked_grams(model: PreTrainedModel, streamed: StreamedModel, index: int, ids: Tensor) -> dict[str, Tensor]:
    """Mean outer product of the inputs of every Linear of one layer, by plain hooks on the whole model."""
    layer = model.get_submodule(f"{streamed.checkpoint.family.layers}.{index}")
    inputs: dict[str, Tensor] = {}
    handles = []
    for name, module in layer.named_modules():
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):

            def keep(m: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                inputs.update(expert_inputs(name, m, *args[:2]))

        elif isinstance(module, (nn.Linear, Conv1D)):

            def keep(m: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                inputs[name] = args[0].reshape(-1, args[0].shape[-1])

        else:
            continue
        handles.append(module.register_forward_pre_hook(keep))
    tiny.logits(model, ids)
    for handle in handles:
        handle.remove()
    return {name: x.T @ x / max(1, len(x)) for name, x in inputs.items()}


def expert_inputs(path: str, experts: nn.Module, hidden: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """What each expert's matrices read, token by token and expert by expert."""
    rows: dict[str, Tensor] = {}
    for expert in range(len(experts.down_proj)):
        up, down = hidden.new_zeros(0, hidden.shape[1]), hidden.new_zeros(0, experts.down_proj.shape[2])
        for token, own in zip(hidden, chosen, strict=True):
            if expert in own.tolist():
                gate, value = (experts.gate_up_proj[expert] @ token).view(2, -1)
                up = torch.cat([up, token[None]])
                down = torch.cat([down, (nn.functional.silu(gate) * value)[None]])
        rows |= {f"{path}.gate_up_proj[{expert}]": up, f"{path}.down_proj[{expert}]": down}
    return rows


@pytest.mark.parametrize("case", tiny.CASES)
def test_walk_without_edits_gives_the_logits_of_from_pretrained(
    case: str, opened: Callable[[str], StreamedModel]
) -> None:
    streamed = opened(case)
    model, ids = whole(streamed.checkpoint), tiny.tokens()
    grams: list[dict[str, Tensor]] = []
    got: list[Tensor] = []

    def read(stream: Stream) -> None:
        got.extend(streamed.logits(own, stream.states[i]) for i, own in enumerate(batches_of(ids)))

    for block in walk(streamed, ids, at_end=read):
        found = block.moments([linear.source for linear in block.linears], GRAM)
        grams.append({linear.name: found[linear.source].gram for linear in block.linears})
    want = tiny.logits(model, ids)
    assert want.std() > 0.1
    torch.testing.assert_close(torch.cat(got), want, atol=1e-5, rtol=1e-5)
    for index in range(tiny.LAYERS):
        expected = hooked_grams(model, streamed, index, ids)
        assert set(grams[index]) == set(expected)
        for name, gram in grams[index].items():
            torch.testing.assert_close(gram, expected[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", ["llama", "qwen3-moe", "bert"])
def test_sequential_statistics_see_the_edits_before_them(case: str, opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened(case), tiny.tokens()
    for block in walk(streamed, ids, layers=[0]):
        before = {linear.name: m.gram for linear, m in block.statistics(GRAM)}
        first = block.linears[0].name
        for linear, moments in block.statistics(GRAM, sequential=True):
            same = torch.equal(moments.gram, before[linear.name])
            assert same == (linear.source == block.linears[0].source), linear.name
            if linear.name == first:
                linear.weight = linear.weight * 0.5


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_states_on_disk_are_bit_equal_to_states_in_memory(
    case: str, opened: Callable[[str], StreamedModel], tmp_path: Path
) -> None:
    streamed, ids = opened(case), tiny.tokens()
    found = []
    for budget, work in (
        (None, None),
        (MemoryBudget(0), tmp_path),
        (MemoryBudget(2 * tiny.TOKENS * 32 * 4), tmp_path),
    ):
        states = []
        for block in walk(streamed, ids, budget=budget, work=work):
            block.linears[0].weight = block.linears[0].weight * 0.9
            states += [s.clone() for s in block.stream.states]
        found.append(states)
        assert not list(tmp_path.iterdir())
    for spilled in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], spilled, strict=True))


def test_the_dense_stream_stays_dense(opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened("mistral"), tiny.tokens()
    plain = [[s.clone() for s in block.stream.states] for block in walk(streamed, ids)]
    for block in walk(streamed, ids, dense=True):
        assert block.dense is not None
        for mine, dense in zip(plain[block.index], block.dense[1].states, strict=True):
            assert torch.equal(mine, dense)
        same = all(torch.equal(a, b) for a, b in zip(block.stream.states, block.dense[1].states, strict=True))
        assert same == (block.index == 0)
        for linear in block.linears:
            linear.weight = linear.weight * 0.5


def test_skipped_layers_are_as_if_removed(opened: Callable[[str], StreamedModel]) -> None:
    streamed, ids = opened("gemma3"), tiny.tokens(2)
    model = whole(streamed.checkpoint)
    layers = model.get_submodule(streamed.checkpoint.family.layers)
    layers[1].register_forward_hook(lambda _m, args, out: args[0])
    got: list[Tensor] = []
    blocks = walk(
        streamed, ids, layers=[0, 2, 3], at_end=lambda stream: got.append(streamed.logits(ids, stream.states[0]))
    )
    assert [block.index for block in blocks] == [0, 2, 3]
    torch.testing.assert_close(got[0], tiny.logits(model, ids), atol=1e-5, rtol=1e-5)

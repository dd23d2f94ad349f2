"""Which experts read which tokens, where all of them are called with all tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from secateur.calibration.routing import routing_of
from secateur.model.architectures import ExpertModules


class Stream:
    """Two batches of hidden states."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def part(self, layer: nn.Module, _index: int, batch: int, rows: slice, _device: torch.device) -> Any:
        return layer(self.batches[batch][rows])

    def parts(self, batch: int, _device: torch.device, run: Callable[[slice], Any]) -> Iterator[Any]:
        yield run(slice(0, len(self.batches[batch])))


def test_tokens_that_are_not_an_experts_own_reach_it_as_zeros() -> None:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        hidden_size=8, intermediate_size=6, intermediate_size_mlp=6, num_local_experts=3, num_experts_per_tok=1
    )
    mixture = Llama4TextMoe(config).eval().requires_grad_(False)
    for parameter in mixture.parameters():
        parameter.normal_()
    mixture.experts.secateur_experts = ExpertModules("experts", "router", form="transposed", routed=False)
    batches = [torch.randn(2, 5, 8), torch.randn(1, 5, 8)]
    needs = frozenset(("routes", "expert_outputs"))
    found = routing_of(mixture, "experts", Stream(batches), 0, torch.device("cpu"), needs)  # type: ignore[arg-type]

    tokens, wrote = [0, 0, 0], [0.0, 0.0, 0.0]
    for x in torch.cat([batch.flatten(0, 1) for batch in batches]):
        logits = mixture.router.weight @ x
        chosen = int(logits.argmax())
        gate, through = ((x * logits[chosen].sigmoid()) @ mixture.experts.gate_up_proj[chosen]).chunk(2)
        out = (nn.functional.silu(gate) * through) @ mixture.experts.down_proj[chosen]
        tokens[chosen] += 1
        wrote[chosen] += float(out.double().norm())
    assert found.seen == sum(tokens) == 15
    assert found.tokens.tolist() == tokens
    torch.testing.assert_close(found.outputs.cpu(), torch.tensor(wrote, dtype=torch.float64), rtol=1e-5, atol=1e-6)

"""Options that share a beginning are computed once, and as if each were alone."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from secateur.evaluation.tasks.encode import Pair
from secateur.evaluation.tasks.likelihood import LONGER, NOT_SHARED, log_likelihoods
from secateur.evaluation.tasks.rows import mask_of, shared_row, together
from tests.cases import case
from tests.model import tiny

PAIRS = (Pair((5, 6, 7), (8, 9)), Pair((5, 6, 7), (8, 3, 4)), Pair((5, 6, 7), (11,)))
OTHER = (Pair((9, 4, 4, 5), (6, 6, 7)), Pair((9, 3, 4, 5), (6, 6, 7)))
ALONE = (Pair((12,), (13, 14, 15, 16)),)
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "gpt2",
    "opt",
    "neox",
    "mixtral",
)


@torch.no_grad()
def by_hand(model: torch.nn.Module, pair: Pair) -> tuple[float, bool]:
    """One pair, one forward pass, every logit."""
    ids = torch.tensor([[*pair.context, *pair.continuation]])
    logits = model(input_ids=ids[:, :-1]).logits[0, len(pair.context) - 1 :].double().log_softmax(-1)
    wanted = torch.tensor(pair.continuation)
    return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())


def test_a_row_has_the_common_beginning_once() -> None:
    row = shared_row(PAIRS)
    assert row.ids == (5, 6, 7, 8, 8, 3)  # what is predicted last doesn't go in
    assert row.positions == (0, 1, 2, 3, 3, 4)
    assert row.branch == (0, 0, 0, 1, 2, 2)
    assert row.places == ((2, 3), (2, 4, 5), (2,))
    sees = (mask_of([row], torch.float32)[0, 0] == 0).int().tolist()
    assert sees[4] == [1, 1, 1, 0, 1, 0]
    assert sees[5] == [1, 1, 1, 0, 1, 1]
    assert shared_row(OTHER).positions == (0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
    assert shared_row([Pair((1, 2), (3,)), Pair((1, 2), (4,))]).branches == 0


def test_every_family_as_one_by_one() -> None:
    for name in FAMILIES:
        with case(name):
            model = tiny.build(name)
            found = log_likelihoods(model, [PAIRS, OTHER, ALONE], "")
            assert not found.notes
            for group, likelihoods in zip((PAIRS, OTHER, ALONE), found.groups, strict=True):
                for pair, own in zip(group, likelihoods, strict=True):
                    nats, greedy = by_hand(model, pair)
                    assert own.nats == pytest.approx(nats, rel=1e-5)
                    assert own.greedy == greedy


def test_a_model_that_carries_a_state_along_gets_one_row_an_option() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    found = log_likelihoods(model, [PAIRS, OTHER], "")
    assert found.notes == (NOT_SHARED,)
    for group, likelihoods in zip((PAIRS, OTHER), found.groups, strict=True):
        for pair, own in zip(group, likelihoods, strict=True):
            assert own.nats == pytest.approx(by_hand(model, pair)[0], rel=1e-5)


def test_items_longer_than_the_window_say_so_and_are_computed_alone() -> None:
    model = tiny.build("mistral")
    model.config.sliding_window = 4  # longer than PAIRS' positions, shorter than OTHER's
    found = log_likelihoods(model, [PAIRS[:1], OTHER], "")
    assert found.notes == (LONGER,)
    for pair, own in zip(OTHER, found.groups[1], strict=True):
        assert own.nats == pytest.approx(by_hand(model, pair)[0], rel=1e-5)


def test_batches_hold_what_they_may() -> None:
    rows = [shared_row([Pair((1,) * n, (2, 3))]) for n in (3, 9, 5, 9, 1)]
    assert list(together(rows, 20, 100)) == [[1, 3], [2, 0, 4]]
    assert list(together(rows, 20, 2)) == [[1], [3], [2], [0], [4]]
    assert list(together(rows, 1, 1)) == [[1], [3], [2], [0], [4]]

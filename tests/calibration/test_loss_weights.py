"""What errors of a layer's output cost: against plain autograd, and for what reconstruction makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.calibration import loss_weights as module
from secateur.calibration.loss_weights import SHARE, loss_weights, why_not
from secateur.calibration.walk import walk
from secateur.config.recipe import make_recipe
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.pipeline.prune import prune
from secateur.reconstruct.tune import Tuning, reconstruct
from tests.model import tiny


def opened(case: str, folder: Path) -> StreamedModel:
    return StreamedModel(Checkpoint.open(tiny.save(case, folder / case)), torch.device("cpu"), torch.float32)


def squared_gradients(case: str, ids: Tensor) -> list[Tensor]:
    """g² of every layer's output but the last (which is given out behind the final norm), sequence by sequence."""
    model, out = tiny.build(case).eval(), []
    for row in ids:
        embedded = model.get_input_embeddings()(row[None]).detach().requires_grad_(True)
        found = model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
        hidden = found.hidden_states[1:-1]
        logits = found.logits[0, :-1]
        loss = -logits.log_softmax(-1).gather(1, logits.argmax(-1)[:, None]).sum()
        out.append([g[0].double().square() for g in torch.autograd.grad(loss, hidden)])
    return [torch.stack(layer) for layer in zip(*out, strict=True)]


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "neox", "gemma2", "mixtral"])
def test_weights_are_the_means_of_squared_gradients(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_draw", lambda logits, seed: logits.argmax(-1))
    ids = tiny.tokens(5)
    found = loss_weights(opened(case, tmp_path), list(ids.split(2)), 0)
    assert len(found.dimensions) == tiny.LAYERS
    for index, square in enumerate(squared_gradients(case, ids)):
        tokens, dimensions = square.mean(-1) / square.mean(), square.mean((0, 1)) / square.mean()
        assert torch.allclose(torch.cat(found.tokens[index]).double(), tokens, rtol=1e-3, atol=1e-5)
        assert torch.allclose(found.dimensions[index].double(), dimensions, rtol=1e-3, atol=1e-5)
        expected = (1 - SHARE) + SHARE * tokens[2:4, :, None] * dimensions
        assert torch.allclose(found.of(index, 1).double(), expected, rtol=1e-3, atol=1e-5)


def test_only_what_counts_weighs(tmp_path: Path) -> None:
    """Nothing that comes after the last answer matters; what comes before it does."""
    ids = tiny.tokens(3)
    counts = torch.zeros_like(ids, dtype=torch.bool)
    counts[:2, 8:10] = True
    streamed = opened("llama", tmp_path)
    (first, last) = loss_weights(streamed, list(ids.split(2)), 0, counts=list(counts.split(2))).tokens[1]
    assert not first[:, 9:].any()
    assert (first[:, 7:9] > 0).all()
    assert not last.any()


def test_draws_follow_the_predictions_and_their_text() -> None:
    logits = torch.tensor([[0.0, 0.0, -50.0]]).expand(4000, 3)
    drawn = module._draw(logits, 3)
    assert torch.equal(drawn, module._draw(logits, 3))
    assert drawn.bincount(minlength=3).tolist() == pytest.approx([2000, 2000, 0], abs=150)
    assert not torch.equal(drawn, module._draw(logits, 4))


def test_batches_weigh_the_same_wherever_they_are(tmp_path: Path) -> None:
    """A batch draws by its own text: its share of the weights doesn't depend on what came before it."""
    streamed, batches = opened("llama", tmp_path), list(tiny.tokens(4).split(2))
    one, other = loss_weights(streamed, batches, 0), loss_weights(streamed, batches[::-1], 0)
    assert torch.allclose(one.tokens[1][0], other.tokens[1][1], rtol=1e-5)
    assert torch.allclose(one.dimensions[1], other.dimensions[1], rtol=1e-5)


def test_an_error_is_weighed_by_hand(tmp_path: Path) -> None:
    """What reconstruction reports is the weighted error, and it falls."""
    streamed = opened("llama", tmp_path)
    tokens = tiny.tokens(16)
    for block in walk(streamed, tokens, layers=[0], dense=True):
        weights = loss_weights(streamed, block.stream.batches, 0)
        for linear in block.linears:
            linear.weight = linear.weight * (linear.weight.abs() > linear.weight.abs().median())
        assert block.dense is not None
        outs = [block.stream.forward(layer, 0, 0, streamed.device) for layer in (block.layer, block.dense[0])]
        held = slice(14, 16)  # two of one batch of sixteen
        w = weights.of(0, 0)[held].double()
        with torch.no_grad():
            error = (w * (outs[0] - outs[1])[held].double().square()).sum() / (
                w * outs[1][held].double().square()
            ).sum()
        outcome = reconstruct(block, Tuning(steps=50), weights=weights)
        assert outcome is not None
        assert outcome.held_out_before == pytest.approx(float(error), rel=1e-5)
        assert outcome.held_out_after < 0.95 * outcome.held_out_before


def test_a_model_that_predicts_no_next_token_is_refused_or_goes_without(tmp_path: Path) -> None:
    assert why_not(opened("llama", tmp_path)) is None
    assert "predicts no next token" in str(why_not(opened("bert", tmp_path)))


def test_what_does_not_fit_is_refused_if_it_was_asked_for(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fits_in_memory", lambda parameters: False)
    asked = {"model": str(shared / "models" / "stories260K"), "sparsity": 0.5, "samples": 4, "length": 32}
    asked |= {"reconstruct": 10, "objective": "loss", "evaluate": "none", "speed": False}
    with pytest.raises(InputError, match="use --objective output"):
        prune(make_recipe(asked), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()

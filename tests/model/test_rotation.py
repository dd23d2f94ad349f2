"""A narrow model is the original with its stream projected: to rounding, for every family whose norms allow it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from secateur.errors import InputError
from secateur.model.architectures import FAMILIES
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import model_class
from secateur.model.rotation import (
    check_rotatable,
    dimension_multiple,
    narrow_config,
    narrow_layer,
    narrow_surroundings,
    producers,
    surrounding_names,
)
from secateur.model.streamed import StreamedModel
from tests.model import tiny

ABLE = {kind for family in FAMILIES if family.norms for kind in family.model_types}
CASES = [name for name, config in tiny.CASES.items() if config["model_type"] in ABLE]


def basis(d: int, k: int) -> Tensor:
    drawn = torch.randn(d, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0][:, :k].contiguous()


def precision(checkpoint: Checkpoint) -> torch.dtype:
    """fp64, but for experts, whose grouped products don't know it."""
    return torch.float32 if checkpoint.family.experts is not None else torch.float64


def narrowed(checkpoint: Checkpoint, Q: Tensor) -> PreTrainedModel:
    """The narrow model built from its configuration and the tensors."""
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    config = narrow_config(checkpoint, Q.shape[1])
    model = model_class(checkpoint.config)(CONFIG_MAPPING[config["model_type"]].from_dict(config))
    state = narrow_surroundings(streamed.surroundings(), checkpoint, Q)
    for index in range(checkpoint.layers):
        tensors = narrow_layer(streamed.load(index).double(), checkpoint.family, Q)
        state |= {f"{checkpoint.family.layers}.{index}.{name}": tensor for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if "rotary" not in name]
    return model.to(precision(checkpoint)).eval()


def projected(checkpoint: Checkpoint, Q: Tensor) -> PreTrainedModel:
    """The original; whatever writes to its stream writes only what Q spans."""
    model = model_class(checkpoint.config).from_pretrained(checkpoint.path, dtype=torch.float32)
    model = model.to(precision(checkpoint)).eval()
    P = (Q @ Q.T).to(precision(checkpoint))

    def project(module: nn.Module, args: object, output: object) -> object:
        return (output[0] @ P, *output[1:]) if isinstance(output, tuple) else output @ P  # type: ignore[operator]

    model.get_input_embeddings().register_forward_hook(project)
    for layer in model.get_submodule(checkpoint.family.layers).children():
        layer.get_submodule(checkpoint.family.attention.path).register_forward_hook(project)
        layer.get_submodule(checkpoint.family.ffn.path).register_forward_hook(project)
    return model


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_projected_model(case: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.save(case, tmp_path))
    d = int(checkpoint.config.hidden_size)
    ids = tiny.tokens()
    for k in (d, 24):
        Q = basis(d, k)
        want = projected(checkpoint, Q)(input_ids=ids, use_cache=False).logits
        got = narrowed(checkpoint, Q)(input_ids=ids, use_cache=False).logits
        # Embeddings and head were rounded to fp32 in between.
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
        assert float(want.std()) > 1e-3


@pytest.mark.parametrize("case", [name for name in tiny.CASES if name not in CASES])
def test_others_are_refused_in_a_line(case: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.save(case, tmp_path))
    with pytest.raises(InputError, match="don't allow another basis"):
        check_rotatable(checkpoint)


@pytest.mark.parametrize("case", CASES)
def test_what_the_class_takes_is_known(case: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.save(case, tmp_path))
    step, d = dimension_multiple(checkpoint), int(checkpoint.config.hidden_size)
    for hidden in range(step, d, step):
        CONFIG_MAPPING[checkpoint.config.model_type].from_dict(narrow_config(checkpoint, hidden))


def test_all_that_sees_the_stream_is_known(tmp_path: Path) -> None:
    """Of a Llama's parameters none is left that has the hidden size and wasn't touched."""
    checkpoint = Checkpoint.open(tiny.save("llama-bias", tmp_path))
    d, k = int(checkpoint.config.hidden_size), 20
    layer = StreamedModel(checkpoint, torch.device("cpu"), torch.float32).load(0)
    found = narrow_layer(layer, checkpoint.family, basis(d, k))
    assert not [name for name, tensor in found.items() if d in tensor.shape]
    assert {"self_attn.o_proj.bias", "mlp.down_proj.bias"} <= set(producers(layer, checkpoint.family))
    assert surrounding_names(checkpoint) == ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    config = narrow_config(checkpoint, k)
    assert config["head_dim"] == checkpoint.head_dim
    assert config["rms_norm_eps"] == pytest.approx(checkpoint.config.rms_norm_eps * d / k)
    assert json.loads((checkpoint.path / "config.json").read_text())["hidden_size"] == d

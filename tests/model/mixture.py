"""A mixture whose experts are related, so that merging them makes sense."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

EXPERTS = 4


def upcycled(source: Any, noise: float) -> MixtralForCausalLM:
    """A mixture whose experts are a Llama's FFN, each in another order of its channels and with noise."""
    generator = torch.Generator().manual_seed(0)
    c = source.config
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    keys += ("rope_parameters", "bos_token_id", "eos_token_id")
    model = MixtralForCausalLM(
        MixtralConfig(**{key: getattr(c, key) for key in keys}, num_local_experts=EXPERTS, num_experts_per_tok=2)
    )
    model.load_state_dict({k: v for k, v in source.state_dict().items() if ".mlp." not in k}, strict=False)
    with torch.no_grad():
        for layer, dense in zip(model.model.layers, source.model.layers, strict=True):
            halves, down = (dense.mlp.gate_proj.weight, dense.mlp.up_proj.weight), dense.mlp.down_proj.weight
            for unit in range(EXPERTS):
                order = torch.randperm(down.shape[1], generator=generator)
                parts = torch.cat([half[order] for half in halves]), down[:, order]
                targets = layer.mlp.experts.gate_up_proj[unit], layer.mlp.experts.down_proj[unit]
                for own, part in zip(targets, parts, strict=True):
                    own.copy_(part + noise * part.std() * torch.randn(part.shape, generator=generator))
            layer.mlp.gate.weight.normal_(std=0.5, generator=generator)
    return model.eval()

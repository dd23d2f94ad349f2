"""Tiny random models of every architecture in the table, with nothing left at a comfortable default.

Four layers, more query heads than KV heads where the class allows it, a head size that hidden_size / heads
doesn't give, sliding windows shorter than the test sequences, norm gains away from one, biases away from
zero: whatever a cut gets wrong then shows in the logits.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from secateur.model.classes import stock_class

LAYERS = 4
VOCABULARY = 61
TOKENS = 20
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _modern(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": model_type, **changes}


_OPT = {
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 44,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CASES: dict[str, dict[str, Any]] = {
    "llama": _modern("llama", tie_word_embeddings=True),
    "llama-mha": _modern("llama", num_key_value_heads=4),
    "llama-bias": _modern("llama", attention_bias=True, mlp_bias=True, head_dim=12, num_key_value_heads=4),
    "mistral": _modern("mistral", head_dim=12, sliding_window=7),
    "ministral": _modern("ministral", head_dim=12, sliding_window=7, layer_types=MIXED),
    "qwen2": _modern("qwen2", use_sliding_window=True, sliding_window=7, layer_types=MIXED, tie_word_embeddings=True),
    "qwen3": _modern("qwen3", head_dim=12, attention_bias=True),
    "gemma": _modern("gemma", head_dim=12, num_key_value_heads=1),
    "gemma2": _modern(
        "gemma2", num_key_value_heads=4, head_dim=12, sliding_window=7, layer_types=MIXED, query_pre_attn_scalar=10
    ),
    "gemma3": _modern("gemma3_text", head_dim=12, sliding_window=7, layer_types=MIXED, query_pre_attn_scalar=10),
    "phi3": _modern(
        "phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    # The norm over all heads: removing some equals zeroing them up to its epsilon, kept out of the way here.
    "olmo2": _modern("olmo2", attention_bias=True, rms_norm_eps=1e-9),
    "olmo3": _modern("olmo3", sliding_window=7, layer_types=MIXED, rms_norm_eps=1e-9),
    "granite": _modern(
        "granite",
        attention_multiplier=0.3,
        residual_multiplier=0.7,
        embedding_multiplier=1.5,
        logits_scaling=2.0,
        mlp_bias=True,
    ),
    "smollm3": _modern(
        "smollm3", no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=7, layer_types=MIXED
    ),
    "gpt2": _GPT2,
    "gpt2-inner": {**_GPT2, "n_inner": 44, "activation_function": "relu", "tie_word_embeddings": False},
    "opt": _OPT,
    "opt-post": {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    "neox": {
        **_modern("gpt_neox", use_parallel_residual=True),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "neox-serial": _modern("gpt_neox", use_parallel_residual=False),
    "mixtral": _modern("mixtral", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24),
    "qwen3-moe": _modern(
        "qwen3_moe",
        head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    ),
    "bert": _modern("bert"),
}


SHARDED = ("llama", "qwen3-moe")


def build(case: str) -> PreTrainedModel:
    """The model of one case in fp32, with weights that make every part count; the caller's own."""
    return copy.deepcopy(_build(case))


@cache
def _build(case: str) -> PreTrainedModel:
    changes = dict(CASES[case])
    if changes["model_type"] in ("gpt_neox", "bert"):
        del changes["num_key_value_heads"]
    config = AutoConfig.for_model(changes.pop("model_type"), **changes)
    model = stock_class(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise, alpha=0.3)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / min(parameter.shape[-2:]) ** 0.5)
    return model.eval().requires_grad_(False)


def save(case: str, folder: Path, **how: Any) -> Path:
    _build(case).save_pretrained(folder, **how)
    return folder


def tokens(count: int = 3, length: int = TOKENS, seed: int = 1) -> torch.Tensor:
    """Token ids (count, length), no special ones."""
    return torch.randint(4, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits

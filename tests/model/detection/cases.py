"""Tiny models of architectures that the table doesn't list, one for each mechanism that detection must find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from secateur.model.classes import stock_class
from tests.model.tiny import LAYERS, VOCABULARY

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
CASES: dict[str, dict[str, Any]] = {
    # q, k and v of a group lie together in one matrix; layers return tuples
    "grouped": {
        **{key: value for key, value in TEXT.items() if key not in ("head_dim", "intermediate_size")},
        "model_type": "falcon",
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "ffn_hidden_size": 40,
    },
    # heads of a state-space layer, a norm over all of them, convolutions; no attention, no FFN
    "state-space": {
        "model_type": "mamba2",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "state_size": 6,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # latent attention; experts whose router has a bias, beside a shared one; layers of two kinds
    "latent": {
        **{key: value for key, value in TEXT.items() if key != "head_dim"},
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 8,
    },
    # layers of linear attention between those of attention with an output gate
    "hybrid": {
        **TEXT,
        "model_type": "qwen3_next",
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 0,
        "mlp_only_layers": [0, 1, 2, 3],
        "partial_rotary_factor": 0.5,
    },
    # slopes for each head come from outside of the layers, which are called with those of all heads
    "slopes": {"model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 32, "n_head": 4, "n_layer": LAYERS},
    # q, v and k of two heads each in four runs, and each run keeps as many
    "runs": {
        "model_type": "codegen",
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_head": 8,
        "n_layer": LAYERS,
        "n_positions": 64,
        "rotary_dim": 4,
    },
    # a language model inside of one that sees
    "vision": {
        "model_type": "gemma3",
        "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 7, "query_pre_attn_scalar": 8},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 9,
        "boi_token_index": 10,
        "eoi_token_index": 11,
    },
}
KINDS = {
    "grouped": {"channel", "query_head", "kv_group"},
    "state-space": {"kv_group"},
    "latent": {"channel", "kv_group", "latent", "expert"},
    "hybrid": {"channel", "query_head", "kv_group"},
    "slopes": {"channel", "kv_group"},
    "runs": {"channel", "kv_group"},
    "vision": {"channel", "query_head", "kv_group"},
}


def build(case: str, **own: Any) -> PreTrainedModel:
    """The model of one case in fp32, with weights that make every part count."""
    changes = {**CASES[case], **own}
    config = AutoConfig.for_model(changes.pop("model_type"), **changes)
    torch.manual_seed(0)
    model = stock_class(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("A_log", "D", "dt_bias") or "conv1d" in name:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise, alpha=0.2)
            else:
                parameter.copy_(noise if "embed" in name else noise / min(parameter.shape[-2:]) ** 0.5)
    return model.eval().requires_grad_(False)


def save(case: str, folder: Path, **own: Any) -> Path:
    build(case, **own).save_pretrained(folder)
    return folder

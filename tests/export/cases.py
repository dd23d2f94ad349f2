"""Small models to export: every architecture that a GGUF is made of, dense and cut unevenly, with a tokenizer."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from secateur.data.embedded import embedded_path
from secateur.model.classes import stock_class
from tests.model import tiny
from tests.model.test_uneven import PLAN, prune, save_uneven

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.1, 1.2, 1.3, 1.4],
    "long_factor": [2.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 256,
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", "head_dim": 12, "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "head_dim": 12, "sliding_window": 24},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 12},
    "qwen3-yarn": {"model_type": "qwen3", "rope_parameters": YARN},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama-yarn": {"model_type": "llama", "rope_parameters": YARN},
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 20},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 12,
        "sliding_window": 7,
        "query_pre_attn_scalar": 10,
        "rope_parameters": GEMMA3,
    },
    "phi3-whole": {"model_type": "phi3"},
    "phi3-long": {"model_type": "phi3", "max_position_embeddings": 512, "rope_parameters": LONG},
    "olmo2": {"model_type": "olmo2", "rms_norm_eps": 1e-9},
    "smollm3": {"model_type": "smollm3"},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "head_dim": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
}
_LIKE_TINY = ("llama", "llama-bias", "gemma", "phi3", "granite", "gpt2", "mixtral")
CASES = [*_LIKE_TINY, *_OWN]


def build(case: str) -> PreTrainedModel:
    """The model of a case in fp32, for the embedded model's vocabulary."""
    changes = {**(tiny.CASES[case] if case in _LIKE_TINY else tiny._COMMON | _OWN[case]), "vocab_size": 2048}
    config = AutoConfig.for_model(**changes)
    model = stock_class(config)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise, alpha=0.3)
            else:
                scale = (
                    1.0 if "embed" in name or "wte" in name or "wpe" in name else min(parameter.shape[-2:]) ** -0.5
                )
                parameter.copy_(noise * scale)
    return model.eval().requires_grad_(False)


def with_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedded_path() / name, folder / name)
    return folder


def dense(case: str, folder: Path) -> Path:
    build(case).save_pretrained(folder)
    return with_tokenizer(folder)


def uneven(case: str, folder: Path, plan: tuple[tuple[str, ...], ...] = PLAN) -> Path:
    """Channels, heads and whole sub-blocks gone, others in each layer; no attention in layer 0."""
    model = copy.deepcopy(build(case))
    prune(model, plan)
    return with_tokenizer(save_uneven(model, folder))

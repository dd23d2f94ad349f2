"""The keys of a GGUF file: the architecture's numbers, its rotation, and the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import UnsupportedModelError
from secateur.export.gguf.architectures import Row, context_of, rope_parameters, rotary_dim
from secateur.export.gguf.tensors import Layout
from secateur.export.gguf.vocabulary import Vocabulary
from secateur.model.checkpoint import Checkpoint

# Where llama.cpp reads factors of the rotation's frequencies from a tensor.
WITH_FACTORS = ("llama", "deci", "smollm3")


def add_model(writer: Any, checkpoint: Checkpoint, row: Row, layout: Layout) -> list[str]:
    """Writes the architecture's numbers; returns notes for the report."""
    config = checkpoint.config
    context, notes = context_of(config, row)
    writer.add_block_count(checkpoint.layers)
    writer.add_context_length(context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_head_count(_one(layout.heads))
    experts = checkpoint.family.experts
    if experts is not None:
        writer.add_expert_count(int(getattr(config, experts.count_key)))
        writer.add_expert_used_count(int(config.num_experts_per_tok))
    if row.name == "qwen3moe":
        writer.add_expert_feed_forward_length(_one(layout.channels))
    writer.add_feed_forward_length(_one(layout.channels))
    if row.name == "gpt2":
        writer.add_layer_norm_eps(float(config.layer_norm_epsilon))
        return notes
    writer.add_head_count_kv(_one(layout.kv_heads))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_key_length(checkpoint.head_dim)
    writer.add_value_length(checkpoint.head_dim)
    _add_rotation(writer, checkpoint, row)
    _add_own(writer, config, row)
    return notes


def _one(values: Sequence[int]) -> Any:
    """One number where all layers have the same, else a list of them."""
    return int(values[0]) if len(set(values)) == 1 else [int(value) for value in values]


def _add_own(writer: Any, config: Any, row: Row) -> None:
    """What single architectures have."""
    if row.name == "granite":
        writer.add_embedding_scale(float(config.embedding_multiplier))
        writer.add_residual_scale(float(config.residual_multiplier))
        writer.add_attention_scale(float(config.attention_multiplier))
        writer.add_logit_scale(float(config.logits_scaling))
    if row.name in ("gemma2", "gemma3") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(int(config.sliding_window))
    if row.name == "gemma2":
        writer.add_attn_logit_softcapping(float(config.attn_logit_softcapping or 0.0))
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping or 0.0))


def _add_rotation(writer: Any, checkpoint: Checkpoint, row: Row) -> None:
    found = rope_parameters(checkpoint.config)
    kind = str(found.get("rope_type", "default"))
    rotary = rotary_dim(checkpoint)
    if rotary != checkpoint.head_dim and row.name != "phi3":
        raise UnsupportedModelError(f"{checkpoint.path}: {row.name} in llama.cpp rotates whole heads, not {rotary}")
    writer.add_rope_dimension_count(rotary)
    writer.add_rope_freq_base(float(found.get("rope_theta", 10000.0)))
    if kind == "linear":
        _add_scaling(writer, "linear", found)
    elif kind == "yarn":
        _check_yarn(checkpoint, found)
        _add_scaling(writer, "yarn", found)
        original = found.get("original_max_position_embeddings") or checkpoint.config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_yarn_beta_fast(float(found.get("beta_fast") or 32.0))
        writer.add_rope_scaling_yarn_beta_slow(float(found.get("beta_slow") or 1.0))
    elif kind == "longrope":
        # What it multiplies cosines and sines by is in the weights: not every version of llama.cpp reads it.
        writer.add_rope_scaling_orig_ctx_len(int(found["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(1.0)
    elif kind == "llama3":
        if row.name not in WITH_FACTORS:
            raise UnsupportedModelError(f"{checkpoint.path}: {row.name} in llama.cpp has no llama3 rotation")
    elif kind != "default":
        raise UnsupportedModelError(f"{checkpoint.path}: llama.cpp has no rotation '{kind}'")


def _add_scaling(writer: Any, kind: str, found: dict[str, Any]) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(float(found["factor"]))


def _check_yarn(checkpoint: Checkpoint, found: dict[str, Any]) -> None:
    """llama.cpp scales attention by YaRN's own formula."""
    usual = 0.1 * math.log(float(found["factor"])) + 1.0
    given = found.get("attention_factor")
    mscale = found.get("mscale"), found.get("mscale_all_dim")
    if (given is not None and abs(float(given) - usual) > 1e-6) or any(mscale) or found.get("truncate") is False:
        raise UnsupportedModelError(f"{checkpoint.path}: its YaRN rotation isn't scaled as llama.cpp's")


def rotation_tensors(checkpoint: Checkpoint, row: Row) -> dict[str, Tensor]:
    """Factors of the rotation's frequencies that go into the file as tensors."""
    config, found = checkpoint.config, rope_parameters(checkpoint.config)
    kind = str(found.get("rope_type", "default"))
    if kind == "longrope":
        return {
            f"rope_factors_{which}.weight": torch.tensor(found[f"{which}_factor"], dtype=torch.float32)
            for which in ("long", "short")
        }
    if kind != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size, base = rotary_dim(checkpoint), float(found["rope_theta"])
    plain = 1.0 / base ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    return {"rope_freqs.weight": plain / scaled}


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Writes the tokens, what they're made by, and the chat template."""
    import gguf

    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType(kind) for kind in vocabulary.kinds])
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for role, index in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds["bos"])
    writer.add_add_eos_token(vocabulary.adds["eos"])
    writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)

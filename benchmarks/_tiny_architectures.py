"""Tiny random checkpoints of the architectures that people use, with weights that make every part count.

    python build.py OUT TOKENIZER_FOLDER [TYPE ...]     OUT/TYPE/ for each; about 1 to 5 s each

TOKENIZER_FOLDER: any folder with tokenizer.json and tokenizer_config.json for at most 2,048 tokens (the embedded
model's). Written for transformers 5.23. Types that can't be made small are said to be so and left out.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISION

transformers.logging.set_verbosity_error()

V = 2048

# Names that mean the same everywhere.
SMALL = {
    "vocab_size": V,
    "vocab_size_per_layer_input": V,
    "unpadded_vocab_size": V,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "emb_dim": 64,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "depth": 2,
    "num_blocks": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "n_inner": 128,
    "ffn_hidden_size": 128,
    "dff": 128,
    "intermediate_size_mlp": 128,
    "dense_intermediate_size": 128,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "shared_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 512,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "context_length": 512,
    "sliding_window": 32,
    "attention_window_size": 32,
    "attention_chunk_size": 32,
    "window_size": 32,
    "state_size": 16,
    "mamba_d_state": 16,
    "ssm_state_size": 16,
    "mamba_d_ssm": 128,
    "mamba_d_head": 32,
    "mamba_n_heads": 4,
    "n_mamba_heads": 2,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "n_groups": 1,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "lru_width": 64,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 8,
    "router_hidden_size": 16,
    "kv_channels": 16,
    "rotary_dim": 8,
    "embedding_size": 64,
    "adapter_rank": 8,
    "num_kv_shared_layers": 0,
    "query_pre_attn_scalar": 16,
    "num_mtp_layers": 0,
    "num_nextn_predict_layers": 0,
    "moe_latent_size": None,
    "num_labels": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "encoder_ffn_dim": 128,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "dim_ff": 128,
    "dim_head": 16,
    "input_embedding_size": 64,
    "output_embedding_size": 64,
    "backbone_hidden_size": 64,
    "num_centroids": 32,
    "swa_head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "sliding_window_size": 32,
    "layer_group_size": 2,
    "d_rel": 8,
    "rel_extent": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hc_lowrank": 8,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 256,
    "split_ngram_parts": 2,
    "prefix_dense_intermediate_size": 128,
    "attention_head_size": 16,
    "feed_forward_size": 128,
}
SEE = {
    "hidden_size": 32,
    "embed_dim": 32,
    "depth": 2,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_heads": 2,
    "num_attention_heads": 2,
    "attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "mlp_dim": 64,
    "image_size": 56,
    "patch_size": 14,
    "out_hidden_size": 64,
    "projection_dim": 32,
    "num_global_layers": 1,
    "vision_output_dim": 64,
    "vocab_size": V,
    "head_dim": 16,
    "num_position_embeddings": 16,
    "output_proj_dims": 64,
    "mm_embed_dim": 64,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "pixel_shuffle_ratio": 0.5,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0],
    "intermediate_layers_indices": [0],
}
# What no rule says. Keys are fields of the (text) configuration; "" gives fields of the outer one.
OWN = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4},
    "mpt": {"expansion_ratio": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 4, "n_head": 8, "num_attention_heads": 8},  # four runs
    "falcon": {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
    "falcon_new": {"multi_query": False, "parallel_attn": True, "new_decoder_architecture": True},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "falcon_mamba": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "num_experts": 4,
    },
    "zamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_dt_rank": 8,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "use_mem_eff_path": False,
        "mamba_headdim": 32,
        "n_mamba_heads": 4,
        "mamba_d_state": 16,
        "mamba_ngroups": 1,
        "num_key_value_heads": 4,
    },
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 4, "mamba_d_head": 32},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_ssm": 128},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
    },
    "granitemoehybrid_dense": {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
        "num_key_value_heads": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5_moe": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 16},
    "gemma3n": {
        "intermediate_size": [128] * 4,
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gemma4": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 0,
        "global_head_dim": 16,
    },
    "llama4": {
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "moe_layers": [1, 3],
        "num_experts_per_tok": 1,
    },
    "mllama": {"cross_attention_layers": [1], "num_hidden_layers": 4},
    "hunyuan_v1_moe": {"moe_topk": [2] * 4, "num_shared_expert": [1] * 4},
    "openai-gpt": {},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "modernbert-decoder": {"num_hidden_layers": 3},
    "qwen2_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
    "phi4_multimodal": {},
    "rwkv": {"attention_hidden_size": 64, "intermediate_size": 128},
    "xlstm": {"embedding_dim": 64},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "intermediate_size": [128] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "ctrl": {},
    "bitnet": {},
    "xlm": {},
    "reformer": {},
    "phi": {"num_key_value_heads": 4},
    "longcat_flash": {"head_dim": 8},  # that of its rotary part
    "stablelm": {},
}
for a, b in {
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "llama4_text": "llama4",
    "qwen2_5_vl": "qwen2_vl",
    "gemma4_unified": "gemma4",
    "gemma4_unified_text": "gemma4",
}.items():
    OWN.setdefault(a, OWN[b])
for t in ("qwen3_vl", "qwen3_vl_moe"):
    OWN[t] = {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        }
    }
for t in ("glm4v", "glm4v_moe", "glm46v", "glm_ocr"):
    OWN[t] = {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
            "partial_rotary_factor": 1.0,
        }
    }
VARIANTS = {"falcon_new": "falcon", "granitemoehybrid_dense": "granitemoehybrid"}
OUTER = {
    t: {
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
        "image_token_index": 5,
        "audio_token_id": 9,
    }
    for t in ()
}
VLM = [
    "gemma3",
    "gemma3n",
    "gemma4",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "llama4",
    "mistral3",
    "mistral4",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "mllama",
    "smolvlm",
    "idefics2",
    "idefics3",
    "glm4v",
    "glm4v_moe",
    "kimi_k25",
    "aya_vision",
    "cohere2_vision",
    "paligemma",
    "deepseek_vl",
    "ovis2",
    "lfm2_vl",
    "ernie4_5_vl_moe",
    "minimax_m3_vl",
    "gemma4_unified",
    "granite4_vision",
    "fast_vlm",
    "hunyuan_vl",
    "minicpmv4_6",
]
POPULAR = [
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "mistral",
    "ministral",
    "ministral3",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "phi",
    "phi3",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "llama4_text",
    "cohere",
    "cohere2",
    "falcon",
    "falcon_new",
    "stablelm",
    "starcoder2",
    "bloom",
    "mpt",
    "gptj",
    "gpt_neo",
    "gpt_bigcode",
    "gpt_neox",
    "gpt2",
    "opt",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "granitemoehybrid",
    "nemotron",
    "nemotron_h",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "jamba",
    "bamba",
    "falcon_h1",
    "zamba2",
    "recurrent_gemma",
    "lfm2",
    "lfm2_moe",
    "minimax",
    "minimax_m2",
    "ernie4_5",
    "ernie4_5_moe",
    "smollm3",
    "exaone4",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "seed_oss",
    "dbrx",
    "jetmoe",
    "apertus",
    "bitnet",
    "dots1",
    "helium",
    "arcee",
    "kimi_linear",
    "codegen",
    "persimmon",
    "diffllama",
    "bailing_hybrid",
    "longcat_flash",
]
WITH_VLM = [
    "gemma3",
    "gemma3n",
    "gemma4",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "llama4",
    "mistral3",
    "llava",
    "internvl",
    "mllama",
    "smolvlm",
    "idefics3",
    "glm4v",
    "glm4v_moe",
    "kimi_k25",
    "paligemma",
    "aya_vision",
]


def small(cls, own, see=False, depth=0):
    """Keyword arguments that make a configuration class small."""
    out, table = {}, SEE if see else SMALL
    fields = {f.name for f in dataclasses.fields(cls)}
    subs = getattr(cls, "sub_configs", None) or {}
    for name, value in table.items():
        if name in fields and name not in subs:
            out[name] = value
    for name, sub in subs.items():
        if not dataclasses.is_dataclass(sub):
            continue
        text = name in (
            "text_config",
            "llm_config",
            "decoder",
            "language_config",
            "attn_config",
            "ffn_config",
            "decoder_config",
            "global_config",
            "encoder_config",
            "patcher_config",
        )
        out[name] = small(sub, own if text else {}, see=not text, depth=depth + 1)
    if {"kv_lora_rank", "num_key_value_heads"} <= fields and "num_attention_heads" in out:
        out["num_key_value_heads"] = out["num_attention_heads"]  # latent attention has no fewer, or it doesn't run
    for name, value in own.items():
        if name in fields:
            out[name] = value
    return out


def configuration(mt):
    real = VARIANTS.get(mt, mt)
    cls = CONFIG_MAPPING[real]
    kw = small(cls, OWN.get(mt, {}))
    for inner, own in {
        "llava": "llama",
        "llava_next": "llama",
        "mistral3": "mistral",
        "internvl": "qwen2",
        "aya_vision": "cohere2",
        "idefics2": "mistral",
        "idefics3": "llama",
        "smolvlm": "llama",
        "llava_onevision": "qwen2",
        "cohere2_vision": "cohere2",
        "paligemma": "gemma",
        "ovis2": "qwen2",
        "lfm2_vl": "lfm2",
        "deepseek_vl": "llama",
        "kimi_k25": "deepseek_v3",
        "fast_vlm": "qwen2",
        "granite4_vision": "granite",
    }.items():
        if real == inner:
            kw["text_config"] = dict(model_type=own, **small(CONFIG_MAPPING[own], OWN.get(own, {})))
    see = {
        "llava": "clip_vision_model",
        "llava_next": "clip_vision_model",
        "mistral3": "pixtral",
        "aya_vision": "siglip_vision_model",
        "llava_onevision": "siglip_vision_model",
        "cohere2_vision": "siglip_vision_model",
        "paligemma": "siglip_vision_model",
        "gemma3": "siglip_vision_model",
        "deepseek_vl": "siglip_vision_model",
        "lfm2_vl": "siglip2_vision_model",
        "granite4_vision": "siglip_vision_model",
    }.get(real)
    if see:
        kw["vision_config"] = dict(model_type=see, **small(CONFIG_MAPPING[see], {}, see=True))
    fields = {f.name for f in dataclasses.fields(cls)}
    if "text_config" in kw or "vision_config" in kw:
        for i, name in enumerate(
            f
            for f in sorted(fields)
            if f.endswith(("_token_id", "_token_index")) and f not in ("pad_token_id", "bos_token_id", "eos_token_id")
        ):
            kw[name] = 10 + i
    return cls(**kw)


def model_class(mt, config):
    real = VARIANTS.get(mt, mt)
    name = VISION.get(real) if real in VLM or real in WITH_VLM else None
    name = name or CAUSAL.get(real)
    if isinstance(name, (tuple, list)):
        name = name[0]
    return getattr(transformers, name)


def fill(model):
    """Weights that make every part count, as the product's own tests do."""
    g = torch.Generator().manual_seed(0)
    keep = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=g)
            leaf = name.rpartition(".")[2]
            if (
                leaf in ("A_log", "D", "dt_bias", "decay_weight", "slope_rate", "e_score_correction_bias")
                or "conv1d" in name
                or "rg_lru" in name
                or "recurrent_param" in name
            ):
                continue
            if p.dim() <= 1:
                p.add_(noise, alpha=0.2)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / max(1, min(p.shape[-2:])) ** 0.5)
        ids = torch.randint(20, V - 20, (2, 24), generator=g)
        try:
            good = bool(torch.isfinite(model.eval()(input_ids=ids).logits).all())
            why = "" if good else "logits not finite with noise"
        except Exception as e:
            return f"forward fails: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200]
        if not good:
            for n, p in model.named_parameters():
                p.copy_(keep[n])
            good = bool(torch.isfinite(model(input_ids=ids).logits).all())
            why = "default init" if good else "logits not finite"
        return why


def build(mt, root, tokenizer):
    out = Path(root) / mt
    shutil.rmtree(out, ignore_errors=True)
    config = configuration(mt)
    cls = model_class(mt, config)
    with torch.device("meta"):
        n = sum(p.numel() for p in cls._from_config(config, dtype=torch.float32).parameters())
    if n > 30e6:
        big = []
        with torch.device("meta"):
            m = cls._from_config(config)
        big = sorted(((p.numel(), k, tuple(p.shape)) for k, p in m.named_parameters()), reverse=True)[:4]
        raise RuntimeError(f"too big: {n / 1e6:.0f}M {big}")
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.float32).eval()
    note = fill(model)
    model.save_pretrained(out)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(tokenizer) / f, out / f)
    return {"ok": True, "params": n, "cls": cls.__name__, "note": note}


def others():
    """Types of transformers beside these that write text."""
    known = {*POPULAR, *WITH_VLM, *VLM}
    return sorted(t for t in CAUSAL if t not in known and t in CONFIG_MAPPING)


def main():
    root, tokenizer, *names = sys.argv[1:]
    for mt in names or POPULAR + WITH_VLM:
        try:
            made = build(mt, root, tokenizer)
            print(f"{mt:28s} {made['params']:>10,} {made['cls']} {made['note']}", flush=True)
        except Exception as error:
            print(
                f"{mt:28s} not built: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :200
                ],
                flush=True,
            )


if __name__ == "__main__":
    main()

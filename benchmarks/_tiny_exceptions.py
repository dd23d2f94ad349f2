"""What tiny configurations of single architectures need beside `_tiny_sizes`."""

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
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        },
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 512,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
    },
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

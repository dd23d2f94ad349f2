"""A small copy of a model: the same class and kinds of layers, with random weights that make every part count.

Only the language model gets weights; towers for images and sound stay without, since nobody asks them anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.classes import text_config
from secateur.model.detection.building import inner_name, quiet, without_weights
from secateur.model.heads import answer_of, head_of
from secateur.model.skeleton import fill_buffers, owned

LARGEST = 6_000_000  # entries of a copy
TOKENS = (2, 12)

# Sizes of a copy, by what configurations call them; set apart, so that no two of them are the same number.
SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "lru_width"), 128),
    **dict.fromkeys(("attention_hidden_size",), 256),
    **dict.fromkeys(("attention_head_dim",), 32),
    **dict.fromkeys(("linear_head_dim",), 24),
    **dict.fromkeys(("rotary_dim",), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 22),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 8),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "kv_channels", "global_head_dim", "swa_head_dim"), 12),
    **dict.fromkeys(
        (
            *("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "feed_forward_size"),
            *("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size"),
        ),
        80,
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 40),
    **dict.fromkeys(
        (
            *("shared_expert_intermediate_size", "shared_experts_intermediate_size", "shared_intermediate_size"),
            "moe_shared_expert_intermediate_size",
        ),
        56,
    ),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"), 6
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("top_k_experts",), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "num_shared_experts", "n_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "o_lora_rank"), 36),
    **dict.fromkeys(("kv_lora_rank", "linear_value_head_dim"), 20),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("qk_nope_head_dim", "linear_key_head_dim"), 10),
    **dict.fromkeys(("v_head_dim",), 14),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 18),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 32),
    **dict.fromkeys(("mamba_d_ssm",), 256),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), 160),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 160),  # looked up by the same ids
    **dict.fromkeys(("zero_expert_num",), 2),
    **dict.fromkeys(("index_head_dim",), 26),
    **dict.fromkeys(("index_n_heads",), 3),
    **dict.fromkeys(("index_topk",), 6),  # fewer than a copy's tokens, so that the choice shows
}
# Classes whose heads make up the hidden size; sizes as they are; heads as wide as they are (for rotary parts).
EVEN = SMALL | {"head_dim": 16, "attention_head_size": 16}
HEADS_KEPT = {key: size for key, size in SMALL.items() if not key.endswith("head_dim")}
HEADS_KEPT |= {key: 4 for key, size in HEADS_KEPT.items() if size == 8}
WAYS: tuple[dict[str, int] | None, ...] = (SMALL, EVEN, None, HEADS_KEPT)


def small_copy(config: Any, depth: int) -> nn.Module:
    """A model of the same class with the first `depth` layers, in fp32 with random weights, in eval mode.

    Raises:
        ValueError: no small model of this class can be made that runs.
    """
    said: list[str] = []
    for sizes in WAYS:
        for noisy in (True, False):
            try:
                model = _built(config, depth, sizes, noisy)
                run(model, token_ids(model))
                return model
            except FloatingPointError:
                continue  # with the weights that its class starts with
            except Exception as error:  # each class has its own ways to refuse a size
                said.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160])
                break
    raise ValueError(said[0])


def token_ids(model: Any, seed: int = 0) -> Tensor:
    """Token ids (sequences, tokens), none of the first ones, which tend to mean something."""
    top = int(text_config(model.config).vocab_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(24, top // 4), top, TOKENS, generator=generator)


def run(model: Any, ids: Tensor) -> Tensor:
    """Logits (sequences, tokens, vocabulary); of a model without a head over the vocabulary its last hidden states.

    Raises:
        FloatingPointError: not finite.
    """
    head = head_of(model.config)
    asked = model if head is None or head.tokens else model.base_model  # a classifier would see a token or two
    said = answer_of(asked(input_ids=ids, use_cache=False))
    if not bool(torch.isfinite(said).all()):
        raise FloatingPointError("its logits aren't finite")
    return said


def _built(config: Any, depth: int, sizes: dict[str, int] | None, noisy: bool) -> nn.Module:
    """The copy; sizes as they are where none are given."""
    values = copy.deepcopy(config.to_dict())
    inner = inner_name(config)
    own = values[inner] if inner else values
    _shorten(own, int(text_config(config).num_hidden_layers), depth, text_config(config))
    if sizes is not None:
        _shrink(own, sizes)
        _divide_rotary(own, text_config(config))
        if inner:
            _clip_tokens(values)
    with quiet():
        made = type(config)(**{k: v for k, v in values.items() if k not in ("architectures", "auto_map")})
    made.architectures = getattr(config, "architectures", None)
    for part in (made, text_config(made)):
        part._experts_implementation = "eager"
    model = without_weights(made)
    size = sum(p.numel() for m in language_modules(model) for p in m.parameters(recurse=False))
    if size > LARGEST:
        raise ValueError("too large")
    with quiet():
        fill_buffers(model, whole=True)
        _fill(model, noisy)
    return model.eval().requires_grad_(False)


def _shorten(own: dict[str, Any], layers: int, depth: int, text: Any) -> None:
    """The first `depth` layers: whatever is said once per layer is cut to that length."""
    count = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key, value in own.items():
        if isinstance(value, list) and len(value) == layers > 1:
            own[key] = value[:depth]
        elif isinstance(value, list) and key.endswith(("_ids", "_layers", "_indices", "layers")):
            own[key] = [x for x in value if not isinstance(x, int) or x < depth]
    if isinstance(own.get("per_layer_config"), dict):
        own["per_layer_config"] = {str(k): v for k, v in own["per_layer_config"].items() if int(k) < depth}
    for key in {count, "num_hidden_layers", "num_layers"} & own.keys():
        own[key] = depth
    if own.get("num_kv_shared_layers"):
        own["num_kv_shared_layers"] = min(own["num_kv_shared_layers"], max(0, depth - 2))


def _shrink(own: dict[str, Any], sizes: dict[str, int]) -> None:
    """Sizes that have one in `sizes` get that; whatever was one stays one, and heads without groups stay so."""
    heads = own.get("num_attention_heads", own.get("num_heads"))
    for key, value in list(own.items()):
        if key in ("id2label", "label2id"):
            continue
        if isinstance(value, dict):
            _shrink(value, sizes)
        elif key in sizes and type(value) is int and value > 1:
            alone = key in ("num_key_value_heads", "num_kv_heads") and value == heads
            own[key] = sizes["num_attention_heads" if alone else key]
        elif key in sizes and isinstance(value, list) and all(type(x) is int for x in value):
            own[key] = [sizes[key] if x > 1 else x for x in value]
    if own.keys() >= {"expand", "num_heads", "head_dim", "hidden_size"}:  # Mamba 2 checks that they agree
        own["head_dim"] = int(own["expand"] * own["hidden_size"]) // own["num_heads"]
    if own.get("qk_rope_head_dim") and "head_dim" in own:  # what rotary tables are made for
        own["head_dim"] = own["qk_rope_head_dim"]
    if {"qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"} <= own.keys():
        own["qk_head_dim"] = own["qk_nope_head_dim"] + own["qk_rope_head_dim"]
    _clip_tokens(own)


def _divide_rotary(own: dict[str, Any], text: Any) -> None:
    """Positions in time, height and width get their parts of what the heads of a copy turn."""
    known = "mrope_section" in (getattr(text, "ignore_keys_at_rope_validation", None) or ())  # or there's a default
    for rope in (own.get("rope_parameters"), own.get("rope_scaling")):
        if isinstance(rope, dict) and (known or "mrope_section" in rope):
            heads = own.get("num_attention_heads") or 1
            share = rope.get("partial_rotary_factor") or own.get("partial_rotary_factor") or 1
            turned = int((own.get("head_dim") or own.get("hidden_size", 0) // heads) * share) // 2
            rope["mrope_section"] = [turned - 2 * (turned // 3), turned // 3, turned // 3]


def _clip_tokens(own: dict[str, Any]) -> None:
    """Special tokens within the vocabulary of a copy."""
    for number, key in enumerate(sorted(k for k in own if k.endswith(("_token_id", "_token_index")))):
        value = own[key]
        if isinstance(value, list):
            own[key] = value[:1] and [2]
        elif isinstance(value, int) and value >= SMALL["vocab_size"]:
            own[key] = 3 + number % 16


def language_modules(model: Any) -> Iterator[nn.Module]:
    """Modules of the language model, head included: no towers for images or sound."""
    towers = ("vision", "visual", "image", "audio", "multi_modal", "embed_vision", "mm_", "projector", "connector")

    def below(module: nn.Module) -> Iterator[nn.Module]:
        yield module
        for name, child in module.named_children():
            if not any(word in name for word in towers):
                yield from below(child)

    return below(model)


@torch.no_grad()
def _fill(model: Any, noisy: bool) -> None:
    """Gives the language model random weights; what its class starts in a way of its own keeps that."""
    seen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:  # zeros that nobody touches take no memory
                own = seen.setdefault(
                    id(parameter), nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype))
                )
                module._parameters[name] = own
        for buffer in module._buffers.values():
            if buffer is not None and buffer.is_floating_point():
                buffer.nan_to_num_(nan=0.5)  # what only a checkpoint says
    model.tie_weights()
    for module in model.modules():
        for name in ("variance_epsilon", "eps", "epsilon"):  # what a cut can't make up for is kept out of the proofs
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 1e-12)
    generator = torch.Generator().manual_seed(0)
    random_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    wanted = {id(module) for module in language_modules(model)}
    for owner, module in owned(model):
        if id(module) in wanted:
            owner._init_weights(module)
    torch.random.set_rng_state(random_state)
    if not noisy:
        return
    own_way = ("A_log", "D", "dt_bias", "decay", "slope_rate", "e_score_correction_bias")
    done: set[int] = set()
    for module in language_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done or not parameter.is_floating_point() or name in own_way:
                continue
            done.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() <= 1:
                parameter.add_(noise, alpha=0.2)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(noise)
            elif not isinstance(module, nn.Conv1d):
                parameter.copy_(noise / max(1, min(parameter.shape[-2:])) ** 0.5)

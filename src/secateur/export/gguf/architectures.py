"""The architectures that a GGUF file may hold, as llama.cpp computes them, and what it would compute otherwise.

A row for each `model_type`. What differs between a configuration and what llama.cpp does under that name is either
written into the file, moved into the weights, or refused with the reason: never left to differ in silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from secateur.errors import UnsupportedModelError
from secateur.export.padded import widths_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.uneven import HEADS

SILU, TANH_GELU = frozenset({"silu", "swish"}), frozenset({"gelu_new", "gelu_pytorch_tanh", "gelu_fast"})
PATTERN = {"gemma2": 2, "gemma3": 6}  # every so many layers one without a window, the last of them
LARGE = {"gemma2": 46, "gemma3": 62}  # layers of the model whose attention llama.cpp scales by hidden / heads
NOPE_EVERY = 4  # SmolLM3: llama.cpp leaves the rotation out in every fourth layer


@dataclass(frozen=True)
class Row:
    """One architecture of llama.cpp.

    Args:
        name: as the file says it.
        rotates: `pairs` of neighbours (rows of q and k are put in that order), `halves` as transformers, or None.
        uneven: the name under which layers may differ in width, or None: they are filled up to the widest.
        activations: of the feed-forward network, that it computes alike.
        biases: configuration flags that may be on.
        norm_plus_one: gains are stored as what transformers adds one to.
        square: attention must be as wide as the hidden state.
    """

    name: str
    rotates: str | None = "halves"
    uneven: str | None = None
    activations: frozenset[str] = SILU
    biases: frozenset[str] = frozenset()
    norm_plus_one: bool = False
    square: bool = False


_LLAMA = Row("llama", "pairs", "deci", biases=frozenset({"attention_bias", "mlp_bias"}))
ROWS: dict[str, Row] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "mixtral": Row("llama", "pairs"),
    "granite": Row("granite", "pairs", biases=frozenset({"attention_bias", "mlp_bias"})),
    "smollm3": Row("smollm3", "pairs"),
    "qwen2": Row("qwen2", square=True),
    "qwen3": Row("qwen3"),
    "qwen3_moe": Row("qwen3moe"),
    "gemma": Row("gemma", activations=TANH_GELU, norm_plus_one=True),
    "gemma2": Row("gemma2", activations=TANH_GELU, norm_plus_one=True),
    "gemma3_text": Row("gemma3", activations=TANH_GELU, norm_plus_one=True),
    "phi3": Row("phi3", square=True),
    "olmo2": Row("olmo2", square=True),
    "olmo3": Row("olmo2", square=True),
    "gpt2": Row("gpt2", None, activations=TANH_GELU),
}
# These compute what a Llama does, with biases or fused matrices: where their own name allows fewer shapes, that one
# doesn't.
LIKE_LLAMA = ("qwen2", "phi3")


def row_of(checkpoint: Checkpoint) -> Row:
    """The row of a checkpoint.

    Raises:
        UnsupportedModelError: llama.cpp doesn't know the architecture, or would compute something else.
    """
    config = checkpoint.config
    row = ROWS.get(config.model_type)
    if row is None:
        raise UnsupportedModelError(
            f"{checkpoint.path}: no GGUF of {checkpoint.family.name} is made; llama.cpp runs {', '.join(ROWS)}"
        )
    if config.model_type in LIKE_LLAMA and _turns_plainly(config) and not _stock_shapes(checkpoint):
        row = _LLAMA
    reason = _otherwise(config, row)
    if reason is not None:
        raise UnsupportedModelError(f"{checkpoint.path}: llama.cpp would compute something else: {reason}")
    return row


def _turns_plainly(config: Any) -> bool:
    """Whether whole heads are rotated, by one base."""
    found = _rope(config)
    whole = float(found.get("partial_rotary_factor", 1.0)) == 1.0
    return whole and found.get("rope_type", "default") in ("default", "linear", "yarn", "llama3")


def _stock_shapes(checkpoint: Checkpoint) -> bool:
    """Whether all layers are alike, and attention as wide as the hidden state."""
    own = list(widths_of(checkpoint).values())
    width = own[0].get(HEADS, 0) * checkpoint.head_dim
    return width == int(checkpoint.config.hidden_size) and "skip" not in own[0] and all(o == own[0] for o in own)


def _otherwise(config: Any, row: Row) -> str | None:
    """What llama.cpp would compute otherwise, in words; None where nothing."""
    activation = next(
        str(value)
        for key in ("hidden_activation", "hidden_act", "activation_function")
        if (value := getattr(config, key, None)) is not None
    )
    if activation not in row.activations:
        known = " or ".join(sorted(row.activations))
        return f"the feed-forward network has {activation}, and {row.name} there has {known} alone"
    for flag in ("attention_bias", "mlp_bias"):
        if getattr(config, flag, False) and flag not in row.biases:
            return f"{flag} is on, and {row.name} there has no such biases"
    if row.name in PATTERN:
        return _other_windows(config, row.name)
    if row.name == "smollm3":
        own = [int(rotated) for rotated in config.no_rope_layers]
        if own != [int((index + 1) % NOPE_EVERY != 0) for index in range(len(own))]:
            return f"it leaves the rotation out in every {NOPE_EVERY}th layer, and this model does so elsewhere"
    if row.name == "qwen3moe":
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            return "some layers have no experts"
        if not config.norm_topk_prob:
            return "the weights of the chosen experts aren't made to add up to one (norm_topk_prob)"
    if row.name == "gpt2" and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        return "attention isn't scaled by the head size"
    if row.name == "phi3" and _rope(config).get("rope_type", "default") not in ("default", "longrope", "su"):
        return f"its rotation is {_rope(config)['rope_type']}"
    return None


def _other_windows(config: Any, name: str) -> str | None:
    """Gemma's layers with and without a window, in llama.cpp's fixed order."""
    every = PATTERN[name]
    types = list(config.layer_types)
    stock = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(len(types))]
    if types != stock:
        return f"every {every}th layer has no window there, and this model's layers are in another order"
    if name == "gemma3":
        local = _rope(config, "sliding_attention").get("rope_theta", 10000.0)
        if float(local) != 10000.0:
            return f"layers with a window rotate by a base of 10000 there, and by {local:g} here"
        if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
            return "its logits are capped"
    return None


def _rope(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The rotation's parameters, of layers of one kind where kinds differ."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    inner = found.get(kind)
    return dict(inner) if isinstance(inner, dict) else found


rope_parameters = _rope


def rotary_dim(checkpoint: Checkpoint) -> int:
    """Entries of a head that are rotated."""
    return int(checkpoint.head_dim * float(_rope(checkpoint.config).get("partial_rotary_factor", 1.0)))


def longrope_scale(config: Any) -> float:
    """What LongRoPE multiplies its cosines and sines by."""
    found = _rope(config)
    if found.get("rope_type") != "longrope":
        return 1.0
    original = int(found["original_max_position_embeddings"])
    factor = float(found.get("factor") or config.max_position_embeddings / original)
    usual = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    given = found.get("attention_factor")
    return usual if given is None else float(given)


def context_of(config: Any, row: Row) -> tuple[int, list[str]]:
    """Tokens that the file may be run with: the window's, where llama.cpp knows none, and a note that says so."""
    context = int(getattr(config, "max_position_embeddings", None) or 2**20)
    if row.name in PATTERN:
        return context, []
    rope = _rope(config)
    if rope.get("rope_type") == "longrope" and int(rope["original_max_position_embeddings"]) < context:
        short = int(rope["original_max_position_embeddings"])
        return short, [f"context {short:,} of {context:,}: llama.cpp chooses the rotation by it, not by the text"]
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    slides = types is None or "sliding_attention" in types
    if getattr(config, "use_sliding_window", True) and window and slides and window < context:
        return int(window), [f"context {window:,} of {context:,}: llama.cpp has no window in {row.name}"]
    return context, []

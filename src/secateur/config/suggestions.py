"""What was probably meant: the end of every complaint about a word that isn't known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

# What others call the things of our lists; each counts only where the list has its right side.
ALIASES = {
    "head": "query_head",
    "heads": "query_head",
    "q_head": "query_head",
    "kv": "kv_group",
    "kv_head": "kv_group",
    "kv_heads": "kv_group",
    "rank": "latent",
    "mla": "latent",
    "mlp": "channel",
    "neuron": "channel",
    "neurons": "channel",
    "width": "hidden",
    "embedding": "hidden",
    "moe": "expert",
    "block": "layer",
    "depth": "layer",
    "unstructured": "weight",
    "uniform": "local",
    "evolutionary": "evolve",
    "high": "best",
    "default": "balanced",
    "medium": "balanced",
    "low": "fast",
    "constant": "linear",
    "adam": "adamw",
    "kl": "logits",
    "kd": "logits",
    "ce": "lm",
    "mse": "hidden",
    "shortgpt": "block_influence",
    "slicegpt": "pca",
    "obc": "obs",
    "ollama": "llama.cpp",
    "llamacpp": "llama.cpp",
    "llama_cpp": "llama.cpp",
    "gguf": "llama.cpp",
    "hf": "transformers",
    "onnxruntime": "onnx",
    "trt": "tensorrt-llm",
}


def closest(word: Any, known: Iterable[str]) -> str | None:
    """The word of a list that comes nearest, by meaning or by its letters; None where none does.

    >>> closest("head", ["channel", "query_head"]), closest("chanel", ["channel"]), closest("zzz", ["channel"])
    ('query_head', 'channel', None)
    """
    listed = list(known)
    meant = ALIASES.get(str(word).strip().lower().replace("-", "_"))
    if meant in listed:
        return meant
    close = difflib.get_close_matches(str(word).lower(), listed, n=1, cutoff=0.4)
    return close[0] if close else None


def nearest(word: Any, known: Iterable[str]) -> str:
    """Words the end of a complaint about an unknown word: the known word that was meant, or else all of them.

    >>> nearest("chanel", ["channel", "query_head"])
    "; did you mean 'channel'?"
    """
    listed = list(known)
    found = closest(word, listed)
    return f"; did you mean '{found}'?" if found else f"; known are {', '.join(listed)}"


def complaint(error: ValidationError) -> str:
    """The first thing that a schema refused, as one line: what was given, what is wrong, what was meant."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f"{first['loc'][0]} = {first['input']!r}: "
    meant = None
    if first["type"] == "literal_error":
        meant = closest(first["input"], first["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    return f"{given}{message[0].lower()}{message[1:]}" + (f"; did you mean '{meant}'?" if meant else "")

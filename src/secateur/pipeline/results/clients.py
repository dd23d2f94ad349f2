"""How a finished checkpoint runs in other programs, for its report and its card."""

from __future__ import annotations

from pathlib import Path

from secateur.errors import SecateurError
from secateur.export.gguf.architectures import row_of
from secateur.model.checkpoint import Checkpoint
from secateur.model.clients import CLIENTS, refusal
from secateur.report.schema.report import ClientWay

_SERVES = {
    "vllm": ("vllm serve DIR", "vllm serve DIR --trust-remote-code"),
    "llama.cpp": ("secateur export DIR --to gguf --type q8_0 --out DIR2",) * 2,
    "onnx": ("secateur export DIR --to onnx --out DIR2",) * 2,
    "openvino": ("secateur export DIR --to openvino --out DIR2",) * 2,
}


def ways_of(folder: Path) -> list[ClientWay]:
    """For each program that was tried with results: the command, or why it doesn't run this one.

    Nothing where the architecture was detected: such results were tried in transformers alone.
    """
    checkpoint = Checkpoint.open(folder)
    if checkpoint.family.anatomies:
        return []
    entries = checkpoint.config.to_dict().get("per_layer_config") or {}
    gone = {kind for own in entries.values() for kind in own.get("skip", ())}
    found: list[ClientWay] = []
    for name, commands in _SERVES.items():
        reason = refusal(
            name,
            checkpoint.config.model_type,
            causal=checkpoint.family.causal,
            # Layers that differ are filled up with zeros where llama.cpp wants them alike.
            uneven=bool(entries) and name != "llama.cpp",
            attention="attention" in gone and name != "llama.cpp",
            ffn="ffn" in gone and name != "llama.cpp",
        )
        if reason is None and name == "llama.cpp":
            reason = _otherwise(checkpoint)
        how = commands[bool(entries)] if reason is None else None
        found.append({"client": name, "how": how, "refused": reason, "tried": _tried(name, checkpoint.head_dim)})
    return found


def _tried(name: str, head_dim: int) -> str | None:
    """With which version results were tried, and where that wouldn't run this one."""
    tried, on_cpu = CLIENTS[name].tried, CLIENTS[name].heads_on_cpu
    if on_cpu is None or not head_dim or head_dim in on_cpu:
        return tried
    return f"not on a CPU, where {tried} has no heads of {head_dim} entries"


def _otherwise(checkpoint: Checkpoint) -> str | None:
    """What llama.cpp would compute otherwise."""
    try:
        row_of(checkpoint)
    except SecateurError as error:
        return str(error).removeprefix(f"{checkpoint.path}: ")
    return None

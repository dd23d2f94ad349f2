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
    """For each program that was tried with results: the command, or why it doesn't run this one."""
    checkpoint = Checkpoint.open(folder)
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
        found.append({"client": name, "how": how, "refused": reason, "tried": CLIENTS[name].tried})
    return found


def _otherwise(checkpoint: Checkpoint) -> str | None:
    """What llama.cpp would compute otherwise."""
    try:
        row_of(checkpoint)
    except SecateurError as error:
        return str(error).removeprefix(f"{checkpoint.path}: ")
    return None

"""The dense model that a pruned one learns from: in memory, or its likeliest tokens on disk.

The cache is one safetensors file: for every training sequence the k largest log-probabilities at a temperature, and
their tokens. It's made in one pass, block by block from the teacher's files where the teacher doesn't fit in memory,
and used again by every run that is told the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.stream import Stream, of_sequences
from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from secateur.recovery.answers import NEXT_TOKEN, Asking
from secateur.recovery.losses import top_logits

VALUES, TOKENS = "teacher_log_p", "teacher_ids"  # names of a batch's tensors too
BATCH_TOKENS = 2048

Layers = list[tuple[int, int]]


@dataclass(frozen=True)
class TeacherTarget:
    """What the teacher says of a batch: its answer, mostly logits (batch, tokens, vocabulary), and hidden states
    where asked for."""

    logits: Tensor
    hidden: tuple[Tensor, ...]


@torch.no_grad()
def ask(model: Any, inputs: dict[str, Tensor], hidden: bool, asking: Asking = NEXT_TOKEN) -> TeacherTarget:
    """One forward pass of the teacher."""
    return TeacherTarget(*asking.ask(model, inputs, hidden))


def layer_map(kept: Sequence[int], teacher_layers: int) -> Layers:
    """Which hidden states are compared: pairs of places in `hidden_states` (0 = embeddings), the student's first.

    The state that leaves a layer is compared with what entered the next kept layer in the teacher, so a layer also
    learns to do what was dropped behind it; the last one's with the teacher's last.

    >>> layer_map([0, 2, 3], 5)
    [(1, 2), (2, 3), (3, 5)]
    """
    after = [*kept[1:], teacher_layers]
    return [(place, index) for place, index in enumerate(after, 1)]


def kept_layers(student_layers: int, teacher_layers: int, plan: Path) -> tuple[int, ...]:
    """The teacher's layers that are still there, by the pruned folder's plan.

    Raises:
        InputError: the depths differ and no plan says which layers went.
    """
    if student_layers == teacher_layers:
        return tuple(range(teacher_layers))
    try:
        kept = tuple(int(i) for i in json.loads(plan.read_text(encoding="utf-8"))["layers"])
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        kept = ()
    if len(kept) != student_layers or min(kept) < 0 or max(kept) >= teacher_layers:
        raise InputError(
            f"the model has {student_layers} layers and the teacher {teacher_layers}, and no plan.json says which "
            "are left; use --loss logits"
        )
    return kept


# ----------------------------------------------------------------------------- on disk


def fingerprint(checkpoint: Checkpoint, dtype: str, ids: Tensor, k: int, temperature: float) -> str:
    """What a cache must have been told to be used: teacher and its dtype, sequences, k and temperature."""
    sequences = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    said = {"teacher": checkpoint.digest, "dtype": dtype, "ids": sequences, "k": k, "temperature": temperature}
    return json.dumps(said)


def read_cache(file: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a cache.

    Raises:
        InputError: it isn't one, or it was made from something else.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            found = (handle.metadata() or {}).get("told")
            if found != expected:
                raise InputError(_other(file, found, expected))
            return {name: handle.get_tensor(name) for name in (VALUES, TOKENS)}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is no cache of a teacher ({str(error).splitlines()[0]})") from None


def _other(file: Path, found: str | None, expected: str) -> str:
    """Why a cache isn't the one that is asked for."""
    try:
        made, asked = json.loads(found or "{}"), json.loads(expected)
    except (ValueError, RecursionError):
        made, asked = None, {}
    if isinstance(made, dict) and found is not None and made == asked | {"dtype": made.get("dtype")}:
        return (
            f"{file}: was made by a teacher in {made['dtype']}, not {asked['dtype']}; use --teacher-dtype "
            f"{made['dtype']}, or name another file"
        )
    return f"{file}: was made for another teacher, text, --top-k or --temperature; name another file"


def write_cache(file: Path, tensors: dict[str, Tensor], made_from: str) -> None:
    """The file appears whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        save_file(tensors, partial, metadata={"told": made_from})
        partial.rename(file)
    except OSError as error:
        raise InputError(f"{file}: can't be written ({error.strerror or error}); choose another file") from None


@torch.no_grad()
def top_of_teacher(
    teacher: Any,
    inputs: dict[str, Tensor],
    k: int,
    temperature: float,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Tensor]:
    """The k likeliest tokens of every place of every sequence, by a teacher in memory.

    Args:
        inputs: input_ids and position_ids, (n, tokens).

    Returns: log-probabilities in fp32 and token ids in int32, (n, tokens, k).
    """
    count, length = inputs["input_ids"].shape
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, count, max(1, BATCH_TOKENS // length)):
        part = {
            name: tensor[first : first + max(1, BATCH_TOKENS // length)].to(teacher.device)
            for name, tensor in inputs.items()
        }
        values, ids = top_logits(teacher(**part, use_cache=False).logits, k, temperature)
        found.append((values.cpu(), ids.to("cpu", torch.int32)))
        step("")
    return {VALUES: torch.cat([v for v, _ in found]), TOKENS: torch.cat([i for _, i in found])}


@torch.no_grad()
def top_of_streamed(
    streamed: StreamedModel,
    ids: Tensor,
    k: int,
    temperature: float,
    budget: MemoryBudget,
    work: Path,
    step: Callable[[str], None] = lambda text: None,
) -> dict[str, Tensor]:
    """As `top_of_teacher`, for a teacher that doesn't fit in memory: its layers come from disk one by one."""
    batches = list(ids.split(max(1, BATCH_TOKENS // ids.shape[1])))
    stream = Stream.start(streamed, batches, budget, work / "teacher.bin")
    streamed.release()
    try:
        for index in range(streamed.checkpoint.layers):
            stream.advance(streamed.load(index), index, streamed.device)
            step(f"layer {index}")
        found = []
        for i, part in enumerate(batches):
            for row in range(len(part)):  # one at a time: logits are wider than anything before them
                hidden = of_sequences(stream.states[i], part.shape, slice(row, row + 1))
                logits = streamed.logits(part[row : row + 1], hidden)
                values, tokens = top_logits(logits, k, temperature)
                found.append((values.cpu(), tokens.to("cpu", torch.int32)))
    finally:
        stream.states.close()
        streamed.release()
    return {VALUES: torch.cat([v for v, _ in found]), TOKENS: torch.cat([i for _, i in found])}

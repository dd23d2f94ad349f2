"""What a recovery reads before it writes anything, and what it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.integrations import get_available_reporting_integrations

from secateur.config.training import Recovery
from secateur.errors import InputError, ResourceError
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.windows import context_length
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import check_extras
from secateur.model.heads import SEQUENCE, TOKEN, Head
from secateur.model.hub import local_folder
from secateur.recovery import adapters
from secateur.recovery.answers import NEXT_TOKEN, Asking, asking_of, check_other, other_head, with_losses
from secateur.recovery.arguments import check_batch
from secateur.recovery.forecast import weights_bytes
from secateur.recovery.labelled import asks, padding, read_texts
from secateur.recovery.masks import find_masks
from secateur.recovery.sequences import Text, keeps_apart, read_text
from secateur.recovery.teacher import Layers, kept_layers, layer_map
from secateur.system import accelerator, distributed
from secateur.system.device import dtype_name, resolve_dtype

CLASSIFIERS = (SEQUENCE, TOKEN)


@dataclass
class Task:
    """A pruned checkpoint, what it is trained on, and whom it learns from.

    Args:
        model: with its weights in fp32, on `device`.
        masks: parameter -> mask of those that were pruned to zeros.
        teacher: opened, not loaded; None where no loss needs one.
        layers: hidden states that are compared.
        dtype: of the products.
        asking: what the head is asked.
    """

    recovery: Recovery
    checkpoint: Checkpoint
    model: Any
    tokenizer: Any | None
    text: Text
    masks: dict[str, Tensor]
    teacher: Checkpoint | None
    layers: Layers
    device: torch.device
    dtype: torch.dtype
    notes: list[str] = field(default_factory=list)
    asking: Asking = NEXT_TOKEN

    @property
    def teacher_dtype(self) -> str:
        """Of the teacher's weights: as told, otherwise that of the products."""
        return teacher_dtype(self.recovery, self.dtype)

    @property
    def optimizer(self) -> str:
        """As told, otherwise muon where there are whole matrices to train."""
        return self.recovery.optimizer or ("adamw" if self.recovery.how == "lora" else "muon")


def prepare(
    folder: Path,
    recovery: Recovery,
    data: str,
    teacher: str | Path | None,
    device: torch.device,
    dtype: str,
    kept: Sequence[int] | None = None,
) -> Task:
    """Opens and reads everything.

    Args:
        data: training text.
        teacher: the dense model, where it is known.
        dtype: of the products: auto, float32, bfloat16, float16.
        kept: the teacher's layers that are left; default: what the folder's plan says.

    Raises:
        SecateurError: whatever can't be used, in one line.
    """
    checkpoint = Checkpoint.open(folder)
    check_extras(checkpoint)
    check(recovery, checkpoint)
    head = other_head(checkpoint.whole_config)
    recovery = recovery if head is None else with_losses(recovery, head, data, head.tokens or asks(data, head))
    other = _teacher(recovery, checkpoint, teacher)
    recovery, notes = _comparable(recovery, checkpoint, other)
    products = _products(dtype, device, checkpoint.config)
    if recovery.shard and products == torch.float16:
        raise InputError("--shard takes no float16, whose gradients need scaling; use --dtype bfloat16 or float32")
    _check_memory(recovery, checkpoint, other, device, products)
    where = "cpu" if recovery.shard else str(device)  # a shard is sent, not the whole
    loaded = load(folder, where, "float32", encoders=head is not None)
    text = _read(data, loaded, head, recovery, int(checkpoint.config.vocab_size))
    layers: Layers = []
    if other is not None and "hidden" in recovery.mix:
        kept = kept or kept_layers(checkpoint.layers, other.layers, folder / "plan.json")
        layers = layer_map(kept, other.layers)
    masks = find_masks(loaded.model, checkpoint.family)
    task = Task(recovery, checkpoint, loaded.model, loaded.tokenizer, text, masks, other, layers, device, products)
    task.asking = asking_of(folder, head)
    task.notes += [*notes, *text.notes]
    return task


def _read(data: str, loaded: Loaded, head: Head | None, recovery: Recovery, vocabulary: int) -> Text:
    """The texts that are trained on, and those that aren't."""
    wanted, length, seed = recovery.steps * recovery.batch, recovery.length, recovery.seed
    if head is None:
        apart = keeps_apart(loaded.model, length)
        return read_text(data, loaded.tokenizer, wanted, length, seed, vocabulary, apart)
    text = read_texts(data, loaded, head, wanted, length, seed)
    loaded.model.config.pad_token_id = padding(loaded)
    return text


def _comparable(recovery: Recovery, checkpoint: Checkpoint, teacher: Checkpoint | None) -> tuple[Recovery, list[str]]:
    """The recovery without hidden states where the two models' have different widths; and what to say of it."""
    if teacher is None or "hidden" not in recovery.mix:
        return recovery, []
    own, other = int(checkpoint.config.hidden_size), int(teacher.config.hidden_size)
    if own == other:
        return recovery, []
    widths = f"hidden states can't be compared: the pruned model's have {own} dimensions, the dense one's {other}"
    if recovery.loss is not None:
        raise InputError(f"{widths}; use --loss logits")
    return recovery.model_copy(update={"loss": {"logits": 1.0}}), [f"{widths}; the loss was logits alone"]


def check(recovery: Recovery, checkpoint: Checkpoint) -> None:
    """Refuses what can be known to fail from a configuration, of the pruned model or of the whole one.

    Raises:
        InputError: in one line.
    """
    check_batch(recovery)
    if other_head(checkpoint.whole_config) is not None:
        check_other(recovery)
    context = context_length(checkpoint.config)
    if context is not None and recovery.length > context:
        raise InputError(f"--length {recovery.length} is over the model's context; use --length {context} or less")
    adapters.check_installed(recovery)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        raise InputError("accelerate's settings of FSDP aren't read; launch without them, and give --shard")
    if recovery.shard and distributed.world() == 1:
        raise InputError("--shard spreads a training over processes, here is one; launch with torchrun")
    for name in (recovery.track or "").split(","):
        known = get_available_reporting_integrations()
        if name.strip() and name.strip() not in known:
            raise InputError(f"--track {name.strip()}: not installed; here are {', '.join(known) or 'none'}")


def teacher_of(folder: Path) -> tuple[str | None, str | None]:
    """Path and digest of the model that a folder was pruned from, by its report; None where it doesn't say."""
    try:
        model = json.loads((folder / "report.json").read_text(encoding="utf-8"))["model"]
        return str(model["path"]), model.get("digest")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, None


def _teacher(recovery: Recovery, checkpoint: Checkpoint, known: str | Path | None) -> Checkpoint | None:
    if not recovery.needs_teacher:
        return None
    name = recovery.teacher or known
    if name is None:
        raise InputError(
            f"{checkpoint.path} doesn't say what it was pruned from; name the dense model with --teacher, or use "
            "--how full or lora"
        )
    try:
        teacher = Checkpoint.open(local_folder(name))
    except InputError as error:
        hint = "" if recovery.teacher else f"; {checkpoint.path} was pruned from it, name its place with --teacher"
        raise InputError(f"{error}{hint}") from None
    _same_head(checkpoint, teacher)
    if teacher.config.vocab_size != checkpoint.config.vocab_size:
        raise InputError(
            f"the teacher has {teacher.config.vocab_size} tokens, the model {checkpoint.config.vocab_size}; "
            "both must have one vocabulary"
        )
    return teacher


def _same_head(checkpoint: Checkpoint, teacher: Checkpoint) -> None:
    own, its = (model.whole_config for model in (checkpoint, teacher))
    head = other_head(own)
    if head is not other_head(its) or (head in CLASSIFIERS and own.num_labels != its.num_labels):
        raise InputError(f"{teacher.path} has another head than {checkpoint.path}; both must have the same")


def teacher_dtype(recovery: Recovery, products: torch.dtype) -> str:
    """The teacher's precision by its name in torch."""
    return dtype_name(products) if recovery.teacher_dtype == "auto" else recovery.teacher_dtype


def _products(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    """bf16, which needs no loss scaling, where the hardware multiplies it faster than fp32."""
    if dtype == "auto":
        return torch.bfloat16 if accelerator.multiplies_bf16(device) else torch.float32
    return resolve_dtype(dtype, device, config)


def _check_memory(
    recovery: Recovery,
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    device: torch.device,
    products: torch.dtype,
) -> None:
    """Weights and optimiser must fit; activations come on top, and the forecast measures them."""
    trained = checkpoint.parameters if recovery.how != "lora" else 0
    loaded = teacher.parameters if teacher is not None and recovery.teacher_cache is None else 0
    width = getattr(torch, teacher_dtype(recovery, products)).itemsize
    spread = distributed.world() if recovery.shard else 1
    copies = spread if width == 1 else 1  # every process has an int8 teacher of its own
    need = weights_bytes(checkpoint.parameters, trained, loaded * copies, width) // spread
    if device.type != "cpu":
        free = accelerator.free_bytes(device)
    else:
        free = psutil.virtual_memory().available // distributed.local_world()
    if need > free:
        cheaper = ["--how lora"] if recovery.how != "lora" else []
        cheaper += ["--teacher-dtype int8"] if loaded and width > 1 else []
        cheaper += ["--top-k 64 --teacher-cache FILE"] if loaded else []
        raise ResourceError(
            f"weights and optimiser need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            f"use {' or '.join(cheaper) or 'a machine with more memory'}"
        )

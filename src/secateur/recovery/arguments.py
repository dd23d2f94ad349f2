"""Trainer's settings of a run, and how its batch is spread over processes and passes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from secateur.config.training import Recovery
from secateur.errors import InputError
from secateur.system import distributed


def check_batch(recovery: Recovery) -> tuple[int, int]:
    """Sequences of a step for this process, and how many of them at once.

    Raises:
        InputError: the batch doesn't divide by the processes or by the micro batch.
    """
    ranks = distributed.world()
    own, rest = divmod(recovery.batch, ranks)
    micro = recovery.micro_batch or own
    if rest or not own or own % micro:
        raise InputError(
            f"a batch of {recovery.batch} doesn't divide into {ranks} processes with {micro} sequences at once; "
            f"use --batch {max(1, own) * ranks} and a --micro-batch that divides {max(1, own)}"
        )
    return own, micro


def arguments(
    recovery: Recovery, folder: Path, device: torch.device, dtype: torch.dtype, rate: float, steps: int, save: bool
) -> TrainingArguments:
    """Trainer's settings of a run of `steps` steps with this peak rate.

    Args:
        dtype: of the products; weights and their updates are fp32.
        save: look at the held-out sequences now and then, and save a checkpoint after each look.

    """
    own, micro = check_batch(recovery)
    every = "steps" if save else "no"
    made = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=own // micro,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(recovery.warmup * steps),
        weight_decay=recovery.weight_decay,
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 100),
        eval_strategy=every,
        eval_steps=recovery.looks if save else None,
        save_strategy=every,
        save_steps=recovery.looks,
        save_total_limit=1,
        seed=recovery.seed,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16 and not recovery.shard,  # a sharded model knows its products' dtype
        fp16=dtype == torch.float16,
        report_to=[part.strip() for part in recovery.track.split(",")] if save and recovery.track else "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
        **(_checkpointing() if recovery.checkpointing else {}),
    )
    if made.n_gpu > 1:  # one process, one GPU: the others are for other processes
        made._n_gpu = 1
    return made


def _checkpointing() -> dict[str, bool | dict[str, bool]]:
    """Under the name that the installed transformers has for it."""
    name = "activation_checkpointing"
    name = name if name in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}

"""Calibration text that the model writes itself, for those who have none that is like its own training text
(compare Williams & Aletras 2024, https://arxiv.org/abs/2410.17170)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from secateur.data.batches import Calibration, digest
from secateur.errors import InputError
from secateur.evaluation.loading import load
from secateur.model.checkpoint import Checkpoint
from secateur.system import accelerator, distributed
from secateur.system.memory import fits_in_memory

SELF = "self"
HELD_OUT = 32
TOKENS_AT_ONCE = 2**14
NOTE = "calibrated and evaluated on text that the model wrote itself; --evaluate takes real text"


def own_calibration(path: Path, samples: int, length: int, seed: int, device: str) -> Calibration:
    """Sequences drawn from the model's own distribution, each from its BOS on.

    Raises:
        InputError: no BOS token, a model that predicts no next token or doesn't fit in memory.
    """
    checkpoint = Checkpoint.open(path)
    if not checkpoint.family.causal:
        raise InputError(f"--calibrate self: {checkpoint.config.model_type} writes no text; give a text")
    if not fits_in_memory(checkpoint.parameters):
        raise InputError("--calibrate self takes the whole model in memory, and it doesn't fit; give a text")
    # On one rank only: what is drawn may depend on the machine.
    tokens = distributed.from_first(lambda: write(path, samples + HELD_OUT, length, seed, device))
    source = hashlib.sha256(f"{checkpoint.digest}:{seed}:{length}".encode()).hexdigest()
    return Calibration(
        tokens[:samples].contiguous(), tokens[samples:].contiguous(), digest(tokens[:samples]), SELF, source, (NOTE,)
    )


@torch.no_grad()
def write(path: Path, rows: int, length: int, seed: int, device: str) -> Tensor:
    """Token ids (rows, length) on the CPU, drawn at temperature 1. The model goes on after the end of a text."""
    loaded = load(path, device)
    bos = loaded.model.config.bos_token_id
    if bos is None:
        raise InputError("--calibrate self begins with the BOS token, and this model has none; give a text")
    found = []
    at_once = max(1, TOKENS_AT_ONCE // length)
    with accelerator.forked_rng(loaded.device):
        torch.manual_seed(seed)
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            start = torch.full((count, 1), bos, dtype=torch.int64, device=loaded.device)
            made = loaded.model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=length - 1,
                max_new_tokens=length - 1,
                pad_token_id=bos,
            )
            found.append(made.cpu())
    return torch.cat(found)

"""A checkpoint as an ONNX file with a KV cache, run in ONNX Runtime where that is installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.errors import InputError, ResourceError, VerificationError, install
from secateur.evaluation.loading import load
from secateur.export.graph import exported, names
from secateur.export.reference import CachedRun, not_run, proved_by_runs
from secateur.export.result import Job, Made
from secateur.model.checkpoint import Checkpoint
from secateur.model.side_files import copy_side_files
from secateur.report.schema.export import ClientProof
from secateur.report.terminal.listening import tell
from secateur.system.device import dtype_name
from secateur.system.memory import fits_in_memory

FILE = "model.onnx"
CLIENT = "ONNX Runtime"
ONE_FILE = 3 << 29  # bytes; a larger graph has its weights in a file of their own
PRECISION = {"f32": torch.float32, "f16": torch.float16}


def export(job: Job) -> Made:
    """Writes `model.onnx`, the configuration and the tokenizer.

    Raises:
        InputError: the packages that write ONNX aren't installed.
        ResourceError: the model doesn't fit in memory.
        VerificationError: ONNX Runtime computes something else.
    """
    checkpoint, folder, monitor = job.checkpoint, job.folder, job.monitor
    packages()
    numbers = job.told.type or "f32"
    with monitor.stage("write"):
        model = in_memory(checkpoint, PRECISION[numbers])
        program, shapes = exported(checkpoint, model)
        inputs, outputs = names(len(shapes))
        tell("translating the graph", 0, 1)
        with _quietly():
            made = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
            assert made is not None
            tell(FILE, 0, 1)
            made.save(folder / FILE, external_data=2 * checkpoint.parameters * 4 > ONE_FILE)
        del program, made, model
        beside(checkpoint, folder)
    with monitor.stage("prove"):
        client = _prove(checkpoint, folder / FILE, shapes, numbers)
    return Made(f"{checkpoint.config.model_type} with cache", checkpoint.parameters, numbers, None, client)


def packages() -> None:
    """Refuses to go on without the packages that write ONNX.

    Raises:
        InputError: which one isn't installed.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise InputError(f"ONNX is written with the package {package}; install it with: {install('onnx')}")


def in_memory(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model, to be made a graph of.

    Raises:
        ResourceError: it doesn't fit.
    """
    if not fits_in_memory(3 * checkpoint.parameters, dtype):
        raise ResourceError(f"{checkpoint.path}: is too large; a graph needs three times the model in memory")
    return load(checkpoint.path, "cpu", dtype_name(dtype)).model


def beside(checkpoint: Checkpoint, folder: Path) -> None:
    """What goes with a graph: config.json without a modelling file, and the tokenizer's files."""
    copy_side_files(checkpoint.path, folder)
    checkpoint.config.to_json_file(str(folder / "config.json"))


@contextmanager
def _quietly() -> Any:
    """Without what the exporter prints of packages that it doesn't find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _prove(checkpoint: Checkpoint, file: Path, shapes: list[tuple[int, int]], numbers: str) -> ClientProof:
    if find_spec("onnxruntime") is None:
        return not_run(CLIENT, f"it isn't installed here; {install('onnx')}")
    proof = proved_by_runs(checkpoint, CLIENT, version("onnxruntime"), session(file, shapes, numbers))
    if numbers == "f32":
        refuse_others(proof)
    return proof


def refuse_others(proof: ClientProof) -> None:
    """Refuses a client that writes other tokens.

    Raises:
        VerificationError: with how many.
    """
    if proof["ran"] and proof["prompts_alike"] + proof["ties"] < proof["prompts"]:
        raise VerificationError(
            f"{proof['client']} continues {proof['prompts_alike']} of {proof['prompts']} prompts with the tokens of "
            f"transformers ({proof['tokens_alike']} of {proof['new_tokens']} tokens); nothing was delivered"
        )


def session(file: Path, shapes: list[tuple[int, int]], numbers: str = "f32") -> CachedRun:
    """A function that runs the graph: (ids, past) -> (logits of the last token, the longer past)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    runner = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs, _ = names(len(shapes))
    dtype = np.float32 if numbers == "f32" else np.float16

    def run(ids: Sequence[int], past: Any) -> tuple[Any, Any]:
        if past is None:
            past = 0, [np.zeros((1, heads, 0, size), dtype) for heads, size in shapes for _ in range(2)]
        length = past[0] + len(ids)
        given = [np.array([list(ids)], np.int64), np.ones((1, length), np.int64), *past[1]]
        logits, *cache = runner.run(None, dict(zip(inputs, given, strict=True)))
        return logits[0, -1], (length, cache)

    return run

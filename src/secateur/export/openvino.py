"""A checkpoint in OpenVINO's form with a KV cache, run in OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.errors import InputError, install
from secateur.export.graph import exported, names
from secateur.export.onnx import beside, in_memory, refuse_others
from secateur.export.reference import CachedRun, proved_by_runs
from secateur.export.result import Job, Made
from secateur.report.terminal.listening import tell

FILE = "openvino_model.xml"
CLIENT = "OpenVINO"


def export(job: Job) -> Made:
    """Writes `openvino_model.xml` and `.bin`, the configuration and the tokenizer.

    Raises:
        InputError: OpenVINO isn't installed.
        ResourceError: the model doesn't fit in memory.
        VerificationError: OpenVINO computes something else.
    """
    checkpoint, folder, monitor = job.checkpoint, job.folder, job.monitor
    package()
    import openvino

    numbers = job.told.type or "f32"
    with monitor.stage("write"):
        model = in_memory(checkpoint, torch.float32)
        program, shapes = exported(checkpoint, model)
        tell("translating the graph", 0, 1)
        made = openvino.convert_model(program)
        inputs, outputs = names(len(shapes))
        for port, name in zip(made.inputs, inputs, strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(made.outputs, outputs, strict=True):
            port.get_tensor().set_names({name})
        for port, (heads, size) in zip(made.inputs[2:], [one for one in shapes for _ in range(2)], strict=True):
            port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, size]))
        made.validate_nodes_and_infer_types()
        tell(FILE, 0, 1)
        openvino.save_model(made, str(folder / FILE), compress_to_fp16=numbers == "f16")
        del program, made, model
        beside(checkpoint, folder)
    with monitor.stage("prove"):
        proof = proved_by_runs(checkpoint, CLIENT, version("openvino"), session(folder / FILE, shapes))
        if numbers == "f32":
            refuse_others(proof)
    return Made(f"{checkpoint.config.model_type} with cache", checkpoint.parameters, numbers, None, proof)


def package() -> None:
    """Refuses to go on without OpenVINO.

    Raises:
        InputError: it isn't installed.
    """
    if find_spec("openvino") is None:
        raise InputError(f"OpenVINO's form is written by openvino itself; install it with: {install('openvino')}")


def session(file: Path, shapes: list[tuple[int, int]]) -> CachedRun:
    """A function that runs the graph: (ids, past) -> (logits of the last token, the longer past)."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    runner = openvino.Core().compile_model(str(file), "CPU", hints)
    inputs, outputs = names(len(shapes))

    def run(ids: Sequence[int], past: Any) -> tuple[Any, Any]:
        if past is None:
            past = 0, [np.zeros((1, heads, 0, size), np.float32) for heads, size in shapes for _ in range(2)]
        length = past[0] + len(ids)
        given = [np.array([list(ids)], np.int64), np.ones((1, length), np.int64), *past[1]]
        found = runner(dict(zip(inputs, given, strict=True)))
        return found[outputs[0]][0, -1], (length, [np.array(found[name]) for name in outputs[1:]])

    return run

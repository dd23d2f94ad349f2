"""The gate for adapters that stay apart: plain transformers and plain peft, in a process that knows nothing.

`python -m secateur.recovery.prove_adapter MODEL ADAPTER PROBE` loads the adapter on the pruned model as a user would
and compares its logits on the probe's tokens with the expected ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

from secateur.errors import VerificationError
from secateur.model.round_trip import TOLERANCE, load_as_user
from secateur.report.schema.report import GateFindings
from secateur.report.terminal.listening import telling_parent
from secateur.system.child import run


def prove(base: Path, adapter: Path, probe: Path) -> GateFindings:
    """Runs the gate in a fresh process; see `model.verify.verify`.

    Raises:
        VerificationError: the adapter doesn't load, or computes something else than the model in memory.
    """
    with tempfile.TemporaryDirectory() as modules:
        environment = {"HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"}
        done = run(["-m", __name__, str(base), str(adapter), str(probe)], environment)
    if done.code != 0 or not done.answer:
        reason = done.complaint or f"exit code {done.code}"
        raise VerificationError(f"the adapter doesn't load with plain peft: {reason}")
    found: GateFindings = json.loads(done.answer)
    if not found["max_logit_difference"] <= TOLERANCE:
        raise VerificationError(
            f"the adapter computes something else than the model in memory: a logit differs by "
            f"{found['max_logit_difference']:.2e} of the largest one, above {TOLERANCE:g}"
        )
    return found


@torch.no_grad()
def compare(base: Path, adapter: Path, probe: Path) -> GateFindings:
    """The comparison itself, in this process."""
    from peft import PeftModel

    with safe_open(probe, framework="pt") as handle:
        ids, expected = handle.get_tensor("ids"), handle.get_tensor("logits")
    model, how = load_as_user(base)
    logits = PeftModel.from_pretrained(model, adapter)(input_ids=ids).logits
    difference = float((logits - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
    how = f"PeftModel.from_pretrained on {how}"
    return {"how": how, "max_logit_difference": difference, "tolerance": TOLERANCE}


if __name__ == "__main__":
    with telling_parent():
        answer = compare(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(answer))

"""torchao, peft and lm-eval on a folder, in an interpreter that has them; knows nothing of Secateur.

python _client_others.py WHAT FOLDER [TEXTS.jsonl]     prints one line of JSON: version, and what came of it
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _client_lambada import TASK
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[1, 50, 60, 70]])


def torchao(folder: str, _: str) -> str:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    with torch.no_grad():
        before = model(IDS).logits.float()
        quantize_(model, Int8WeightOnlyConfig())
        gap = float((model(IDS).logits.float() - before).abs().max() / before.abs().max())
    assert gap < 0.1, gap
    return f"int8 weights; logits differ by {gap:.3f} of the largest"


def peft(folder: str, _: str) -> str:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    return f"LoRA on all Linears, {sum(p.numel() for p in trained):,} parameters with a gradient"


def lm_eval(folder: str, texts: str) -> str:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "task.yaml").write_text(TASK.replace("FILE", texts), encoding="utf-8")
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--include_path", place, "--limit", "20"]
        command += ["--model_args", f"pretrained={folder},trust_remote_code=True,dtype=float32"]
        command += ["--tasks", "lambada_local", "--device", "cpu"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(line for line in out.splitlines() if "lambada_local" in line)
    return f"20 questions of LAMBADA: accuracy {row.split('|')[7].strip()}"


if __name__ == "__main__":
    what, folder, *texts = sys.argv[1:]
    done: dict[str, Any] = {"version": importlib.metadata.version(what)}
    done["said"] = {"torchao": torchao, "peft": peft, "lm-eval": lm_eval}[what](folder, texts[0] if texts else "")
    print(json.dumps(done))

"""One pruning run of llm-compressor, in its own process and its own environment.

    python _peer_llmcompressor.py MODEL CALIBRATION OUT --method sparsegpt --sparsity 0.5 --pattern 0:0

MODEL is a checkpoint folder, CALIBRATION a JSONL file with `input_ids` of one length in each line. The pruned model
is saved as a dense checkpoint in OUT, in the dtype that it was computed in. The last line on stdout is JSON: seconds
per stage, and the moments (system-wide monotonic clock) between which the model was pruned, so that the parent, which
samples the memory of this process, knows which samples belong to the pruning. Nothing of Secateur is imported here.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def batches(calibration: Path, batch_size: int) -> DataLoader:
    """The calibration tokens as the model's own keyword arguments; a DataLoader is taken as it is."""
    rows = [torch.tensor(json.loads(line)["input_ids"]) for line in calibration.read_text().splitlines()]
    items = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    return DataLoader(items, batch_size=batch_size)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=sorted(MODIFIERS), required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="0:0", help="N:M, N of M removed; 0:0 is unstructured")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    loader = batches(args.calibration, args.batch_size)
    modifier = MODIFIERS[args.method](
        sparsity=args.sparsity, mask_structure=args.pattern, targets=["Linear"], ignore=["re:.*lm_head"]
    )
    loaded = time.monotonic()
    oneshot(model=model, dataset=loader, recipe=[modifier])
    pruned = time.monotonic()
    model.save_pretrained(args.out, save_compressed=False)
    saved = time.monotonic()
    print(
        json.dumps(
            {
                "window": [loaded, pruned],
                "seconds": {"load": loaded - begun, "prune": pruned - loaded, "save": saved - pruned},
                "versions": {name: version(name) for name in ("llmcompressor", "torch", "transformers")},
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()

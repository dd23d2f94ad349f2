"""One run of torch-pruning, in its own process and its own environment: FFN channels of a Llama-like model.

    python _peer_torch_pruning.py MODEL CALIBRATION OUT --importance magnitude --sparsity 0.25

MODEL is a checkpoint folder, CALIBRATION a JSONL file with `input_ids` of one length in each line, of which Taylor's
importance takes gradients. The pruned model is saved in OUT, in fp32, with the narrower `intermediate_size`; a file
`kept.json` beside it lists the channels that each layer has kept. The last line on stdout is JSON as that of
`_peer_llmcompressor.py`. Nothing of Secateur is imported here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch_pruning as tp
from transformers import AutoModelForCausalLM

IMPORTANCE = {
    "magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
    "taylor": tp.importance.GroupTaylorImportance,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--importance", choices=sorted(IMPORTANCE), required=True)
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def gradients(model: torch.nn.Module, rows: list[list[int]]) -> None:
    """Leaves the gradient of the summed loss of all sequences in the parameters."""
    for row in rows:
        ids = torch.tensor([row])
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def prune(model: torch.nn.Module, importance: object, sparsity: float) -> None:
    """The same fraction of each layer's FFN channels; everything else keeps its shape."""
    layers = model.model.layers
    ffn = {layer.mlp.gate_proj: sparsity for layer in layers} | {layer.mlp.up_proj: sparsity for layer in layers}
    kept_whole = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m not in ffn]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs={"input_ids": torch.arange(8)[None], "use_cache": False},
        importance=importance,
        pruning_ratio=0.0,
        pruning_ratio_dict=ffn,
        ignored_layers=[*kept_whole, model.model.embed_tokens],
        output_transform=lambda out: out.logits.sum(),
        root_module_types=[torch.nn.Linear],
    )
    pruner.step()
    model.config.intermediate_size = layers[0].mlp.gate_proj.out_features


def main() -> None:
    args = arguments()
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation="eager"
    )
    rows = [json.loads(line)["input_ids"] for line in args.calibration.read_text().splitlines()]
    loaded = time.monotonic()
    if args.importance == "taylor":
        gradients(model, rows)
    which = Selection(model)
    prune(model, IMPORTANCE[args.importance](), args.sparsity)
    pruned = time.monotonic()
    model.save_pretrained(args.out)
    (args.out / "kept.json").write_text(json.dumps(which.kept(model)))
    seconds = {"load": loaded - begun, "prune": pruned - loaded, "save": time.monotonic() - pruned}
    print(json.dumps({"window": [loaded, pruned], "seconds": seconds, "threads": torch.get_num_threads()}))


class Selection:
    """Finds out which channels were kept: by the rows of gate_proj, which torch-pruning copies as they are."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.rows = [layer.mlp.gate_proj.weight.detach().clone() for layer in model.model.layers]

    def kept(self, model: torch.nn.Module) -> list[list[int]]:
        found = []
        for before, layer in zip(self.rows, model.model.layers, strict=True):
            place = {row.float().numpy().tobytes(): index for index, row in enumerate(before)}
            found.append([place[row.float().numpy().tobytes()] for row in layer.mlp.gate_proj.weight.detach()])
        return found


if __name__ == "__main__":
    main()

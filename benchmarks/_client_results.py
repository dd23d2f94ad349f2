"""Ten results, one of each kind that a client may stumble over, of the models in `shared` and the embedded one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import secateur
from secateur.data.embedded import embedded_path
from secateur.model.hub import local_folder

SHARED = Path(__file__).resolve().parents[2] / "shared"
LARGE, SMALL = SHARED / "models" / "stories3M-fp16", SHARED / "models" / "stories260K"
TEXT = SHARED / "data" / "tinystories" / "calibrate.jsonl"

# Name -> what it is, and the recipe, or what makes it.
RESULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("channels, all layers alike", {"sites": "channel", "sparsity": 0.25}),
    "uneven": ("channels and query heads, others in each layer", {"sites": "channel,query_head", "sparsity": 0.25}),
    "kv_groups": ("KV groups, others in each layer", {"sites": "kv_group", "sparsity": 0.5}),
    "layers": ("whole layers gone", {"sites": "layer", "sparsity": 0.34}),
    "sub_blocks": ("attention and FFNs gone, also in layer 0", {"sites": "attention,ffn", "sparsity": 0.34}),
    "hidden": ("hidden dimensions", {"sites": "hidden", "sparsity": 0.25}),
    "zeros": ("half of the weights zero", {"sites": "weight", "sparsity": 0.5}),
    "two_of_four": ("2:4 zeros", {"sites": "weight", "pattern": "2:4"}),
    "byte_level": ("embedded model, byte-level BPE, channels", {"sites": "channel", "sparsity": 0.25}),
    "gpt2": ("GPT-2 with GELU (random weights), channels", {"sites": "channel", "sparsity": 0.25}),
}
QUICK = {"samples": 16, "length": 128, "quality": "fast", "evaluate": "none", "explain": False, "speed": False}


def gpt2(folder: Path) -> Path:
    """GPT-2 of random numbers with the embedded model's vocabulary: none with GELU lies in `shared`."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=2048, n_positions=256, n_embd=128, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=2
    )
    config.initializer_range = 0.08
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(embedded_path() / name, folder / name)
    return folder


def make(work: Path, names: list[str]) -> None:
    """Prunes what isn't there yet into WORK/results/NAME."""
    for name in names:
        out = work / "results" / name
        if (out / "report.json").exists():
            continue
        model, calibrate = LARGE, str(TEXT)
        if name == "byte_level":
            model, calibrate = local_folder("embedded"), "stdlib"
        if name == "gpt2":
            model = gpt2(work / "gpt2-source")
        told = {"model": str(model), "calibrate": calibrate, **QUICK, **RESULTS[name][1]}
        _MAKERS.get(name, _pruned)(told, out)
        print(f"{name}: {out}", flush=True)


def _pruned(told: dict[str, Any], out: Path) -> None:
    secateur.prune(secateur.make_recipe(told), out, quiet=True)


def _unevenly(told: dict[str, Any], out: Path) -> None:
    """By ranking over all layers; fewer KV heads than two can only differ where a layer is protected."""
    more = {"protect": (0, 3)} if told["sites"] == "kv_group" else {"allocate": "global"}
    secateur.prune(secateur.make_recipe(told | more), out, quiet=True)


def _without_layer_0(told: dict[str, Any], out: Path) -> None:
    """By a plan: the attention of layers 0 and 3, the FFN of layers 0 and 2."""
    draft = out.parent / "sub_blocks-plan"
    secateur.prune(secateur.make_recipe(told), draft, dry_run=True, overwrite=draft.exists(), quiet=True)
    file = draft / "plan.json"
    plan = json.loads(file.read_text(encoding="utf-8"))
    [sample] = [entry for entry in plan["entries"] if entry["kind"] == "attention"][:1]
    gone = [("attention", 0), ("attention", 3), ("ffn", 0), ("ffn", 2)]
    plan["entries"] = [
        sample | {"site": f"layers.{layer}.{kind}", "kind": kind, "layer": layer} for kind, layer in gone
    ]
    file.write_text(json.dumps(plan), encoding="utf-8")
    secateur.prune(secateur.make_recipe(told), out, plan=secateur.Plan.read(file), quiet=True)


_MAKERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "uneven": _unevenly,
    "kv_groups": _unevenly,
    "sub_blocks": _without_layer_0,
}

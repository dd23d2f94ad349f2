"""Fewer hidden dimensions: one basis for the whole model against one for each layer, and what the fit gives back.

    python benchmarks/rotation.py --models stories260K --sparsity 0.125,0.25

Per model and sparsity, the perplexity of `eval.jsonl` (the judge of `_protocol`) of the original, of the checkpoint
cut in one basis without and with the fit, and of the original with every layer's stream projected onto a basis of its
own. The last takes a matrix product behind each layer, which no plain class has; here hooks do it, on all dimensions,
which gives the same logits. Bases come from the same calibration sequences. Results: results/rotation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _protocol import context_of, judge, perplexity, read_texts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

RESULTS = Path(__file__).parent / "results"
SEQUENCES = 64


def cut(model: Path, text: Path, sparsity: float, out: Path, *flags: str) -> Path:
    """By the command line."""
    told = ["prune", str(model), "--sites", "hidden", "--sparsity", str(sparsity), "--calibrate", str(text)]
    told += ["--samples", str(SEQUENCES), "--evaluate", "none", "--no-speed", "--quiet", "--out", str(out), *flags]
    subprocess.run([sys.executable, "-m", "secateur", *told], check=True, stdout=subprocess.DEVNULL)
    return out


@torch.no_grad()
def own_bases(model: Any, ids: Tensor, kept: int) -> list[Tensor]:
    """For each layer, and for what follows the last: the projection (d, d) onto its directions with most energy."""
    layers = model.model.layers
    sums: list[Any] = [0.0] * (len(layers) + 1)

    def see(place: int) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, 1).double()
            x = x * x.square().mean(-1, keepdim=True).rsqrt()
            sums[place] = sums[place] + x.T @ x

        return hook

    handles = [model.model.norm.register_forward_pre_hook(see(len(layers)))]
    for place, layer in enumerate(layers):
        handles += [
            n.register_forward_pre_hook(see(place)) for n in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
    for part in ids.split(4):
        model(input_ids=part, use_cache=False)
    for handle in handles:
        handle.remove()
    bases = [torch.linalg.eigh(moment)[1][:, -kept:] for moment in sums]
    return [(Q @ Q.T).float() for Q in bases]


def project(model: Any, bases: list[Tensor]) -> None:
    """What is written to the stream in a layer then lies in its basis, and the stream behind it in the next one's."""

    def onto(P: Tensor) -> Any:
        return lambda _, args, out: (out[0] @ P, *out[1:]) if isinstance(out, tuple) else out @ P

    model.model.embed_tokens.register_forward_hook(onto(bases[0]))
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(onto(bases[place]))
        layer.mlp.register_forward_hook(onto(bases[place]))
        layer.register_forward_hook(onto(bases[place + 1]))


def row(model: Path, stories: Path, sparsity: float, work: Path) -> dict[str, Any]:
    text, texts = stories / "calibrate.jsonl", read_texts(stories / "eval.jsonl")
    tokenizer, context = AutoTokenizer.from_pretrained(model), context_of(model)
    plain = cut(model, text, sparsity, work / "plain", "--no-refit")
    fitted = cut(model, text, sparsity, work / "fitted")
    config = json.loads((plain / "config.json").read_text())
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    dense = perplexity(original, tokenizer, texts, context)
    ids = torch.tensor(tokens_of(model, text))
    project(original, own_bases(original, ids, config["hidden_size"]))
    each = perplexity(original, tokenizer, texts, context)
    one, fit = (judge(folder, model, texts, None)["perplexity"] for folder in (plain, fitted))
    report = json.loads((plain / "report.json").read_text())
    return {
        "model": model.name,
        "sparsity": sparsity,
        "kept": config["hidden_size"],
        "parameters": report["parameters"]["after"] / report["parameters"]["before"],
        "dense": dense,
        "one_basis": one,
        "basis_per_layer": each,
        "one_basis_fitted": fit,
    }


def tokens_of(model: Path, text: Path) -> list[list[int]]:
    """The calibration sequences that the command line draws."""
    import secateur

    return secateur.calibrate(model, str(text), SEQUENCES).tokens.tolist()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Perplexity of eval.jsonl; `python benchmarks/rotation.py`.",
        "",
        "| model | hidden dimensions | parameters | dense | one basis | a basis per layer | one basis, fitted |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = " | ".join(f"{r[key]:.2f}" for key in ("dense", "one_basis", "basis_per_layer", "one_basis_fitted"))
        gone = f"{r['sparsity']:.1%} fewer, {r['kept']} left"
        lines.append(f"| {r['model']} | {gone} | {r['parameters']:.2f}x | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="stories260K")
    parser.add_argument("--sparsity", default="0.125,0.25")
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    given = parser.parse_args()
    file = RESULTS / "rotation.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for name in given.models.split(","):
        for sparsity in map(float, given.sparsity.split(",")):
            with tempfile.TemporaryDirectory() as work:
                stories = given.shared / "data" / "tinystories"
                made = row(given.shared / "models" / name, stories, sparsity, Path(work))
            rows = [r for r in rows if (r["model"], r["sparsity"]) != (made["model"], made["sparsity"])] + [made]
            file.write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "rotation.md").write_text(table(rows))
            print(table([made]))


if __name__ == "__main__":
    main()

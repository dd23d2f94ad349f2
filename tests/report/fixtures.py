"""Reports as a run would leave them: four shapes of the dict that the page, the card and the terminal read."""

from __future__ import annotations

import hashlib
import math
from typing import Any

LINEARS = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (256, 2048),
    "self_attn.v_proj": (256, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (5632, 2048),
    "mlp.up_proj": (5632, 2048),
    "mlp.down_proj": (2048, 5632),
}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _side(perplexity: float, parameters: int, nonzero: int, size: int, speed: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "bits_per_byte": math.log2(perplexity) / 3.7,
        "tokens": 41873,
        "data_sha256": _sha("eval"),
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "bytes_on_disk": size,
        "prefill_tokens_per_s": 9120.4 * speed,
        "decode_tokens_per_s": 411.7 * speed,
        "peak_memory_bytes": int(41_200_000 + 4 * parameters),
    }


def _common(method: str, layers: int, architecture: str) -> dict[str, Any]:
    return {
        "secateur": "0.1.0",
        "created": "2026-01-05T10:12:44+00:00",
        "recipe": {"method": method, "sparsity": 0.25, "seed": 0},
        "recipe_yaml": f"model: models/tiny\nmethod: {method}\nsparsity: 0.25\nsamples: 128\nlength: 512\n",
        "command": f"secateur prune models/tiny --method {method} --sparsity 0.25 --out out/b",
        "model": {
            "path": "models/llama/tiny-stories",
            "architecture": architecture,
            "model_type": "llama",
            "dtype": "float16",
            "layers": layers,
        },
        "result": {"loader": "transformers", "architecture": architecture, "uniform": True},
        "calibration": {
            "source": "data/calibrate.jsonl",
            "data_sha256": _sha("calibrate"),
            "samples": 128,
            "length": 512,
            "seed": 0,
            "tokens": 65536,
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "device": {"device": "cpu", "name": "AMD EPYC 7B13", "threads": 2, "dtype": "float32"},
        "gate": {
            "how": "transformers, fresh process",
            "max_logit_difference": 0.0,
            "cache_equals_no_cache": True,
            "seconds": 3.92,
        },
        "stages": [
            {"name": "open", "seconds": 0.31, "peak_memory_bytes": 311_000_000},
            {"name": "calibrate and cut", "seconds": 11.8, "peak_memory_bytes": 498_000_000},
            {"name": "save", "seconds": 0.22, "peak_memory_bytes": 498_000_000},
            {"name": "verify", "seconds": 3.92, "peak_memory_bytes": 342_000_000},
            {"name": "evaluate", "seconds": 24.6, "peak_memory_bytes": 402_000_000},
        ],
        "warnings": [],
    }


def structured() -> dict[str, Any]:
    """25% of the channels and query heads of 6 layers, refitted; damping was raised in one layer."""
    sites = []
    for layer in range(6):
        for kind, units, kept in (("channel", 512, 384), ("query_head", 6, 4)):
            error = (0.31 if kind == "channel" else 0.22) / (1 + 0.35 * layer)
            sites.append(
                {
                    "name": f"layers.{layer}.{kind}",
                    "kind": kind,
                    "layer": layer,
                    "units": units,
                    "kept": kept,
                    "sparsity": 1 - kept / units,
                    "parameters_removed": (units - kept) * (576 if kind == "channel" else 12288),
                    "method": "obs",
                    "pattern": None,
                    "error_before_refit": error,
                    "error_after_refit": error * 0.41,
                    "damping": 0.1 if (layer, kind) == (3, "channel") else 0.01,
                }
            )
    report = _common("obs", 6, "LlamaForCausalLM")
    return report | {
        "sites": sites,
        "sparsity": {
            "requested": {"channel": 0.25, "query_head": 0.33},
            "parameters": 0.1884,
            "linear_weights": 0.2511,
        },
        "reconstruction": [
            {"layer": layer, "held_out_before": 0.081, "held_out_after": 0.047, "steps": 200 if layer else 0}
            for layer in range(6)
        ],
        "parameters": {
            "before": 3_147_264,
            "after": 2_554_368,
            "nonzero_before": 3_147_264,
            "nonzero_after": 2_554_368,
        },
        "evaluation": {
            "data": "data/eval.jsonl",
            "before": _side(4.751, 3_147_264, 3_147_264, 6_302_912, 1.0),
            "after": _side(8.893, 2_554_368, 2_554_368, 5_117_104, 1.142),
            "kl": 0.6312,
        },
        "warnings": ["Damping rose to 0.1 for layers.3.channel: its Gram matrix was singular."],
        "samples": [
            {
                "prompt": "Once upon a time",
                "before": "Once upon a time, there was a little girl named Lily. She loved to play in the "
                "park with her friends.\nOne day, she saw a big red ball.",
                "after": "Once upon a time, there was a little girl named Lily. She was very happy and she "
                "was very happy to play.\n</div><script>alert('x')</script> & <b>bold</b> [red]x[/red]",
            },
            {
                "prompt": "The old dog looked at the door and",
                "before": " barked. His friend came in and gave him a bone.",
                "after": ' said, "I am a dog." The dog was | not ``` happy.',
            },
        ],
    }


def unstructured(layers: int = 32, pattern: str = "free") -> dict[str, Any]:
    """Half of the weights of every Linear; the file keeps its size, so only the non-zeros fall."""
    sites = []
    for layer in range(layers):
        for index, (linear, (rows, columns)) in enumerate(LINEARS.items()):
            sparsity = 0.5 + 0.14 * math.sin(layer / 5 + index)
            kept = round(rows * columns * (1 - sparsity))
            sites.append(
                {
                    "name": f"layers.{layer}.{linear}",
                    "kind": "weight",
                    "layer": layer,
                    "linear": linear,
                    "units": rows * columns,
                    "kept": kept,
                    "sparsity": 1 - kept / (rows * columns),
                    "parameters_removed": 0,
                    "weights_zeroed": rows * columns - kept,
                    "method": "sparsegpt",
                    "pattern": pattern,
                    "error_after_refit": 0.04 + 0.001 * layer + 0.004 * index,
                    "damping": 0.01,
                }
            )
    removed = sum(site["weights_zeroed"] for site in sites)
    total = 44_044_288 * layers + 65_538_048
    report = _common("sparsegpt", layers, "LlamaForCausalLM")
    return report | {
        "sites": sites,
        "sparsity": {"requested": 0.5, "parameters": removed / total, "linear_weights": 0.5},
        "parameters": {
            "before": total,
            "after": total,
            "nonzero_before": total,
            "nonzero_after": total - removed,
        },
        "evaluation": {
            "data": "stdlib, files held out",
            "before": _side(7.971, total, total, 2_949_910_528, 1.0)
            | {"sets": {"stdlib-prose": {"perplexity": 9.12}, "stdlib-code": {"perplexity": 5.87}}},
            "after": _side(10.24, total, total - removed, 2_949_910_528, 1.02)
            | {"sets": {"stdlib-prose": {"perplexity": 12.34}, "stdlib-code": {"perplexity": 6.91}}},
            "kl": 0.2441,
        },
        "samples": [{"prompt": "def open(", "before": "path: str)", "after": "self, name)"}],
    }


def layer_drop() -> dict[str, Any]:
    """Two of twelve whole layers; the saved class differs and needs its own modelling file."""
    sites = [
        {
            "name": f"layers.{layer}",
            "kind": "layer",
            "layer": layer,
            "units": 1,
            "kept": 0 if layer in (7, 8) else 1,
            "sparsity": 1.0 if layer in (7, 8) else 0.0,
            "parameters_removed": 7_077_888 if layer in (7, 8) else 0,
            "method": "leave-one-out",
            "pattern": None,
            "error_before_refit": None,
            "error_after_refit": None,
            "damping": None,
        }
        for layer in range(12)
    ]
    report = _common("leave-one-out", 12, "GPT2LMHeadModel")
    report["result"] = {
        "loader": "transformers, trust_remote_code",
        "architecture": "SecateurForCausalLM",
        "uniform": False,
    }
    return report | {
        "sites": sites,
        "sparsity": {"requested": 0.17, "parameters": 0.114, "linear_weights": 0.1667},
        "parameters": {
            "before": 124_439_808,
            "after": 110_284_032,
            "nonzero_before": 124_439_808,
            "nonzero_after": 110_284_032,
        },
        "evaluation": {
            "data": "data/wikitext-2/test.txt",
            "before": _side(29.4, 124_439_808, 124_439_808, 248_894_656, 1.0),
            "after": _side(41.2, 110_284_032, 110_284_032, 220_583_104, 1.19),
            "kl": None,
        },
        "samples": [],
    }


def partial() -> dict[str, Any]:
    """A run stopped after calibration: most keys are missing, some are None, one number is not finite."""
    return {
        "secateur": "0.1.0",
        "recipe": {"method": "wanda", "sparsity": 0.5},
        "recipe_yaml": None,
        "model": {"path": "out/a", "architecture": None},
        "calibration": None,
        "sites": [{"name": "layers.0.channel", "kind": "channel", "layer": 0, "sparsity": 0.5}],
        "evaluation": {"before": {"perplexity": float("inf")}, "after": None},
        "stages": [{"name": "open", "seconds": None}],
        "samples": None,
        "warnings": None,
    }


def evidence(layers: int) -> dict[str, Any]:
    """What a run on so many layers notes of removed units: a quarter of 512 channels, a third of 6 heads."""
    sites = []
    for layer in range(layers):
        for kind, units, gone in (("channel", 512, 128), ("query_head", 6, 2)):
            removed = [
                {
                    "unit": 3 * n % units,
                    "bits": 0.1 + 0.01 * n,
                    "energy": 0.004 / (1 + n + layer % 5),
                    "restored": 0.4 + 0.5 / (1 + n),
                    "carriers": [[(3 * n + k * k + 1) % units, 0.5 / (1 + k)] for k in range(5)],
                    "fired": [
                        {"before": "what was before it was ", "token": "said", "after": " in those days", "value": 2}
                    ],
                }
                for n in range(gone)
            ]
            sites.append(
                {"site": f"layers.{layer}.{kind}", "kind": kind, "layer": layer, "units": units, "removed": removed}
            )
    return {"refit": True, "sites": sites}


ALL = {
    "structured": structured,
    "unstructured": unstructured,
    "layer_drop": layer_drop,
    "partial": partial,
    "empty": dict,
}

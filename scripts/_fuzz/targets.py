"""What is fuzzed: the folders that cases begin with, the cases, and the commands that read them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _fuzz import compressed, models
from _fuzz.edits import Edit

Case = tuple[str, list[Edit]]  # the folder that it begins with, and what is changed there


@dataclass(frozen=True)
class Command:
    """Args:
    gate: the others begin with the same work, so they needn't see what it refuses.
    """

    name: str
    work: Callable[[], Any]
    gate: bool = False


@dataclass(frozen=True)
class Target:
    """Args:
    build: makes the folders that cases begin with.
    case: the folder, a seed and a number -> a case.
    commands: the folder with the case and one for output -> what is run.
    """

    build: Callable[[Path], None]
    case: Callable[[Path, int, int], Case]
    commands: Callable[[Path, Path], list[Command]]


def save_tiny(folder: Path, hidden: int = 16, inner: int = 72, layers: int = 1, zeros: bool = False) -> None:
    """A Llama with random weights and a byte tokenizer; with `zeros`, half of its Linears are."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<s>": 256}
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=256,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if zeros:
        with torch.no_grad():
            for module in model.model.layers.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight.masked_fill_(torch.rand_like(module.weight) < 0.5, 0)
    model.save_pretrained(folder)
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)


# ------------------------------------------------------------------------------ compressed folders


def _build_compressed(root: Path) -> None:
    import secateur

    save_tiny(root / "dense", zeros=True)
    secateur.compress(root / "dense", root / "int8", values="int8", group=64, quiet=True)
    secateur.compress(root / "dense", root / "keep", quiet=True)


@cache
def _enumerated(root: Path) -> list[Case]:
    return [(base, edits) for base in ("int8", "keep") for edits in compressed.enumerated(root / base)]


def _compressed_case(root: Path, seed: int, number: int) -> Case:
    """With seed 0 first every field times every value; then, and with any other seed, drawn ones."""
    listed = _enumerated(root) if not seed else []
    if number < len(listed):
        return listed[number]
    choice = random.Random(f"{seed} {number}")
    base = choice.choice(("int8", "int8", "keep"))
    edits = compressed.drawn(root / base, choice)
    return base, edits + (compressed.drawn(root / base, choice) if choice.random() < 0.2 else [])


def _compressed_commands(folder: Path, out: Path) -> list[Command]:
    import torch

    import secateur
    from secateur.runtime import choose
    from secateur.runtime.folder import Reader

    choose.FLUSH_BYTES = 1 << 16

    def load(runtime: str) -> None:
        model = secateur.load(folder, runtime=runtime)
        with torch.inference_mode():
            for rows in (1, 12):
                model(torch.arange(rows)[None])

    return [
        Command("read", lambda: Reader(folder), gate=True),
        Command("load compressed", lambda: load("compressed")),
        Command("load auto", lambda: load("auto")),
        Command("decompress", lambda: secateur.decompress(folder, out, quiet=True)),
    ]


# ------------------------------------------------------------------------- plain folders and runs

SMALL = ("--samples", "2", "--length", "8", "--quiet")
LINES = [f"The {n}th line says that pruning takes what a model needs least.\n" for n in range(40)]


def _run(name: str, *words: object) -> Command:
    from secateur.cli import app

    return Command(name, lambda: app.main([str(word) for word in words]))


def _build_model(root: Path) -> None:
    """`model` with text, recipe and plan beside it, `sharded`, and `done`: what a run has left."""
    import json

    import secateur

    save_tiny(root / "model", layers=2)
    (root / "model" / "text.txt").write_text("".join(LINES))
    (root / "model" / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    (root / "model" / "recipe.yaml").write_text("sites: [channel]\nsparsity: 0.25\n")
    text = str(root / "model" / "text.txt")
    cut = {
        "model": str(root / "model"),
        "sites": ["channel"],
        "sparsity": 0.25,
        "calibrate": text,
        "evaluate": "none",
    }
    recipe = secateur.make_recipe(cut | {"samples": 2, "length": 8, "speed": False})
    secateur.prune(recipe, root / "done", quiet=True)
    (root / "model" / "plan.json").write_bytes((root / "done" / "plan.json").read_bytes())
    _shard(root / "model", root / "sharded")


def _shard(model: Path, folder: Path) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def _inspect_and_measure(folder: Path, out: Path) -> list[Command]:
    data = folder.parent / "model" / "text.txt"
    return [
        _run("inspect", "inspect", folder),
        _run("eval", "eval", folder, "--data", data, "--length", 16, "--no-speed", "--quiet"),
    ]


def _read_text(folder: Path, out: Path) -> list[Command]:
    words = ("--length", 16, "--no-speed", "--quiet")
    return [_run(f"eval {name}", "eval", folder, "--data", folder / name, *words) for name in models.FILES["text"]]


def _write_text(folder: Path, out: Path) -> list[Command]:
    return [*_inspect_and_measure(folder, out), _run("generate", "generate", folder, "The", "--tokens", 2)]


def _plan_only(flag: str, file: str) -> Callable[[Path, Path], list[Command]]:
    def commands(folder: Path, out: Path) -> list[Command]:
        text = folder.parent / "model" / "text.txt"
        words = (flag, folder / file, "--calibrate", text, "--dry-run", "--out", out, *SMALL)
        return [_run(f"prune {flag}", "prune", folder.parent / "model", *words)]

    return commands


def _read_run(folder: Path, out: Path) -> list[Command]:
    replace = ("--sparsity", "0.25", "--calibrate", folder.parent / "model" / "text.txt", "--dry-run", *SMALL)
    return [
        _run("explain", "explain", folder),
        _run("compare", "compare", folder),
        _run("prune --overwrite", "prune", folder.parent / "model", *replace, "--out", folder, "--overwrite"),
    ]


def _model_case(name: str, base: str) -> Callable[[Path, int, int], Case]:
    def case(root: Path, seed: int, number: int) -> Case:
        return base, models.drawn(name, root / base, random.Random(f"{name} {seed} {number}"))

    return case


TARGETS = {
    "config": Target(_build_model, _model_case("config", "model"), _inspect_and_measure),
    "index": Target(_build_model, _model_case("index", "sharded"), _inspect_and_measure),
    "tokenizer": Target(_build_model, _model_case("tokenizer", "model"), _write_text),
    "plan": Target(_build_model, _model_case("plan", "model"), _plan_only("--plan", "plan.json")),
    "recipe": Target(_build_model, _model_case("recipe", "model"), _plan_only("--recipe", "recipe.yaml")),
    "text": Target(_build_model, _model_case("text", "model"), _read_text),
    "report": Target(_build_model, _model_case("report", "done"), _read_run),
    "compressed": Target(_build_compressed, _compressed_case, _compressed_commands),
}

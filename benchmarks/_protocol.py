"""The protocol that every tool in the benchmarks is held to: calibration tokens, and perplexity.

It imports nothing of Secateur, so that the judge of a comparison is not one of the parties.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def read_texts(path: Path) -> list[str]:
    """The `text` field of each line of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines if line.strip()]


def calibration_ids(model: Path, texts: list[str], sequences: int = 128, seed: int = 0) -> Tensor:
    """Token ids for calibration, int64 of shape (sequences, context of the model).

    Each text gets a BOS, all texts are joined and cut into pieces as long as the context, the rest is dropped,
    and the first `sequences` pieces of a permutation drawn with `seed` are taken.
    """
    tokenizer, length = AutoTokenizer.from_pretrained(model), context_of(model)
    joined: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        joined += [tokenizer.bos_token_id, *ids]
    pieces = torch.tensor(joined[: len(joined) // length * length]).view(-1, length)
    if len(pieces) < sequences:
        raise SystemExit(f"calibration text gives {len(pieces)} sequences of {length} tokens; {sequences} needed")
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    return pieces[order[:sequences]]


def write_calibration(ids: Tensor, out: Path) -> str:
    """Write calibration tokens as JSONL with `input_ids`, which all tools read; returns the file's SHA-256."""
    text = "".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist())
    out.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def context_of(model: Path, longest: int = 512) -> int:
    """The context length of a checkpoint, at most `longest` tokens."""
    config = json.loads((model / "config.json").read_text())
    return min(longest, config.get("max_position_embeddings") or config.get("n_positions") or longest)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: list[str], context: int) -> float:
    """exp(total negative log-likelihood / predicted tokens), each text alone with BOS, cut at `context`."""
    nll, predicted = 0.0, 0
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        row = torch.tensor([[tokenizer.bos_token_id, *ids][:context]])
        if row.shape[1] < 2:
            continue
        logits = model(input_ids=row).logits[0, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
        predicted += row.shape[1] - 1
    return math.exp(nll / predicted)


@torch.no_grad()
def window_perplexity(model: Any, tokenizer: Any, text: str, length: int, most: int, batch: int = 4) -> float:
    """exp(total negative log-likelihood / predicted tokens) of the first `most` windows of `length` tokens each."""
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    windows = ids[: min(len(ids) // length, most) * length].view(-1, length)
    nll = 0.0
    for rows in windows.split(batch):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return math.exp(nll / (len(windows) * (length - 1)))


def judge(checkpoint: Path, original: Path, texts: list[str], pattern: tuple[int, int] | None) -> dict[str, float]:
    """Perplexity in fp32 and measured sparsity of a checkpoint, tokenised as the original model is.

    Sparsity is the fraction of exact zeros over the Linear weights of the decoder, without the head. With a
    `pattern` (N, M), `pattern_held` is the fraction of groups of M inputs that hold at least N zeros.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(original)
    head = model.get_output_embeddings()
    zeros = [m.weight == 0 for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    found = {
        "perplexity": perplexity(model, tokenizer, texts, context_of(original)),
        "sparsity": sum(int(z.sum()) for z in zeros) / sum(z.numel() for z in zeros),
    }
    if pattern is not None:
        held = torch.cat([(z.view(-1, pattern[1]).sum(-1) >= pattern[0]) for z in zeros])
        found["pattern_held"] = held.float().mean().item()
    return found

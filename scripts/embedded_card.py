"""Measures a model of `train_embedded.py` on held-out text and writes its card.

    python scripts/embedded_card.py out/embedded/model

Reads the exported fp16 weights and `loss_curve.json`; writes README.md and adds the held-out figures to
`loss_curve.json`. Run it under the Python that trained the model, so that held-out text is the same text.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur.data.stdlib import Domain, documents

CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
---

# The embedded model

A Llama of {parameters:,} parameters, trained from nothing on the Python standard library. It is here so that
pruning can be tried, tested and measured on trained weights with no download. It writes text that looks like
Python and like its documentation; it knows nothing and is of no other use.

## Shape

`LlamaForCausalLM`, fp16: hidden {hidden_size}, FFN {intermediate_size}, {num_hidden_layers} layers, \
{num_attention_heads} query heads in {num_key_value_heads} KV groups, head size {head_dim}, RMSNorm, RoPE, \
tied embeddings, context {max_position_embeddings}.
{hidden_size} is divisible by 8, 6, 4 and 2, so KV groups can be cut one by one and the config stays legal.
Tokenizer: byte-level BPE, {vocab_size:,} tokens, `<s>` (id 1) put first, any text round-trips.

## Data

Source files of the standard library of CPython {python}, parsed and not imported; no tests, no installed
packages, no generated tables. `prose` is docstrings and the documentation topics of `help()`; `code` is the
same files with the docstrings cut out. A file in sixteen is held out by a hash of its path, for both domains.
Code in `secateur.data.stdlib`. The text is under the PSF licence.

| | documents | bytes | tokens | times per epoch |
|---|---|---|---|---|
| prose, train | {documents[prose]} | {bytes[prose]:,} | {tokens[prose]:,} | {prose_repeats} |
| code, train | {documents[code]} | {bytes[code]:,} | {tokens[code]:,} | 1 |
| prose, held out | {held[prose][documents]} | {held[prose][bytes]:,} | {held[prose][tokens]:,} | |
| code, held out | {held[code][documents]} | {held[code][bytes]:,} | {held[code][tokens]:,} | |

## Training

`scripts/train_embedded.py`, {minutes:.0f} minutes on 2 CPU cores shared with other work, in fp32 with torch {torch}.

- {step:,} steps of {per_step:,} tokens, BOS between documents: \
{seen:,} tokens, {epochs:.2f} epochs
- tokens per sequence, by part of the run: {stages}{note}
- AdamW, betas {hyper[betas][0]} and {hyper[betas][1]}, weight decay {hyper[weight_decay]} on matrices, \
gradients clipped at norm {hyper[clip]}
- learning rate {hyper[peak_lr]} after a warm-up of {warmup:.0f} % of the run, then a cosine to {final:.0f} % of it
- seed {seed}; {schedule}

## Held-out text

Bits per byte = negative log-likelihood in bits over the UTF-8 bytes of the predicted text. fp16 weights, computed
in fp32 on CPU. "first {context}": each document alone, BOS first, cut at {context} tokens. "whole": each document in
windows of {context} tokens, each one opened by BOS, nothing carried over.

| | first {context}, bits/byte | tokens scored | whole, bits/byte | tokens scored | perplexity per token, whole |
|---|---|---|---|---|---|
{figures}

Held out under another Python version is not all unseen: a file that moved (`pathlib.py` to `pathlib/_local.py`)
gets a new hash.

## Loss curve

Training loss in nats per token, mean of the last 100 steps; held-out bits per byte of "first {context}". Every row
is in `loss_curve.json`.

| step | minutes | training loss | prose | code |
|---|---|---|---|---|
{curve}
"""

CLOCKED = (
    "the learning rate followed the clock, so another machine takes another number of steps; "
    "`--steps {step}` takes this many"
)
STEPPED = "the learning rate followed the steps (`--steps`), so every machine takes the same ones"


@torch.no_grad()
def score(model: Any, rows: list[list[int]]) -> tuple[float, int]:
    """(total nll in nats, tokens predicted) of rows of token ids, the first of each given for free."""
    nats, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, :-1].float()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += len(row) - 1
    return nats, count


def held_out(model: Any, tokenizer: Any, domain: Domain) -> dict[str, Any]:
    """Sizes of the held-out text of a domain, and its nll cut at the context and in whole."""
    context, bos = model.config.max_position_embeddings, tokenizer.bos_token_id
    texts = documents(domain, "held_out")
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    windows = [row[i : i + context - 1] for row in ids for i in range(0, len(row), context - 1)]
    found: dict[str, Any] = {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": sum(len(row) for row in ids),
    }
    for name, rows in (("first", [row[: context - 1] for row in ids]), ("whole", windows)):
        nats, count = score(model, [[bos, *row] for row in rows])
        # A byte-level token has one character per byte, so this counts bytes even across a cut character.
        size = sum(len(token) for row in rows for token in tokenizer.convert_ids_to_tokens(row))
        found[name] = {"nats": nats, "tokens": count, "bytes": size}
    return found


def figures(held: dict[str, dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """Table rows and bits per byte of the domains and of both together, weighted by bytes."""
    rows, bits = [], {}
    for label, domains in (("prose", ["prose"]), ("code", ["code"]), ("both", ["prose", "code"])):
        cells, perplexity = [label], 0.0
        for part in ("first", "whole"):
            nats, tokens, size = (sum(held[d][part][k] for d in domains) for k in ("nats", "tokens", "bytes"))
            bits[f"{label}_{part}"] = round(nats / math.log(2) / size, 4)
            perplexity = math.exp(nats / tokens)
            cells += [f"{bits[f'{label}_{part}']:.3f}", f"{tokens:,}"]
        rows.append("| " + " | ".join([*cells, f"{perplexity:.2f}"]) + " |")
    return "\n".join(rows), bits


def curve_rows(curve: list[dict[str, float]]) -> str:
    """The rows at which held-out text was measured."""
    return "\n".join(
        f"| {row['step']:,.0f} | {row['minutes']:.1f} | {row['loss']:.3f} | {row['prose']:.3f} | {row['code']:.3f} |"
        for row in curve
        if "code" in row
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the exported model")
    folder = parser.parse_args().model
    record = json.loads((folder / "loss_curve.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held = {domain: held_out(model, tokenizer, domain) for domain in get_args(Domain)}
    rows, bits = figures(held)
    context, hyper, tokens = model.config.max_position_embeddings, record["hyper"], record["tokens"]
    seen = record["step"] * hyper["batch"] * context
    facts = record | {
        "held": held,
        "figures": rows,
        "curve": curve_rows(record["curve"]),
        "context": context,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "minutes": record["elapsed"] / 60,
        "seen": seen,
        "per_step": hyper["batch"] * context,
        "stages": ", ".join(f"{length} until {until:.0%}" for until, length in hyper["lengths"]),
        "note": f" ({record['note']})" if "note" in record else "",
        "epochs": seen / (tokens["prose"] * record["prose_repeats"] + tokens["code"]),
        "warmup": hyper["warmup"] * 100,
        "final": hyper["final_lr"] * 100,
        "schedule": STEPPED if record["steps"] else CLOCKED.format(step=record["step"]),
    }
    (folder / "README.md").write_text(CARD.format(**{**model.config.to_dict(), **facts}))
    (folder / "loss_curve.json").write_text(json.dumps(record | {"held_out_bits_per_byte": bits}, indent=1) + "\n")
    print(json.dumps(bits))


if __name__ == "__main__":
    main()

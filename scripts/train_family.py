"""Trains a family of Llamas of growing size, alike in all but their width, to measure what size does to pruning.

    python scripts/train_family.py --out out/family --train train.jsonl.xz --valid valid.jsonl.xz
    python scripts/train_family.py --out out/family ... --sizes 16M,64M --tokens 400M --device cuda
    python benchmarks/criteria.py --family out/family

Every size has the same tokenizer, the same documents in the same order, the same number of tokens and steps, the same
seed and schedule; only its peak rate falls with the root of the width, and so do its first weights. Sizes are all
parameters of the checkpoint, the tied embedding counted once. Text is JSONL with `text`, plain or .xz; only its
beginning is read, as much as the tokens take.

A session that has to end says `--minutes`; `--resume` goes on from where each size was, also after a kill. The folder
gets a checkpoint for each size (fp32 safetensors, tokenizer, loss_curve.json), the state beside it, and excerpts of
both texts for who prunes the models: calibrate.jsonl and evaluate.jsonl. A size that is added later has to be trained
on the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import lzma
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from _training import Budget, Hyper, Run, encode, held_out, loop, make_optimizer, train_tokenizer  # before torch

# isort: split
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 1024  # a quarter of the smallest model, a sixtieth of the largest
CONTEXT = 256
TOKENIZER_DOCUMENTS = 1000  # and the tokenizer is made of
CALIBRATE, EVALUATE = 200, 128  # documents of the excerpts
HYPER = Hyper(context=CONTEXT, batch=2, parts=1, lengths=((1.0, CONTEXT),), peak_lr=3e-3)
RATE_AT = 256  # the width that is trained with HYPER.peak_lr


class Shape(NamedTuple):
    """The FFN is 2.75 times as wide as the stream, two query heads share a KV head, embeddings are tied."""

    width: int
    layers: int
    heads: int


SIZES = {
    "0.25M": Shape(64, 4, 4),
    "1M": Shape(128, 5, 4),
    "4M": Shape(256, 5, 8),
    "16M": Shape(512, 5, 8),
    "64M": Shape(1024, 5, 16),
}


def texts(file: Path) -> Iterator[str]:
    """The documents of a .jsonl or .jsonl.xz file, one after the other."""
    with (lzma.open if file.suffix == ".xz" else open)(file, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines if line.strip())


def tokenizer_of(out: Path, sample: list[str]) -> PreTrainedTokenizerFast:
    """The family's: made once, and read again by whoever adds a size."""
    folder = out / "tokenizer"
    if not folder.is_dir():
        train_tokenizer(sample, VOCAB, CONTEXT).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def read(file: Path, tokenizer: PreTrainedTokenizerFast, tokens: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """The first documents of a file that have that many tokens together, and what is known of them."""
    found: list[torch.Tensor] = []
    count, size, digest = 0, 0, hashlib.sha256()
    for text in texts(file):
        raw = text.encode()
        digest.update(raw)
        size += len(raw)
        found += [ids.to(torch.int32) for ids in encode(tokenizer, [text])]
        count += len(found[-1])
        if count >= tokens + CONTEXT:  # the first window starts somewhere in the first CONTEXT tokens
            break
    return found, {"file": file.name, "documents": len(found), "bytes": size, "sha256": digest.hexdigest()}


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=shape.width,
            intermediate_size=shape.width * 11 // 4,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads // 2,
            head_dim=shape.width // shape.heads,
            max_position_embeddings=CONTEXT,
            initializer_range=shape.width**-0.5,  # the default, 0.02, costs a small model its first hundreds of steps
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(size: str, corpus: list[torch.Tensor], data: dict[str, Any], args: argparse.Namespace) -> bool:
    """One size from its state, or from nothing. Returns: whether it is done."""
    folder, shape = args.out / size, SIZES[size]
    tokenizer, valid = tokenizer_of(args.out, []), list(texts(args.out / "evaluate.jsonl"))
    hyper = replace(HYPER, batch=args.batch, peak_lr=HYPER.peak_lr * (RATE_AT / shape.width) ** 0.5)
    steps = args.tokens // (hyper.batch * CONTEXT)
    model = make_model(shape, tokenizer, args.seed).to(args.device).train()
    run = Run(args.out / f"{size}.state.safetensors", folder, model, make_optimizer(model, hyper), torch.float32)
    if args.resume and run.state.is_file():
        run.load()
    facts = {
        "size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "embedding_parameters": model.get_input_embeddings().weight.numel(),
        "tied": True,
        "shape": shape._asdict(),
        "hyper": asdict(hyper),
        "tokens": steps * hyper.batch * CONTEXT,
        "steps": steps,
        "seed": args.seed,
        "data": data,
        "valid_documents": len(valid),
        "torch": torch.__version__,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", *sys.argv]),
    }
    print(f"{size}: {facts['parameters']:,} parameters, step {run.step:,} of {steps:,}", flush=True)
    return loop(
        run,
        corpus,
        hyper,
        Budget(steps=steps, ends=args.ends),
        args.seed,
        1,
        args.save_every,
        lambda: run.save(tokenizer, facts),
        lambda: held_out(model, tokenizer, valid, CONTEXT),
    )


def check_alike(out: Path, told: dict[str, Any]) -> None:
    """What the sizes are to share has to be what those already there have."""
    for file in sorted(out.glob("*/loss_curve.json")):
        known = json.loads(file.read_text(encoding="utf-8"))
        known |= {"batch": known["hyper"]["batch"], "sha256": known["data"]["sha256"]}
        for key, value in told.items():
            if known[key] != value:
                raise SystemExit(
                    f"{file.parent.name} was trained with {key} {known[key]}, not {value}; give the same"
                )


def count(text: str) -> int:
    """2M -> 2000000."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    return int(float(text.rstrip("KMG")) * units.get(text[-1], 1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="shuffled documents: .jsonl or .jsonl.xz")
    parser.add_argument("--valid", type=Path, required=True, help="others, of the same kind")
    parser.add_argument("--sizes", default="0.25M,1M,4M", help=f"of {', '.join(SIZES)}; commas")
    parser.add_argument("--tokens", type=count, default=count("1M"), help="for each size, such as 2M")
    parser.add_argument("--batch", type=int, default=HYPER.batch, help=f"sequences of {CONTEXT} tokens a step")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; --resume goes on")
    parser.add_argument("--save-every", type=float, default=2, help="minutes between states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the states in --out")
    args = parser.parse_args()
    args.sizes = args.sizes.split(",")
    unknown = [size for size in args.sizes if size not in SIZES]
    missing = [str(file) for file in (args.train, args.valid) if not file.is_file()]
    if unknown or missing:
        parser.error(f"no such size: {unknown[0]}; known are {', '.join(SIZES)}" if unknown else f"no {missing[0]}")
    if args.tokens < args.batch * CONTEXT:
        parser.error(f"--tokens {args.tokens} is less than a step of {args.batch * CONTEXT}")
    if not args.resume and any((args.out / size).exists() for size in args.sizes):
        parser.error(f"{args.out} has some of these models; --resume goes on with them")
    args.ends = time.monotonic() + 60 * args.minutes
    return args


def excerpt(source: Path, documents: int, out: Path) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in itertools.islice(texts(source), documents))
    out.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")
    tokenizer = tokenizer_of(args.out, list(itertools.islice(texts(args.train), TOKENIZER_DOCUMENTS)))
    excerpt(args.train, CALIBRATE, args.out / "calibrate.jsonl")
    excerpt(args.valid, EVALUATE, args.out / "evaluate.jsonl")
    corpus, data = read(args.train, tokenizer, args.tokens)
    print(json.dumps(data), flush=True)
    tokens = args.tokens - args.tokens % (args.batch * CONTEXT)
    check_alike(args.out, {"tokens": tokens, "batch": args.batch, "seed": args.seed, "sha256": data["sha256"]})
    for size in args.sizes:
        if not train(size, corpus, data, args):
            raise SystemExit(f"{size} isn't done: the {args.minutes:g} minutes are over; --resume goes on")


if __name__ == "__main__":
    main()

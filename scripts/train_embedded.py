"""Trains the model that ships inside the package: its tokenizer, its weights, its loss curve.

    python scripts/train_embedded.py --out out/embedded --minutes 80
    python scripts/embedded_card.py out/embedded/model

The corpus is the standard library of the running interpreter, so nothing is downloaded. A killed run goes on
with `--resume`; `out/embedded/model` holds a loadable model from the first checkpoint on. The seed fixes the
initial weights and the order of the data. With `--minutes` the learning rate follows the clock, so the number
of steps depends on the machine; `--steps` gives the same run everywhere.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from _training import Budget, Hyper, Run, encode, held_out, loop, make_optimizer, train_tokenizer  # before torch

# isort: split
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.data.stdlib import Domain, documents

VOCAB = 2048
CONTEXT = 512
PROSE_REPEATS = 2  # there is 3.4 times less prose than code; it is read twice per epoch
HYPER = Hyper(
    context=CONTEXT,
    batch=2,  # the run is short, so many small steps beat few large ones
    parts=2,
    # Attention over 512 tokens takes a third of a step, and what a small model learns first lies near by.
    lengths=((0.55, 128), (0.85, 256), (1.0, CONTEXT)),
)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A stock Llama. 192 is divisible by 8, 6, 4 and 2: each KV group can go and the config stays legal."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=24,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(args: argparse.Namespace) -> None:
    domains: tuple[Domain, ...] = get_args(Domain)
    texts = {domain: documents(domain, "train") for domain in domains}
    unseen = {domain: documents(domain, "held_out") for domain in domains}
    tokenizer = train_tokenizer(texts["prose"] + texts["code"], VOCAB, CONTEXT)
    encoded = {domain: encode(tokenizer, texts[domain]) for domain in domains}
    model = make_model(tokenizer, args.seed).to(args.device).train()
    files = args.out / "state.safetensors", args.out / "model"
    run = Run(*files, model, make_optimizer(model, HYPER), torch.float16)
    if args.resume:
        run.load()
    facts = {
        "seed": args.seed,
        "minutes": args.minutes,
        "steps": args.steps,
        "hyper": asdict(HYPER),
        "prose_repeats": PROSE_REPEATS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": {domain: len(texts[domain]) for domain in domains},
        "bytes": {domain: sum(len(text.encode()) for text in texts[domain]) for domain in domains},
        "tokens": {domain: sum(len(ids) for ids in encoded[domain]) for domain in domains},
        "workers": args.workers,
    }
    print(json.dumps(facts), flush=True)
    corpus = encoded["prose"] * PROSE_REPEATS + encoded["code"]

    def measure() -> dict[str, float]:
        return {domain: held_out(model, tokenizer, unseen[domain], CONTEXT)["bits_per_byte"] for domain in domains}

    budget = Budget(steps=args.steps, minutes=args.minutes)
    keep = lambda: run.save(tokenizer, facts)  # noqa: E731
    loop(run, corpus, HYPER, budget, args.seed, args.workers, args.save_every, keep, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and model/")
    parser.add_argument("--minutes", type=float, default=80, help="wall-clock budget of the run")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps instead of minutes")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="parts of a batch computed at once")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()

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
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

# One part of the batch per worker and one thread in each: on shared cores, threads that meet at a barrier in every
# operator wait for the slowest, and spin while they wait (7 times slower where measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from secateur.data.stdlib import Domain, documents

VOCAB = 2048
CONTEXT = 512
SPECIAL = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2 as in the Llama family
PROSE_REPEATS = 2  # there is 3.4 times less prose than code; it is read twice per epoch


@dataclass(frozen=True)
class Hyper:
    batch: int = 2  # sequences of CONTEXT tokens: the run is short, so many small steps beat few large ones
    peak_lr: float = 2e-3
    final_lr: float = 0.02  # fraction of the peak
    warmup: float = 0.02  # fraction of the run
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    # (until this fraction of the run, tokens per sequence): attention over 512 tokens takes a third of a step,
    # and what a small model learns first lies near by.
    lengths: tuple[tuple[float, int], ...] = ((0.55, 128), (0.85, 256), (1.0, CONTEXT))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly VOCAB tokens; every text round-trips and starts with BOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[torch.Tensor]:
    """One int64 tensor per text, BOS first, whole length."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return [torch.tensor(item.ids) for item in encoded]


def epoch_windows(texts: list[torch.Tensor], seed: int, epoch: int) -> torch.Tensor:
    """(n, CONTEXT) windows of one epoch: documents reshuffled, packed, cut at a new offset, reshuffled.

    A function of (seed, epoch) alone, so a resumed run finds its place without a saved generator.
    """
    rng = torch.Generator().manual_seed(seed * 100_003 + epoch)
    stream = torch.cat([texts[i] for i in torch.randperm(len(texts), generator=rng)])
    offset = int(torch.randint(CONTEXT, (1,), generator=rng))
    count = (len(stream) - offset) // CONTEXT
    windows = stream[offset : offset + count * CONTEXT].view(count, CONTEXT)
    return windows[torch.randperm(count, generator=rng)]


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


def make_optimizer(model: LlamaForCausalLM, hyper: Hyper) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": hyper.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=hyper.peak_lr, betas=hyper.betas, fused=True)


def learning_rate(progress: float, hyper: Hyper) -> float:
    """Linear warm-up, then a cosine that reaches `final_lr * peak_lr` at progress 1."""
    if progress < hyper.warmup:
        return hyper.peak_lr * max(progress / hyper.warmup, 0.01)
    done = min(1.0, (progress - hyper.warmup) / (1 - hyper.warmup))
    return hyper.peak_lr * (hyper.final_lr + (1 - hyper.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def sequence_length(progress: float, hyper: Hyper) -> int:
    """Tokens per sequence; the tokens per step stay the same."""
    return next(length for until, length in hyper.lengths if progress < until or until == 1.0)


@torch.no_grad()
def held_out_bits(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Bits per byte; each text alone, BOS first, cut at CONTEXT tokens, nll over the bytes predicted."""
    model.eval()
    nats, size = 0.0, 0
    for ids in encode(tokenizer, texts):
        ids = ids[:CONTEXT]
        row = ids[None].to(model.device)
        nats += model(input_ids=row, labels=row, use_cache=False).loss.item() * (len(ids) - 1)
        # Counted on the byte alphabet, because the cut can fall inside a character.
        size += sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids[1:].tolist()))
    model.train()
    return nats / math.log(2) / size


class Run:
    """What a checkpoint holds: weights, AdamW moments, and the facts of the run so far."""

    def __init__(self, out: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW) -> None:
        self.out, self.model, self.optimizer = out, model, optimizer
        self.step, self.epoch, self.window, self.elapsed = 0, 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.named = dict(model.named_parameters())

    def save(self, tokenizer: PreTrainedTokenizerFast, facts: dict[str, object]) -> None:
        counters = {key: getattr(self, key) for key in ("step", "epoch", "window", "elapsed", "curve")}
        tensors = {f"w.{name}": p.detach() for name, p in self.named.items()}
        for name, p in self.named.items():
            for key, value in self.optimizer.state[p].items():
                tensors[f"{key}.{name}"] = value.detach().reshape(p.shape if value.numel() > 1 else (1,))
        temporary = self.out / "state.tmp"
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"run": json.dumps(counters)})
        temporary.replace(self.out / "state.safetensors")
        export(self.model, tokenizer, self.out / "model")
        record = {**facts, **{k: v for k, v in counters.items() if k != "curve"}, "curve": self.curve}
        (self.out / "model" / "loss_curve.json").write_text(json.dumps(record, indent=1) + "\n")

    def load(self) -> None:
        with safe_open(self.out / "state.safetensors", framework="pt") as stored, torch.no_grad():
            for key, value in json.loads(stored.metadata()["run"]).items():
                setattr(self, key, value)
            for name, p in self.named.items():
                p.copy_(stored.get_tensor(f"w.{name}"))
                moments = {k: stored.get_tensor(f"{k}.{name}").to(p.device) for k in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": stored.get_tensor(f"step.{name}").reshape(()), **moments}


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """fp16 safetensors, config, generation config and tokenizer: what `from_pretrained` reads."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(args: argparse.Namespace, hyper: Hyper) -> None:
    domains: tuple[Domain, ...] = get_args(Domain)
    texts = {domain: documents(domain, "train") for domain in domains}
    held_out = {domain: documents(domain, "held_out") for domain in domains}
    tokenizer = train_tokenizer(texts["prose"] + texts["code"])
    encoded = {domain: encode(tokenizer, texts[domain]) for domain in domains}
    model = make_model(tokenizer, args.seed).to(args.device).train()
    run = Run(args.out, model, make_optimizer(model, hyper))
    if args.resume:
        run.load()
    facts = {
        "seed": args.seed,
        "minutes": args.minutes,
        "hyper": asdict(hyper),
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
        return {domain: held_out_bits(model, tokenizer, held_out[domain]) for domain in domains}

    loop(run, corpus, args, hyper, lambda: run.save(tokenizer, facts), measure)


def accumulate(model: LlamaForCausalLM, batch: torch.Tensor, pool: ThreadPoolExecutor) -> float:
    """Leaves the gradient of the mean loss in `.grad`, CONTEXT tokens per task; returns the loss."""
    parameters = list(model.parameters())
    parts = batch.split(CONTEXT // batch.shape[1])

    def gradient(row: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = model(input_ids=row, labels=row, use_cache=False).loss / len(parts)
        return loss.item(), torch.autograd.grad(loss, parameters)  # not backward(): .grad is shared

    losses, gradients = zip(*pool.map(gradient, parts), strict=True)
    for parameter, *addends in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(addends).sum(0)
    return sum(losses)


def loop(
    run: Run,
    corpus: list[torch.Tensor],
    args: argparse.Namespace,
    hyper: Hyper,
    save: Callable[[], None],
    measure: Callable[[], dict[str, float]],
) -> None:
    """Steps until the budget is spent; a line every 100 steps, a checkpoint every few minutes."""
    windows = epoch_windows(corpus, args.seed, run.epoch)
    clock = saved = time.monotonic()
    pool = ThreadPoolExecutor(args.workers)
    losses: list[float] = []
    while True:
        progress = run.step / args.steps if args.steps else run.elapsed / (args.minutes * 60)
        if len(losses) == 100 or (progress >= 1 and losses):
            row = {"step": run.step, "minutes": run.elapsed / 60, "loss": sum(losses) / len(losses)}
            losses = []
            if time.monotonic() - saved > args.save_every * 60 or progress >= 1:
                row |= measure()
            run.curve.append({key: round(value, 4) for key, value in row.items()})
            print(json.dumps(run.curve[-1]), flush=True)
            if "code" in row:
                save()
                saved = time.monotonic()
        if progress >= 1:
            return
        if run.window + hyper.batch > len(windows):
            run.epoch, run.window = run.epoch + 1, 0
            windows = epoch_windows(corpus, args.seed, run.epoch)
        batch = windows[run.window : run.window + hyper.batch].to(args.device)
        batch = batch.view(-1, sequence_length(progress, hyper))
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(progress, hyper)
        losses.append(accumulate(run.model, batch, pool))
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), hyper.clip)
        run.optimizer.step()
        run.step, run.window = run.step + 1, run.window + hyper.batch
        run.elapsed, clock = run.elapsed + time.monotonic() - clock, time.monotonic()


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
    train(args, Hyper())


if __name__ == "__main__":
    main()

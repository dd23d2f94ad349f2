"""What the scripts that train small models share: tokenizer, order of the data, optimiser, schedule, state, loop."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# One part of the batch per worker and one thread in each: on shared cores, threads that meet at a barrier in every
# operator wait for the slowest, and spin while they wait (7 times slower where measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2 as in the Llama family
LINE = 100  # steps that a line of the loss curve is the mean of


@dataclass(frozen=True)
class Hyper:
    context: int
    batch: int  # sequences of `context` tokens a step
    parts: int  # that a batch is computed in: workers share them
    # (until this fraction of the run, tokens per sequence): the tokens per step stay the same.
    lengths: tuple[tuple[float, int], ...]
    peak_lr: float = 2e-3
    final_lr: float = 0.02  # fraction of the peak
    warmup: float = 0.02  # fraction of the run
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0


@dataclass(frozen=True)
class Budget:
    steps: int = 0  # of the run; 0: it follows the clock
    minutes: float = 0.0  # of the run, where it follows the clock
    ends: float = math.inf  # when this process has to stop, by the monotonic clock; the run goes on another day


def train_tokenizer(texts: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `vocabulary` tokens; every text round-trips and starts with BOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
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
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[torch.Tensor]:
    """One int64 tensor per text, BOS first, whole length."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return [torch.tensor(item.ids) for item in encoded]


def epoch_windows(texts: list[torch.Tensor], context: int, seed: int, epoch: int) -> torch.Tensor:
    """(n, context) windows of one epoch: documents reshuffled, packed, cut at a new offset, reshuffled.

    A function of (seed, epoch) alone, so a resumed run finds its place without a saved generator.
    """
    rng = torch.Generator().manual_seed(seed * 100_003 + epoch)
    stream = torch.cat([texts[i] for i in torch.randperm(len(texts), generator=rng)])
    offset = int(torch.randint(context, (1,), generator=rng))
    count = (len(stream) - offset) // context
    windows = stream[offset : offset + count * context].view(count, context)
    return windows[torch.randperm(count, generator=rng)]


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
    return next(length for until, length in hyper.lengths if progress < until or until == 1.0)


@torch.no_grad()
def held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], context: int
) -> dict[str, float]:
    """Perplexity a token and bits per byte; each text alone, BOS first, cut at `context` tokens."""
    model.eval()
    nats, predicted, size = 0.0, 0, 0
    for ids in encode(tokenizer, texts):
        ids = ids[:context]
        row = ids[None].to(model.device)
        nats += model(input_ids=row, labels=row, use_cache=False).loss.item() * (len(ids) - 1)
        predicted += len(ids) - 1
        # Counted on the byte alphabet, because the cut can fall inside a character.
        size += sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids[1:].tolist()))
    model.train()
    return {"perplexity": math.exp(nats / predicted), "bits_per_byte": nats / math.log(2) / size}


class Run:
    """What a checkpoint holds: weights, AdamW moments, and the facts of the run so far.

    Args:
        state: the file that a resumed run goes on from.
        folder: where the model lies for others, with the record of its training beside it.
        dtype: of the model in `folder`.
    """

    def __init__(
        self, state: Path, folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, dtype: torch.dtype
    ) -> None:
        self.state, self.folder, self.model, self.optimizer, self.dtype = state, folder, model, optimizer, dtype
        self.step, self.epoch, self.window, self.elapsed = 0, 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.named = dict(model.named_parameters())

    def save(self, tokenizer: PreTrainedTokenizerFast, facts: dict[str, object]) -> None:
        counters = {key: getattr(self, key) for key in ("step", "epoch", "window", "elapsed", "curve")}
        tensors = {f"w.{name}": p.detach() for name, p in self.named.items()}
        for name, p in self.named.items():
            for key, value in self.optimizer.state[p].items():
                tensors[f"{key}.{name}"] = value.detach().reshape(p.shape if value.numel() > 1 else (1,))
        temporary = self.state.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"run": json.dumps(counters)})
        temporary.replace(self.state)
        self.export(tokenizer)
        record = {**facts, **{k: v for k, v in counters.items() if k != "curve"}, "curve": self.curve}
        (self.folder / "loss_curve.json").write_text(json.dumps(record, indent=1) + "\n")

    def load(self) -> None:
        with safe_open(self.state, framework="pt") as stored, torch.no_grad():
            for key, value in json.loads(stored.metadata()["run"]).items():
                setattr(self, key, value)
            for name, p in self.named.items():
                p.copy_(stored.get_tensor(f"w.{name}"))
                moments = {k: stored.get_tensor(f"{k}.{name}").to(p.device) for k in ("exp_avg", "exp_avg_sq")}
                step = stored.get_tensor(f"step.{name}").reshape(()).to(p.device)  # fused AdamW wants it there
                self.optimizer.state[p] = {"step": step, **moments}

    def export(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Safetensors, config, generation config and tokenizer: what `from_pretrained` reads."""
        copy = LlamaForCausalLM(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.to(self.dtype).save_pretrained(self.folder)
        tokenizer.save_pretrained(self.folder)


def accumulate(model: LlamaForCausalLM, batch: torch.Tensor, parts: int, pool: ThreadPoolExecutor) -> float:
    """Leaves the gradient of the mean loss in `.grad`, one part of the batch per task; returns the loss."""
    parameters = list(model.parameters())
    rows = batch.split(len(batch) // parts)

    def gradient(row: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss = model(input_ids=row, labels=row, use_cache=False).loss / len(rows)
        return loss.item(), torch.autograd.grad(loss, parameters)  # not backward(): .grad is shared

    losses, gradients = zip(*pool.map(gradient, rows), strict=True)
    for parameter, *addends in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(addends).sum(0)
    return sum(losses)


def loop(
    run: Run,
    corpus: list[torch.Tensor],
    hyper: Hyper,
    budget: Budget,
    seed: int,
    workers: int,
    save_every: float,
    save: Callable[[], None],
    measure: Callable[[], dict[str, float]],
) -> bool:
    """Steps until the budget is spent; a line every 100 steps, a checkpoint every `save_every` minutes.

    Returns: whether the run is over. False: this process has to end, and the state is saved.
    """
    windows = epoch_windows(corpus, hyper.context, seed, run.epoch)
    clock = saved = time.monotonic()
    pool = ThreadPoolExecutor(workers)
    losses: list[float] = []
    while True:
        progress = run.step / budget.steps if budget.steps else run.elapsed / (budget.minutes * 60)
        over, out_of_time = progress >= 1, bool(losses) and time.monotonic() > budget.ends  # a step at least
        if losses and (len(losses) == LINE or over or out_of_time):
            row = {"step": run.step, "minutes": run.elapsed / 60, "loss": sum(losses) / len(losses)}
            losses = []
            due = time.monotonic() - saved > save_every * 60 or over or out_of_time
            row |= measure() if due else {}
            run.curve.append({key: round(value, 4) for key, value in row.items()})
            print(json.dumps(run.curve[-1]), flush=True)
            if due:
                save()
                saved = time.monotonic()
        if over or out_of_time:
            return over
        if run.window + hyper.batch > len(windows):
            run.epoch, run.window = run.epoch + 1, 0
            windows = epoch_windows(corpus, hyper.context, seed, run.epoch)
        batch = windows[run.window : run.window + hyper.batch].to(run.model.device, torch.long)
        batch = batch.view(-1, sequence_length(progress, hyper))
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(progress, hyper)
        losses.append(accumulate(run.model, batch, hyper.parts, pool))
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), hyper.clip)
        run.optimizer.step()
        run.step, run.window = run.step + 1, run.window + hyper.batch
        run.elapsed, clock = run.elapsed + time.monotonic() - clock, time.monotonic()

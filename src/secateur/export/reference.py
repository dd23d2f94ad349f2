"""What transformers does with the model that is exported: the tokens, greedily, and how texts are tokenised."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.errors import InputError
from secateur.evaluation.loading import load
from secateur.model.checkpoint import Checkpoint
from secateur.report.schema.export import ClientProof
from secateur.report.terminal.listening import telling
from secateur.system.memory import fits_in_memory

NEW_TOKENS = 20
TEXTS = 100
# Two tokens whose logits differ by less of the largest one are a tie: another order of summation may choose either.
TIE = 1e-3
# fmt: off
_SENTENCES = (
    "Once upon a time, there was a little girl named Lily.", "The quick brown fox jumps over the lazy dog",
    "def add(a, b):\n    return a + b\n", "It's 3:45 p.m.; they'll pay $1,234.56 (or €99) - don't worry!",
    "", " ", "  two  spaces  ", "\n", "\n\n\n", "\ttabs\tand\r\nlines", "trailing space ", " leading space",
    "CamelCase snake_case kebab-case", "HELLO'S WE'RE I'LL You'D", "x" * 40, "1234567890 12 345 6789",
    "ünïcödé façade naïve", "Привет, мир! Как дела?", "你好,世界。这是一个测试。", "日本語のテキスト",
    "한국어 문장입니다.", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "😀 emoji 👩‍👩‍👧‍👦 and 🇫🇷 flags",
    "e\u0301 and \u00e9", "a\u00a0b\u2003c", "<s> </s> <unk>", "https://example.org/path?q=1&r=2#part",
    "{'key': [1, 2.5, None]}",
    "x = y ** 2 != z <= 3 && !w || ~v", "...---...===>>>", "\"quoted\" 'single' `back`", "C:\\path\\to\\file.txt",
    "MiXeD cAsE WoRdS", "numbers: 0x1F 1e-9 -3 +4 ½ ² ③", "ﬁ ﬂ ligatures", "tab\tin the middle", "a,b;c:d.e!f?g",
    "newline at the end\n",
)
# fmt: on


# (token ids, the past or None) -> (logits of the last token, the longer past)
CachedRun = Callable[[Sequence[int], Any], tuple[Any, Any]]


class Reference(NamedTuple):
    """Prompts as token ids, what transformers continues them with, and the logits of each step (steps, words)."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[Tensor]


def probe_texts(count: int = TEXTS) -> list[str]:
    """Texts of many kinds: sentences, scripts, white space, and pieces of the standard library."""
    found = list(_SENTENCES)
    sources = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (json, textwrap, statistics)]
    pieces = [source[at : at + 300] for source in sources for at in range(0, len(source) - 300, 900)]
    return [*found, *pieces][:count]


def prompts_of(checkpoint: Checkpoint, tokenizer: Any | None) -> list[list[int]]:
    """Four prompts as token ids; without a tokenizer, ids from all over the vocabulary."""
    size = int(checkpoint.config.vocab_size)
    if tokenizer is None:
        return [[(7 * place + 13 * number * place + 1) % size for place in range(8)] for number in range(4)]
    encoded = [tokenizer(text)["input_ids"][:24] for text in _SENTENCES[:4]]
    return [ids for ids in encoded if ids and max(ids) < size]


def reference(checkpoint: Checkpoint, tokenizer: Any | None, context: int | None = None) -> Reference | None:
    """Greedy tokens in fp32 on a CPU; None where the model doesn't fit in memory.

    Args:
        context: tokens that a client can be given, prompt and answer together; the model's own if None.
    """
    if not fits_in_memory(checkpoint.parameters, torch.float32):
        return None
    model = load(checkpoint.path, "cpu", "float32").model
    most = context or getattr(checkpoint.config, "max_position_embeddings", None) or 2**20
    prompts = [ids[: max(1, most // 2)] for ids in prompts_of(checkpoint, tokenizer)]
    made = [greedy(model, ids, min(NEW_TOKENS, most - len(ids))) for ids in prompts]
    return Reference(prompts, [tokens for tokens, _ in made], [logits for _, logits in made])


@torch.no_grad()
def greedy(model: Any, ids: Sequence[int], new: int) -> tuple[list[int], Tensor]:
    """The likeliest tokens, step by step with the cache, and the logits that they were chosen by."""
    out = model(input_ids=torch.tensor([list(ids)]), use_cache=True)
    tokens: list[int] = []
    logits: list[Tensor] = []
    for _ in telling("tokens of transformers", range(new), new):
        last = out.logits[0, -1].float()
        tokens.append(int(last.argmax()))
        logits.append(last)
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens, torch.stack(logits)


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """The first place at which a client's tokens aren't those of transformers."""
    for place, token in enumerate(expected):
        if place >= len(found) or found[place] != token:
            return place
    return None


def is_tie(logits: Tensor, expected: int, found: int | None) -> bool:
    """Whether two tokens are as likely, by the logits (vocabulary) of transformers."""
    if found is None or not 0 <= found < logits.shape[0]:
        return False
    return float(logits[expected] - logits[found]) <= TIE * float(logits.abs().max())


def judged(
    client: str, version: str | None, wanted: Reference, found: Sequence[Sequence[int]], texts: int, alike: int
) -> ClientProof:
    """The proof of a client that ran.

    Args:
        found: its tokens for each prompt.
        texts: how many it tokenised, of which `alike` as transformers does.
    """
    same = ties = tokens = 0
    for expected, own, logits in zip(wanted.tokens, found, wanted.logits, strict=True):
        place = first_difference(expected, own)
        same += place is None
        tokens += len(expected) if place is None else place
        if place is not None:
            ties += is_tie(logits[place], expected[place], own[place] if place < len(own) else None)
    return {
        "client": client,
        "version": version,
        "ran": True,
        "why_not": None,
        "prompts": len(wanted.prompts),
        "new_tokens": sum(map(len, wanted.tokens)),
        "prompts_alike": same,
        "ties": ties,
        "tokens_alike": tokens,
        "texts": texts,
        "texts_alike": alike,
        "max_logit_difference": None,
    }


def proved_by_runs(checkpoint: Checkpoint, client: str, version: str, run: CachedRun) -> ClientProof:
    """The proof of a client that gives logits: greedy tokens with its cache, and the largest difference of a logit,
    relative to the largest one, as long as the tokens are the same."""
    try:
        tokenizer = checkpoint.tokenizer()
    except InputError:
        tokenizer = None
    wanted = reference(checkpoint, tokenizer)
    if wanted is None:
        return not_run(client, "the model doesn't fit in this machine's memory in fp32, to be compared with")
    found: list[list[int]] = []
    worst = 0.0
    for prompt, expected in zip(wanted.prompts, wanted.logits, strict=True):
        own: list[int] = []
        given, past = list(prompt), None
        for place, logits in enumerate(telling(f"tokens of {client}", expected, len(expected))):
            last, past = run(given, past)
            gap = float((torch.from_numpy(last).float() - logits).abs().max() / logits.abs().max())
            worst = max(worst, gap if own == wanted.tokens[len(found)][:place] else 0.0)
            own.append(int(last.argmax()))
            given = own[-1:]
        found.append(own)
    return {**judged(client, version, wanted, found, 0, 0), "max_logit_difference": worst}


def not_run(client: str, why: str) -> ClientProof:
    """The proof of a client that didn't run."""
    return {
        "client": client,
        "version": None,
        "ran": False,
        "why_not": why,
        "prompts": 0,
        "new_tokens": 0,
        "prompts_alike": 0,
        "ties": 0,
        "tokens_alike": 0,
        "texts": 0,
        "texts_alike": 0,
        "max_logit_difference": None,
    }

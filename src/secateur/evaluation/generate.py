"""Text from a model, or from two side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList

from secateur.data.corpus import Corpus
from secateur.data.tokens import check_ids, tokenize
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded, load
from secateur.evaluation.windows import context_length
from secateur.model.json_files import short
from secateur.report.passages import opening
from secateur.report.schema.figures import Continuation, Generated
from secateur.report.terminal.listening import tell
from secateur.system.device import dtype_name
from secateur.system.display import display

HOTTEST = 1e4
PASSAGE, WORDS, TOKENS = 96, 16, 24  # tokens in which an opening is looked for; what it has at most


def opening_of(tokenizer: Any, ids: torch.Tensor) -> str:
    """A prompt from tokens of a text: it begins where a sentence does, and is short enough for any context."""
    text = opening(tokenizer.decode(ids[:PASSAGE], skip_special_tokens=True), WORDS)
    while len(found := tokenizer(text, add_special_tokens=False)["input_ids"]) > TOKENS:
        shorter = text.rpartition(" ")[0].rstrip()
        text = shorter or _text(tokenizer, found[:TOKENS])
        if not shorter:
            break
    return text


def generate(
    model_dir: str | Path,
    prompt: str,
    max_new_tokens: int = 100,
    against: str | Path | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    quiet: bool = True,
) -> Generated:
    """Continues a prompt with `transformers`' own generation: plain text, no chat template.

    Args:
        model_dir: a folder, also a compressed one, `embedded`, or a hub id.
        prompt: the text to continue; it must leave room in the model's context.
        max_new_tokens: fewer are made where the context ends first, or the model ends its text.
        against: a second model, which gets the same prompt and seed.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from the whole distribution with `seed`.
        seed: of the draw.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else what the checkpoint holds.
        runtime: how compressed weights of `model_dir` are multiplied, see `secateur.load`.
        quiet: no progress display.

    Returns:
        model, prompt, text (the continuation without the prompt), tokens (made), seconds, device, dtype,
        temperature, seed; with `against`, the same for the other model under `reference`.

    Raises:
        InputError: an empty or too long prompt, a number out of range, or a model that can't be loaded.
        UnsupportedModelError: `transformers` doesn't know the architecture.
    """
    if max_new_tokens < 1:
        raise InputError(f"--tokens {max_new_tokens} is too small; give 1 or more")
    if not temperature >= 0:
        raise InputError(f"--temperature {temperature} is negative; give 0 (greedy) or more")
    if temperature > HOTTEST or not 0 <= seed < 2**63:
        raise InputError(f"--temperature {temperature:g}, --seed {seed}: at most {HOTTEST:g}, and 0 to 2^63 - 1")
    how = (prompt, max_new_tokens, temperature, seed)
    with display("generate", quiet):
        found: Generated = {**_continue(load(model_dir, device, dtype, runtime=runtime), *how)}
        if against is not None:
            found["reference"] = _continue(load(against, device, dtype), *how)
    return found


@torch.no_grad()
def _continue(loaded: Loaded, prompt: str, wanted: int, temperature: float, seed: int) -> Continuation:
    ids = _prompt_ids(loaded, prompt)
    room = (context_length(loaded.model.config) or ids.shape[1] + wanted) - ids.shape[1]
    if room < 1:
        raise InputError(f"the prompt has {ids.shape[1]} tokens and fills the context of {loaded.path}; shorten it")
    tokenizer = loaded.tokenizer
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
    torch.manual_seed(seed)
    begin = time.perf_counter()
    try:
        out = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(wanted, room),
            stopping_criteria=StoppingCriteriaList([_told(ids.shape[1], min(wanted, room))]),
            pad_token_id=_pad(loaded),
            tokenizer=tokenizer,  # for stop strings, which a model may have
            do_sample=temperature > 0,
            **drawn,
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{loaded.path}/generation_config.json: can't be followed ({short(error)})") from None
    seconds = time.perf_counter() - begin
    made = out[0, ids.shape[1] :].tolist()
    # Decoded with the prompt and then cut: on its own, a decoder would drop the continuation's first space.
    before, whole = (_text(tokenizer, part) for part in (ids[0].tolist(), out[0].tolist()))
    text = whole[len(before) :] if whole.startswith(before) else _text(tokenizer, made)
    return {
        "model": loaded.path,
        "prompt": prompt,
        "text": text,
        "tokens": len(made),
        "seconds": seconds,
        "device": str(loaded.device),
        "dtype": dtype_name(loaded.dtype),
        "temperature": temperature,
        "seed": seed,
    }


def _told(prompt: int, wanted: int) -> Callable[..., torch.Tensor]:
    """A condition that never stops, and tells how many tokens there are."""

    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        tell("writing", ids.shape[1] - prompt, wanted)
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    return stop


def _prompt_ids(loaded: Loaded, prompt: str) -> torch.Tensor:
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.path} has no tokenizer; text can't be generated without one")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is not valid Unicode; check the terminal's encoding") from None
    rows = tokenize(Corpus("the prompt", sha256="", documents=(prompt,)), loaded.tokenizer)
    if not rows[0]:
        raise InputError(f"the prompt is empty and the tokenizer of {loaded.path} has no BOS; give some text")
    check_ids(rows, int(loaded.model.config.get_text_config().vocab_size), "the prompt")
    return torch.tensor(rows, device=loaded.device)


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _pad(loaded: Loaded) -> int | None:
    """Any id will do, as nothing is padded; without one, `generate` complains."""
    config = loaded.model.generation_config
    stop = config.eos_token_id
    return config.pad_token_id if config.pad_token_id is not None else stop[0] if isinstance(stop, list) else stop

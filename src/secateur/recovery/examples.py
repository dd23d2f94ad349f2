"""Task data: conversations, or prompts with their completions, as token ids of which only the answers are learned.

FILE.jsonl with, on each line, either of

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
    {"prompt": "...", "completion": "..."}

A tokenizer's chat template is applied where it has one: prompt and completion are then a user's and an assistant's
message. Without one, prompt and completion follow each other behind BOS, and EOS ends them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import InputError
from secateur.recovery.losses import IGNORED


@dataclass(frozen=True)
class Example:
    """Token ids, and for each the id itself where it is learned, else `IGNORED`."""

    ids: list[int]
    labels: list[int]


def is_task_data(spec: str) -> bool:
    """Whether `spec` is a .jsonl file whose first row holds `messages` or a `prompt`."""
    path = Path(spec)
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and ("messages" in row or {"prompt", "completion"} <= set(row))


def read_examples(spec: str, tokenizer: Any | None) -> tuple[list[Example], str]:
    """The examples of a file, in order, and its SHA-256.

    Raises:
        InputError: a row that is neither form, no tokenizer, conversations without a chat template.
    """
    if tokenizer is None:
        raise InputError(f"{spec} holds text and the model has no tokenizer; give data with 'input_ids'")
    raw = Path(spec).read_bytes()
    found = []
    try:
        text = raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise InputError(f"{spec} is not UTF-8 (byte {error.start}); convert the file to UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found.append(_example(f"{spec}: line {number}", line, tokenizer))
    learned = [example for example in found if any(label != IGNORED for label in example.labels)]
    if not learned:
        raise InputError(f"{spec}: no answer in it that could be learned; assistant messages or completions are")
    return learned, hashlib.sha256(raw).hexdigest()


def _example(where: str, line: str, tokenizer: Any) -> Example:
    try:
        row = json.loads(line)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}); write one object a line") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if messages is None:
        prompt, completion = (row.get(key) if isinstance(row, dict) else None for key in ("prompt", "completion"))
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise InputError(f"{where} needs 'messages', or 'prompt' and 'completion' as strings")
        if not tokenizer.chat_template:
            return _plain(prompt, completion, tokenizer)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    if not tokenizer.chat_template:
        raise InputError(f"{where} is a conversation and the tokenizer has no chat template; give prompt, completion")
    return _conversation(where, messages, tokenizer)


def _plain(prompt: str, completion: str, tokenizer: Any) -> Example:
    """Prompt and completion are tokenised apart, so that no token straddles their border."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    before = [*([bos] if bos is not None else []), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    answer = [*tokenizer(completion, add_special_tokens=False)["input_ids"], *([eos] if eos is not None else [])]
    return Example(before + answer, [IGNORED] * len(before) + answer)


def _conversation(where: str, messages: list[Mapping[str, Any]], tokenizer: Any) -> Example:
    """What the template writes; learned is what it adds for each of the assistant's turns, their end included."""

    def ids(count: int, ask: bool = False) -> list[int]:
        try:
            made = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template raises whatever it likes
            raise InputError(f"{where}: the chat template refuses it ({str(error).splitlines()[0]})") from None
        return tokenizer(made, add_special_tokens=False)["input_ids"]

    whole = ids(len(messages))
    labels = [IGNORED] * len(whole)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = ids(index, ask=True), ids(index + 1)
        if whole[: len(after)] != after or after[: len(before)] != before:
            raise InputError(
                f"{where}: the chat template writes earlier turns anew when later ones follow; give one answer a row"
            )
        labels[len(before) : len(after)] = after[len(before) :]
    return Example(whole, labels)

"""Conversations and questions with answers, as token ids of which only some count where a loss is taken.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}         ShareGPT
    {"instruction": "...", "input": "...", "output": "..."}                                         Alpaca
    {"prompt": "...", "completion": "..."}

They go through the model's chat template. What counts is what the template adds for each of the assistant's turns,
their end included. Without a template a prompt and its answer follow each other behind BOS, and EOS ends them; whole
conversations are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.errors import InputError

ROLES = {  # ShareGPT's words for who speaks
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
FIELDS = ("messages", "conversations", "instruction", "prompt")  # one of these says that a row is an example
NO_TEMPLATE = "is a conversation and the tokenizer has no chat template; give prompt, completion"


@dataclass(frozen=True)
class Talk:
    """A conversation; `where` it stands, for errors. `simple`: a prompt and its answer, which need no template."""

    where: str
    messages: tuple[Mapping[str, Any], ...]
    simple: bool = False


@dataclass(frozen=True)
class Answered:
    """A question and its answer as plain text, which follow each other without anything in between."""

    where: str
    question: str
    answer: str


Example = Talk | Answered


def is_example(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of the forms at the head of this file."""
    return (
        "messages" in row
        or "conversations" in row
        or {"instruction", "output"} <= set(row)
        or {"prompt", "completion"} <= set(row)
    )


def talk_of(where: str, row: Mapping[str, Any]) -> Talk:
    """The conversation of a row.

    Raises:
        InputError: in one line.
    """
    if row.get("messages") is not None:
        return Talk(where, _messages(where, row["messages"]))
    if row.get("conversations") is not None:
        return Talk(where, _sharegpt(where, row["conversations"]))
    if "instruction" in row:
        asked, more = _string(where, row, "instruction"), row.get("input") or ""
        if not isinstance(more, str):
            raise InputError(f"{where}: 'input' must be a string")
        return _simple(where, f"{asked}\n\n{more}" if more else asked, _string(where, row, "output"))
    prompt, completion = (row.get(key) for key in ("prompt", "completion"))
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise InputError(f"{where} needs 'messages', or 'prompt' and 'completion' as strings")
    return _simple(where, _valid(where, prompt), _valid(where, completion))


def _simple(where: str, prompt: str, answer: str) -> Talk:
    return Talk(where, ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}), True)


def _messages(where: str, messages: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    for message in messages:
        if isinstance(message.get("content"), str):
            _valid(where, message["content"])
    return tuple(messages)


def _sharegpt(where: str, turns: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{where}: 'conversations' must be a list of objects with 'from' and 'value'")
    if turns and all("role" in turn for turn in turns):
        return _messages(where, turns)
    found = []
    for turn in turns:
        role = ROLES.get(str(turn.get("from")))
        if role is None:
            raise InputError(f"{where}: 'from' is {turn.get('from')!r}; known are {', '.join(ROLES)}")
        found.append({"role": role, "content": _string(where, turn, "value")})
    return tuple(found)


def _string(where: str, row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f"{where}: '{key}' must be a string")
    return _valid(where, value)


def _valid(where: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a surrogate pair; it is not valid Unicode") from None
    return text


def encode_example(example: Example, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it counts where a loss is taken.

    Raises:
        InputError: a conversation without a chat template, or one that the template refuses or writes anew later.
    """
    if isinstance(example, Answered):
        return _answered(example, tokenizer)
    if tokenizer.chat_template:
        return _templated(example, tokenizer)
    if not example.simple:
        raise InputError(f"{example.where} {NO_TEMPLATE}")
    return _plain(example, tokenizer)


def _plain(talk: Talk, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Prompt and answer are tokenised apart, so that no token straddles their border."""
    prompt, completion = (str(message["content"]) for message in talk.messages)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    before = [*([bos] if bos is not None else []), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    answer = [*tokenizer(completion, add_special_tokens=False)["input_ids"], *([eos] if eos is not None else [])]
    return before + answer, [False] * len(before) + [True] * len(answer)


def _answered(example: Answered, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Both are tokenised together, as they are when a task is judged; the answer is what the question alone isn't."""
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    kept = example.question.rstrip()
    texts = (kept, example.question + example.answer)
    alone, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    before = len(bos) + min(len(alone), len(whole))
    ids = [*(bos if whole[:1] != bos else []), *whole]
    return ids, [index >= before for index in range(len(ids))]


def _templated(talk: Talk, tokenizer: Any) -> tuple[list[int], list[bool]]:
    messages: Sequence[Mapping[str, Any]] = talk.messages

    def ids(count: int, ask: bool = False) -> list[int]:
        try:
            made = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # a template raises whatever it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{talk.where}: the chat template refuses it ({reason})") from None
        found: list[int] = tokenizer(made, add_special_tokens=False)["input_ids"]
        return found

    whole = ids(len(messages))
    counts = [False] * len(whole)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = ids(index, ask=True), ids(index + 1)
        if whole[: len(after)] != after or after[: len(before)] != before:
            raise InputError(
                f"{talk.where}: the chat template writes earlier turns anew when later ones follow; "
                "give one answer a row"
            )
        counts[len(before) : len(after)] = [True] * (len(after) - len(before))
    return whole, counts

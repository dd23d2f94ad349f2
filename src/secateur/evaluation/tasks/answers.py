"""Generated answers: greedy, cut at a stop, and compared after a stated normalisation.

normalised  Unicode NFKC, case folded, every run of white space one space, none at the ends; then white space and the
            marks . , ; : ! ? " ' taken off both ends
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from secateur.data.items import Question
from secateur.data.tokens import check_ids
from secateur.errors import InputError
from secateur.evaluation.loading import Loaded
from secateur.evaluation.progress import progress
from secateur.evaluation.tasks.encode import encode
from secateur.evaluation.windows import context_length
from secateur.model.json_files import short

TOKENS = {"cpu": 1024}  # of the prompts that are answered together
TOKENS_ELSE = 16384
MARKS = " .,;:!?\"'"


def normalised(text: str) -> str:
    """
    >>> normalised(" The  Moon. ")
    'the moon'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(MARKS)


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer is one of those asked for; see `Question.pattern`."""
    said = answer
    if question.pattern is not None:
        matches = list(re.finditer(question.pattern, answer))
        if not matches:
            return False
        said = next((group for group in matches[-1].groups() if group is not None), matches[-1].group())
    return not question.answers or normalised(said) in map(normalised, question.answers)


def cut(answer: str, stop: Sequence[str]) -> str:
    """What comes before the first stop."""
    ends = [at for at in (answer.find(word) for word in stop) if at >= 0]
    return answer[: min(ends)] if ends else answer


def answers(loaded: Loaded, questions: Sequence[Question], name: str, quiet: bool = True) -> tuple[list[str], int]:
    """The answers in order, and the tokens of prompts and answers together.

    Raises:
        InputError: chats without a chat template, a prompt that fills the context.
    """
    ids = prompts(loaded, questions, name)
    asked = [Asked(own, q.stop, q.max_tokens) for q, own in zip(questions, ids, strict=True)]
    return write(loaded, asked, name, quiet)


class Asked(NamedTuple):
    """A prompt, what ends its answer, and the most tokens of that."""

    ids: list[int]
    stop: tuple[str, ...]
    max_tokens: int


def write(loaded: Loaded, asked: Sequence[Asked], name: str, quiet: bool = True) -> tuple[list[str], int]:
    """Greedy answers in order, cut at their stops, and the tokens of prompts and answers together.

    Prompts of the same length go through the model together, so that nothing is padded and each is answered as if it
    were alone.
    """
    found = [""] * len(asked)
    tokens = sum(len(one.ids) for one in asked)
    with progress(name, len(asked), quiet) as advance:
        for batch in _alike(asked, TOKENS.get(loaded.device.type, TOKENS_ELSE)):
            texts, made = _generate(loaded, [asked[index] for index in batch])
            tokens += made
            for index, text in zip(batch, texts, strict=True):
                found[index] = cut(text, asked[index].stop)
            advance(len(batch))
    return found, tokens


def prompts(loaded: Loaded, questions: Sequence[Question], name: str) -> list[list[int]]:
    """Token ids of the prompts, chats through the model's template with the opening of an answer."""
    tokenizer: Any = loaded.tokenizer
    config = loaded.model.config
    plain = [q.prompt for q in questions if isinstance(q.prompt, str)]
    chats = [chat_text(tokenizer, q.prompt, name) for q in questions if not isinstance(q.prompt, str)]
    texts = iter(encode(plain, tokenizer, name))
    talks = iter(tokenizer(chats, add_special_tokens=False)["input_ids"] if chats else ())
    ids = [next(texts) if isinstance(q.prompt, str) else next(talks) for q in questions]
    longest = context_length(config)
    for number, row in enumerate(ids, 1):
        if not row or (longest is not None and len(row) >= longest):
            raise InputError(f"{name}: prompt {number} has {len(row)} tokens; this model takes 1 to {longest}")
    check_ids(ids, int(config.get_text_config().vocab_size), name)
    return ids


def chat_text(tokenizer: Any, messages: Any, name: str) -> str:
    """A chat as the model's template writes it, with the opening of the next answer."""
    if not tokenizer.chat_template:
        raise InputError(f"{name} holds chats and the model's tokenizer has no chat template; give 'prompt' instead")
    try:
        made: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises whatever it likes
        raise InputError(f"{name}: the chat template refuses it ({short(error)})") from None
    return made


def _alike(asked: Sequence[Asked], most: int) -> list[list[int]]:
    """Indices of what is answered together: of one length, told the same, longest first."""
    groups: dict[Any, list[int]] = {}
    for index, one in enumerate(asked):
        groups.setdefault((len(one.ids), one.stop, one.max_tokens), []).append(index)
    found = []
    for (length, _, _), members in sorted(groups.items(), key=lambda group: -group[0][0]):
        step = max(1, most // length)
        found += [members[first : first + step] for first in range(0, len(members), step)]
    return found


@torch.no_grad()
def _generate(loaded: Loaded, asked: Sequence[Asked]) -> tuple[list[str], int]:
    rows, (_, stop, most) = [one.ids for one in asked], asked[0]
    ids = torch.tensor(rows, device=loaded.device)
    longest = context_length(loaded.model.config)
    room = most if longest is None else min(most, longest - ids.shape[1])
    stops = {"stop_strings": list(stop), "tokenizer": loaded.tokenizer} if stop else {}
    stop_ids = loaded.model.generation_config.eos_token_id
    ends = set(stop_ids if isinstance(stop_ids, list) else [stop_ids]) - {None}
    pad = next(iter(ends), 0)
    try:
        out = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=pad,
            **stops,
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{loaded.path}/generation_config.json: can't be followed ({short(error)})") from None
    made = out[:, ids.shape[1] :].tolist()
    return [continuation(loaded.tokenizer, row, own) for row, own in zip(rows, made, strict=True)], sum(
        map(len, made)
    )


def continuation(tokenizer: Any, prompt: list[int], made: list[int]) -> str:
    """The text of what was made after a prompt. Both are decoded together and the prompt is cut off: on its own, a
    decoder would drop the answer's first space."""
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + made))
    alone: str = tokenizer.decode(made, skip_special_tokens=True)
    return whole[len(before) :] if whole.startswith(before) else alone

"""Items of tasks: what is asked, and what is right. They come from files by `tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from secateur.data.conversations import Answered, Example, Talk
from secateur.errors import InputError


@dataclass(frozen=True)
class Choice:
    """Options, of which one is right: a context and a continuation each.

    lengths  characters of each option, which a normalised likelihood is divided by; None where the options are the
             contexts: the continuation is the same for all.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[int, ...] | None


@dataclass(frozen=True)
class Continuation:
    """A text and how it goes on."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Question:
    """A prompt, or the messages of a chat, and what makes a generated answer right.

    answers  any of these, after normalisation; may be empty where there is a pattern.
    pattern  what is compared is its last match in the answer (its first group, where it has one); without answers, a
             match is enough.
    stop     texts that end an answer.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    answers: tuple[str, ...]
    pattern: str | None
    stop: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True)
class Labelled:
    """A text and its class: a number, or a name that the model's configuration knows."""

    text: str
    label: int | str


@dataclass(frozen=True)
class Tagged:
    """Words and the class of each; None where none is asked for."""

    words: tuple[str, ...]
    labels: tuple[int | str | None, ...]


Item = Choice | Continuation | Question | Labelled | Tagged


def example_of(where: str, item: Item) -> Example:
    """A question with its right answer, as text.

    Raises:
        InputError: an item that has only a pattern.
    """
    if isinstance(item, Choice):
        return Answered(where, *item.pairs[item.gold])
    if isinstance(item, Continuation):
        return Answered(where, item.context, item.continuation)
    if isinstance(item, Labelled):
        return Answered(where, "", item.text)
    if isinstance(item, Tagged):
        return Answered(where, "", " ".join(item.words))
    if not item.answers:
        raise InputError(f"{where} has a pattern and no answer; calibrating takes rows with an answer")
    if isinstance(item.prompt, str):
        return Answered(where, item.prompt, f" {item.answers[0]}")
    return Talk(where, (*item.prompt, {"role": "assistant", "content": item.answers[0]}))


def pairs_of(item: Item) -> Iterator[tuple[str, str]]:
    """The (context, continuation) pairs whose likelihood an item asks for."""
    if isinstance(item, Choice):
        yield from item.pairs
    elif isinstance(item, Continuation):
        yield item.context, item.continuation

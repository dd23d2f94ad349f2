"""How likely a model finds continuations: an item's options in one row, logits only where a token is predicted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.evaluation.perplexity import check_finite
from secateur.evaluation.progress import progress
from secateur.evaluation.tasks.encode import Pair
from secateur.evaluation.tasks.rows import Row, mask_of, padded, shared_row, together
from secateur.numerics.divergence import nll_of_each
from secateur.system.halving import in_parts

TOKENS = {"cpu": 2048}  # that go through a model together
TOKENS_ELSE = 16384
LOGITS_BYTES = 2**27  # fp32, of one batch's predicted tokens
TRIED = 64  # rows, of which the one with the most to share is tried out
LONGER = "some items are longer than the window that the model sees: their options went through one by one"
NOT_SHARED = "options were computed one by one: this model doesn't keep apart what shares a beginning"


class Likelihood(NamedTuple):
    """Log-likelihood of a continuation in nats, and whether each of its tokens is the model's likeliest."""

    nats: float
    greedy: bool


class Likelihoods(NamedTuple):
    """Of groups of continuations, and what a report should say about how they came about."""

    groups: list[list[Likelihood]]
    tokens: int
    notes: tuple[str, ...] = ()


@torch.no_grad()
def log_likelihoods(model: Any, groups: Sequence[Sequence[Pair]], label: str, quiet: bool = True) -> Likelihoods:
    """Sums of the log-probabilities of each continuation's tokens after its context; logits in fp32, sums in fp64.

    Args:
        model: a `transformers` causal LM in eval mode.
        groups: pairs that may have a common beginning: the options of an item.
        label: of the progress display.

    Returns:
        For each group its likelihoods in order; `tokens` that went through the model.

    Raises:
        SecateurError: a logit that isn't finite.
    """
    rows, owners, notes = _rows(model, groups)
    found: list[list[Likelihood | None]] = [[None] * len(group) for group in groups]
    vocabulary = int(model.config.get_text_config().vocab_size)
    most = TOKENS.get(model.device.type, TOKENS_ELSE), max(1, LOGITS_BYTES // (4 * vocabulary))
    tokens = sum(len(row.ids) for row in rows)
    with progress(label, tokens, quiet) as advance:
        for batch in together(rows, *most):
            chosen = [rows[index] for index in batch]
            parts = in_parts(lambda some: score(model, some), chosen, model.device)
            for index, likelihoods in zip(batch, itertools.chain.from_iterable(parts), strict=True):
                for (group, member), likelihood in zip(owners[index], likelihoods, strict=True):
                    found[group][member] = likelihood
            advance(sum(len(row.ids) for row in chosen))
    return Likelihoods([[one for one in group if one is not None] for group in found], tokens, notes)


Owners = list[list[tuple[int, int]]]  # for each row, for each of its pairs: which group, which of it


def _rows(model: Any, groups: Sequence[Sequence[Pair]]) -> tuple[list[Row], Owners, tuple[str, ...]]:
    """One row a group where the model can share, else one a pair."""
    window = _window(model)
    shared = [shared_row(group) for group in groups]
    able = [row for row in shared if row.branches and max(row.positions) < window]
    keeps = not able or keeps_apart(model, max(able[:TRIED], key=lambda row: sum(map(bool, row.branch))))
    rows: list[Row] = []
    owners: Owners = []
    for number, (group, row) in enumerate(zip(groups, shared, strict=True)):
        if not row.branches or (keeps and max(row.positions) < window):
            rows.append(row)
            owners.append([(number, member) for member in range(len(group))])
        else:
            rows += [shared_row([pair]) for pair in group]
            owners += [[(number, member)] for member in range(len(group))]
    longer = any(row.branches and max(row.positions) >= window for row in shared)
    return rows, owners, (NOT_SHARED,) if not keeps else (LONGER,) if longer else ()


def _window(model: Any) -> float:
    """Tokens that a place sees at most: a mask of ours would show it more."""
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=float("inf"))


def keeps_apart(model: Any, row: Row) -> bool:
    """Whether a model computes the branches of a row as if each were alone, tried out on this one."""
    try:
        (together_,) = score(model, [row])
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, SecateurError):
        return False
    exact = next(model.parameters()).dtype == torch.float32
    tolerance = 1e-3 if exact else 2e-2
    alone = [score(model, [part])[0][0] for part in _apart(row)]
    return all(
        abs(a.nats - b.nats) <= tolerance * max(1.0, abs(b.nats)) for a, b in zip(together_, alone, strict=True)
    )


def _apart(row: Row) -> list[Row]:
    """The pairs of a row, each as a row of its own."""
    found = []
    for number, (places, targets) in enumerate(zip(row.places, row.targets, strict=True), 1):
        ids = [token for token, branch in zip(row.ids, row.branch, strict=True) if branch in (0, number)]
        first = len(ids) - len(places)
        found.append(shared_row([Pair(tuple(ids[: first + 1]), (*ids[first + 1 :], targets[-1]))]))
    return found


def score(model: Any, rows: Sequence[Row]) -> list[list[Likelihood]]:
    """The likelihoods of some rows, in one forward pass."""
    device, ids = model.device, padded([row.ids for row in rows])
    where = [(index, place) for index, row in enumerate(rows) for places in row.places for place in places]
    targets = torch.tensor([token for row in rows for own in row.targets for token in own])
    inputs = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    if any(row.branches for row in rows):
        dtype = next(model.parameters()).dtype
        inputs["attention_mask"] = mask_of(rows, dtype).to(device)
        inputs["position_ids"] = padded([row.positions for row in rows]).to(device)
    with _only(model, torch.tensor(where, device=device)) as select:
        logits = select(model(**inputs, use_cache=False).logits)
    nats, greedy = _of_tokens(logits, targets.to(logits.device))
    check_finite(nats)
    sizes = [len(own) for row in rows for own in row.targets]
    each = iter(zip(nats.split(sizes), greedy.split(sizes), strict=True))
    return [[Likelihood(float(n.sum()), bool(g.all())) for n, g in (next(each) for _ in row.targets)] for row in rows]


@contextmanager
def _only(model: Any, where: Tensor) -> Iterator[Any]:
    """Lets the head compute the logits of some places (n, 2: row, place) only; gives a function that picks them from
    what the model returns, whether the head was reached or not."""
    reached: list[bool] = []

    def pick(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        reached.append(True)
        return (given[0][where[:, 0], where[:, 1]][None], *given[1:])

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if head is not None else None
    try:
        yield lambda logits: logits[0] if reached else logits[where[:, 0], where[:, 1]]
    finally:
        if handle is not None:
            handle.remove()


def _of_tokens(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target (n,), fp64 on the CPU, and whether no other token is likelier; logits (n, V)."""
    return -nll_of_each(logits, targets).cpu().double(), (logits.argmax(-1) == targets).cpu()

"""Shapes of zeros: which entries of a weight stay, given a score for each.

Counts are exact and ties never depend on the machine: of equal scores the lower index stays.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.errors import InputError

if TYPE_CHECKING:  # a recipe with a pattern is checked without waiting for torch
    from torch import Tensor


UNDEFINED = "scores hold NaN; check the weights and the calibration activations for overflow"


def removed_count(count: int, sparsity: float) -> int:
    """Gives how many of `count` entries go when the fraction `sparsity` does: the nearest whole number, halves up."""
    return min(count, math.floor(count * sparsity + 0.5))


def check_scores(scores: Tensor) -> None:
    """Refuses scores of any shape that hold NaN, which has no rank.

    Raises:
        InputError: one of them is NaN.
    """
    import torch

    if bool(torch.isnan(scores).any()):
        raise InputError(UNDEFINED)


def keep_best(scores: Tensor, removed: int, check: bool = True) -> Tensor:
    """Gives a mask, True = keep, without the `removed` lowest scores of the last axis; of equal ones the first stays.

    Args:
        scores: of any shape; higher = keep.
        removed: entries that go of each row of the last axis.
        check: look for NaN; without, an accelerator isn't waited for.

    Raises:
        InputError: a score is NaN.
    """
    import torch

    size = scores.shape[-1]
    if check and not 0 < removed < size:
        check_scores(scores)
    if removed <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if removed >= size:
        return torch.zeros_like(scores, dtype=torch.bool)
    # Selecting is linear in the size where a stable sort is not; only ties at the threshold need their order.
    threshold = scores.kthvalue(removed, dim=-1, keepdim=True).values
    mask = scores > threshold
    tied = scores == threshold
    missing = size - removed - mask.sum(-1, keepdim=True)
    ties = True
    if check:
        undefined, ties = torch.stack([torch.isnan(scores).any(), (missing > 0).any()]).tolist()  # one wait for both
        if undefined:
            raise InputError(UNDEFINED)
    elif scores.device.type == "cpu":
        ties = bool((missing > 0).any())
    if ties:
        mask |= tied & (tied.cumsum(-1) <= missing)
    return mask


@dataclass(frozen=True)
class Pattern:
    """Which zeros a pruned weight may have: any (`free`), or M - N of each M consecutive inputs of a row (`N:M`).

    >>> Pattern.parse("2:4").sparsity
    0.5
    >>> str(Pattern.parse("free"))
    'free'

    Args:
        kept: N; None for `free`.
        of: M; None for `free`.
    """

    kept: int | None = None
    of: int | None = None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Reads `free` or `N:M`, with 0 < N < M <= 256.

        Raises:
            InputError: any other text.
        """
        if text.strip().lower() == "free":
            return cls()
        found = re.fullmatch(r"\s*(\d+):(\d+)\s*", text)
        if not found or not 0 < int(found[1]) < int(found[2]) <= 256:
            raise InputError(f"pattern '{text}' is unknown; use free or N:M with 0 < N < M <= 256, such as 2:4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return "free" if self.of is None else f"{self.kept}:{self.of}"

    @property
    def free(self) -> bool:
        """Whether zeros may be anywhere."""
        return self.of is None

    @property
    def sparsity(self) -> float | None:
        """The fraction that the pattern itself removes, 1 - N/M; None where it is free."""
        return None if self.of is None or self.kept is None else 1 - self.kept / self.of

    def validate(self, in_features: int, name: str) -> None:
        """Checks that the pattern fits a Linear: M must divide its number of inputs.

        Args:
            in_features: inputs of the Linear.
            name: the Linear, for the message.

        Raises:
            InputError: M doesn't divide it.
        """
        if self.of is not None and in_features % self.of:
            raise InputError(
                f"pattern {self} does not fit {name}: its {in_features} inputs are no multiple of {self.of}; "
                f"use another pattern or exclude this layer"
            )

    def mask(self, scores: Tensor, sparsity: float = 0.0, scope: str = "row") -> Tensor:
        """Makes a mask (out, in), True = keep, that keeps the best scores as far as the pattern allows.

        Args:
            scores: (out, in), higher = keep; of equal scores the one at the lower index stays.
            sparsity: fraction that goes of a free pattern; N:M ignores it.
            scope: where scores of a free pattern compete: `row`, each row loses equally many; `matrix`, all in all.

        Raises:
            InputError: a score is NaN, or M doesn't divide the number of inputs.
        """
        if self.of is not None:
            return self.grouped(scores)
        if scope == "row":
            return keep_best(scores, removed_count(scores.shape[-1], sparsity))
        if scope == "matrix":
            return keep_best(scores.flatten(), removed_count(scores.numel(), sparsity)).view_as(scores)
        raise ValueError(f"scope '{scope}' is unknown; known are row, matrix")

    def partial(self, scores: Tensor, sparsity: float, share: float) -> Tensor:
        """Makes a mask (out, in), True = keep, on the way to `mask(scores, sparsity, "matrix")`.

        Args:
            scores: (out, in), higher = keep.
            sparsity: of the final mask, where the pattern is free.
            share: of the entries that the final mask removes, the fraction that goes now, lowest scores first.
        """
        import torch

        final = self.mask(scores, sparsity, "matrix")
        if share >= 1:
            return final
        going = torch.where(final, torch.inf, scores)
        return keep_best(going.flatten(), removed_count(int((~final).sum()), share)).view_as(scores)

    def grouped(self, scores: Tensor, check: bool = True) -> Tensor:
        """Makes the mask of an N:M pattern; `check` as in `keep_best`."""
        import torch

        # Ranks by comparing pairs: for groups this small far faster than sorting, and ties are plain to see.
        assert self.of is not None
        assert self.kept is not None
        self.validate(scores.shape[-1], "the weight")
        if check:
            check_scores(scores)
        members = scores.unflatten(-1, (-1, self.of)).unbind(-1)
        # How many are better than member i; before any comparison, all that come after it.
        better = [torch.full_like(m, self.of - 1 - i, dtype=torch.uint8) for i, m in enumerate(members)]
        for i in range(self.of):
            for j in range(i + 1, self.of):
                first_wins = (members[i] >= members[j]).view(torch.uint8)
                better[j] += first_wins
                better[i] -= first_wins
        return torch.stack([rank < self.kept for rank in better], dim=-1).flatten(-2)

    def holds(self, mask: Tensor) -> bool:
        """Tells whether a mask (out, in), True = keep, keeps at most N of each M; always so for `free`."""
        if self.of is None:
            return True
        return bool((mask.unflatten(-1, (-1, self.of)).sum(-1) <= self.kept).all())

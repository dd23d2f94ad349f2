"""Zeros of single weights that a model gets as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.cut.rules import Rules
from secateur.methods import Method
from secateur.numerics.patterns import Pattern


@dataclass(frozen=True)
class Zeros:
    """Zeros of single weights in every Linear: their pattern, and the fraction that goes."""

    pattern: Pattern
    share: float

    def rules(self, rules: Rules, method: Method) -> Rules:
        """Rules that put such zeros, found by a method, into what they leave."""
        return replace(
            rules,
            weight_method=method,
            pattern=self.pattern,
            weight_sparsity=lambda layer: lambda linear: self.share,
        )


def zeros_of(told: str) -> Zeros:
    """A share such as 0.5, or a pattern such as 2:4.

    Raises:
        InputError: it is neither.
    """
    pattern = Pattern.parse(told) if ":" in told else Pattern()
    return Zeros(pattern, float(told) if pattern.sparsity is None else pattern.sparsity)

"""What a decoder layer adds to its input, as information: second moments of what enters and what leaves together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.numerics.linalg import damped
from secateur.numerics.moments import Moments
from secateur.numerics.precision import wide_dtype

DAMPING = 1e-5  # of each covariance: directions in which nothing varies have no entropy otherwise


class LayerInformation:
    """Sums over a stream of batches; they add up over batches and processes.

    `entropy_increase` and `unknown` are derived from them under a Gaussian model of the hidden states.
    """

    def __init__(self, features: int, device: torch.device | str | None = None) -> None:
        self.features = features
        self._both = Moments(2 * features, frozenset({"gram", "mean"}), device)

    def update(self, h_in: Tensor, h_out: Tensor) -> None:
        """Add the hidden states (..., features) of one batch."""
        self._both.update(torch.cat([h_in.float(), h_out.float()], dim=-1))

    def tensors(self) -> list[Tensor]:
        """The raw sums, for an all-reduce in place."""
        return self._both.tensors()

    def _logdet(self, part: slice) -> float:
        C = self._both.covariance[part, part].to(wide := wide_dtype(self._both.device))
        return float(torch.linalg.slogdet(damped(C, DAMPING, wide))[1])

    @property
    def entropy_increase(self) -> float:
        """Differential entropy of the output less that of the input, bits per dimension."""
        d = self.features
        return (self._logdet(slice(d, 2 * d)) - self._logdet(slice(0, d))) / (2 * d * math.log(2))

    @property
    def unknown(self) -> float:
        """2^(-2 I / d), I the mutual information of input and output in bits: which part of a dimension of the output
        the input doesn't tell, as a geometric mean; in (0, 1]."""
        d = self.features
        C = damped(self._both.covariance, DAMPING, wide_dtype(self._both.device))
        whole = float(torch.linalg.slogdet(C)[1])
        parts = sum(float(torch.linalg.slogdet(C[s, s])[1]) for s in (slice(0, d), slice(d, 2 * d)))
        return math.exp(min(whole - parts, 0.0) / d)

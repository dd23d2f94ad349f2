"""Factors of Gram matrices, with damping that is stated and returned, never silent.

Rule of damping: `damping` times the mean diagonal of the live inputs is added to the diagonal. If the
Cholesky fails, it is repeated once in fp64, then with ten times the damping, and so on; the final damping is
returned.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.numerics.precision import wide_dtype

DAMPING = 0.01  # SparseGPT's
FIRST_DAMPING = 1e-6  # where the damping asked for was zero and failed
LAST_DAMPING = 10.0  # above this the matrix holds something else than activations

# The condition number of a damped Gram matrix is at most features / damping; beyond this bound fp32 has too
# few digits left for an inverse.
FP32_CONDITION = 1e7
TRIANGLE_LEAF = 128


def live_inputs(G: Tensor) -> Tensor:
    """Bool (d,): inputs that were ever different from zero."""
    return G.diagonal() > 0


def damped(G: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """Copies G and adds `damping` times the mean diagonal of the live inputs to its diagonal.

    An input that was always zero (diagonal 0) gets that mean as its own diagonal first: it is independent of all
    others and changes nothing.

    Args:
        G: Gram matrix, (d, d).
        damping: fraction, such as 0.01.
        dtype: of the copy.
    """
    diagonal = G.diagonal().to(dtype)
    live = diagonal > 0
    own = diagonal[live]
    mean = own.mean() if len(own) else torch.ones((), dtype=dtype, device=G.device)
    out = G.to(dtype, copy=True)
    out.diagonal().copy_(torch.where(live, diagonal, mean) + damping * mean)
    return out


def damped_cholesky(G: Tensor, damping: float = DAMPING, dtype: torch.dtype | None = None) -> tuple[Tensor, float]:
    """(L, damping used) with L Lᵀ = G + damping · mean(diag G) · I, L (d, d) lower.

    Args:
        G: symmetric positive semi-definite, (d, d).
        dtype: of the factor; by default fp32, and fp64 where the conditioning or a failure asks for it.

    Raises:
        SecateurError: G is not finite, or no damping up to LAST_DAMPING makes it positive definite.
    """
    if not bool(torch.isfinite(G).all()):
        raise SecateurError(
            "the Gram matrix is not finite: activations overflow. Below float32, use --dtype float32; in float32, "
            "the weights themselves hold infinite or huge numbers, or the text a token that makes them"
        )
    for used, attempt in attempts(G.shape[0], damping, dtype, G.device):
        factor, failed = torch.linalg.cholesky_ex(damped(G, used, attempt))
        if not bool(failed):
            return factor, used
    raise not_positive_definite(G.shape[0])


def attempts(
    features: int, damping: float, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[float, torch.dtype]]:
    """The (damping, dtype) to try in turn for a factor of this many inputs."""
    wide = wide_dtype(device)
    if dtype is None:
        dtype = torch.float32 if features <= FP32_CONDITION * damping else wide
    while damping <= LAST_DAMPING:
        for attempt in dict.fromkeys((dtype, wide)):
            yield damping, attempt
        damping = max(damping * 10, FIRST_DAMPING)


def not_positive_definite(features: int) -> SecateurError:
    return SecateurError(
        f"the Gram matrix ({features} inputs) is not positive definite even with damping {LAST_DAMPING:g}; "
        f"use more calibration data"
    )


def invert_lower(L: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix (d, d), by halves: almost all of the work is matmul."""
    d = L.shape[0]
    if d <= TRIANGLE_LEAF:
        return torch.linalg.solve_triangular(L, torch.eye(d, dtype=L.dtype, device=L.device), upper=False)
    h = (d // 2 + TRIANGLE_LEAF - 1) // TRIANGLE_LEAF * TRIANGLE_LEAF
    out = torch.zeros_like(L)
    out[:h, :h] = invert_lower(L[:h, :h])
    out[h:, h:] = invert_lower(L[h:, h:])
    out[h:, :h] = -(out[h:, h:] @ (L[h:, :h] @ out[:h, :h]))
    return out


def inverse_upper(G: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """(U, damping used): U (d, d) upper with UᵀU the inverse of the damped G, fp32. SparseGPT's factor.

    Factoring G from its last input backwards gives G = R Rᵀ with R upper, so U = R⁻¹: one Cholesky and one
    triangular inverse, where the textbook way forms the full inverse and factors it again.
    """
    factor, used = damped_cholesky(G.flip(0, 1), damping)
    return invert_lower(factor).flip(0, 1).float(), used


def inverse(G: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """(inverse of the damped G, damping used), fp64."""
    factor, used = damped_cholesky(G, damping, wide_dtype(G.device))
    return torch.cholesky_inverse(factor), used


def quadratic_error(W: Tensor, V: Tensor, G: Tensor) -> tuple[float, float]:
    """E‖W x - V x‖² = tr((W - V) G (W - V)ᵀ), and the same relative to E‖W x‖².

    W, V (out, d); G (d, d) = E[x xᵀ].
    """

    def energy(A: Tensor) -> float:
        return float(((A @ G) * A).sum(dtype=wide_dtype(A.device)))

    error, total = energy(W.float() - V.float()), energy(W.float())
    return error, error / total if total > 0 else 0.0

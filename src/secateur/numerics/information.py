"""How much one thing tells about another, in bits: three estimators of mutual information.

    Gaussian    I(a; b) = ½ log2 (|Σ_aa| |Σ_bb| / |Σ|): exact for Gaussians, from second moments alone
    copula      the same after each variable was made normal by its ranks (a lower bound where the dependence isn't
                Gaussian; independent of any monotonic change of a variable)
    Rényi       S_α(A) = log2(tr A^α) / (1 - α) of a kernel matrix A = K / tr K, the joint one by the Hadamard product
                (Sánchez Giraldo, Rao & Príncipe 2015, https://arxiv.org/abs/1211.2459, eqs. 9 and 12)

The Rényi estimate of n samples is mostly bias where n is small: unrelated samples share bits as well. `shuffled`
breaks the pairs up and leaves all else, so what is then still found is that bias, and is taken off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.numerics.precision import wide_dtype

ALPHA = 1.01  # close to Shannon's limit α = 1
CHUNK = 2**24  # entries of kernel matrices held at once


def silverman(x: Tensor) -> Tensor:
    """Kernel width of each variable, (units,), by a rule that looks at nothing but the samples:
    σ (4 / ((w + 2) n))^(1/(w + 4)), with σ the mean standard deviation of its w components.

    Args:
        x: (n, units, w).
    """
    n, _, w = x.shape
    spread = x.to(wide_dtype(x.device)).var(0, correction=0).mean(-1).sqrt()
    return spread * (4 / ((w + 2) * max(n, 1))) ** (1 / (w + 4))


def kernels(x: Tensor, width: Tensor) -> Tensor:
    """Gaussian kernel matrices exp(-‖x_i - x_j‖² / 2σ²), (units, n, n); all ones for a variable that never varies.

    Args:
        x: (n, units, w). width: (units,).
    """
    columns = (x - x.mean(0)).movedim(1, 0) / width.to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
    apart = torch.cdist(columns, columns, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-apart / 2)


def renyi_entropy(K: Tensor, alpha: float = ALPHA) -> float:
    """S_α in bits of one kernel matrix (n, n)."""
    A = K.double() / K.double().trace()
    values = torch.linalg.eigvalsh(A).clamp_min(0)
    return math.log2(float(values.pow(alpha).sum())) / (1 - alpha)


def renyi_information(x: Tensor, y: Tensor, alpha: float = ALPHA) -> float:
    """I_α(x; y) = S(x) + S(y) - S(x, y) in bits, raw. x, y: (n, w)."""
    both = []
    for z in (x, y):
        z = z.double()[:, None, :]
        both.append(kernels(z, silverman(z))[0])
    entropies = [renyi_entropy(K, alpha) for K in (*both, both[0] * both[1])]
    return entropies[0] + entropies[1] - entropies[2]


def shuffled(x: Tensor, seed: int = 0) -> Tensor:
    """The samples (n, ...) in another order: what any estimator still finds between x and this is its bias."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


def pairwise_renyi(x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(raw, bias) in bits of every pair of variables, each (units, units) fp64 and symmetric, at α = 2.

    At α = 2, tr A² is a sum of squares and needs no eigenvalues, and the joint one is an inner product of squared
    kernels: all pairs are one product of matrices. The bias is the same with the second variable shuffled.

    Args:
        x: (n, units, w).
    """
    n, units, _ = x.shape
    rows = max(CHUNK // max(units * n, 1), 1)
    other = shuffled(x.cpu(), seed).to(x.device)
    widths = silverman(x).float()
    own = torch.zeros(units, dtype=wide_dtype(x.device), device=x.device)
    least = max(1e-300, torch.finfo(own.dtype).tiny)
    joint, mixed = own.new_zeros(units, units), own.new_zeros(units, units)
    widths = widths.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    scaled = [((z - x.mean(0)) / widths).movedim(1, 0) for z in (x.float(), other.float())]
    for first in range(0, n, rows):
        part = slice(first, min(first + rows, n))
        squares = []
        for z in scaled:
            apart = torch.cdist(z[:, part], z, compute_mode="donot_use_mm_for_euclid_dist").square()
            squares.append(torch.exp(-apart).flatten(1))  # the kernel's square
        own += squares[0].sum(1, dtype=own.dtype)
        joint += squares[0] @ squares[0].T
        mixed += squares[0] @ squares[1].T

    def information(pairs: Tensor) -> Tensor:
        entropy = 2 * math.log2(max(n, 1)) - own.clamp_min(least).log2()
        return entropy[:, None] + entropy[None, :] - (2 * math.log2(max(n, 1)) - pairs.clamp_min(least).log2())

    return information(joint), information((mixed + mixed.T) / 2)


def normal_scores(x: Tensor) -> Tensor:
    """Each column (n, d) replaced by the normal quantiles of its ranks; equal values share their mean rank."""
    n = len(x)
    order = x.argsort(dim=0, stable=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(n)[:, None].expand_as(order)).double()
    for j in range(x.shape[1]):
        _, group, count = x[:, j].unique(return_inverse=True, return_counts=True)
        if len(count) < n:
            total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, group, ranks[:, j])
            ranks[:, j] = (total / count)[group]
    return torch.special.ndtri((ranks + 0.5) / n)


def gaussian_information(covariance: Tensor, a: list[int], b: list[int]) -> float:
    """I(a; b) in bits of jointly Gaussian variables, from their covariance (d, d)."""
    C = covariance.double()
    found = [torch.linalg.slogdet(C[part][:, part])[1] for part in (a, b, [*a, *b])]
    return float(found[0] + found[1] - found[2]) / (2 * math.log(2))


def copula_information(x: Tensor, y: Tensor) -> float:
    """I(x; y) in bits under a Gaussian copula. x (n, p), y (n, q)."""
    z = normal_scores(torch.cat([x, y], 1))
    p, d = x.shape[1], z.shape[1]
    return gaussian_information(z.T @ z / len(z), list(range(p)), list(range(p, d)))

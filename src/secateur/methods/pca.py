"""Principal components of the stream: which directions of the hidden states hardly carry anything (SliceGPT, Ashkboos
et al. 2024, https://arxiv.org/abs/2401.15024, section 3).

Rotated into the eigenvectors of E[x xᵀ], x what the norms hand on, the hidden dimensions are ordered by their energy,
and those with the least can be left out. The paper rotates each block into its own basis, which takes a matrix
product on every residual connection; here one basis is used for the whole model, so that plain classes run it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.methods.contract import Basis, Method


@torch.no_grad()
def basis(moment: Tensor, seed: int) -> Basis:
    """The eigenvectors of E[x xᵀ] (d, d), that with the most energy first. The largest entry of each is positive."""
    energies, vectors = torch.linalg.eigh(moment.double())
    energies, vectors = energies.flip(0).clamp_min(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return Basis(vectors * largest.sign(), energies)


METHOD = Method.listed("pca", basis=basis)

"""Entropy increase: layers that add least to the entropy of the hidden states go (EntroDrop, Yang et al. 2025,
https://arxiv.org/abs/2504.03794).

Score: the differential entropy of what leaves a layer less that of what enters it, per dimension. Here under a
Gaussian model, from covariances; the paper also takes bucket and nearest-neighbour estimates. The measurement is
`numerics.layer_information`.
"""

from __future__ import annotations

from secateur.methods.contract import Method

METHOD = Method.listed("entropy_increase", score_layers="entropy_increase")

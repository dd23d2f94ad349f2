"""Mutual information between what enters a layer and what leaves it: a layer whose output its input tells already
goes. As for units (https://arxiv.org/abs/2406.00030), under a Gaussian model of the hidden states.

Score: 2^(-2 I / d), the part of a dimension of the output that a linear function of the input doesn't give. The
measurement is `numerics.layer_information`.
"""

from __future__ import annotations

from secateur.methods.contract import Method

METHOD = Method.listed("layer_mi", score_layers="layer_mi")

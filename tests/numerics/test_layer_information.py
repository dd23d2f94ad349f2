"""What a layer adds, where it is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.numerics.layer_information import LayerInformation


def gathered(h_in: torch.Tensor, h_out: torch.Tensor) -> LayerInformation:
    found = LayerInformation(h_in.shape[-1])
    for a, b in zip(h_in.split(1000), h_out.split(1000), strict=True):
        found.update(a, b)
    return found


def stream(n: int = 20_000, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 3


def test_scaling_adds_its_logarithm_and_tells_all() -> None:
    x = stream()
    found = gathered(x, 4 * x)
    assert found.entropy_increase == pytest.approx(2, abs=1e-3)
    assert found.unknown < 1e-3


def test_noise_adds_what_it_hides() -> None:
    x, noise = stream(), stream(seed=1)
    found = gathered(x, x + 2 * noise)
    assert found.entropy_increase == pytest.approx(0.5 * math.log2(5), abs=0.01)
    assert found.unknown == pytest.approx(4 / 5, abs=0.01)


def test_what_has_nothing_to_do_with_the_input_is_unknown() -> None:
    found = gathered(stream(), stream(seed=1))
    assert found.unknown == pytest.approx(1, abs=0.01)
    assert found.entropy_increase == pytest.approx(0, abs=0.02)

"""What stays and what is zero."""

from __future__ import annotations

import pytest
import torch

from secateur.numerics.support import keep_only, support_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_kept_is_a_plain_zero(dtype: torch.dtype) -> None:
    """In a view too, and to the last bit what filling by a mask gives."""
    torch.manual_seed(0)
    whole = torch.randn(6, 10).to(dtype)
    kept = torch.rand(10, 6) < 0.5
    want = whole.clone()
    want.T.masked_fill_(~kept, 0)
    keep_only(whole.T, kept)
    assert torch.equal(whole, want)
    assert not torch.signbit(whole[whole == 0]).any()


def test_a_few_zeros_are_no_pruning() -> None:
    W = torch.ones(20, 20)
    W[0, :3] = 0
    assert support_of(W) is None
    W[0, :5] = 0
    mask = support_of(W)
    assert mask is not None
    assert torch.equal(mask, W != 0)

"""The gate's comparison with the KV cache: judged by what the cache changes in the source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from secateur.model.round_trip import TOLERANCE, check, write_probe
from tests.model import tiny
from tests.small import save_tiny


@pytest.fixture
def longrope(tmp_path: Path) -> Path:
    """Positions are embedded otherwise as soon as the context is longer than 16 tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    rope |= {"short_factor": [1.0, 1.0], "long_factor": [4.0, 9.0], "attention_factor": 1.0}
    return save_tiny(tmp_path / "source", rope_parameters=rope, context=64)


def test_a_source_that_differs_from_itself_is_no_reason_to_refuse(longrope: Path, tmp_path: Path) -> None:
    ids = tiny.tokens(1, 24)
    model = AutoModelForCausalLM.from_pretrained(longrope, dtype=torch.float32)
    write_probe(tmp_path / "probe", ids, tiny.logits(model, ids))
    alone, judged = check(longrope, tmp_path / "probe"), check(longrope, tmp_path / "probe", None, longrope)
    assert alone["max_cache_difference"] > alone["cache_tolerance"] == TOLERANCE
    assert judged["max_cache_difference"] <= judged["cache_tolerance"]

"""What vLLM's Transformers backend (0.32) asks of a class and of its configuration, without vLLM.

It sets an attention of its own, makes one for each decoder layer by that layer's own configuration, and finds the
module to replace by its call through the attention interface.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.export import cases
from tests.model import tiny
from tests.model.test_uneven import prune, save_uneven

PLAN = (("kv_group", "channel"), ("ffn",), ("query_head", "channel"), ())
CASES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "granite", "smollm3"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(layer, query heads, KV heads) of every call through the interface, by an attention that records them."""
    seen: list[tuple[int, int, int]] = []
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def recorded(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((module.layer_idx, query.shape[1], key.shape[1]))
        return plain(module, query, key, value, *args, **kwargs | {"softcap": None})

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "recorded", recorded)
    return seen


@pytest.mark.parametrize("case", CASES)
def test_every_layer_goes_through_the_interface(
    case: str, calls: list[tuple[int, int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tiny.build(case)
    prune(model, PLAN)
    folder = save_uneven(model, tmp_path / "uneven")
    config = AutoConfig.from_pretrained(folder)
    assert config.is_heterogeneous
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    assert type(loaded).is_backend_compatible()
    assert type(loaded)._can_set_attn_implementation()
    loaded.set_attn_implementation("recorded")
    tiny.logits(loaded, tiny.tokens(1))
    own = [config.per_layer_config[index] for index in range(tiny.LAYERS)]
    stated = [(i, c.num_attention_heads, c.num_key_value_heads) for i, c in enumerate(own)]
    assert [call[:2] for call in calls] == [call[:2] for call in stated]
    # What goes through the interface may be repeated already, to as many keys as queries.
    assert all(kv in (said, heads) for (_, heads, kv), (_, _, said) in zip(calls, stated, strict=True))


def test_a_layer_without_attention_does_not(calls: list[tuple[int, int, int]], tmp_path: Path) -> None:
    """Which vLLM refuses, and so does `--for vllm`."""
    folder = cases.uneven("llama", tmp_path / "uneven")
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    loaded.set_attn_implementation("recorded")
    tiny.logits(loaded, tiny.tokens(1))
    assert [layer for layer, _, _ in calls] == [1, 2, 3]

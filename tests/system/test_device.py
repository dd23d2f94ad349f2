"""What `auto` means as a number format."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from secateur.system import accelerator
from secateur.system.device import pruning_dtype, resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, None])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["auto", "float32", "fp16"])
def test_a_cpu_prunes_in_bf16_where_that_is_faster_and_nothing_is_lost(
    name: str, fast: bool, stored: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda _: fast)
    config = SimpleNamespace(dtype=stored)
    judged = {"auto": torch.float32, "float32": torch.float32, "fp16": torch.float16}[name]
    assert resolve_dtype(name, CPU, config) == judged
    halved = name == "auto" and fast and stored == torch.bfloat16
    assert pruning_dtype(name, CPU, config) == (torch.bfloat16 if halved else judged)

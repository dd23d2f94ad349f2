"""What a run computes in, and what its result is judged in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import secateur
from secateur.config.recipe import make_recipe
from secateur.system import accelerator
from tests.small import byte_tokenizer, tiny_llama


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("quality", ["fast", "best"])
def test_a_bf16_checkpoint_is_pruned_in_bf16_where_that_is_faster(
    quality: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged, in fp32 either way, the results are as good as each other."""
    monkeypatch.setattr(accelerator, "multiplies_bf16", lambda _: fast)
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} times {i} is {i * i}. " for i in range(400)))
    told = {"model": str(tmp_path / "model"), "sparsity": 0.5, "quality": quality, "calibrate": str(text)}
    told |= {"samples": 16, "length": 32, "general_text": 0.0, "device": "cpu", "speed": False}
    kl = {}
    for dtype in ("auto", "float32"):
        found = secateur.prune(make_recipe({**told, "dtype": dtype}), tmp_path / dtype, quiet=True)
        assert found["device"]["dtype"] == ("bfloat16" if fast and dtype == "auto" else "float32")
        evaluation = found["evaluation"]
        assert evaluation is not None
        assert evaluation["after"]["dtype"] == "float32"
        assert {t.dtype for t in load_file(tmp_path / dtype / "model.safetensors").values()} == {torch.bfloat16}
        kl[dtype] = evaluation["kl"]
    assert kl["auto"] == pytest.approx(kl["float32"], rel=0.1 if fast else 0)

"""A checkpoint that is read and written again is the same checkpoint, whatever its tensors are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.evaluation.loading import load
from secateur.model.checkpoint import Checkpoint
from secateur.model.save import write_state
from tests.model import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral", "opt", "neox"])
def test_the_same_values_make_the_same_files(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny.build(case).to(dtype).save_pretrained(tmp_path / "one")
    checkpoint = Checkpoint.open(tmp_path / "one")
    (tmp_path / "two").mkdir()
    write_state(tmp_path / "two", checkpoint, load(tmp_path / "one", "cpu", "float32").model.state_dict())
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)

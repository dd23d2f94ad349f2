"""What a pass has finished: kept with its hash, found again, and refused where its file was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secateur.cut.block import BlockCuts
from secateur.model.checkpoint import Checkpoint
from secateur.model.save import block_file
from secateur.model.streamed import StreamedModel
from secateur.pipeline.store import Store
from secateur.workspace.folder import Area
from secateur.workspace.journal import Journal
from tests.model import tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    area = Area(tmp_path / ".secateur")
    area.blocks.mkdir(parents=True)
    made = Store(Journal(area.work, {"seed": 0}), area)
    made.notes.start()
    return made


def test_a_block_comes_back_until_its_file_changes(store: Store, tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    layer = StreamedModel(checkpoint, torch.device("cpu"), torch.float32).load(1)
    assert store.finished_block(1) == (None, False)
    store.keep_block(layer, checkpoint, BlockCuts(1, {"mlp": 3}))
    assert store.area.keep
    assert store.finished_block(1) == (BlockCuts(1, {"mlp": 3}), False)
    found = store.read_block(1, torch.device("cpu"))
    assert all(torch.equal(found[name], tensor) for name, tensor in layer.state_dict().items())
    block_file(store.area.blocks, 1).write_bytes(b"short")
    assert store.finished_block(1) == (None, True)


def test_tensors_are_made_once(store: Store) -> None:
    made = store.tensors("basis.safetensors", lambda: {"Q": torch.eye(3)})
    again = store.tensors("basis.safetensors", lambda: {"Q": torch.zeros(3)})
    assert torch.equal(made["Q"], again["Q"])
    assert torch.equal(load_file(store.area.work / "basis.safetensors")["Q"], torch.eye(3))
    assert store.area.keep


def test_a_step_begins_anew_unless_it_is_finished(store: Store) -> None:
    step = store.step(2, {"seed": 0})
    step.begin()
    (step.area.final / "half").write_text("written")
    step.begin()
    assert not list(step.area.final.iterdir())

"""Hidden states on disk are the hidden states in memory, bit for bit, and a run's files go when it's done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.calibration.activations import Activations, MemoryBudget
from secateur.errors import ResourceError

SHAPES = [(2, 5, 8), (1, 7, 8), (3, 5, 8), (2, 5, 8)]


def batches(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("budget", [None, 0, 400, 10_000])
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: torch.dtype, budget: int | None) -> None:
    states = Activations(MemoryBudget(budget), tmp_path / "deeper" / "states.bin")
    for round_ in range(3):  # every batch is replaced in place, as the walk does
        written = batches(dtype, round_)
        written[0][0, 0, 0] = float("nan")
        for i, batch in enumerate(written):
            states[i] = batch
        assert len(states) == len(written)
        assert all(equal(a, b) for a, b in zip(states, written, strict=True))
        assert all(equal(states[i], written[i]) for i in reversed(range(len(written))))
    states.close()


def test_a_slice_of_something_bigger_is_stored_as_itself(tmp_path: Path) -> None:
    whole = torch.randn(4, 6, 8)
    for budget in (None, 0):
        states = Activations(MemoryBudget(budget), tmp_path / "states.bin")
        states[0] = whole.transpose(0, 1)[:, 1:3]
        assert torch.equal(states[0], whole.transpose(0, 1)[:, 1:3])
        states.close()


def test_only_what_exceeds_the_budget_goes_to_disk(tmp_path: Path) -> None:
    sizes = [batch.nbytes for batch in batches()]
    budget = MemoryBudget(sizes[0] + sizes[1])
    states = Activations(budget, tmp_path / "states.bin")
    for i, batch in enumerate(batches()):
        states[i] = batch
    assert budget.left == 0
    assert (tmp_path / "states.bin").stat().st_size == sizes[2] + sizes[3]
    for i, batch in enumerate(batches(seed=1)):
        states[i] = batch
    assert (tmp_path / "states.bin").stat().st_size == sizes[2] + sizes[3], "a batch keeps its place"
    states.close()


def test_one_budget_holds_for_all_streams_of_a_run(tmp_path: Path) -> None:
    budget = MemoryBudget(batches()[0].nbytes)
    first, second = (Activations(budget, tmp_path / f"{name}.bin") for name in "ab")
    first[0] = second[0] = batches()[0]
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "b.bin").exists()
    first.close()
    second[1] = batches()[1]  # the room that the first one gave back
    assert (tmp_path / "b.bin").stat().st_size == batches()[0].nbytes
    second.close()


@pytest.mark.parametrize("budget", [None, 0, 700])
def test_closing_gives_memory_and_disk_back(tmp_path: Path, budget: int | None) -> None:
    room = MemoryBudget(budget)
    states = Activations(room, tmp_path / "states.bin")
    for i, batch in enumerate(batches()):
        states[i] = batch
    states.close()
    assert room.left == budget
    assert list(tmp_path.iterdir()) == []
    assert len(states) == 0


def test_nothing_is_written_where_everything_fits(tmp_path: Path) -> None:
    states = Activations(MemoryBudget(None), tmp_path / "folder" / "states.bin")
    states[0] = batches()[0]
    assert list(tmp_path.iterdir()) == []
    states.close()


def test_a_stored_batch_does_not_change_with_the_tensor_it_came_from(tmp_path: Path) -> None:
    states = Activations(MemoryBudget(0), tmp_path / "states.bin")
    batch = batches()[0]
    states[0] = batch
    kept = batch.clone()
    batch.zero_()
    assert torch.equal(states[0], kept)
    states.close()


@pytest.mark.parametrize("damage", ["lost", "cut short"])
def test_a_damaged_file_is_said_in_one_line(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "states.bin"
    states = Activations(MemoryBudget(0), file)
    states[0] = batches()[0]
    file.unlink() if damage == "lost" else file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ResourceError, match=r"states\.bin: hidden states .* are lost"):
        _ = states[0]
    states.close()


def test_a_file_left_by_a_killed_run_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "states.bin").write_bytes(b"x" * 10_000)
    states = Activations(MemoryBudget(0), tmp_path / "states.bin")
    for i, batch in enumerate(batches()):
        states[i] = batch
    assert all(equal(a, b) for a, b in zip(states, batches(), strict=True))
    states.close()
    assert list(tmp_path.iterdir()) == []

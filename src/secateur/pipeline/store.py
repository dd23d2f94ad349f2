"""What one pass has decided and finished, and where: on the first rank's disk, and known to every rank.

Every rank has a store and asks it at the same time; only the first one reads and writes. So stages don't ask which
rank they are, nor whether something is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.cut.block import BlockCuts
from secateur.model.checkpoint import Checkpoint
from secateur.model.save import block_file, read_block, write_block
from secateur.system import distributed
from secateur.system.decisions import Decisions
from secateur.workspace.folder import Area
from secateur.workspace.journal import Journal, Line

DONE = "step finished"


@dataclass(frozen=True)
class Store(Decisions):
    """The notes and files of a pass.

    Args:
        notes: the journal.
        area: the part of the work area that it has for itself.
    """

    notes: Journal
    area: Area

    def step(self, number: int, fingerprint: Mapping[str, object]) -> Store:
        """What one step of a gradual run has for itself.

        Args:
            fingerprint: everything that decides its result.
        """
        area = self.area.step(number)
        return Store(Journal(area.work, fingerprint), area)

    def begin(self) -> None:
        """Begins a step, or goes on with it; what an interrupted run has left half done is removed."""

        def begin() -> None:
            self.area.work.mkdir(parents=True, exist_ok=True)
            self.notes.begin(self.area.resume)
            if self.notes.noted(DONE) is None:
                self.area.tidy(True)
                self.area.blocks.mkdir(exist_ok=True)
                self.area.final.mkdir()

        distributed.on_first(begin)

    def folder(self, name: str) -> Path:
        """A folder of the area, on every rank, once the first one has got here."""
        return distributed.from_first(lambda: (self.area.work / name).absolute())

    @property
    def final(self) -> Path:
        """The pass's checkpoint, once the first rank has written it."""
        return self.folder(self.area.final.name)

    def progress(self, key: str, value: Any) -> None:
        """Remembers how far a long stage has come: that is worth going on from."""
        self.note(key, value)
        distributed.on_first(self.area.worth_keeping)

    def tensors(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Named tensors from a file of the area, or what `compute`, which every rank calls, gives on the first one.

        One rank's, to the last bit: eigenvectors turn with rounding.
        """
        file = self.area.work / name
        if distributed.from_first(file.exists):
            found = distributed.on_first(lambda: load_file(file))
        else:
            made = compute()
            found = distributed.on_first(lambda: self._write(file, made))
        return distributed.share_tensors(found, 0, torch.device("cpu"))

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        partial = file.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.rename(file)
        self.area.worth_keeping()
        return tensors

    def has_block(self, index: int) -> bool:
        """Whether the file of a block is there, whatever the journal says."""
        return distributed.from_first(block_file(self.area.blocks, index).exists)

    def read_block(self, index: int, device: torch.device) -> dict[str, Tensor]:
        """The tensors of a block whose file is there."""
        found = distributed.on_first(lambda: read_block(self.area.blocks, index))
        return distributed.share_tensors(found, 0, device)

    def keep_block(self, layer: nn.Module, checkpoint: Checkpoint, cuts: BlockCuts) -> None:
        """Writes a finished block and its line in the journal."""

        def keep() -> None:
            write_block(self.area.blocks, layer, checkpoint, cuts.index)
            self.notes.block(cuts.index, cuts.to_json())
            self.area.worth_keeping()

        distributed.on_first(keep)

    def finished_block(self, index: int) -> tuple[BlockCuts | None, bool]:
        """What was done to a block that the interrupted run has finished; whether that was lost since."""

        def look() -> tuple[Line | None, bool]:
            record = self.notes.finished(index)
            lost = record is not None and not self.notes.intact(record)
            return None if lost else record, lost

        record, lost = distributed.from_first(look)
        return None if record is None else BlockCuts.from_json(record), lost

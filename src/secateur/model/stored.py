"""What the checks of a folder's tensors need to know of it: a part of `Checkpoint`, which calls them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from secateur.model.architectures import Family


class Stored(Protocol):
    """The tensors of a folder by their names on disk, and the model that is made of them.

    Args:
        files: name -> file that holds it.
        sizes: name -> its entries.
        targets: name -> (first) parameter in memory that it becomes.
        template: the model without weights.
    """

    @property
    def path(self) -> Path: ...

    @property
    def family(self) -> Family: ...

    @property
    def layers(self) -> int: ...

    @property
    def files(self) -> Mapping[str, Path]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def targets(self) -> Mapping[str, str]: ...

    @property
    def template(self) -> PreTrainedModel: ...

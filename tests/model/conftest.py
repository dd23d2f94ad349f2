"""Tiny checkpoints on disk, written once per session and case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from secateur.model.checkpoint import Checkpoint
from secateur.model.streamed import StreamedModel
from tests.model import tiny


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """case -> the folder that its model was saved in; don't write there."""
    folders: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in folders:
            shards = {"max_shard_size": "40KB"} if case in tiny.SHARDED else {}
            folders[case] = tiny.save(case, tmp_path_factory.mktemp(case), **shards)
        return folders[case]

    return get


@pytest.fixture(scope="session")
def opened(folder_of: Callable[[str], Path]) -> Callable[[str], StreamedModel]:
    """case -> its checkpoint, opened for streaming in fp32."""
    outers: dict[str, StreamedModel] = {}

    def get(case: str) -> StreamedModel:
        if case not in outers:
            outers[case] = StreamedModel(Checkpoint.open(folder_of(case)), torch.device("cpu"), torch.float32)
        return outers[case]

    return get

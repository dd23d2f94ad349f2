"""What tells one checkpoint from another: the beginning and the end of every weight file."""

from __future__ import annotations

from pathlib import Path

from secateur.model.checkpoint import Checkpoint
from tests.model import tiny


def test_a_changed_byte_at_either_end_of_a_large_file_is_another_checkpoint(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    opened = [Checkpoint.open(folder) for _ in range(4)]  # the digest is of what lies there when it is asked for
    content = bytearray(3 << 20)
    found = []
    for checkpoint, place in zip(opened, (None, 0, 1000, len(content) - 1), strict=True):
        changed = content.copy()
        if place is not None:
            changed[place] = 1
        (folder / "model.safetensors").write_bytes(changed)
        found.append(checkpoint.digest)
    assert len(set(found)) == 4

"""Freed memory goes back to the system, in a process of our own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Freed tensors of many sizes between ones that stay: on glibc's heaps their holes would be kept.
HOLES = """
from secateur.system.malloc import keep_large_apart
{first}
import psutil, torch
def resident():
    return psutil.Process().memory_info().rss / 2**20
torch.ones(1 << 22).sum()
before = resident()
for turn in range(4):
    large = [torch.ones((1 << 21) + 4096 * i) for i in range(24)]
    kept = [t.clone() for t in large[::6]]
    del large
print(resident() - before - sum(t.numel() * 4 for t in kept) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's allocator is spoken to on Linux only")
def test_large_tensors_leave_nothing_behind() -> None:
    def left(first: str) -> float:
        done = subprocess.run([sys.executable, "-c", HOLES.format(first=first)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    assert left("keep_large_apart()") < 16  # MiB; one of the freed tensors has 8

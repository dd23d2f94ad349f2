"""Freed memory goes back to the system, in a process of our own."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Freed tensors of many sizes between ones that stay: on glibc's heaps their holes would be kept.
HOLES = """
from secateur.system.malloc import give_back, keep_large_apart, reusing_all
keep_large_apart()
import psutil, torch
def resident():
    return psutil.Process().memory_info().rss / 2**20
torch.ones(1 << 22).sum()
before = resident()
def work(least, count):
    for turn in range(4):
        large = [torch.ones(least + 4096 * i) for i in range(count)]
        kept = [t.clone() for t in large[::6]]
        del large
    return resident() - before - sum(t.numel() * 4 for t in kept) / 2**20
{then}
"""


def left(then: str) -> float:
    """MiB that stay in memory."""
    told = [sys.executable, "-c", HOLES.format(then=then)]
    done = subprocess.run(told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's allocator is spoken to on Linux only")
def test_large_tensors_leave_nothing_behind() -> None:
    assert left("print(work(9 << 20, 12))") < 32  # one of the freed tensors has 36


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's allocator is spoken to on Linux only")
def test_what_is_kept_of_small_tensors_goes_back_when_told() -> None:
    assert left("print(work(1 << 21, 24))") > 64
    assert left("work(1 << 21, 24); give_back(); print(resident() - before)") < 16


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's allocator is spoken to on Linux only")
def test_a_training_reuses_large_tensors_and_gives_them_back_at_the_end() -> None:
    inside = "with reusing_all(): {}"
    assert left(inside.format("work(9 << 20, 12); print(resident() - before)")) > 200
    assert left(inside.format("work(9 << 20, 12)") + "\nprint(resident() - before)") < 32

"""Two ranks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import psutil

SECONDS = 240  # a launch takes twenty on a busy machine; only a hang takes this long


def torchrun(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Two ranks on this machine, none of which outlives its time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1", **environment},
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except BaseException:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)

"""What `torchrun` runs in the tests: `ranks.py jobs JOBS.json` or `ranks.py dies LAYER prune ...`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import secateur
from secateur.cli import app as cli
from secateur.config.recipe import make_recipe
from secateur.pipeline import one_shot
from secateur.system import distributed


def jobs(file: str) -> None:
    """Several runs in one process group, which stays the caller's; then one run that is refused."""
    with distributed.group(torch.device("cpu")):
        asked = json.loads(Path(file).read_text())
        # One process's business.
        one_shot.verify = lambda *_: {"max_logit_difference": 0.0, "max_cache_difference": 0.0}
        for job in asked["runs"]:
            report = secateur.prune(make_recipe(job["recipe"]), job["out"], quiet=True)
            assert bool(report) == (dist.get_rank() == 0)
        for job in asked["refused"]:
            try:
                secateur.prune(make_recipe(job["recipe"]), job["out"], quiet=True)
            except secateur.SecateurError as error:
                Path(f"{job['said']}-{dist.get_rank()}").write_text(str(error))
        dist.barrier()


def dies(layer: int, words: list[str]) -> None:
    """The command line, but the second rank is killed in that layer."""
    cut_block = one_shot.cut_block

    def killed(block: Any, *rest: Any) -> Any:
        if block.index == layer and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return cut_block(block, *rest)

    one_shot.cut_block = killed
    cli.main(words)


if __name__ == "__main__":
    jobs(sys.argv[2]) if sys.argv[1] == "jobs" else dies(int(sys.argv[2]), sys.argv[3:])

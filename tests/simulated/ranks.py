"""What `torchrun` runs in the tests: `python -m tests.simulated.ranks JOB.json`, a run on the simulated device."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import secateur
from secateur.config.recipe import make_recipe
from secateur.pipeline import one_shot
from tests.simulated.device import simulate


def main(file: str) -> None:
    simulate()
    one_shot.verify = lambda *_: {"max_logit_difference": 0.0, "max_cache_difference": 0.0}  # one process's business
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    secateur.prune(make_recipe(job["recipe"]), job["out"], quiet=True)


if __name__ == "__main__":
    main(sys.argv[1])

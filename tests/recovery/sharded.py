"""What `torchrun` runs in test_shard.py: several recoveries in one process group, from a file that lists them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.model import round_trip
from secateur.recovery import save, sequences, session, shard, train
from secateur.recovery.states import gathered, put_back
from secateur.recovery.trainer import Recoverer
from secateur.system import distributed

honest_shard, honest_step, honest_look = shard.shard, Recoverer.training_step, Recoverer.look


def watch(out: str, stop: int | None) -> dict[str, Any]:
    """Notes what this rank holds of each model that is sharded, and stops at a step once."""
    seen: dict[str, Any] = {"bytes": []}

    def sharded(model: Any, *rest: Any) -> Any:
        whole = sum(p.nbytes for p in model.parameters())
        model = honest_shard(model, *rest)
        seen["bytes"].append([sum(p.to_local().nbytes for p in model.parameters()), whole])
        return model

    def step(trainer: Recoverer, *arguments: Any, **more: Any) -> Any:
        if trainer.args.max_steps > train.MEASURED and trainer.state.global_step == stop:
            Recoverer.training_step = honest_step
            raise KeyboardInterrupt
        return honest_step(trainer, *arguments, **more)

    def look(trainer: Recoverer) -> float:
        found = honest_look(trainer)
        if trainer.optimizer is not None:
            state = [value for each in trainer.optimizer.state.values() for value in each.values() if value.dim()]
            seen["optimizer"] = sum(value.to_local().nbytes for value in state)
        return found

    session.shard.shard = sharded
    Recoverer.training_step, Recoverer.look = step, look
    return seen


def run(job: dict[str, Any]) -> None:
    """One recovery; if it is stopped, it goes on."""
    seen = watch(job["out"], job.get("stop"))
    told, how = secateur.make_recovery(job["told"]), {"evaluate": "none", "speed": False, "quiet": True}
    how["dtype"] = job["dtype"]
    try:
        secateur.recover(job["model"], job["out"], told, **how)
    except KeyboardInterrupt:
        seen["kept"] = sorted(file.name for file in Path(job["out"]).rglob("*optimizer*"))
        secateur.recover(job["model"], job["out"], told, **how, resume=True)
    except secateur.SecateurError as error:
        seen["error"] = str(error)
    Path(f"{job['out']}-{dist.get_rank()}.json").write_text(json.dumps(seen))


def slices(folder: Path) -> None:
    """A tensor of every odd shape comes back whole from its slices."""
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(5, rows) for rows in (1, 2, 3)])
    torch.manual_seed(dist.get_rank())
    family: Any = type("Family", (), {"layers": "layers"})
    honest_shard(model, family, torch.device("cpu"), torch.float32)
    values = {name: torch.arange(p.numel()).view(p.shape) + 0.5 for name, p in model.named_parameters()}
    put_back(model, values)
    found = gathered(model)
    if dist.get_rank() == 0:
        save_file(found, folder / "slices.safetensors")


def threads() -> list[str]:
    """Names of this process's threads that aren't Python's, where the system tells."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    folder = Path(sys.argv[1]).parent
    with distributed.group(torch.device("cpu")):
        rank = dist.get_rank()
        torch.set_num_threads(1)
        save.verify = round_trip.check  # in this process
        asked = json.loads(Path(sys.argv[1]).read_text())
        slices(folder)
        sequences.HELD_OUT = asked["held_out"]
        for each in asked["jobs"]:
            run(each)
        dist.barrier()
        within = threads()
    (folder / f"threads-{rank}.json").write_text(json.dumps([within, threads()]))

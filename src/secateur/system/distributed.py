"""Several processes, or one: the few collective calls that the walk needs, which do nothing alone.

`torchrun` sets the environment; `group` joins (gloo on CPUs, nccl on CUDA, for others what torch names). Everything
else in the project asks here, so no method, site or surgery file knows how many processes there are. A rank that is
gone shows as `RanksLost` on the others.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from secateur.errors import RanksLost, SecateurError
from secateur.system import accelerator

T = TypeVar("T")


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Joins the process group that torchrun described, and leaves it at the end.

    Does nothing for a single process, or where the caller (Ray Train, a training script) has a group already.
    """
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        importlib.import_module("torch.distributed.nn.functional")  # later its default arguments would keep the group
        accelerator.make_current(device)
        with _together():
            dist.init_process_group(_backend(device))
    try:
        yield
    finally:
        if joins and dist.is_initialized():
            dist.destroy_process_group()
            for mesh in _meshes:
                vars(mesh).get("_pg_registry", {}).clear()
            _meshes.clear()
            gc.collect()  # what was sharded has cycles


def _backend(device: torch.device) -> str:
    """What processes on such devices talk through: nccl, xccl, hccl ...; gloo where torch knows nothing better."""
    try:
        return dist.get_default_backend_for_device(device)
    except ValueError:
        return "gloo"


# torch caches what it has worked out about a mesh's tensors, and so the mesh, and with it the group and the group's
# threads. An interpreter that ends while they run aborts now and then, after all the work is done.
_meshes: list[Any] = []


def mesh(device: torch.device) -> Any:
    """All ranks in a row, as torch's sharding wants them."""
    made = dist.device_mesh.init_device_mesh(device.type, (world(),))
    _meshes.append(made)
    return made


@contextmanager
def in_step() -> Iterator[None]:
    """What one rank refuses in here, every rank refuses at its end: all stop together, with the same line."""
    refused: SecateurError | None = None
    try:
        yield
    except SecateurError as error:
        refused = error
    everyone: list[SecateurError | None] = [refused]
    if world() > 1:
        everyone = [None] * world()
        with _together():
            dist.all_gather_object(everyone, refused)
    for answer in everyone:
        if answer is not None:
            raise answer


@contextmanager
def _together() -> Iterator[None]:
    """A call in which all ranks take part."""
    try:
        yield
    except RuntimeError as error:  # gloo raises nothing more precise
        reason = str(error).splitlines()[0]
        raise RanksLost(f"the ranks lost each other ({reason})") from error


def own_device(device: torch.device) -> torch.device:
    """The accelerator of this rank on its host, where no particular one was named."""
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world() -> int:
    """Ranks on this host: they share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_main() -> bool:
    """One rank writes."""
    return rank() == 0


def share(count: int) -> slice:
    """Which of `count` sequences this rank takes: contiguous, the sizes differ by one at most."""
    base, extra = divmod(count, world())
    first = rank() * base + min(rank(), extra)
    return slice(first, first + base + (rank() < extra))


def owners(costs: Sequence[float]) -> list[int]:
    """The rank that does each job: the costliest first, each to the rank with the least to do so far."""
    busy, out = [0.0] * world(), [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda j: -costs[j]):
        out[job] = busy.index(min(busy))
        busy[out[job]] += costs[job]
    return out


def all_reduce(tensors: Iterable[torch.Tensor]) -> None:
    """Sums each tensor over the ranks, in place."""
    if world() > 1:
        with _together():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast(tensors: Iterable[torch.Tensor], source: int) -> None:
    """Copies each tensor from rank `source` to all others, in place."""
    if world() > 1:
        with _together():
            for tensor in tensors:
                dist.broadcast(tensor, source)


def share_object(value: T, source: int) -> T:
    """A small record that rank `source` has, on every rank."""
    if world() == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, source)
    return box[0]


def from_first(ask: Callable[[], T]) -> T:
    """What the first rank finds, on every rank; the others don't look."""
    return share_object(ask() if is_main() else cast(T, None), 0)


def on_first(do: Callable[[], T]) -> T | None:
    """Done by the first rank alone; the others go on at once, with None."""
    return do() if is_main() else None


def share_tensors(
    tensors: dict[str, torch.Tensor] | None, source: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Named tensors that only rank `source` has, on every rank."""
    if world() == 1:
        assert tensors is not None
        return tensors
    shapes = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} if tensors is not None else None
    shared = share_object(shapes, source)
    assert shared is not None
    out = {}
    for name, (shape, dtype) in shared.items():
        # Contiguous: what travels is memory, and the others lay it out like that.
        own = tensors[name].contiguous() if tensors is not None else torch.empty(shape, dtype=dtype)
        out[name] = own.to(device)
    broadcast(out.values(), source)
    return out

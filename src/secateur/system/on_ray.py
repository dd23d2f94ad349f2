"""A function of items, one by one in this process or as tasks of a Ray cluster (extra `ray`).

Ray decides where and when a task runs, and begins it again if its process or machine is gone. Nothing of that is done
here.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from secateur.errors import InputError, install

Item = TypeVar("Item")
Answer = TypeVar("Answer")

ANSWER = 10.0  # seconds that a cluster has to answer
LOOK = 1.0  # seconds between two looks at what has been done, so that Ctrl-C is heard


@dataclass(frozen=True)
class OnRay:
    """Where tasks run, and what each is given.

    Args:
        address: of a running cluster, or `auto`; None: one is made of this machine's cores, and ends with the tasks.
        cpus: of a task; so many threads its libraries use.
        gpus: of a task; less than one is a share of one.
        retries: times that a task is begun again whose process or machine is gone.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0
    retries: int = 2


@dataclass(frozen=True)
class Lost:
    """What is known of a task whose process or machine went every time that it was begun."""

    why: str


def map_tasks(
    function: Callable[[Item], Answer], items: Sequence[Item], ray: OnRay | None = None
) -> Generator[tuple[int, Answer | Lost], None, None]:
    """Gives (index of the item, what the function made of it) as soon as each is done.

    Args:
        function: of a module that the machines of the cluster have too; what it takes and gives is plain data, and
            it raises nothing.
        ray: None: one item after the other, in this process.

    Raises:
        InputError: Ray isn't installed, the cluster can't be reached, or no machine here can give what a task needs.
    """
    if ray is None:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    if not items:
        return
    with cluster(ray):
        yield from _as_tasks(function, items, ray)


def _as_tasks(
    function: Callable[[Item], Answer], items: Sequence[Item], told: OnRay
) -> Iterator[tuple[int, Answer | Lost]]:
    import ray

    task = ray.remote(num_cpus=told.cpus, num_gpus=told.gpus, max_retries=told.retries)(function)
    waiting = {task.remote(item): index for index, item in enumerate(items)}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=LOOK)
            for one in done:
                index = waiting.pop(one)
                try:
                    yield index, ray.get(one)
                except ray.exceptions.RayError as error:
                    yield index, Lost(_why(error))
    finally:
        for one in waiting:
            with suppress(Exception):  # the cluster may be what is gone
                ray.cancel(one, force=True)


def _why(error: Exception) -> str:
    """Ray's first line, after the kind of its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'nothing more is known'}"


@contextmanager
def cluster(told: OnRay) -> Iterator[None]:
    """Connects to the cluster, or makes one; a connection that was there before is used and stays.

    Whoever maps several times holds it over all of them: workers, and what they keep in memory, then stay.

    Raises:
        InputError: as `map_tasks`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    os.environ.setdefault("RAY_task_oom_retries", str(told.retries))  # without it there'd be no end to them
    try:
        import ray
    except ImportError:
        raise InputError(f"Ray isn't installed here; install it with: {install('ray')}") from None
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _connect(told)
    try:
        with suppress(ValueError):  # not the main thread: nobody has taken them over
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
        _check_resources(told)
        yield
    finally:
        ray.shutdown()


def _connect(told: OnRay) -> None:
    import ray

    _check_address(told.address)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if told.address is not None:
            ray.init(address=told.address, **quiet)
        else:  # of this machine alone; its ports ask for a token from Ray 2.59 on, which the extra therefore needs
            ray.init(address="local", include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        where = "a cluster on this machine" if told.address is None else f"the cluster {told.address}"
        said = " ".join(str(error).split())[:200].rstrip(".")
        token = "; if it asks for a token, set RAY_AUTH_MODE=token" if told.address is not None else ""
        raise InputError(f"Ray can't reach {where}: {said}{token}") from None


def _check_address(address: str | None) -> None:
    """Refuses where nobody answers: Ray itself would go on trying for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d{1,5})", address or "")
    if found is None:  # `auto`, or a name that only Ray knows
        return
    try:
        socket.create_connection((found[1], int(found[2])), ANSWER).close()
    except (OSError, OverflowError) as error:
        why = str(error) if isinstance(error, OverflowError) else error.strerror or "no answer"
        raise InputError(f"Ray can't reach the cluster {address}: {why}; is it running?") from None


def _check_resources(told: OnRay) -> None:
    """Refuses what this machine alone doesn't have; a cluster may get machines later, so there Ray waits."""
    import ray

    have = ray.cluster_resources()
    for name, need in (("CPU", told.cpus), ("GPU", told.gpus)):
        if told.address is None and need > have.get(name, 0):
            raise InputError(f"{need:g} {name} for a task is more than this machine has, {have.get(name, 0):g}")

"""Methods of other packages: the entry points of the group `secateur.methods`, imported when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from secateur.errors import InputError

if TYPE_CHECKING:
    from secateur.methods.contract import Method

GROUP = "secateur.methods"


@cache
def discover() -> dict[str, EntryPoint]:
    """Names that installed packages give to their methods, without importing any.

    Raises:
        InputError: two packages use one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise InputError(f"method '{point.name}' comes with {_package(other)} and {_package(point)}; remove one")
    return found


@cache
def load(name: str) -> Method:
    """The method behind an entry point.

    Raises:
        InputError: it can't be imported, or is no method of that name.
    """
    from secateur.methods.contract import GRADIENTS, Method  # only a method that is asked for waits for torch
    from secateur.numerics.moments import NEEDS
    from secateur.numerics.routing import ROUTING

    point = discover()[name]
    whose = f"method '{name}' of {_package(point)}"
    try:
        method = point.load()
    except Exception as error:  # whatever its import raises
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"{whose} can't be imported ({reason}); repair or remove that package") from error
    if not isinstance(method, Method):
        raise InputError(f"{whose}: {point.value} is a {type(method).__name__}, it must be a secateur.Method")
    if method.name != name:
        raise InputError(f"{whose} calls itself '{method.name}'; the entry point must have the same name")
    unknown = sorted(method.needs - NEEDS - GRADIENTS - ROUTING)
    if unknown or not method.prunes:
        fault = f"needs '{unknown[0]}', which nothing gathers" if unknown else "neither scores nor solves anything"
        raise InputError(f"{whose} {fault}; that package may be made for another version of secateur")
    return method


class Plugins(Mapping[str, "Method"]):
    """The methods of other packages.

    Args:
        taken: names that they can't have.
    """

    def __init__(self, taken: Collection[str]) -> None:
        self._taken = taken

    def __getitem__(self, name: str) -> Method:
        point = discover().get(name)
        if point is None:
            raise KeyError(name)
        if name in self._taken:
            raise InputError(f"method '{name}' is built in, and {_package(point)} has one of that name; remove it")
        return load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(discover())

    def __len__(self) -> int:
        return len(discover())

    def __contains__(self, name: object) -> bool:
        return name in discover()


def _package(point: EntryPoint) -> str:
    return f"package '{point.dist.name}'" if point.dist is not None else point.value

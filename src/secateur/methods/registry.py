"""A mapping of methods that imports each one's file when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

from secateur.methods.index import Facts

if TYPE_CHECKING:
    from secateur.methods.contract import Method


class Methods(MutableMapping[str, "Method"]):
    """Name -> Method. Names and facts are there at once; what computes is imported on first use.

    >>> methods = Methods({})
    >>> "wanda" in methods, len(methods)
    (False, 0)

    Args:
        listed: the table; the method of a row is `METHOD` of the file of that name beside this one.
        others: methods of other packages.
    """

    def __init__(self, listed: Mapping[str, Facts], others: Mapping[str, Method] | None = None) -> None:
        self._listed = dict(listed)
        self._others: Mapping[str, Method] = {} if others is None else others
        self._ready: dict[str, Method] = {}

    def facts(self, name: str) -> Facts:
        """What is known of a method; imports nothing. A KeyError where there is none of that name."""
        ready = self._ready.get(name)
        if ready is None and name in self._others:
            ready = self[name]
        return self._listed[name] if ready is None else Facts(ready.title, ready.prunes, ready.needs, ready.paper)

    def able(self, ability: str) -> list[str]:
        """The names of those that prune `ability`, one of `Method.prunes`; imports nothing."""
        return [name for name in self if ability in self.facts(name).prunes]

    def __getitem__(self, name: str) -> Method:
        if name in self._listed and name in self._others:
            self._others[name]  # which says that the name is taken
        if name not in self._ready:
            if name in self._others:
                self._ready[name] = self._others[name]
            elif name in self._listed:
                self._ready[name] = import_module(f"secateur.methods.{name}").METHOD
            else:
                raise KeyError(name)
        return self._ready[name]

    def __setitem__(self, name: str, method: Method) -> None:
        """Adds a method that has no row in the table, or stands in for one that has."""
        self._ready[name] = method

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._ready.pop(name, None)
        self._listed.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._listed or name in self._ready or name in self._others

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._listed, *self._others, *self._ready]))

    def __len__(self) -> int:
        return len(list(iter(self)))

"""Frozen facts that JSON keeps: written by their types, checked by them when they are read back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter


class Record:
    """What a dataclass gets that a journal keeps. Lists come back as the tuples that they were."""

    def to_json(self) -> dict[str, object]:
        """The fields, as `json.dumps` takes them."""
        kind: Any = type(self)
        fields: dict[str, object] = _adapter(kind).dump_python(self, warnings=False)
        return fields

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Self:
        """The same again; what isn't a field is left out.

        Raises:
            pydantic.ValidationError: a field that is missing or of another type.
        """
        kind: Any = cls
        made: Self = _adapter(kind).validate_python(record)
        return made


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

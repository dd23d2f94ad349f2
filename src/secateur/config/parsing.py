"""How values are spelled: `a,b` and `channel:0.25,layer:0.1` as flags are a list and a mapping in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, field_validator

from secateur.errors import InputError

MOST_BLOCKS = 1024
MOST_BYTES = 2**20  # of a file


class Spelled(BaseModel):
    """What a recipe's fields accept beside their own types."""

    @field_validator("model", "calibrate", "evaluate", "tasks", "for_task", mode="before", check_fields=False)
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("sites", "method", mode="before", check_fields=False)
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`a,b` on the command line is a list in YAML; one value needs neither."""
        if value is None:
            return ()
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_validator("protect", mode="before", check_fields=False)
    @classmethod
    def _indices(cls, value: Any) -> Any:
        parts = cls._split(value)
        try:
            return tuple(int(part) if isinstance(part, str) else part for part in parts)
        except ValueError:
            raise ValueError(f"protect {', '.join(parts)}: layers are whole numbers, such as 0,-1") from None

    @field_validator("sparsity", mode="before", check_fields=False)
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        """`channel:0.25,layer:0.1` on the command line is a mapping in YAML."""
        if isinstance(value, str) and ":" in value:
            value = {kind: part for kind, _, part in (pair.partition(":") for pair in value.split(","))}
        if isinstance(value, dict):
            return {str(kind).strip(): fraction(part) for kind, part in value.items()}
        return None if value is None else fraction(value)

    @field_validator("pattern", mode="before", check_fields=False)
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML 1.1 takes 2:4 for a number in base 60
            raise ValueError(f"pattern {value}: put N:M in quotes in YAML, such as '2:4'")
        return value

    @field_validator("window", mode="before", check_fields=False)
    @classmethod
    def _blocks(cls, value: Any) -> Any:
        """`--window 2` is a number of blocks."""
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if number not in ("half", "block") and (
            not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_BLOCKS
        ):
            raise ValueError(f"window {value}: half, block, or a number of blocks from 1 to {MOST_BLOCKS}")
        return number


class StrictLoader(yaml.SafeLoader):
    """Safe, and a key that is there twice is an error: YAML would silently take the last. So is an alias: a few lines
    of them stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) aren't taken; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word, no list", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(file: Path, what: str, keys: str) -> dict[str, Any]:
    """What a YAML file of at most 1 MiB holds, which must be a mapping.

    Args:
        what: the file is, such as "recipe".
        keys: that it has, as examples.

    Raises:
        InputError: no such file, too long, not YAML, nested too deeply, or no mapping.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such {what} file")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file}: has more than {MOST_BYTES:,} bytes, which no {what} has")
        values = yaml.load(file.read_text(encoding="utf-8"), StrictLoader)
    except RecursionError:
        raise InputError(f"{file}: is nested too deeply for a {what}") from None
    except (yaml.YAMLError, ValueError) as error:  # UnicodeDecodeError is one, and so is a date that isn't
        raise InputError(f"{file}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: a {what} is a mapping of keys such as {keys}")
    return values


def fraction(value: Any) -> float:
    """A sparsity as a number, or as people write one: `0.5`, `50%`."""
    try:
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip()[:-1]) / 100
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"sparsity {value!r} is not a number; 0.25 removes a quarter of each site")

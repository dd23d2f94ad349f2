"""Rows that were found before, in a file for each class and configuration, so that a model is looked at once.

A file is good for one version of this package and of transformers. Files that don't read are found anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from pydantic import TypeAdapter, ValidationError

from secateur._version import __version__
from secateur.data.cache import cache_folder
from secateur.errors import UnsupportedModelError
from secateur.model.architectures import Family, listed
from secateur.model.classes import is_composite, is_uneven, stock_class
from secateur.model.detection.building import undisturbed
from secateur.model.detection.rows import propose
from secateur.model.heads import BODY, head_of
from secateur.model.remote_code import brings_code, hashes
from secateur.model.uneven_keys import UNEVEN_KEYS

MOST_BYTES = 2**24
_found: dict[str, Family | str] = {}


def row_of(config: Any) -> Family:
    """The row for a configuration: of the table, or a detected one.

    Raises:
        UnsupportedModelError: nothing of such a model can be cut.
    """
    family = None if is_composite(config) else listed(config)
    return detected(config) if family is None else _with_head(family, config)


def _with_head(family: Family, config: Any) -> Family:
    """A row of the table, which is of models with a head over the vocabulary, for the head that a model has."""
    head = head_of(config)
    if head is None or head.tokens:
        return family
    path = family.layers.removeprefix(f"{stock_class(config).base_model_prefix}.") if head is BODY else family.layers
    # Another basis of the stream would go through the head, which stays as it is.
    return dataclasses.replace(family, layers=path, causal=False, norms=())


def detected(config: Any) -> Family:
    """The same without the table."""
    stock = _stock(config)
    try:
        key = _key(stock)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"architecture '{config.model_type}' is not in the table, and {error}") from None
    if key not in _found:
        _found[key] = _read(key) or _made(stock, key)
    found = _found[key]
    if isinstance(found, str):
        raise UnsupportedModelError(found)
    return found


def folder() -> Path:
    """Where the files are."""
    return cache_folder("architectures")


def _stock(config: Any) -> Any:
    """The configuration without what a pruned checkpoint of uneven widths has added."""
    gone = UNEVEN_KEYS if is_uneven(config) else ()
    values = {k: v for k, v in config.to_dict().items() if k not in gone}
    values["architectures"] = [name.removeprefix("Pruned") for name in config.architectures or ()] or None
    return type(config)(**values)


def _key(config: Any) -> str:
    names = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    parts = [stock_class(config).__name__, names, transformers.__version__, __version__, _own_code()]
    if brings_code(getattr(config, "auto_map", None)):
        parts.append(hashes(Path(inspect.getfile(stock_class(config))).parent))
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _own_code() -> str:
    """Of this package's detection, which changes between releases too."""
    total = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()


def _read(key: str) -> Family | None:
    file = folder() / f"{key}.json"
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        return TypeAdapter(Family).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _made(config: Any, key: str) -> Family | str:
    try:
        with undisturbed():  # what is kept must not depend on who was the first to ask
            found = propose(config)
    except UnsupportedModelError as error:
        return str(error)
    with suppress(OSError):  # a home that can't be written costs a few seconds the next time
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder(), delete=False, encoding="utf-8") as handle:
            json.dump(dataclasses.asdict(found), handle)
        Path(handle.name).replace(folder() / f"{key}.json")
    return found

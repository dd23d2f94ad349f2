"""A quantised folder as a plain one: made once, tensor by tensor, in the user's cache.

Everything that reads a model wants its weights several times, and some of it through `from_pretrained`, so they are
written out rather than dequantised again and again. It takes the disk of a bf16 model and the memory of a tensor.
What was quantised becomes bf16, what wasn't stays as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from secateur.data.cache import cache_folder
from secateur.errors import InputError, UnsupportedModelError
from secateur.model.containers.cache import ORIGIN, fingerprint, made_once
from secateur.model.containers.readers import READERS, Reader
from secateur.model.containers.tensors import Plain, Tensors
from secateur.model.json_files import Json, read_object
from secateur.model.shards import DTYPES, TensorSource, write_weights
from secateur.model.side_files import copy_side_files
from secateur.system.monitor import Monitor
from secateur.workspace.room import check_room

KIND = "dequantised"
VERSION = 1  # of what is written; one that is raised makes all folders anew
# Scales of activations and of the KV cache: a model of plain weights has no place for them.
ACTIVATIONS = re.compile(
    r"\.(?:input|output|activation|[qkv]|kv|kv_cache)(?:_global)?_(?:scale|zero_point)(?:_inv)?$"
)
# What other tools say of the quantisation beside config.json.
SAID_BESIDE = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")


def plain_folder(folder: Path) -> Path:
    """The folder itself, or where its weights are quantised one in the cache that holds them dequantised.

    Raises:
        UnsupportedModelError: quantised in a way that isn't read.
        InputError: the tensors aren't what config.json says of them.
        ResourceError: the disk of the cache has no room.
    """
    try:
        config = read_object(folder / "config.json")
    except InputError:
        return folder  # whoever reads it next says what is wrong
    told = _quantisation(config)
    if told is None:
        return folder
    method, reader = _reader(folder, told)
    tensors = Tensors(folder)
    files = [folder / "config.json", *sorted(set(tensors.files.values()))]
    name = f"{_name(folder)}-{fingerprint(files, VERSION, [file.stat().st_mtime_ns for file in files])}"
    return made_once(KIND, name, partial(_write, tensors, config, told, method, reader))


def _quantisation(config: Json) -> Json | None:
    """What a configuration says of it, of the language model in it or of the whole."""
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, dict) else None
        if found:
            return found if isinstance(found, dict) else {}
    return None


def _reader(folder: Path, told: Json) -> tuple[str, Reader]:
    method = told.get("quant_method")
    if method is None and (told.get("load_in_4bit") or told.get("load_in_8bit")):
        method = "bitsandbytes"
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise UnsupportedModelError(
            f"{folder}: the weights are quantised as {str(method)[:40]}, which isn't read; {', '.join(READERS)} are, "
            "or prune the original checkpoint, then quantise"
        )
    return str(method), reader


def _name(folder: Path) -> str:
    """Of a model, by its folder; of the hub's cache by its id."""
    place = folder.resolve()
    if place.parent.name == "snapshots":
        place = place.parents[1]
    return re.sub(r"[^\w.-]", "_", place.name)[:80] or "model"


def _write(tensors: Tensors, config: Json, told: Json, method: str, reader: Reader, out: Path) -> None:
    plans = list(reader.plan(tensors, told))
    if not plans:
        raise UnsupportedModelError(f"{tensors.folder}: the weights are quantised as {method}, it says, but none is")
    used = {part for plan in plans for part in plan.parts}
    dropped = sorted(name for name in tensors.headers if name not in used and ACTIVATIONS.search(name))
    kept = sorted(tensors.headers.keys() - used - set(dropped))
    _check(tensors, plans, kept)
    names = {plan.name: plan for plan in plans}
    need = sum(2 * prod(plan.shape) for plan in plans) + sum(_bytes(tensors, name) for name in kept)
    check_room(cache_folder(KIND), need, way="set XDG_CACHE_HOME to a folder on another disk")
    title, count = f"dequantise {_name(tensors.folder)}", len(names) + len(kept)
    with Monitor(torch.device("cpu"), planned=[title]) as monitor, monitor.stage(title, count) as step:
        write_weights(out, _sources(tensors, names, kept, step))
    copy_side_files(tensors.folder, out)
    for beside in SAID_BESIDE:
        (out / beside).unlink(missing_ok=True)
    said = {"stored_as": _words(told, reader, plans, dropped)}
    (out / ORIGIN).write_text(json.dumps(said) + "\n", encoding="utf-8")
    (out / "config.json").write_text(json.dumps(_plain_config(config), indent=2) + "\n", encoding="utf-8")


def _check(tensors: Tensors, plans: list[Plain], kept: list[str]) -> None:
    """Refuses what would be stored twice, and what is quantised but no part of any plan."""
    seen = set(kept)
    for plan in plans:
        if plan.name in seen:
            raise tensors.wrong(plan.name, "is there twice, quantised and not")
        seen.add(plan.name)
    for name in kept:
        if tensors.headers[name].dtype not in DTYPES:
            raise tensors.wrong(name, f"is of dtype {tensors.headers[name].dtype}, and nothing says how it's scaled")


def _bytes(tensors: Tensors, name: str) -> int:
    header = tensors.headers[name]
    return prod(header.shape) * DTYPES[header.dtype].itemsize


def _sources(
    tensors: Tensors, plans: dict[str, Plain], kept: list[str], step: Callable[..., None]
) -> Iterator[TensorSource]:
    """Each tensor by itself, by name: a model of any size is written in the memory of its largest matrix."""

    def source(name: str, empty: bool) -> dict[str, Tensor]:
        plan = plans.get(name)
        if empty:
            header = tensors.headers.get(name)
            shape = plan.shape if plan is not None else tensors.headers[name].shape
            dtype = torch.bfloat16 if plan is not None or header is None else DTYPES[header.dtype]
            return {name: torch.empty(shape, dtype=dtype, device="meta")}
        found = tensors.read(name) if plan is None else plan.make().to(torch.bfloat16)
        step()
        return {name: found}

    for name in sorted([*plans, *kept]):
        yield partial(source, name)


def _plain_config(config: Json) -> Json:
    """config.json without the quantisation, for weights in bf16."""
    gone = ("quantization_config", "torch_dtype", "dtype")
    plain = {key: value for key, value in config.items() if key not in gone}
    inner = config.get("text_config")
    if isinstance(inner, dict):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in gone}
    return {**plain, "dtype": "bfloat16"}


def _words(told: Json, reader: Reader, plans: list[Plain], dropped: list[str]) -> str:
    """The format in a few words, and what of it has no place in plain weights."""
    bits = next((told[key] for key in ("bits", "w_bit") if type(told.get(key)) is int), None)
    if bits is None and reader.title == "bitsandbytes":
        bits = 8 if told.get("load_in_8bit") or told.get("_load_in_8bit") else 4
    size = f" with {bits} bits" if bits is not None else ""
    form = told.get("format") if reader.title == "compressed-tensors" else None
    form = f" {form}" if isinstance(form, str) and re.fullmatch(r"[a-z0-9-]{1,40}", form) else ""
    said = f"{reader.title}{form}{size} ({len(plans)} tensors)"
    return f"{said}; left out: {len(dropped)} scales of activations" if dropped else said

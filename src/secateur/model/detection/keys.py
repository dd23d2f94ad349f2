"""Which keys of a configuration say the widths that layers have: found by experiment.

A key is changed, the model is built without weights, and the shapes tell what the key means. Keys are taken while
each brings more shapes to what they are to be and moves none away.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig

from secateur.model.anatomy import EPSILONS
from secateur.model.classes import is_uneven, stock_class
from secateur.model.detection.building import inner_name, quiet, without_weights
from secateur.model.detection.transfer import GROUPS, HEADS
from secateur.model.json_files import Json
from secateur.model.uneven_keys import UNEVEN_KEYS

Shapes = dict[str, Any]  # parameter, or module and attribute -> its shape, or its value
MOST_TRIALS = 400
CHOSEN_HEADS = ":secateur_heads"  # a class would make slopes for as many as there are, not for these


def stock_values(config: Any) -> Json:
    """A configuration as in config.json, without what an uneven checkpoint has added."""
    gone = UNEVEN_KEYS if is_uneven(config) else ()
    values = {k: v for k, v in config.to_dict().items() if k not in gone}
    values["architectures"] = [stock_class(config).__name__]
    return values


def build(values: Json) -> Any:
    """The model of a configuration, without weights."""
    with quiet(), torch.device("meta"):
        config = AutoConfig.for_model(**copy.deepcopy(values))
        config.architectures = values["architectures"]
    return without_weights(config)


def inner(values: Json) -> Json:
    """The part of a configuration that its language model is built from."""
    with quiet():
        name = inner_name(AutoConfig.for_model(**copy.deepcopy(values)))
    if name is None:
        return values
    found: Json = values[name]
    return found


def shapes_of(values: Json, path: str) -> Shapes:
    """Shape of every parameter and buffer of a model, and every number that modules of its layers state."""
    model = build(values)
    out: Shapes = {
        n: list(t.shape) for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        stated = {k: v for k, v in vars(module).items() if type(v) in (int, float)}
        out |= {f"{name}:{key}": value for key, value in stated.items()}
    return out


def flat(path: str, place: int, own: Json) -> Iterator[tuple[str, Any]]:
    for name, shape in own["shapes"].items():
        yield f"{path}.{place}.{name}", shape
    for module, sizes in own["sizes"].items():
        for name, value in sizes.items():
            yield f"{path}.{place}.{module}:{name}" if module else f"{path}.{place}:{name}", value
    if "heads" in own:
        yield f"{path}.{place}{CHOSEN_HEADS}", own["heads"]


def _wrong(found: Shapes, wanted: Shapes) -> set[str]:
    """Names whose shapes differ; of what modules state only what is wanted."""
    return {n for n, value in wanted.items() if found.get(n) != value and (":" not in n or n in wanted)}


def fitted(stock: Json, now: Shapes, wanted: Shapes, path: str) -> Json | None:
    """The configuration whose class has these shapes; None if keys can't say them."""
    if any(name.endswith(CHOSEN_HEADS) for name in wanted):
        return None
    stated = {n for n in wanted if ":" in n and now.get(n) != wanted[n]}
    relevant = {n: v for n, v in wanted.items() if ":" not in n or n in stated}
    left = _wrong(now, relevant)
    values, trials, before = stock, 0, now
    while left:
        for move in _moves(values, _pairs(now, relevant, left)):
            trials += 1
            if trials > MOST_TRIALS:
                return None
            trial = _with(values, move)
            try:
                found = shapes_of(trial, path)
            except Exception:  # each configuration class raises its own kinds
                continue
            rest = _wrong(found, relevant)
            if rest < left:
                values, left, now = trial, rest, found
                break
        else:
            return None
    made, found = _with_groups(stock, values, relevant, now, path)
    return made if _factors(found) == _factors(before) else None


def _factors(found: Shapes) -> Shapes:
    """What a layer computes with beside its parameters: LongCat's latents are scaled by a number made from their
    rank. Whole numbers are sizes."""
    return {n: v for n, v in found.items() if isinstance(v, float) and n.rpartition(":")[2] not in EPSILONS}


def _with_groups(before: Json, after: Json, relevant: Shapes, now: Shapes, path: str) -> tuple[Json, Shapes]:
    """The same, and its shapes, with as many key and value heads for each head as before, where no shape says it:
    latent attention has one for each, and one of its ways to compute still divides by what the configuration says."""
    was, own = inner(before), inner(after)
    shares = {(was[key], own[key]) for key in HEADS if key in was and was[key] != own[key]}
    for key in [key for key in GROUPS if type(was.get(key)) is int and was[key] == own[key]]:
        for heads, kept in shares:
            trial = _with(after, {key: kept})
            if was[key] == heads and not _wrong(found := shapes_of(trial, path), relevant):
                return trial, found
    return after, now


def _pairs(now: Shapes, wanted: Shapes, left: set[str]) -> dict[int, set[int]]:
    """What numbers must become, by the axes and the stated sizes that are wrong."""
    out: dict[int, set[int]] = {}
    for name in left:
        before, after = now.get(name), wanted[name]
        both = [(before, after)] if isinstance(after, int | float) else list(zip(before or [], after, strict=False))
        for a, b in both:
            if isinstance(a, int) and isinstance(b, int) and a != b:
                out.setdefault(a, set()).add(b)
    return out


def _moves(values: Json, pairs: dict[int, set[int]]) -> Iterator[Json]:
    """Changes of keys that may bring the shapes about, single ones first."""
    own = inner(values)
    ratios = {(a, b) for a, bs in pairs.items() for b in bs}
    options: dict[str, list[Any]] = {}
    for key, value in own.items():
        number = value[0] if isinstance(value, list) and value and len(set(map(str, value))) == 1 else value
        if type(number) is not int or number < 2 or "token" in key or "vocab" in key:
            continue
        made = sorted({b for a, b in ratios if a == number} | {n for a, b in ratios if (n := _scaled(number, a, b))})
        options[key] = [[n] * len(value) if isinstance(value, list) else n for n in made if n != number]
    for key, made in options.items():
        yield from ({key: value} for value in made)
    keys = [key for key in options if key in HEADS or key in GROUPS] + [key for key in options if "d_ssm" in key]
    for size in (2, 3):
        for some in itertools.combinations(keys, size):
            for chosen in itertools.product(*(options[key] for key in some)):
                yield dict(zip(some, chosen, strict=True))
    for key in [key for key in keys if key in HEADS]:
        wide = _head_dim(own, key)
        for extra in ([], *([other] for other in keys if other in GROUPS)):
            for chosen in itertools.product(*(options[k] for k in (key, *extra))):
                yield dict(zip((key, *extra), chosen, strict=True)) | {"head_dim": wide}


def _scaled(number: int, before: int, after: int) -> int:
    """The number in the same proportion; 0 if that isn't whole, or is the number."""
    return number * after // before if number * after % before == 0 and before % number == 0 else 0


def _head_dim(own: Json, key: str) -> int:
    hidden = own.get("hidden_size") or own.get("n_embd") or own.get("d_model") or 0
    return int(own.get("head_dim") or hidden // own[key])


def _with(values: Json, move: Json) -> Json:
    new = copy.deepcopy(values)
    inner(new).update(move)
    return new

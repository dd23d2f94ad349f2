"""The configuration of a cut checkpoint of a detected architecture: which keys say its widths is found by experiment.

A key is changed, the model is built without weights, and the shapes tell what the key means. Keys are taken while
each brings more shapes to what they are now and moves none away. What no keys can say goes into `secateur_widths`,
which the bundled modelling file reads.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig

from secateur.errors import UnsupportedModelError
from secateur.model.anatomy import EPSILONS
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import MODULE, auto_class, stock_class, text_config
from secateur.model.detection.copies import inner_name, quiet
from secateur.model.detection.trace import kind_of
from secateur.model.detection.transfer import GROUPS, HEADS
from secateur.model.json_files import Json
from secateur.model.uneven_keys import UNEVEN_KEYS

Shapes = dict[str, Any]  # parameter, or module and attribute -> its shape, or its value


def detected_config(checkpoint: Checkpoint, kept: list[int] | tuple[int, ...], widths: dict[int, Json]) -> Json:
    """config.json of a cut checkpoint.

    Args:
        kept: layers that stay.
        widths: new place of each -> its `detected_widths`.

    Raises:
        UnsupportedModelError: its class has no configuration of just these layers.
    """
    path, whole = checkpoint.family.layers, checkpoint.whole_config
    stock = {k: v for k, v in whole.to_dict().items() if k not in UNEVEN_KEYS}
    stock["architectures"] = [stock_class(whole).__name__]
    if list(kept) != list(range(checkpoint.layers)):
        stock = _shallow(stock, checkpoint, list(kept))
    now = shapes_of(stock, path)
    wanted = now | {name: value for place, own in widths.items() for name, value in _flat(path, place, own)}
    fitted = _fitted(stock, now, wanted, path, checkpoint)
    if fitted is not None:
        return fitted
    own = {str(place): _differing(path, place, values, now) for place, values in widths.items()}
    lacking = [
        f"{path}.{p}.{n}" for p, o in own.items() for n in o["shapes"] if f"{path}.{p}.{n}" not in _saved(stock)
    ]
    if lacking:
        raise UnsupportedModelError(
            f"{lacking[0]} is computed from the configuration, which can't say these widths; cut all layers alike"
        )
    auto = auto_class(AutoConfig.for_model(**stock))
    new = dict(stock)
    new["secateur_widths"] = {"layers": path, "own": {p: o for p, o in own.items() if o["shapes"]}}
    new["auto_map"] = {auto.__name__: f"{MODULE}.Pruned{stock['architectures'][0]}"}
    new["architectures"] = [f"Pruned{stock['architectures'][0]}"]
    return new


def _build(values: Json) -> Any:
    config = AutoConfig.for_model(**copy.deepcopy(values))
    config.architectures = values["architectures"]
    with quiet(), torch.device("meta"):
        return stock_class(config)._from_config(config, dtype=torch.float32)


def shapes_of(values: Json, path: str) -> Shapes:
    """Shape of every parameter and buffer of a model, and every whole number that modules of its layers state."""
    model = _build(values)
    out: Shapes = {
        n: list(t.shape) for n, t in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        stated = {k: v for k, v in vars(module).items() if type(v) is int or k in EPSILONS}
        out |= {f"{name}:{key}": value for key, value in stated.items()}
    return out


def _saved(values: Json) -> set[str]:
    return set(_build(values).state_dict())


def _flat(path: str, place: int, own: Json) -> Iterator[tuple[str, Any]]:
    for name, shape in own["shapes"].items():
        yield f"{path}.{place}.{name}", shape
    for module, sizes in own["sizes"].items():
        for name, value in sizes.items():
            yield f"{path}.{place}.{module}:{name}" if module else f"{path}.{place}:{name}", value


def _differing(path: str, place: int, own: Json, now: Shapes) -> Json:
    shapes = {n: s for n, s in own["shapes"].items() if now[f"{path}.{place}.{n}"] != s}
    return {"shapes": shapes, "sizes": own["sizes"]}


def _wrong(found: Shapes, wanted: Shapes) -> set[str]:
    """Names whose shapes differ; of what modules state only what is wanted."""
    return {n for n, value in wanted.items() if found.get(n) != value and (":" not in n or n in wanted)}


def _fitted(stock: Json, now: Shapes, wanted: Shapes, path: str, checkpoint: Checkpoint) -> Json | None:
    """The configuration whose class has these shapes; None if keys can't say them."""
    stated = {n for n in wanted if ":" in n and now.get(n) != wanted[n]}
    relevant = {n: v for n, v in wanted.items() if ":" not in n or n in stated}
    left = _wrong(now, relevant)
    values = stock
    while left:
        for move in _moves(values, _pairs(now, relevant, left), checkpoint):
            trial = _with(values, move, checkpoint)
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
    return values


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


def _moves(values: Json, pairs: dict[int, set[int]], checkpoint: Checkpoint) -> Iterator[Json]:
    """Changes of keys that may bring the shapes about, single ones first."""
    own = _inner(values, checkpoint)
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


def _inner(values: Json, checkpoint: Checkpoint) -> Json:
    name = inner_name(checkpoint.whole_config)
    return values if name is None else values[name]


def _with(values: Json, move: Json, checkpoint: Checkpoint) -> Json:
    new = copy.deepcopy(values)
    _inner(new, checkpoint).update(move)
    return new


def _shallow(values: Json, checkpoint: Checkpoint, kept: list[int]) -> Json:
    """The configuration of some of the layers, which must then be of the kinds that they are.

    Raises:
        UnsupportedModelError: they aren't.
    """
    new = copy.deepcopy(values)
    own, text = _inner(new, checkpoint), text_config(checkpoint.whole_config)
    for key, value in own.items():
        if isinstance(value, list) and len(value) == checkpoint.layers:
            own[key] = [value[index] for index in kept]
    count = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {count, "num_hidden_layers"} & own.keys():
        own[key] = len(kept)
    path = checkpoint.family.layers
    before = list(checkpoint.template.get_submodule(path).children())
    try:
        after = list(_build(new).get_submodule(path).children())
        same = [kind_of(layer) for layer in after] == [kind_of(before[index]) for index in kept]
    except Exception:  # each configuration class raises its own kinds
        same = False
    if not same:
        raise UnsupportedModelError(
            f"{text.model_type}: its configuration can't say which layers stay; take layers from the end, or none"
        )
    return new

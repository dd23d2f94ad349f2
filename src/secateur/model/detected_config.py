"""The configuration of a cut checkpoint of a detected architecture: keys where they can say its widths, else a list
of shapes and sizes, `secateur_widths`, which the bundled modelling file reads."""

from __future__ import annotations

import copy

from transformers import AutoConfig

from secateur.errors import UnsupportedModelError
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import MODULE, auto_class, text_config
from secateur.model.detection.keys import Shapes, build, fitted, flat, inner, shapes_of, stock_values
from secateur.model.detection.trace import kind_of
from secateur.model.json_files import Json
from secateur.model.remote_code import brings_code


def detected_config(checkpoint: Checkpoint, kept: list[int] | tuple[int, ...], widths: dict[int, Json]) -> Json:
    """config.json of a cut checkpoint.

    Args:
        kept: layers that stay.
        widths: new place of each -> its `detected_widths`.

    Raises:
        UnsupportedModelError: its class has no configuration of just these layers.
    """
    path, whole = checkpoint.family.layers, checkpoint.whole_config
    stock = stock_values(whole)
    if list(kept) != list(range(checkpoint.layers)):
        stock = _shallow(stock, checkpoint, list(kept))
    now = shapes_of(stock, path)
    wanted = now | {name: value for place, own in widths.items() for name, value in flat(path, place, own)}
    found = fitted(stock, now, wanted, path)
    if found is not None:
        return found
    if brings_code(stock.get("auto_map")):
        raise UnsupportedModelError(
            f"{whole.model_type}: its class comes with the checkpoint, and layers that differ in width need one of "
            "transformers; cut all layers alike"
        )
    own = {str(place): _differing(path, place, values, now) for place, values in widths.items()}
    saved = set(build(stock).state_dict())
    lacking = [name for p, o in own.items() for n in o["shapes"] if (name := f"{path}.{p}.{n}") not in saved]
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


def _differing(path: str, place: int, own: Json, now: Shapes) -> Json:
    shapes = {n: s for n, s in own["shapes"].items() if now[f"{path}.{place}.{n}"] != s}
    return {"shapes": shapes, **{key: own[key] for key in ("sizes", "heads") if key in own}}


def _shallow(values: Json, checkpoint: Checkpoint, kept: list[int]) -> Json:
    """The configuration of some of the layers, which must then be of the kinds that they are.

    Raises:
        UnsupportedModelError: they aren't.
    """
    new = copy.deepcopy(values)
    own, text = inner(new), text_config(checkpoint.whole_config)
    for key, value in own.items():
        if isinstance(value, list) and len(value) == checkpoint.layers:
            own[key] = [value[index] for index in kept]
    count = type(text).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {count, "num_hidden_layers"} & own.keys():
        own[key] = len(kept)
    path = checkpoint.family.layers
    before = list(checkpoint.template.get_submodule(path).children())
    try:
        after = list(build(new).get_submodule(path).children())
        same = [kind_of(layer) for layer in after] == [kind_of(before[index]) for index in kept]
    except Exception:  # each configuration class raises its own kinds
        same = False
    if not same:
        raise UnsupportedModelError(
            f"{text.model_type}: its configuration can't say which layers stay; take layers from the end, or none"
        )
    return new

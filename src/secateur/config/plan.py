"""The plan: what is removed, where and how much, as a small JSON file that people read, edit and replay.

Structured sites list the units that stay. Linears list their sparsity and pattern (the zeros themselves are
in the weights). Layers list which stay. A plan fits one architecture and size, not one set of weights: the
same plan can be replayed on a fine-tuned sibling.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, StrictFloat, StrictInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.site_kinds import SUB_BLOCKS, UNIT_KINDS
from secateur.numerics.patterns import Pattern

VERSION = 1
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Entry:
    """One site of the plan.

    Args:
        site: its name, e.g. `layers.3.channel` or `layers.3.mlp.down_proj` (a Linear).
        keep: kept units, ascending; None for weights.
        sparsity: fraction of the units (or weights) that goes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    site: str
    kind: str
    layer: StrictInt
    units: StrictInt
    sparsity: StrictFloat
    method: str
    keep: tuple[StrictInt, ...] | None = None
    pattern: str | None = None

    def check(self) -> None:
        """Refuses an entry that says nothing that can be done.

        Raises:
            InputError: an unknown kind, units or a sparsity that can't be, a method that doesn't prune weights.
        """
        named = self.site.split(".", 2)[-1].partition("[")[0]
        structured = (*UNIT_KINDS, *SUB_BLOCKS)
        if named in structured if self.kind == "weight" else self.kind in structured and named != self.kind:
            raise InputError(f"plan entry {self.site}: kind '{self.kind}' contradicts the site's name")
        if self.kind == "weight":
            if not 0 <= self.sparsity < 1:
                raise InputError(f"plan entry {self.site}: sparsity {self.sparsity:g} is not between 0 and 1")
            Pattern.parse(self.pattern or "free")
            able = METHODS.able("weights")
            if self.method not in able:
                raise InputError(f"plan entry {self.site}: method '{self.method}' must be one of {', '.join(able)}")
        elif self.kind in SUB_BLOCKS:
            if self.keep != ():
                raise InputError(f"plan entry {self.site}: a sub-block goes whole, so keep must be []")
        elif self.kind not in UNIT_KINDS:
            known = ", ".join(("weight", *UNIT_KINDS, *SUB_BLOCKS))
            raise InputError(f"plan entry {self.site}: kind '{self.kind}' must be {known}")
        elif not self.keep or not _ascending(self.keep, self.units):
            raise InputError(f"plan entry {self.site}: kept units must be ascending, distinct and below {self.units}")


@dataclass(frozen=True)
class Plan:
    """What a run removes: an entry for each site, and what they were derived from. `read` loads a plan.json.

    Args:
        model: `model_type`, layers, and digest of the checkpoint that was scored.
        calibration: source, hashes, samples, length, seed.
        layers: indices of the layers that stay; all of them unless layers are cut.
        entries: one for each site that is cut; what isn't named stays as it is.
    """

    model: Mapping[str, object]
    calibration: Mapping[str, object]
    layers: tuple[int, ...]
    entries: tuple[Entry, ...] = field(default_factory=tuple)

    def entry(self, site: str) -> Entry | None:
        """Finds the entry of a site by name, such as `layers.3.channel`; None if the plan leaves it alone."""
        return self._by_site.get(site)

    @cached_property
    def _by_site(self) -> dict[str, Entry]:
        return {entry.site: entry for entry in self.entries}

    @property
    def dropped(self) -> frozenset[tuple[int, str]]:
        """(layer, kind) of the sub-blocks that go whole, kind `attention` or `ffn`."""
        return frozenset((entry.layer, entry.kind) for entry in self.entries if entry.kind in SUB_BLOCKS)

    @property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that the plan cuts, as a recipe names them; `layer` where only layers go."""
        return tuple(sorted(self.kinds)) or ("layer",)

    @property
    def sparsities(self) -> dict[str, float]:
        """The largest sparsity of each kind, for the same recipe. A replay goes by the entries, not by this."""
        out: dict[str, float] = {}
        for e in self.entries:
            out[e.kind] = max(out.get(e.kind, 0.0), e.sparsity)
        return {kind: min(max(s, 1e-6), 1 - 1e-6) for kind, s in out.items()} or {"layer": 0.5}

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of sites that have an entry."""
        return frozenset(entry.kind for entry in self.entries)

    def to_json(self) -> str:
        """Writes the plan as JSON text, with each entry on one line, so that plans can be read and diffed."""
        head = {"version": VERSION, "model": self.model, "calibration": self.calibration, "layers": list(self.layers)}
        body = json.dumps(head, indent=1)[:-2]
        lines = [json.dumps({k: v for k, v in asdict(e).items() if v is not None}) for e in self.entries]
        return body + ',\n "entries": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Reads a plan file and checks its form; `check` then compares it with a model.

        Raises:
            InputError: no such file, not JSON, or not a plan.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"{file}: no such plan file")
        try:
            if file.stat().st_size > MOST_BYTES:
                raise InputError(f"{file}: has more than {MOST_BYTES:,} bytes, which no plan has")
            data = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(f"{file}: is not valid JSON ({error})") from None
        if not isinstance(data, dict) or data.get("version") != VERSION:
            version = data.get("version") if isinstance(data, dict) else None
            raise InputError(f"{file}: plan version {version} is unknown; this is version {VERSION}")
        try:
            found = _FILE.validate_python(data)
        except ValidationError as error:
            raise InputError(f"{file}: is not a plan{_said(error)}") from None
        return cls(found["model"], found["calibration"], found["layers"], found["entries"])

    def check(self, model_type: str, layers: int, names: Collection[str] | None = None) -> None:
        """Refuses a plan that was made for another architecture or depth, or that can't be carried out.

        Args:
            model_type: of the model that is to be cut.
            layers: how many it has.
            names: every site and Linear that it has, as entries name them; None leaves names unchecked.

        Raises:
            InputError: with what differs.
        """
        if self.model.get("model_type") != model_type or self.model.get("layers") != layers:
            theirs = f"{self.model.get('model_type')} with {self.model.get('layers')} layers"
            raise InputError(f"the plan is for {theirs}, the model is {model_type} with {layers} layers")
        if not self.layers or not _ascending(self.layers, layers):
            raise InputError(f"the plan's layers {list(self.layers)} must be ascending, distinct and below {layers}")
        for site, times in Counter(entry.site for entry in self.entries).items():
            if times > 1:
                raise InputError(f"the plan names {site} {times} times")
        for entry in self.entries:
            if names is not None and entry.site not in names:
                raise InputError(f"the plan names {entry.site}, which the model doesn't have")
            if entry.layer not in self.layers or not entry.site.startswith(f"layers.{entry.layer}."):
                raise InputError(f"plan entry {entry.site}: layer {entry.layer} is not one of the layers that stay")
            entry.check()
        self._check_weights()

    def _check_weights(self) -> None:
        """Zeros are made anew when a plan is replayed: by one method, in one pattern."""
        weights = [entry for entry in self.entries if entry.kind == "weight"]
        for what in ("method", "pattern"):
            found = sorted({str(getattr(entry, what)) for entry in weights})
            if len(found) > 1:
                raise InputError(f"the plan's weights name {what} {' and '.join(found)}; a run has one")


def _ascending(numbers: tuple[int, ...], below: int) -> bool:
    """Whether they are distinct, ascending, and in [0, below)."""
    return list(numbers) == sorted(set(numbers)) and all(0 <= n < below for n in numbers)


class PlanFile(TypedDict):
    """What plan.json holds."""

    version: StrictInt
    model: dict[str, object]
    calibration: dict[str, object]
    layers: tuple[StrictInt, ...]
    entries: tuple[Entry, ...]


_FILE = TypeAdapter(PlanFile)
_SPOKEN = {
    "dict_type": "an object",
    "dataclass_type": "an object",
    "tuple_type": "a list",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
}


def _said(error: ValidationError) -> str:
    """The first thing that is wrong with a plan file, as the end of a line."""
    first = error.errors(include_url=False)[0]
    if first["type"] in ("missing", "missing_argument"):
        return f", it lacks '{first['loc'][-1]}'"
    if first["type"] == "unexpected_keyword_argument":
        return f" (an entry has no '{first['loc'][-1]}')"
    given, wanted = json.dumps(first["input"])[:40], _SPOKEN.get(first["type"])
    return f" ({given} where {wanted} should be)" if wanted else f" ({given}: {first['msg']})"

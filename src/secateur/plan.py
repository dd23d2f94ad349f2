"""The plan: what is removed, where and how much, as a small JSON file that people read, edit and replay.

Structured sites list the units that stay. Linears list their sparsity and pattern (the zeros themselves are
in the weights). Layers list which stay. A plan fits one architecture and size, not one set of weights: the
same plan can be replayed on a fine-tuned sibling.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from secateur.errors import InputError

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One site of the plan.

    Args:
        site: its name, e.g. `layers.3.channel` or `layers.3.mlp.down_proj` (a Linear).
        keep: kept units, ascending; None for weights.
        sparsity: fraction of the units (or weights) that goes.
    """

    site: str
    kind: str
    layer: int
    units: int
    sparsity: float
    method: str
    keep: tuple[int, ...] | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class Plan:
    """All entries of a run, and what they were derived from.

    Args:
        model: `model_type`, layers, and digest of the checkpoint that was scored.
        calibration: source, hashes, samples, length, seed.
        layers: indices of the layers that stay; all of them unless layers are cut.
    """

    model: dict[str, Any]
    calibration: dict[str, Any]
    layers: tuple[int, ...]
    entries: tuple[Entry, ...] = field(default_factory=tuple)

    def entry(self, site: str) -> Entry | None:
        """The entry of a site, or None if the plan leaves it alone."""
        return self._by_site.get(site)

    @cached_property
    def _by_site(self) -> dict[str, Entry]:
        return {entry.site: entry for entry in self.entries}

    @property
    def sites(self) -> tuple[str, ...]:
        """The kinds of sites that a recipe for this plan names."""
        return tuple(sorted(self.kinds)) or ("layer",)

    @property
    def sparsities(self) -> dict[str, float]:
        """For the same recipe: the largest sparsity of each kind. The plan's own entries are what counts."""
        out: dict[str, float] = {}
        for e in self.entries:
            out[e.kind] = max(out.get(e.kind, 0.0), e.sparsity)
        return {kind: min(max(s, 1e-6), 1 - 1e-6) for kind, s in out.items()} or {"layer": 0.5}

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(entry.kind for entry in self.entries)

    def to_json(self) -> str:
        """Pretty JSON with each entry on one line, so that plans can be read and diffed."""
        head = {"version": VERSION, "model": self.model, "calibration": self.calibration, "layers": list(self.layers)}
        body = json.dumps(head, indent=1)[:-2]
        lines = [json.dumps({k: v for k, v in asdict(e).items() if v is not None}) for e in self.entries]
        return body + ',\n "entries": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Reads a plan file.

        Raises:
            InputError: no such file, not JSON, or not a plan.
        """
        file = Path(path)
        if not file.is_file():
            raise InputError(f"{file}: no such plan file")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            entries = tuple(
                Entry(**{**e, "keep": tuple(e["keep"]) if e.get("keep") is not None else None})
                for e in data["entries"]
            )
            plan = cls(data["model"], data["calibration"], tuple(data["layers"]), entries)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: is not valid JSON ({error})") from None
        except (KeyError, TypeError) as error:
            raise InputError(f"{file}: is not a plan of this version ({error})") from None
        if data.get("version") != VERSION:
            raise InputError(f"{file}: plan version {data.get('version')} is unknown; this is version {VERSION}")
        return plan

    def check(self, model_type: str, layers: int) -> None:
        """Refuses a plan that was made for another architecture or depth, or that can't be carried out.

        Raises:
            InputError: with what differs.
        """
        if self.model.get("model_type") != model_type or self.model.get("layers") != layers:
            theirs = f"{self.model.get('model_type')} with {self.model.get('layers')} layers"
            raise InputError(f"the plan is for {theirs}, the model is {model_type} with {layers} layers")
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[-1] >= layers:
            raise InputError(f"the plan's layers {list(self.layers)} must be ascending, distinct and below {layers}")
        for e in self.entries:
            if e.keep is None:
                continue
            bad = not e.keep or sorted(set(e.keep)) != list(e.keep) or e.keep[-1] >= e.units or e.keep[0] < 0
            if bad:
                raise InputError(f"plan entry {e.site}: kept units must be ascending, distinct and below {e.units}")

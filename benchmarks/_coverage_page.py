"""docs/architectures.md and results/coverage.json from what `coverage.py` has found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = ("weight", "channel", "query_head", "kv_group", "latent", "expert")
HEADS = ("query_head", "kv_group")


def write(files: Iterable[Path], further: Iterable[Path], named: Iterable[str], record: Path, page: Path) -> None:
    """Writes both.

    Args:
        files: results of the types that people use.
        further: of others.
        named: all of those others, also without a result.
    """
    import transformers

    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"transformers": None}
    same = before["transformers"] == transformers.__version__
    rows, more = (
        _rows(before.get(key, []) if same else [], own) for key, own in (("rows", files), ("more", further))
    )
    counts, others = count(rows), count(more)
    whole = {"transformers": transformers.__version__, "counts": counts, "rows": rows}
    whole |= {"more_counts": others, "more": more}
    record.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    page.write_text(_page(rows, counts, transformers.__version__) + _more(more, others, named), encoding="utf-8")


def _rows(known: list[dict[str, Any]], files: Iterable[Path]) -> list[dict[str, Any]]:
    """What files say, and of types that weren't tried anew what was known."""
    found = {row["type"]: row for row in known}
    found |= {row["type"]: _slim(row) for row in (json.loads(file.read_text(encoding="utf-8")) for file in files)}
    return [found[name] for name in sorted(found)]


def _slim(row: dict[str, Any]) -> dict[str, Any]:
    """A record without what changes from run to run."""
    keep = ("type", "built", "class", "vlm", "error", "inspect", "not_offered", "note")
    slim = {key: row[key] for key in keep if row.get(key) not in (None, "", [])}
    slim["kinds"] = {
        kind: {
            k: re.sub(r"/\S*/", "", v) if k == "why" else v
            for k, v in result.items()
            if k in ("ok", "how", "why", "silently_wrong") and v not in (None, False)
        }
        for kind, result in (row.get("kinds") or {}).items()
    }
    return slim


def passed(row: dict[str, Any], kinds: Iterable[str]) -> bool:
    return any(row["kinds"].get(kind, {}).get("ok") for kind in kinds)


def count(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The figures of the page's head."""
    built = [row for row in rows if row.get("built")]
    inner = [row for row in built if passed(row, ("channel",)) or (_lacks_channels(row) and passed(row, HEADS))]
    return {
        "types": len(rows),
        "built": len(built),
        "inspect": sum(row.get("inspect") is True for row in built),
        "weight": sum(passed(row, ("weight",)) for row in built),
        "channel": len(inner),
        "heads": sum(passed(row, HEADS) for row in built),
        "latents": sum(passed(row, ("latent",)) for row in built),
        "experts": sum(passed(row, ("expert",)) for row in built),
        "vision": sum(bool(row.get("vlm")) and passed(row, ("weight",)) for row in built),
        "vision_built": sum(bool(row.get("vlm")) for row in built),
        "both": sum(passed(row, ("weight",)) for row in inner),
        "silently_wrong": sum(any(k.get("silently_wrong") for k in row["kinds"].values()) for row in built),
    }


def _lacks_channels(row: dict[str, Any]) -> bool:
    """A class without an FFN, such as Mamba 2: its inner width consists of heads."""
    return "channel" not in row["kinds"] and not any(
        ".fc" in why or "mlp" in why for why in row.get("not_offered", ())
    )


def _mark(row: dict[str, Any], kind: str) -> str:
    result = row["kinds"].get(kind)
    if result is None:
        return "-"
    if not result.get("ok"):
        return "wrong" if result.get("silently_wrong") else "no"
    return "yes" if result.get("how") == "transformers" else "yes †"


def _page(rows: list[dict[str, Any]], counts: dict[str, int], version: str) -> str:
    head = f"""# Architectures

<!-- Written by benchmarks/coverage.py --report; don't edit. -->

What can be pruned of which architecture of transformers {version}. A few are listed in a table
([adding one](adding-an-architecture.md)); all others are detected: a small copy of the class is made, and what is
found on it must be proved there before it is offered. This page is measured on tiny random checkpoints, kind by kind:
pruned by half (experts by a quarter), saved, checked by the round trip, loaded with plain transformers, and compared
with an independent reading of the source in which what went is zero.

| of {counts["types"]} types | |
|---|---|
| can be built | {counts["built"]} |
| open (`secateur inspect`) | {counts["inspect"]} |
| single weights | {counts["weight"]} |
| channels, or the layer's own kind of inner width | {counts["channel"]} |
| heads | {counts["heads"]} |
| latents | {counts["latents"]} |
| experts | {counts["experts"]} |
| vision-language models, of {counts["vision_built"]} | {counts["vision"]} |
| silently wrong | {counts["silently_wrong"]} |

`yes` loads with the stock class, `yes †` with the modelling file that is saved beside the weights
(`trust_remote_code=True`). `-` isn't offered: there is none, or it could not be proved. Heads of state-space layers
and of linear attention are KV groups here. Latents are those of multi-head latent attention
([more](methods.md#latents)).

"""
    return head + _table(rows) + "\n## What could not be proved\n\n" + _notes(rows)


def _more(rows: list[dict[str, Any]], counts: dict[str, int], named: Iterable[str]) -> str:
    """The page's part about types that nobody has named."""
    if not rows:
        return ""
    unbuilt = ", ".join(f"`{row['type']}`" for row in rows if not row.get("built"))
    missing = ", ".join(f"`{name}`" for name in sorted({*named} - {row["type"] for row in rows}))
    missing = f" No result of this code yet: {missing}." if missing else ""
    head = f"""
## Further types

All others that transformers has a causal language model of, and more models that see (`coverage.py --more`). Of these
{counts["types"]} small ones of {counts["built"]} can be built by the same rules. Of those {counts["inspect"]} open;
single weights can be pruned of {counts["weight"]}, channels or the layer's own kind of inner width of
{counts["channel"]}, both of {counts["both"]}, heads of {counts["heads"]}; {counts["silently_wrong"]} are silently
wrong. Latents were not tried on most of them. Not built, and so not known: {unbuilt}.{missing}

"""
    built = [row for row in rows if row.get("built")]
    return head + _table(built) + "\nWhat could not be proved of these:\n\n" + _notes(built)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| type | class | weights | channels | query heads | KV groups | latents | experts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row.get("built"):
            lines.append(f"| `{row['type']}` | not built: {_reason(row.get('error', ''))} | | | | | | |")
        elif row.get("inspect") is not True:
            lines.append(f"| `{row['type']}` | {row['class']}: not opened | no | | | | | |")
        else:
            marks = " | ".join(_mark(row, kind) for kind in COLUMNS)
            lines.append(f"| `{row['type']}` | {row['class']} | {marks} |")
    return "\n".join(lines) + "\n"


def _notes(rows: list[dict[str, Any]]) -> str:
    notes = [
        f"- `{row['type']}`: {_cell(why)}"
        for row in rows
        for why in (
            *([row["inspect"]] if isinstance(row.get("inspect"), str) else []),
            *row.get("not_offered", ()),
            *(f"{kind}: {k['why']}" for kind, k in row["kinds"].items() if "why" in k),
        )
    ]
    return "\n".join(dict.fromkeys(notes)) + "\n"


def _reason(error: str) -> str:
    """Why a type could not be built here, short."""
    lacks = re.search(r"requires the (\S+) library", error)
    return f"its image tower needs {lacks[1]}, which wasn't installed" if lacks else _cell(error)


def _cell(text: str) -> str:
    text = re.sub(r"/\S*/", "", text)  # where it lay on the machine
    return " ".join(text.replace("|", "/").replace("`", "").replace("<", "").split())[:160]

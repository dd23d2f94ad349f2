"""Text of a data set on the Hugging Face hub. The only file of this package that reaches for the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from secateur.data.conversations import is_example
from secateur.data.corpus import Corpus, from_rows
from secateur.data.stdlib import Split
from secateur.errors import InputError, install

LONGEST = 8 * 2**20  # characters (4 a token) taken from the top of a data set: a sample, not a copy
PATIENCE = 5.0  # seconds that the hub has to answer
_NAME = r"[A-Za-z0-9_][\w.-]*"
_HUB_ID = re.compile(
    rf"(?P<id>{_NAME}(/{_NAME})?)(:(?P<config>[\w.+-]*))?(:(?P<split>[\w.+-]*))?(:(?P<column>[^:/\\]+))?", re.ASCII
)
_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "held_out": ("validation", "test", "valid", "dev"),
}


def is_hub_id(spec: str) -> bool:
    """Whether `spec`, which is no existing path, may be a data set: [ORG/]NAME[:CONFIG][:SPLIT][:COLUMN].

    What ends like a file (a dot and a letter: `x.jsonl`) or starts with a folder that exists here is a path,
    and so is anything with more slashes, a backslash or a leading dot.
    """
    match = _HUB_ID.fullmatch(spec)
    if match is None or re.search(r"\.[A-Za-z]\w*$", match["id"]):
        return False
    first, slash, _ = match["id"].partition("/")
    return not (slash and Path(first).is_dir())


def load(spec: str, split: Split) -> Corpus:
    """The first `LONGEST` characters of a data set. Without a split in `spec`, one is chosen by `split`:
    `train`, or for "held_out" the first of validation, test, valid, dev that there is.

    With HF_HUB_OFFLINE set, only what the local cache holds is read.

    Raises:
        InputError: `datasets` isn't installed, the hub can't be reached, or the data set can't be read.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"{spec!r} is no file here; reading the hub needs {install('data')}") from None
    match = _HUB_ID.fullmatch(spec)
    assert match is not None, spec  # the caller asked is_hub_id
    name, config = match["id"], match["config"] or None
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    if not offline and not _reachable(name):
        raise InputError(
            f"{spec!r} is no file here, and the Hugging Face hub can't be reached; use a file or 'stdlib',"
            " or set HF_HUB_OFFLINE=1 if the data set is in the cache"
        )
    try:
        chosen = match["split"] or _choose(spec, datasets.get_dataset_split_names(name, config), split)
        rows = datasets.load_dataset(name, config, split=chosen, streaming=not offline)
        taken = list(_first(rows, match["column"]))
    except InputError:
        raise
    except Exception as error:  # the library has no common ancestor for what it raises
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"data set {spec!r} can't be read from the Hugging Face hub: {reason}") from None
    note = f"{spec}: the first {len(taken)} rows of split {chosen!r} were read"
    return from_rows(spec, ((f"row {n}", row) for n, row in enumerate(taken, 1)), notes=(note,))


def _choose(spec: str, names: list[str], split: Split) -> str:
    chosen = next((name for name in _SPLITS[split] if name in names), None)
    if chosen is None:
        have = ", ".join(names) or "none"
        raise InputError(f"data set {spec!r} has the splits {have}; name one: ID:CONFIG:SPLIT or ID::SPLIT")
    return chosen


def _first(rows: Any, column: str | None) -> Iterator[Mapping[str, Any]]:
    length = 0
    for row in rows:
        own = row if column is None else _column(row, column)
        yield own
        if is_example(own):
            length += len(repr(own))
        elif not {"text", "input_ids"} & set(own):
            return  # one row is enough for `from_rows` to name its fields
        length += len(own.get("text") or "") + 4 * len(own.get("input_ids") or "")
        if length >= LONGEST:
            return


def _column(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """A row with one of its columns only, under the name of what it holds.

    Raises:
        InputError: there's no such column.
    """
    if column not in row:
        raise InputError(f"the data set has no column {column!r}; its columns: {', '.join(map(repr, row))}")
    value = row[column]
    if not isinstance(value, list):
        return {"text": value}
    if not value or not isinstance(value[0], dict):
        return {"input_ids": value}
    return {"messages" if "role" in value[0] else "conversations": value}


def _reachable(name: str) -> bool:
    """Whether the hub answers when asked for this data set, whatever it says. `datasets` would try for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(name, timeout=PATIENCE)
    except (HfHubHTTPError, ValueError):
        return True  # `datasets` says why
    except Exception:  # what the HTTP client raises has changed with its versions
        return False
    return True

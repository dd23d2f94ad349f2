"""Opens the data that a user names: a file, the standard library's text, or a data set of the hub.

FILE.jsonl             one JSON object a line with `text`, or with `input_ids` (tokenised already)
FILE.json, .csv, .jsonl.gz, .jsonl.zst   rows of the same, see `rows`
FILE.txt               one running text
task:FILE              the questions of a task with their right answers, see `tasks`
FILE.parquet           a column `text` or `input_ids`, one document a row
stdlib[:prose|:code]   text of the running Python installation; without a domain, both
[ORG/]NAME[:CONFIG][:SPLIT][:COLUMN]  a data set of the Hugging Face hub; the only case that uses the network
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

from secateur.data import hub, stdlib
from secateur.data.conversations import is_example
from secateur.data.corpus import Corpus, from_rows, from_texts, of_examples
from secateur.data.rows import FORMATS, check_size, format_of, read_rows, utf8
from secateur.data.stdlib import Split
from secateur.data.tasks import check_tasks, examples_of, is_file, read_task
from secateur.errors import InputError, install

KINDS = ".jsonl, .txt or .parquet"
TASK = "task:"


def load_corpus(spec: str, split: Split = "train") -> Corpus:
    """Reads the documents that `spec` names (see the head of this file for its forms).

    Args:
        spec: a path, `stdlib`, or a hub id. An existing path always wins over a hub id of the same name.
        split: "train" for calibration, "held_out" for evaluation. A file is one thing and ignores it;
            `stdlib` and a hub id without a split of its own choose by it.

    Raises:
        InputError: the source is missing, empty, not UTF-8, malformed, or has no document in it.
    """
    check_there(spec)
    if spec == "stdlib" or spec.startswith("stdlib:"):
        return _stdlib(spec, split)
    if spec.startswith(TASK):
        task = read_task(spec.removeprefix(TASK))
        return of_examples(spec, examples_of(task), task.sha256)
    path = Path(spec).expanduser()
    return _file(spec, path) if _is(path, "exists") else hub.load(spec, split)


def check_there(spec: str) -> None:
    """Refuses a source that can't be read, as far as its name tells; reads nothing.

    Raises:
        InputError: no such file, or a folder.
    """
    if spec == "stdlib" or spec.startswith("stdlib:"):
        return
    if spec.startswith(TASK):
        check_task(spec)
        return
    path = Path(spec).expanduser()
    if spec and _is(path, "dir"):
        raise InputError(f"{spec} is a folder; give one {KINDS} file in it")
    if not (spec and _is(path, "exists")) and not hub.is_hub_id(spec):
        raise InputError(f"data file {spec!r} does not exist; give a {KINDS} file, or use 'stdlib'")


def check_task(spec: str) -> None:
    """Refuses `task:FILE` without such a file."""
    name = spec.removeprefix(TASK)
    if not is_file(name):
        raise InputError(f"{spec!r} names no file of questions; give task:FILE with a {', '.join(FORMATS)} file")
    check_tasks([name])


def _is(path: Path, what: str) -> bool:
    try:
        return path.is_dir() if what == "dir" else path.exists()
    except (OSError, ValueError):  # too long for a name, or holds a null byte
        return False


def _stdlib(spec: str, split: Split) -> Corpus:
    domain = spec.partition(":")[2]
    if spec != "stdlib" and domain not in get_args(stdlib.Domain):
        raise InputError(f"{spec!r} names no domain of stdlib; use stdlib, stdlib:prose or stdlib:code")
    domains = [name for name in get_args(stdlib.Domain) if domain in ("", name)]
    corpus = from_texts(spec, [text for name in domains for text in stdlib.documents(name, split)])
    return replace(corpus, shipped=True)


def _file(spec: str, path: Path) -> Corpus:
    readers = {".txt": _txt, ".parquet": _parquet}
    reader = _rows if format_of(path) is not None else readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{spec} is no data file that can be read; give a {KINDS} file")
    try:
        check_size(spec, path)
        return reader(spec, path)
    except OSError as error:
        raise InputError(f"{spec} can't be read: {error.strerror or error}") from None


def _txt(spec: str, path: Path) -> Corpus:
    raw = path.read_bytes()
    text = utf8(spec, raw)
    if not text.strip():
        raise InputError(f"{spec} holds nothing but white space; give a file with text")
    return Corpus(spec, hashlib.sha256(raw).hexdigest(), documents=(text,), stream=True)


def _rows(spec: str, path: Path) -> Corpus:
    found = read_rows(spec, path)
    return from_rows(spec, found.rows, found.sha256)


def _parquet(spec: str, path: Path) -> Corpus:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{spec}: reading .parquet needs pyarrow; run {install('data')}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            columns = [name for name in ("text", "input_ids") if name in names][:1]
            columns = columns or (names if is_example(dict.fromkeys(names)) else [])
            if not columns:
                have = ", ".join(map(repr, names)) or "none"
                raise InputError(f"{spec}: no 'text' (or 'input_ids') column; its columns: {have}")
            batches = file.iter_batches(columns=columns)
            values = [row for batch in batches for row in batch.to_pylist()]
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{spec} is not a whole parquet file: {reason}") from None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return from_rows(spec, ((f"row {n}", row) for n, row in enumerate(values, 1)), digest)

"""Text that every Python installation carries: a prose and a code corpus with no download.

Two domains, both read from the standard library of the running interpreter:

    prose   the documentation topics behind `help()`, and the docstrings of the library's source files
    code    the same source files with their docstrings cut out, comments kept

Source files are parsed, never imported. A file (or a topic) is held out when the hash of its name says so,
so the docstrings and the code of one file always lie on the same side, on every machine and every day.

Parsing the library takes most of a minute on a slow machine, and a draw of sequences needs the length of all of it.
So what was parsed is kept in the user's cache, until a file of the library or this module changes.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from secateur.data.cache import kept_pairs
from secateur.errors import InputError, ResourceError
from secateur.report.terminal.listening import tell

Domain = Literal["prose", "code"]
Split = Literal["train", "held_out"]

HELD_OUT_ONE_IN = 16  # files are of unequal length: this holds out about 5 % of the bytes
SHORTEST = 200  # characters; below it a document is a one-line docstring that teaches nothing

# Installed packages are not the standard library, and tests are mostly literals.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "test", "tests", "idle_test", "testmock"}
)
# Tables written as Python. The topics of pydoc are read as prose instead.
_SKIPPED_FILES = re.compile(
    r"pydoc_data/|html/entities\.py|stringprep\.py|_sysconfigdata|msilib/(schema|sequence)\.py|"
    r"encodings/(?!__init__|idna|punycode|utf_8)|tkinter/constants\.py|(^|/)_?test[^/]*\.py$"
)
_GENERATED = re.compile(r"^#.*(auto-?(matically )?generated|generated (by|from))", re.IGNORECASE | re.MULTILINE)
_LONG_PARAGRAPH = 80  # characters; a shorter paragraph may recur by chance


def documents(domain: Domain, split: Split) -> list[str]:
    """The texts of one domain and one split, in a fixed order (by path, then by topic name).

    A `prose` document is every docstring of one file, joined by blank lines, or one documentation topic.
    A `code` document is a whole file without its docstrings; it is still valid Python.

    Raises:
        InputError: `domain` or `split` is not one of the two names.
        ResourceError: the interpreter carries no standard library source (for example a zipped one).
    """
    for name, value, allowed in (("domain", domain, Domain), ("split", split, Split)):
        if value not in get_args(allowed):
            raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(get_args(allowed))}")
    found = _documents(domain, split)
    if not found:
        raise ResourceError(
            f"no standard library source under {_root()}; install Python with its library as plain .py files"
        )
    return list(found)


def files(split: Split) -> list[Path]:
    """Source files of one split, sorted by their path relative to the standard library."""
    root = _root()
    names = sorted(path.relative_to(root).as_posix() for path in _source_files(root))
    return [root / name for name in names if _is_held_out(name) == (split == "held_out")]


def topic_names(split: Split) -> list[str]:
    """Names of the documentation topics of one split, sorted. Empty where the interpreter carries none."""
    return [name for name in sorted(_topics()) if _is_held_out(f"topic:{name}") == (split == "held_out")]


@lru_cache(maxsize=4)
def _documents(domain: Domain, split: Split) -> tuple[str, ...]:
    texts = [code if domain == "code" else prose for prose, code in _extracted(split)]
    if domain == "prose":
        texts += [_topics()[name] for name in topic_names(split)]
        if split == "train":
            texts = _without(texts, _long_paragraphs(_documents("prose", "held_out")))
    return tuple(text.strip() + "\n" for text in texts if len(text.strip()) >= SHORTEST)


@lru_cache(maxsize=2)
def _extracted(split: Split) -> list[tuple[str, str]]:
    """(docstrings, code) of each file of a split."""
    return kept_pairs(
        f"stdlib-{split}", _key(split), lambda: [(_docstrings(t), _code(s, t)) for s, t in _parsed(split)]
    )


def _key(split: Split) -> str:
    """A hash of all that decides what is extracted: interpreter, this module, and name, size and time of files."""
    total = hashlib.sha256(f"{sys.version} {_root()} {split}".encode() + Path(__file__).read_bytes())
    for path in files(split):
        about = path.stat()
        total.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return total.hexdigest()[:32]


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _is_held_out(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def _source_files(root: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED_FOLDERS]  # site-packages can be huge
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            if not _SKIPPED_FILES.search(path.relative_to(root).as_posix()):
                yield path


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package the topics apart
        return {}
    return topics


def _parsed(split: Split) -> Iterator[tuple[str, ast.Module]]:
    found = files(split)
    for number, path in enumerate(found):
        tell("reading Python's own files", number, len(found))
        try:
            with tokenize.open(path) as stream:  # honours the file's own coding line
                text = stream.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in old modules are not the caller's concern
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue  # templates and broken-on-purpose files: not text of this interpreter
        if not _GENERATED.search(text[:600]):
            yield text, tree


def _docstring_nodes(tree: ast.Module) -> list[tuple[ast.AST, ast.Expr]]:
    """(owner, docstring statement) of the module, its classes and its functions, in source order."""
    found: list[tuple[ast.AST, ast.Expr]] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        # No definition hides in an expression, and expressions are most of the tree.
        waiting += (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
            found.append((node, first))
    return sorted(found, key=lambda pair: pair[1].lineno)


def _docstrings(tree: ast.Module) -> str:
    texts = (inspect.cleandoc(ast.literal_eval(statement.value)) for _, statement in _docstring_nodes(tree))
    return "\n\n".join(text for text in texts if text)


def _code(text: str, tree: ast.Module) -> str:
    # Not splitlines(): Python counts lines by newline alone, and old modules hold form feeds.
    lines: list[str | None] = list(text.split("\n"))
    for owner, statement in _docstring_nodes(tree):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before = (lines[first] or "")[: statement.col_offset]
        after = (lines[last] or "").encode()[statement.end_col_offset or 0 :].strip()
        if before.strip() or after:
            continue  # shares its line with other code
        alone = len(getattr(owner, "body", ())) == 1 and not isinstance(owner, ast.Module)
        lines[first : last + 1] = [None] * (last + 1 - first)
        lines[first] = f"{before}..." if alone else None  # a body must not become empty
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(line for line in lines if line is not None))


def _long_paragraphs(texts: tuple[str, ...]) -> frozenset[str]:
    paragraphs = (part.strip() for text in texts for part in text.split("\n\n"))
    return frozenset(part for part in paragraphs if len(part) >= _LONG_PARAGRAPH)


def _without(texts: list[str], held_out: frozenset[str]) -> list[str]:
    """Drops what is also held out: topics quote each other, and so do docstrings of parallel classes."""
    return ["\n\n".join(p for p in text.split("\n\n") if p.strip() not in held_out) for text in texts]

"""The corpus of the running interpreter: disjoint, deterministic, parsed and not imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import get_args

import pytest

from secateur.data import stdlib
from secateur.errors import InputError, ResourceError

FILE = '''"""Module text, long enough to be told from the code around it."""

import os


# A comment stays.
class Thing:
    """Class text.

    Second paragraph.
    """

    size = "plain string"

    def only(self):
        """A body of nothing else."""

    async def more(self):
        r"""Raw \\d text."""
        return os.name


def inline(): """Shares its line."""
'''


def test_splits_share_no_file_and_no_topic():
    train, held_out = stdlib.files("train"), stdlib.files("held_out")
    assert set(train).isdisjoint(held_out)
    assert 0.03 < len(held_out) / len(train + held_out) < 0.10
    assert set(stdlib.topic_names("train")).isdisjoint(stdlib.topic_names("held_out"))


def test_a_file_keeps_its_side_whatever_its_neighbours():
    # Fixed by the hash of the path: these must never move, or the embedded model has seen what it is tested on.
    root = stdlib._root()
    inside = [path.relative_to(root).as_posix() for path in stdlib.files("held_out")]
    assert {"base64.py", "copy.py", "random.py", "traceback.py"} <= set(inside)
    assert not {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} & set(inside)


@pytest.mark.parametrize("domain", get_args(stdlib.Domain))
@pytest.mark.parametrize("split", get_args(stdlib.Split))
def test_every_part_holds_text(domain, split):
    texts = stdlib.documents(domain, split)
    size = sum(len(text.encode()) for text in texts)
    assert size > (500_000 if split == "train" else 50_000)
    assert min(len(text) for text in texts) >= stdlib.SHORTEST
    assert len(set(texts)) == len(texts)


def test_held_out_prose_is_in_no_train_document():
    held_out = stdlib._long_paragraphs(tuple(stdlib.documents("prose", "held_out")))
    train = stdlib._long_paragraphs(tuple(stdlib.documents("prose", "train")))
    assert held_out
    assert held_out.isdisjoint(train)


def test_same_text_in_a_fresh_interpreter_with_no_network_and_no_import_of_what_it_reads(tmp_path):
    script = (
        "import hashlib, socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from secateur.data.stdlib import documents\n"
        "texts = documents('code', 'held_out')\n"
        "assert not {'turtle', 'this', 'antigravity', 'idlelib.editor'} & set(sys.modules)\n"
        "print(hashlib.sha256('\\0'.join(texts).encode()).hexdigest())\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": ":".join(filter(None, sys.path)),
                "XDG_CACHE_HOME": str(tmp_path / seed),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_docstrings_go_to_prose_and_code_stays_valid():
    tree = ast.parse(FILE)
    prose, code = stdlib._docstrings(tree), stdlib._code(FILE, tree)
    assert prose.split("\n\n") == [
        "Module text, long enough to be told from the code around it.",
        "Class text.",
        "Second paragraph.",
        "A body of nothing else.",
        "Raw \\d text.",
        "Shares its line.",
    ]
    ast.parse(code)
    assert "# A comment stays." in code
    assert "plain string" in code
    assert "    def only(self):\n        ...\n" in code
    for text in ("Module text", "Class text", "Second paragraph", "nothing else", "Raw"):
        assert text not in code


def test_form_feeds_and_wide_characters_do_not_shift_lines():
    text = 'x = "é"\n\x0c\ndef f():\n    """Gone."""\n    return "kept"\n'
    code = stdlib._code(text, ast.parse(text))
    assert "Gone" not in code
    assert 'return "kept"' in code


def test_code_documents_are_python():
    texts = stdlib.documents("code", "held_out")
    assert texts
    for text in texts:
        compile(text, "<document>", "exec", ast.PyCF_ONLY_AST, dont_inherit=True)


def test_unknown_names_are_refused_in_one_line():
    with pytest.raises(InputError, match="domain 'poetry' is unknown; choose one of prose, code"):
        stdlib.documents("poetry", "train")
    with pytest.raises(InputError, match="split 'test' is unknown"):
        stdlib.documents("prose", "test")


def test_an_interpreter_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib, "_root", lambda: tmp_path)
    forget()
    try:
        with pytest.raises(ResourceError, match="no standard library source"):
            stdlib.documents("code", "train")
    finally:
        forget()


def forget():
    stdlib._documents.cache_clear()
    stdlib._extracted.cache_clear()


def test_what_was_parsed_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    library, parsed = tmp_path / "library", []
    library.mkdir()
    for name in ("argparse.py", "copy.py"):  # one to train on, one held out
        (library / name).write_text(FILE + "\n# more\nx = 1\n" * 20, encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stdlib, "_root", lambda: library)
    monkeypatch.setattr(stdlib, "_topics", dict)
    original = stdlib._parsed
    monkeypatch.setattr(stdlib, "_parsed", lambda split: parsed.append(split) or original(split))

    def read():
        forget()
        return stdlib.documents("code", "train"), stdlib.documents("code", "held_out")

    try:
        first = read()
        assert sorted(parsed) == ["held_out", "train"]
        assert read() == first
        assert len(parsed) == 2
        (kept,) = (tmp_path / "cache" / "secateur" / "stdlib-train").iterdir()
        kept.write_bytes(kept.read_bytes()[:-3])  # not whole: made anew
        assert read() == first
        assert parsed[2:] == ["train"]
        (library / "argparse.py").write_text(FILE + "y = 2\n" * 50, encoding="utf-8")
        assert "y = 2" in read()[0][0]
        (tmp_path / "cache").chmod(0o500)
        assert "y = 2" in read()[0][0]
    finally:
        (tmp_path / "cache").chmod(0o700)
        forget()

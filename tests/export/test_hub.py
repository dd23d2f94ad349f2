"""The hub: what would go, what does, and never without a token. No test asks the hub: a server here stands in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import secateur
from secateur.errors import InputError, ResourceError
from secateur.export.hub import card_of, upload
from tests.export.hub_server import TOKEN, HubServer, serving
from tests.small import save_tiny

TOLD = secateur.make_export({"to": "hub", "repo": "org/name"})


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "small")
    (folder / "README.md").write_text(
        "---\nlibrary_name: transformers\ntags:\n- pruning\nbase_model: org/parent\n---\n# Small, pruned\n",
        encoding="utf-8",
    )
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n", encoding="utf-8")
    report = {"calibration": {"source": "org/texts:en"}}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "events.jsonl").write_text("{}\n", encoding="utf-8")
    (folder / ".cache").mkdir()
    return folder


class Hub:
    """Stands in for the hub's client."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.made: list[Any] = []
        self.sent: dict[str, str] = {}
        self.tokens: list[Any] = []

    def __call__(self, token: str) -> Hub:
        self.tokens.append(token)
        return self

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
        if self.fails:
            raise RuntimeError("403 Forbidden\nmore")
        self.made.append((repo, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
        self.sent = {path.name: path.read_text("utf-8", "replace") for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"https://example.org/{repo_id}")


def test_a_dry_run_shows_what_would_go(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    found = upload(result, TOLD, dry_run=True)
    held = {file["name"] for file in found["files"]}
    assert held >= {"README.md", "LICENSE", "config.json", "model.safetensors", "tokenizer.json", "report.json"}
    assert not {"events.jsonl", ".cache"} & held
    assert found["metadata"]["tags"] == ["pruning", "pruned", "secateur"]
    assert found["metadata"]["license"] == "apache-2.0"
    assert found["metadata"]["base_model"] == "org/parent"
    assert found["metadata"]["datasets"] == ["org/texts"]
    assert found["url"] is None


def test_nothing_goes_without_a_token(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="no token for the hub"):
        upload(result, TOLD)
    assert not hub.tokens


def test_a_folder_goes_with_its_card(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    before = (result / "README.md").read_text(encoding="utf-8")
    assert upload(result, TOLD)["url"] == "https://example.org/org/name"
    assert hub.made == [("org/name", True, True)]
    assert "license: apache-2.0" in hub.sent["README.md"]
    assert "# Small, pruned" in hub.sent["README.md"]
    assert (result / "README.md").read_text(encoding="utf-8") == before
    assert "model.safetensors" in hub.sent


def test_what_the_hub_refuses_is_told_in_a_line(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub(fails=True))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    with pytest.raises(ResourceError, match=r"org/name: the hub doesn't take it \(403 Forbidden\)"):
        upload(result, TOLD)


def test_a_card_is_made_where_there_is_none(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "small")
    (folder / "LICENSE").write_text("All rights reserved", encoding="utf-8")
    card, metadata = card_of(folder)
    assert metadata["license"] == "other"
    assert card.startswith("---\n")
    (folder / "README.md").write_text("---\n[1, 2\n---\n", encoding="utf-8")
    with pytest.raises(InputError, match="isn't YAML that the hub takes"):
        card_of(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server that the hub's own client sends to; a token of a user of it is there."""
    with serving() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
        yield server


def test_a_server_gets_every_file_as_it_is(result: Path, hub: HubServer) -> None:
    """By huggingface_hub's own client, over HTTP: once into a new repository, once into one that is there."""
    (result / "additional_chat_templates").mkdir()
    (result / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}", encoding="utf-8")
    told = upload(result, TOLD)
    assert hub.repositories["org/name"]["visibility"] == "private"
    assert hub.messages == ["Pruned with Secateur"]
    assert told["url"] == f"{hub.url}/org/name/commit/{'0' * 40}"
    assert set(hub.files) == {file["name"] for file in told["files"]}
    assert "additional_chat_templates/tool.jinja" in hub.files
    for name, data in hub.files.items():
        if name != "README.md":
            assert data == (result / name).read_bytes(), name
    assert b"base_model: org/parent" in hub.files["README.md"]
    assert upload(result, TOLD)["url"] == told["url"]


def test_a_wrong_token_is_told_in_a_line(result: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_of_somebody_else")
    with pytest.raises(ResourceError, match="org/name: the hub doesn't take it") as refused:
        upload(result, TOLD)
    assert "\n" not in str(refused.value)
    assert not hub.files

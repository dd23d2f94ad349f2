"""Names of models, and what the hub answers; the hub itself is never asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from secateur.cli.app import main
from secateur.errors import InputError
from secateur.model.hub import at_revision, local_folder
from tests.cases import case
from tests.small import save_tiny


def of_the_hub(kind: type[Exception]) -> Exception:
    """An error as the client raises it: several lines, of which the first is a status."""
    return kind(
        "401 Client Error. (Request ID: Root=1)\n\nfor url: https://...",
        response=SimpleNamespace(headers={}, request=None),
    )  # type: ignore[call-arg]


REFUSALS: list[tuple[Exception, str | None, str]] = [
    (
        of_the_hub(errors.GatedRepoError),
        None,
        "is gated; accept its terms on its page, https://huggingface.co/org/name",
    ),
    (of_the_hub(errors.GatedRepoError), "hf_x", "the token in use has no access; ask for it"),
    (of_the_hub(errors.RepositoryNotFoundError), None, "no such model on the hub, or a private one"),
    (of_the_hub(errors.RevisionNotFoundError), None, "has no revision 'v2' of it"),
    (OSError("no route\nto host"), None, "the hub doesn't give it (no route)"),
]


def test_what_the_hub_refuses_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    for error, token, says in REFUSALS:

        def refuse(*_: Any, error: Exception = error, **__: Any) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
        monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
        with case(says), pytest.raises(InputError) as refused:
            local_folder("org/name@v2")
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith("org/name: ")


def test_a_revision_reaches_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def download(name: str, revision: str | None = None, **_: Any) -> str:
        asked.append((name, revision))
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "org/name", "--revision", "refs/pr/3", "--json"])
    assert ended.value.code == 0
    assert asked == [("org/name", "refs/pr/3")]
    for words, says in (
        (["inspect", str(model), "--revision", "v2"], "is of models of the hub"),
        (["inspect", "embedded", "--revision", "v2"], "is of models of the hub"),
        (["inspect", "org/name@v1", "--revision", "v2"], "names a revision already"),
        (["prune", "--recipe", "r.yaml", "--revision", "v2", "--out", "x"], "write model: org/name@v2"),
    ):
        capsys.readouterr()
        with case(*words), pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert says in capsys.readouterr().err
    assert len(asked) == 1
    assert at_revision("https://huggingface.co/org/name", "v2") == "org/name@v2"
    with pytest.raises(InputError, match="a branch, a tag or a commit"):
        at_revision("org/name", "v 2\n")

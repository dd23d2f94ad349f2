"""A result on the Hugging Face hub: its folder, with a card that says what it was made from."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from secateur.config.export import Export
from secateur.errors import InputError, ResourceError
from secateur.model.checkpoint import Checkpoint
from secateur.model.json_files import short
from secateur.model.licence import licence_of
from secateur.report.schema.export import Upload
from secateur.workspace.ownership import EXPORT, contents, is_regular

CARD = "README.md"
TAGS = ("pruned", "pruning", "secateur")
# What of a finished run stays at home: its journals, and what an export has made of it.
AT_HOME = ("events.jsonl", "runs", EXPORT)


def upload(folder: Path, told: Export, *, dry_run: bool = False) -> Upload:
    """Sends a folder to a repository of the hub, which is made if it isn't there.

    Args:
        dry_run: only say what would go; asks nobody, and needs no token.

    Raises:
        InputError: the folder is no model, or there is no token.
        ResourceError: the hub refuses, or can't be reached.
    """
    from huggingface_hub import get_token

    Checkpoint.open(folder)  # whole, and of a known kind
    files = sorted(name for name in contents(folder) if _goes(folder, name))
    card, metadata = card_of(folder)
    token = get_token()
    if not dry_run and token is None:
        raise InputError("no token for the hub; hf auth login, or HF_TOKEN, gives one; --dry-run shows what would go")
    found: Upload = {
        "repo": str(told.repo),
        "private": told.private,
        "dry_run": dry_run,
        "files": [{"name": name, "bytes": (folder / name).stat().st_size} for name in files],
        "metadata": metadata,
        "url": None,
    }
    if not dry_run:
        found["url"] = _send(folder, files, card, told, str(token))
    return found


def _goes(folder: Path, name: str) -> bool:
    return is_regular(folder, name) and not name.startswith(".") and name.split("/")[0] not in AT_HOME


def _send(folder: Path, files: list[str], card: str, told: Export, token: str) -> str:
    """Makes the repository and sends the files in one commit."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="secateur-") as place:
        for name in (name for name in files if name != CARD):
            link = Path(place) / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to((folder / name).resolve())
        (Path(place) / CARD).write_text(card, encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(str(told.repo), private=told.private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=str(told.repo), folder_path=place, commit_message="Pruned with Secateur"
            )
        except Exception as error:  # the hub's client raises many kinds
            raise ResourceError(f"{told.repo}: the hub doesn't take it ({short(error)})") from None
    return str(commit.commit_url)


def card_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The folder's card with the hub's metadata completed: tags, licence, data set, base model; and that metadata."""
    from huggingface_hub import ModelCard

    written = (folder / CARD).read_text(encoding="utf-8") if is_regular(folder, CARD) else "# A pruned model\n"
    try:
        card = ModelCard(written, ignore_metadata_errors=True)
    except Exception as error:
        raise InputError(f"{folder / CARD}: its header isn't YAML that the hub takes ({short(error)})") from None
    data: dict[str, Any] = dict(card.data.to_dict())
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *TAGS]))
    data.setdefault("library_name", "transformers")
    licence = data.get("license") or licence_of(folder)
    if licence is not None:
        data["license"] = licence
    source = _data_set(folder)
    if source is not None:
        data.setdefault("datasets", [source])
    for key, value in data.items():
        setattr(card.data, key, value)
    return str(card), data


def _data_set(folder: Path) -> str | None:
    """The hub id of the calibration's data; a file of somebody's machine is none."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        source = str(report["calibration"]["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    from secateur.data.hub import is_hub_id

    return source.split(":")[0] if "/" in source and is_hub_id(source) and not Path(source).exists() else None

"""What a user may call a model: a folder, a GGUF file, `embedded`, or a hub id (which alone uses the network)."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.data.embedded import embedded_path
from secateur.errors import InputError
from secateur.model.gguf import folder_of_gguf, is_gguf
from secateur.model.remote_code import allowed

EMBEDDED = "embedded"
_REVISION = re.compile(r"[\w][\w./-]{0,199}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|blob)/main)?/?(?:[?#].*)?"
)
# Weights as safetensors, and small text files; code only where it may be run, never pickles.
_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "*POLICY*"]
_WANTED = ["*.safetensors", *_TEXTS]


def id_of(model: str) -> str:
    """The hub id in an address as a browser shows it; every other name as it is.

    >>> id_of("https://huggingface.co/org/name/tree/main")
    'org/name'
    """
    found = _ADDRESS.fullmatch(model.strip())
    return found[1] if found else model


def at_revision(model: str, revision: str | None) -> str:
    """The name of a model of the hub with its revision, `org/name@revision`; without one the name as it is.

    Raises:
        InputError: the model isn't of the hub, or names a revision itself.
    """
    if revision is None:
        return model
    name, _, own = id_of(model).partition("@")
    if own:
        raise InputError(f"--revision {revision}: {model} names a revision already; give one of them")
    if name == EMBEDDED or not _is_id(name):
        raise InputError(f"--revision {revision} is of models of the hub, and {model} isn't one; leave it away")
    if not _REVISION.fullmatch(revision):
        raise InputError(f"--revision {revision[:60]}: give a branch, a tag or a commit")
    return f"{name}@{revision}"


def local_folder(model: str | Path) -> Path:
    """Finds the folder of a model, and fetches a model of the hub if need be.

    An existing path always wins (a GGUF file becomes a folder in the user's cache); then `embedded`, the model that
    comes with the package; then a hub id `org/name`, or `org/name@revision`, fetched or taken from the local
    cache. A name whose first part is a folder here is taken for a path.

    Raises:
        InputError: a path that isn't there, or a hub id that can't be fetched.
    """
    path = Path(model).expanduser()
    if is_gguf(path):
        return folder_of_gguf(path)
    if path.exists():
        return path
    if str(model) == EMBEDDED:
        return embedded_path()
    name, _, revision = id_of(str(model)).partition("@")
    if not _is_id(name):
        raise InputError(f"{name}: no such folder; give a model folder, 'embedded' or a hub id like org/name")
    from huggingface_hub import snapshot_download

    try:
        wanted = [*_WANTED, "*.py"] if allowed() else _WANTED
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many kinds: offline, gated, unknown
        raise InputError(f"{name}: {_refusal(error, name, revision)}") from None


def _is_id(name: str) -> bool:
    """Whether a name is meant for the hub; one whose first part is a folder here is a path."""
    return bool(_HUB_ID.fullmatch(name) and Path(name).parts[0] not in (".", "..") and not Path(name).parent.exists())


def _refusal(error: Exception, name: str, revision: str) -> str:
    """Why the hub doesn't give a model, and what would work."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{name}"
    if isinstance(error, errors.GatedRepoError):  # one of the next kind
        if get_token() is None:
            return f"is gated; accept its terms on its page, {page}, and put a token of yours into HF_TOKEN"
        return f"is gated, and the token in use has no access; ask for it on its page, {page}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such folder, and no such model on the hub, or a private one; see how it's spelled, or put a token "
            "that may read it into HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision '{revision}' of it; {page}/tree/main lists branches, tags and commits"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"no such folder, and the hub doesn't give it ({reason})"

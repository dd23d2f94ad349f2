"""What a user may call a model: a folder, a GGUF file, `embedded`, or a hub id (which alone uses the network)."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.data.embedded import embedded_path
from secateur.errors import InputError
from secateur.model.gguf import folder_of_gguf, is_gguf

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|blob)/main)?/?(?:[?#].*)?"
)
# Weights as safetensors, and small text files; never code, never pickles.
_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "*POLICY*"]
_WANTED = ["*.safetensors", *_TEXTS]


def id_of(model: str) -> str:
    """The hub id in an address as a browser shows it; every other name as it is.

    >>> id_of("https://huggingface.co/org/name/tree/main")
    'org/name'
    """
    found = _ADDRESS.fullmatch(model.strip())
    return found[1] if found else model


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
    if not _HUB_ID.fullmatch(name) or Path(name).parts[0] in (".", "..") or Path(name).parent.exists():
        raise InputError(f"{name}: no such folder; give a model folder, 'embedded' or a hub id like org/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:  # the hub client raises many kinds: offline, gated, unknown
        if "gated" in type(error).__name__.lower():
            raise InputError(
                f"{name}: is gated; accept its terms on its page, and put a token of yours into HF_TOKEN"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: no such folder, and the hub doesn't give it ({reason})") from None

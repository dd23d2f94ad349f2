"""What `secateur export` tells, as data."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict


class ExportedFile(TypedDict):
    """A file of the export."""

    name: str
    bytes: int


class ClientProof(TypedDict):
    """What the exported model did in a client, against transformers.

    `ran` is false where the client isn't installed; `why_not` then says so. `ties` counts prompts on which the first
    token that differs is as likely as the one of transformers, within the arithmetic's error.
    """

    client: str
    version: str | None
    ran: bool
    why_not: str | None
    prompts: int
    new_tokens: int
    prompts_alike: int
    ties: int
    tokens_alike: int
    texts: int
    texts_alike: int
    max_logit_difference: float | None


class TensorProof(TypedDict):
    """What reading the file again gave: every tensor against the model's."""

    tensors: int
    largest_error: float
    allowed: float


class Exported(TypedDict):
    """`export --json`, and export.json beside the files."""

    model: str
    to: str
    out: str
    architecture: str
    type: str | None
    files: list[ExportedFile]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    read_back: TensorProof | None
    client: ClientProof | None
    seconds: float
    warnings: list[str]


class ExportMark(TypedDict):
    """report.json of a folder that an export has made."""

    secateur: str
    export: Exported
    files: list[str]


class Upload(TypedDict):
    """`export --to hub --json`: what went to a repository, or would go."""

    repo: str
    private: bool
    dry_run: bool
    files: list[ExportedFile]
    metadata: dict[str, Any]
    url: str | None

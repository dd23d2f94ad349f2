"""`secateur export` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secateur.cli.options import Json, Out, Overwrite, Quiet, Revision, Trust, flags, output
from secateur.config.export import Export, make_export
from secateur.errors import InputError
from secateur.system.display import starting


@flags(Export)
def export(
    model: Annotated[str, typer.Argument(help="model folder, 'embedded', or a hub id", show_default=False)],
    *,
    given: Mapping[str, Any],
    revision: Revision = None,
    trust_remote_code: Trust = False,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, output("--dry-run", help="hub: show what would go, send nothing")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model as llama.cpp, ONNX Runtime, OpenVINO or a stock class takes it, and prove it there."""
    told = make_export(given)
    if told.to != "hub" and out is None:
        raise InputError("no output folder given; add --out DIR")
    if told.to == "hub" and out is not None:
        raise InputError("--to hub writes no folder; leave --out away")
    if dry_run and told.to != "hub":
        raise InputError("--dry-run is for --to hub; leave it away")
    from secateur.model.hub import at_revision, local_folder

    folder = local_folder(at_revision(model, revision))
    from secateur.report.terminal.export import print_exported, print_upload

    if told.to == "hub":
        with starting(quiet or as_json):
            from secateur.export.hub import upload

        sent = upload(folder, told, dry_run=dry_run)
        print(json.dumps(sent, indent=1)) if as_json else print_upload(sent)
        return
    assert out is not None
    with starting(quiet or as_json):
        from secateur.export.export import export as run

    found = run(model, out, told, overwrite=overwrite, quiet=quiet or as_json)
    print(json.dumps(found, indent=1)) if as_json else print_exported(found)

"""What `secateur export` shows."""

from __future__ import annotations

from secateur.report import numbers as fmt
from secateur.report.schema.export import ClientProof, Exported, Upload
from secateur.report.terminal.console import Console
from secateur.report.terminal.table import Column, Table


def print_exported(found: Exported, console: Console | None = None) -> None:
    """What was written, and how it was proved."""
    console = console or Console(markup=False, highlight=False)
    table = Table("", Column("", wraps=24), "", header=False)
    table.add_row("made for", found["architecture"], found["type"] or "")
    before, after = found["bytes_before"], found["bytes_after"]
    table.add_row("weights", f"{fmt.size(before)} → {fmt.size(after)}", fmt.ratio(after / before))
    parameters = found["parameters_before"], found["parameters_after"]
    table.add_row("parameters", f"{parameters[0]:,} → {parameters[1]:,}", "")
    proof = found["read_back"]
    if proof is not None:
        told = "the same" if proof["largest_error"] == 0 else f"within {proof['largest_error']:.1e}"
        table.add_row("read back", f"{proof['tensors']} tensors, {told}", "")
    if found["client"] is not None:
        table.add_row(found["client"]["client"], proved(found["client"]), "")
    console.print(table)
    for warning in found["warnings"]:
        console.print(f"note: {warning}")
    console.print(f"\n{found['out']} is ready ({fmt.seconds(found['seconds'])})")


def _told(value: object) -> str:
    """A value of the card's header; of what isn't a plain list, how many there are."""
    if not isinstance(value, list):
        return str(value)
    results = sum(len(entry.get("results", ())) for entry in value if isinstance(entry, dict))
    return f"{results} results" if results else ", ".join(map(str, value))


def proved(client: ClientProof) -> str:
    """A client's proof in a line."""
    if not client["ran"]:
        return f"not run: {client['why_not']}"
    parts = [f"{client['tokens_alike']} of {client['new_tokens']} tokens as in transformers"]
    if client["ties"]:
        parts.append(f"{client['ties']} prompts tied")
    if client["texts"]:
        parts.append(f"{client['texts_alike']} of {client['texts']} texts tokenised alike")
    if client["max_logit_difference"] is not None:
        parts.append(f"logits within {client['max_logit_difference']:.1e}")
    return f"{', '.join(parts)} (version {client['version']})"


def print_upload(found: Upload, console: Console | None = None) -> None:
    """What went to the hub, or would go."""
    console = console or Console(markup=False, highlight=False)
    table = Table("", Column("", right=True), header=False)
    for file in found["files"]:
        table.add_row(file["name"], fmt.size(file["bytes"]))
    console.print(table)
    for key, value in found["metadata"].items():
        console.print(f"{key}: {_told(value)}", soft_wrap=True)
    where = f"{found['repo']} ({'private' if found['private'] else 'public'})"
    console.print(f"\n{'would go' if found['dry_run'] else 'went'} to {where}")

"""Cards of what is made from a model without pruning it: compressed weights, and the forms of other programs.

Each begins with what it is, how it's loaded and what was proved; the card of the model that it was made from follows.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from secateur.report import numbers as fmt
from secateur.report.schema.export import ClientProof, Exported
from secateur.report.schema.model import Compressed

MARK = "<!-- secateur: what follows is the card of the model that this was made from -->"
COMPRESSED = "compressed"
# what it's called, what runs it, and how: the language and a line of it
_PROGRAMS = {
    "gguf": ("GGUF", "llama.cpp and what is built on it", "sh", "llama-cli -m {file}"),
    "onnx": ("ONNX", "ONNX Runtime", "python", 'session = onnxruntime.InferenceSession("{file}")'),
    "openvino": ("OpenVINO", "OpenVINO", "python", 'model = openvino.Core().compile_model("{file}", "CPU")'),
    "compressed": ("compressed", "Secateur", "python", 'model = secateur.load("path/to/this/folder")'),
    "padded": ("stock class", "transformers and whatever else takes the class", "", ""),
}
_HEADER = re.compile(r"\A---\r?\n(.*?)\n---\r?\n", re.DOTALL)


def compressed_card(found: Compressed, header: dict[str, Any], parent: str) -> str:
    """The card of a compressed folder.

    Args:
        header: the parent's, as it was read; goes on in this one.
        parent: the parent's card, or nothing.
    """
    kept = "bit for bit" if found["values"] == "keep" else "int8, each within half a step of its row's scale"
    before, after = found["bytes_before"], found["bytes_after"]
    lines = [
        "Its zeros are not stored: sparse matrices are a bitmap and the values that it keeps, written by "
        "`secateur compress`. It was read again and compared before it was delivered.",
        "",
        "## Load",
        "",
        "```python",
        "import secateur",
        "",
        'model = secateur.load("path/to/this/folder")',
        "```",
        "",
        "`secateur decompress` gives the ordinary checkpoint back, for programs that don't know this form.",
        "",
        "## What it came to",
        "",
        "| | before | after | ratio |",
        "|---|---:|---:|---:|",
        _row("Weights", before, after),
        _row("Sparse matrices", found["matrix_bytes_before"], found["matrix_bytes_after"]),
        "",
        f"{found['compressed']} of {found['tensors']} tensors are compressed; {fmt.percent(found['sparsity'])} of "
        f"their entries are zeros. Values: {kept}.",
    ]
    return _card(COMPRESSED, "secateur", [COMPRESSED], header, parent, lines, found["warnings"])


def exported_card(found: Exported, header: dict[str, Any], parent: str) -> str:
    """The card of an export's folder; arguments as for `compressed_card`."""
    kind, programs, language, how = _PROGRAMS[found["to"]]
    files = [file["name"] for file in found["files"]]
    main = next((name for name in files if name.endswith((".gguf", ".onnx", ".xml"))), "")
    lines = [f"For {programs}, as {found['architecture']}, written by `secateur export --to {found['to']}`.", ""]
    if how and (main or "{file}" not in how):
        lines += ["## Run", "", f"```{language}", how.format(file=main), "```", ""]
    parameters = (found["parameters_before"], found["parameters_after"])
    lines += [
        "## What it came to",
        "",
        "| | before | after | ratio |",
        "|---|---:|---:|---:|",
        _row("Weights", found["bytes_before"], found["bytes_after"]),
        f"| Parameters | {fmt.count(parameters[0])} | {fmt.count(parameters[1])} | "
        f"{fmt.ratio(parameters[1] / parameters[0])} |",
        "",
        *_proofs(found),
    ]
    tags = [kind.lower()] if found["to"] != "padded" else []
    library = {"padded": "transformers", "compressed": "secateur"}.get(found["to"], found["to"])
    return _card(kind, library, tags, header, parent, lines, found["warnings"])


def original_of(header: dict[str, Any], card: str) -> str:
    """The parent's card within one of a compressed folder, with its header as it was; else the card as it is.

    Args:
        header: of the card, as it was read.
    """
    if MARK not in card:
        return card
    tags = header.get("tags")
    kept = [tag for tag in tags if tag != COMPRESSED] if isinstance(tags, list) else []
    fields = {**header, "library_name": "transformers", "tags": kept}
    return _header(fields) + "\n\n" + card.split(MARK, 1)[1].lstrip("\n")


def title_of(card: str) -> str:
    """The first heading of a card."""
    found = re.search(r"^# +(.+)$", card, re.MULTILINE)
    return found[1].strip() if found else "A model"


def _proofs(found: Exported) -> list[str]:
    proof, client = found["read_back"], found["client"]
    lines = []
    if proof is not None:
        same = "as they were" if proof["largest_error"] == 0 else f"within {proof['largest_error']:.1e}"
        lines.append(f"- Read back: {proof['tensors']} tensors, {same}.")
    if client is not None:
        lines.append(f"- {_of_client(client)}")
    return lines


def _of_client(client: ClientProof) -> str:
    if not client["ran"]:
        return f"Not run in {client['client']}: {client['why_not']}."
    return (
        f"In {client['client']} {client['version']}: {client['tokens_alike']} of {client['new_tokens']} tokens as in "
        f"transformers, {client['texts_alike']} of {client['texts']} texts tokenised alike."
    )


def _row(name: str, before: int, after: int) -> str:
    return f"| {name} | {fmt.size(before)} | {fmt.size(after)} | {fmt.ratio(after / before if before else None)} |"


def _card(
    kind: str,
    library: str,
    tags: list[str],
    header: dict[str, Any],
    parent: str,
    lines: list[str],
    warnings: list[str],
) -> str:
    own = [str(tag) for tag in header.get("tags") or []] if isinstance(header.get("tags"), list) else []
    own = own or ["pruning", "secateur"]
    fields = {**header, "library_name": library, "tags": list(dict.fromkeys([*own, *tags]))}
    body = _HEADER.sub("", parent).strip("\n")
    parts = [_header(fields), f"# {title_of(body)}, {kind}", "\n".join(lines).strip("\n")]
    if warnings:
        parts += ["## Notes", "\n".join(f"- {' '.join(line.split())}" for line in warnings)]
    if body:
        parts += [MARK, body]
    return "\n\n".join(parts) + "\n"


def _header(fields: dict[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"

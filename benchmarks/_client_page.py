"""docs/clients.md, from the record of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _client_commands import SERVING, commands, name_of
from _client_results import RESULTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "clients.md"
TITLES = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "llama.cpp": "llama.cpp, node-llama-cpp",
    "llama-cpp-python": "llama.cpp, llama-cpp-python",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}


def write_page(record: dict[str, Any]) -> None:
    PAGE.write_text(page_of(record), encoding="utf-8")


def page_of(record: dict[str, Any]) -> str:
    makers = (_head, _matrix, _refused, _tokens, _others, _table, _commands, _cards)
    parts = [make(record) for make in makers]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record: dict[str, Any]) -> str:
    return (
        "# Results in clients\n\n"
        "Written by `benchmarks/clients.py` from what it ran (`benchmarks/results/clients.json`). Each cell: greedy "
        "tokens of the client, in fp32, that are those of transformers, of 20 after each of four prompts; *tie*: the "
        "first other token is as likely. How to get there: [serving](serving.md)."
    )


def _versions(record: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for cells in record.get("matrix", {}).values():
        for client, cell in cells.items():
            version = cell.get("version") or cell.get("padded", {}).get("version")
            if version:
                found[client] = version
    return found


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    if "failed" in cell:
        return "fails"
    if "refused" in cell:
        inner = cell.get("padded")
        return f"refused; padded: {_cell(inner)}" if inner else "refused"
    if not cell.get("ran", True):
        return "not run"
    ties = f", {cell['ties']} tie" if cell.get("ties") else ""
    return f"{cell['tokens_alike']} of {cell['new_tokens']}{ties}"


def _matrix(record: dict[str, Any]) -> str:
    versions, found = _versions(record), record.get("matrix", {})
    clients = [client for client in TITLES if any(client in cells for cells in found.values())]
    heads = [f"{TITLES[client]} {versions.get(client, '')}".strip() for client in clients]
    lines = [f"| result | {' | '.join(heads)} |", f"|---|{'---|' * len(clients)}"]
    for name, (what, _) in RESULTS.items():
        if name in found:
            lines.append(f"| {what} | {' | '.join(_cell(found[name].get(client)) for client in clients)} |")
    return "\n".join(lines) if clients else ""


def _refused(record: dict[str, Any]) -> str:
    lines = []
    for name, cells in record.get("matrix", {}).items():
        for client, cell in cells.items():
            for key in ("refused", "failed"):
                if key in cell:
                    lines.append(f"- {RESULTS[name][0]}, {TITLES[client]}: {cell[key]}")
    return "\n".join(["What is refused, before anything is run:", "", *lines]) if lines else ""


def _tokens(record: dict[str, Any]) -> str:
    found = record.get("tokens", {})
    if not found:
        return ""
    lines = ["## Tokenisation in llama.cpp", "", "| vocabulary | texts alike | tokens alike |", "|---|---:|---:|"]
    for name, cell in found.items():
        alike = f"{cell.get('texts_alike')} of {cell.get('texts')}" if cell.get("ran") else _cell(cell)
        lines.append(f"| {name} | {alike} | {_cell(cell)} |")
    return "\n".join(lines)


def _others(record: dict[str, Any]) -> str:
    found = record.get("others", {})
    if not found:
        return ""
    lines = ["## On a result whose layers differ", "", "| | |", "|---|---|"]
    for name, row in found.items():
        lines.append(f"| {name} {row.get('version', '')} | {row.get('said') or 'fails: ' + row['failed']} |")
    return "\n".join(lines)


def _table(record: dict[str, Any]) -> str:
    found = record.get("table")
    if not found:
        return ""
    lines = [
        "## Pruned and quantised",
        "",
        f"{found['model']} and the same with a quarter of its FFN channels gone, not trained afterwards, in "
        f"llama.cpp (node-llama-cpp {found['version']}), in one run, {found['threads']} thread.",
        "",
        "| | size | of dense bf16 | perplexity | tokens/s | spread |",
        "|---|---:|---:|---:|---:|---|",
    ]
    whole = found["rows"]["dense bf16"]["bytes"]
    for label, row in found["rows"].items():
        rates = row.get("rates")
        speed = f"{row['tokens_per_s']:.1f}" if rates else "not measured"
        spread = f"{min(rates):.1f} to {max(rates):.1f}" if rates else ""
        perplexity = f"{row['perplexity']:.2f}" if "perplexity" in row else "not measured"
        size = f"{row['bytes'] / 1e6:.1f} MB"
        lines.append(f"| {label} | {size} | {row['bytes'] / whole:.2f} | {perplexity} | {speed} | {spread} |")
    return "\n".join(lines)


def _plain(words: str) -> str:
    return words.replace("|", "\\|")


def _ran(row: dict[str, Any]) -> tuple[str, str]:
    """Where a command ran, and what came of it or why it wasn't run."""
    if "failed" in row:
        return f"{row['package']} {row['version']}", f"fails: {row['failed']}"
    if not row["ran"]:
        return "not run", row["why_not"]
    instead = f" ({row['instead']})" if "instead" in row else ""
    return f"{row['package']} {row.get('version', '')}".strip(), row["said"] + instead


def _commands(record: dict[str, Any]) -> str:
    rows = {row["command"]: row for row in record.get("commands", [])}
    lines = [
        "## The commands of the page on serving",
        "",
        "Each as it stands, with a result whose layers differ as `out/small`, of stories3M.",
        "",
        "| command | ran in | what came of it |",
        "|---|---|---|",
    ]
    for command, rule in commands(SERVING.read_text(encoding="utf-8")):
        name, unknown = name_of(command, rule), {"ran": False, "why_not": rule.why_not or "not tried yet"}
        row = rows.get(name, unknown)
        shown = f"`{name}`" + ("" if command.language == "sh" else f" ({command.language})")
        lines.append(f"| {' | '.join(map(_plain, (shown, *_ran(row))))} |")
    return "\n".join(lines)


def _cards(record: dict[str, Any]) -> str:
    found = record.get("cards", {})
    if not found:
        return ""
    lines = ["## What cards say of how to run a result", ""]
    lines += ["| result | line | ran in | what came of it |", "|---|---|---|---|"]
    for name, rows in found.items():
        for row in rows:
            shown = row["command"] if row["command"].startswith("the ") else f"`{row['command']}`"
            lines.append(f"| {' | '.join(map(_plain, (RESULTS[name][0], shown, *_ran(row))))} |")
    return "\n".join(lines)

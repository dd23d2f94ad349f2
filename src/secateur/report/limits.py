"""What the figures do not say: the limits that a reader of the page or the card must know.

Each line follows from a fact in the report, so a run never carries a warning that is not about it.
"""

from __future__ import annotations

from secateur.report import numbers as fmt
from secateur.report.facts import Report, items, measured, section

# Above this, the text samples of small models are visibly damaged and recovery training is the usual next step.
LARGE_RISE = 1.2


def limits(report: Report) -> list[str]:
    """One sentence per limit, plain text."""
    return [*_stored(report), *_quality(report), *_zeros(report), *_loading(report), *_measuring(report)]


def _stored(report: Report) -> list[str]:
    words = section(report, "model").get("stored_as")
    if not words:
        return []
    return [
        f"The original's weights were stored as {words}. They were dequantised to bfloat16 before anything was cut, "
        "and are saved so: what the quantisation had lost is missing here too."
    ]


def _quality(report: Report) -> list[str]:
    lines = []
    before, after = (measured(report, side, "perplexity") for side in ("before", "after"))
    if fmt.is_number(before) and fmt.is_number(after) and before > 0 and after / before > LARGE_RISE:
        lines.append(
            f"Perplexity is {fmt.ratio(after / before)} the original's. Train the model further, "
            "or prune less, before relying on it."
        )
    source = section(report, "calibration").get("source")
    if source:
        lines.append(
            f"The cut was chosen on text from {source}. What that text does not show, "
            "such as other languages, domains or instructions, may have suffered more than the figures say."
        )
    data = section(report, "evaluation").get("data")
    tokens = measured(report, "after", "tokens")
    if data:
        size = f" ({fmt.count(tokens)} tokens)" if fmt.is_number(tokens) else ""
        tasks = ", ".join(map(str, section(report, "tasks", "before")))
        lines.append(
            f"Quality was measured only as perplexity on {data}{size} and on the tasks {tasks}. "
            "Other tasks, safety behaviour and long contexts were not measured."
            if tasks
            else f"Quality was measured only as perplexity on {data}{size}. "
            "Tasks, safety behaviour and long contexts were not measured."
        )
    elif section(report, "agreement"):
        lines.append(
            "How far it agrees with the original was measured, not whether either is right: judge it on a task of "
            "yours (--tasks with labels), where it has one."
        )
    elif after is None:
        lines.append("The pruned model was not evaluated in this run.")
    return lines


def _zeros(report: Report) -> list[str]:
    patterns = {str(s.get("pattern") or "free") for s in items(report, "sites") if s.get("kind") == "weight"}
    if not patterns:
        return []
    line = (
        "Removed weights are stored as zeros: the file is as large as before, and ordinary dense kernels "
        "run no faster. secateur compress takes the zeros out, of the file and of what is computed."
    )
    if any(":" in pattern for pattern in patterns):
        line += " The N:M pattern pays only on hardware and runtimes with kernels for it."
    return [line]


def _loading(report: Report) -> list[str]:
    result = section(report, "result")
    lines = []
    code = section(report, "model").get("remote_code")
    if code:
        lines.append(
            f"Its class is code that came with the original ({', '.join(map(str, code))}) and is copied here: "
            "loading it with trust_remote_code=True runs that. Read it first."
        )
    elif "trust_remote_code" in str(result.get("loader") or ""):
        lines.append(
            "Its layers have widths that the stock class can't express, so transformers needs the small modelling "
            "file in this folder (trust_remote_code=True). Other runtimes may refuse the checkpoint."
        )
    original, now = section(report, "model").get("architecture"), result.get("architecture")
    if original and now and original != now:
        lines.append(f"The checkpoint is saved as {now}; the original was {original}.")
    return lines


def _measuring(report: Report) -> list[str]:
    device = section(report, "device")
    lines = []
    if fmt.is_number(measured(report, "after", "decode_tokens_per_s")):
        name = device.get("name") or device.get("device") or "the machine of this run"
        threads = f", {fmt.threads(device['threads'])}" if device.get("threads") else ""
        dtype = f", {device['dtype']}" if device.get("dtype") else ""
        lines.append(f"Speed and memory are for batch 1 on {name}{threads}{dtype}; elsewhere they differ.")
    lines.append("The licence and the limits of the original model apply to this one.")
    return lines

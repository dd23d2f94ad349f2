"""The tables of `tasks.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = ("copa", "arc_easy", "piqa", "boolq", "winogrande", "lambada_openai")


def slim(tasks: dict[str, Any]) -> dict[str, Any]:
    """Values and errors of the metric that stands for each task, before and after."""
    return {
        Path(name).name: {
            side: tasks[side][name]["metrics"][tasks[side][name]["metric"]] for side in ("before", "after")
        }
        | {"chance": tasks["before"][name]["chance"], "items": tasks["before"][name]["items"]}
        | {"p": tasks["differences"].get(name, {}).get(tasks["before"][name]["metric"], {}).get("p")}
        for name in tasks["before"]
    }


def percent(figures: dict[str, Any]) -> str:
    return f"{100 * figures['value']:.2f} ± {100 * (figures['stderr'] or 0):.2f}"


def tables(rows: list[dict[str, Any]]) -> str:
    """Every part that has been measured."""
    drawn = {"dense": draw_dense, "time": draw_time, "recover": draw_recover, "aim": draw_aim, "chats": draw_chats}
    parts = []
    for part, draw in drawn.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            parts.append(f"{draw(own)}\n\n{circumstances(own)}")
    return "\n\n".join(parts)


def circumstances(rows: list[dict[str, Any]]) -> str:
    limits = {"all items" if r["limit"] is None else f"the first {r['limit']} items of each task" for r in rows}
    loads = [row["load_before"] for row in rows]
    threads = ", ".join(sorted({str(row["threads"]) for row in rows}))
    dtypes = ", ".join(sorted({row["dtype"] for row in rows}))
    return f"{'; '.join(sorted(limits))}; {dtypes}, {threads} threads, load before {min(loads):g} to {max(loads):g}."


def grid(lines: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def draw_dense(rows: list[dict[str, Any]]) -> str:
    lines = [["dense", *(row["case"] for row in rows)]]
    for name in TASKS:
        for metric in ("acc", "acc_norm", "perplexity"):
            values = [row["tasks"].get(name, {}).get(metric) for row in rows]
            if values[0] is not None:
                scale = 1 if metric == "perplexity" else 100
                lines.append([f"{name}, {metric}", *("" if v is None else f"{scale * v:.2f}" for v in values)])
    return grid(lines)


def draw_time(rows: list[dict[str, Any]]) -> str:
    lines = [["seconds, the faster of two", "secateur", "bare passes", "lm-eval", "over bare", "over lm-eval"]]
    for row in rows:
        own, plain, theirs = (min(row["seconds"][way], default=None) for way in ("secateur", "bare", "lm-eval"))
        over = "" if theirs is None else f"{own / theirs:.2f}"
        shown = "" if theirs is None else f"{theirs:.1f}"
        lines.append([row["case"], f"{own:.1f}", f"{plain:.1f}", shown, f"{own / plain:.2f}", over])
    return grid(lines)


def draw_recover(rows: list[dict[str, Any]]) -> str:
    lines = [["25 % of the channels, recovered", "before", "after", "p"]]
    (row,) = rows[-1:]
    for name, of in row["tasks"].items():
        lines.append([name, percent(of["before"]), percent(of["after"]), f"{of['p']:.2g}"])
    means = [sum(of[s]["value"] for of in row["tasks"].values()) / len(row["tasks"]) for s in ("before", "after")]
    lead = means[0] - sum(of["chance"] or 0 for of in row["tasks"].values()) / len(row["tasks"])
    kept, lost = means[1] / means[0], (means[0] - means[1]) / lead
    lines.append(["mean", f"{100 * means[0]:.2f}", f"{100 * means[1]:.2f}", ""])
    return f"{grid(lines)}\n\n{100 * kept:.1f} % of dense; {100 * lost:.1f} % of the lead over chance is gone."


def draw_aim(rows: list[dict[str, Any]]) -> str:
    name = rows[0]["aim"]
    others = [task for task in TASKS if task != name]
    lines = [["40 % of the channels, calibrated on", f"{name}, held out", *others, "perplexity, web"]]
    first = rows[0]
    dense_text = next(iter(first["perplexity"]["before"].values()))
    whole = {task: first["tasks"][task]["before"] for task in others}
    start = [f"{100 * whole[task]['value']:.2f}" for task in others]
    lines.append(["not pruned", percent(first["held_out"]["before"]), *start, f"{dense_text:.4g}"])
    for row in rows:
        cells = [f"{100 * row['tasks'][task]['after']['value']:.2f}" for task in others]
        text = next(iter(row["perplexity"]["after"].values()))
        lines.append([row["case"], percent(row["held_out"]["after"]), *cells, f"{text:.4g}"])
    return grid(lines)


def draw_chats(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["perplexity"]["after"])
    lines = [["25 % of the channels, calibrated on", *(f"perplexity, {Path(name).stem}" for name in names)]]
    lines.append(["not pruned", *(f"{rows[0]['perplexity']['before'][name]:.4g}" for name in names)])
    lines += [[row["case"], *(f"{row['perplexity']['after'][name]:.4g}" for name in names)] for row in rows]
    return grid(lines)

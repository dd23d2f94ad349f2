"""The tables of `tasks.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = ("copa", "arc_easy", "piqa", "boolq", "winogrande", "lambada_openai")
TOOLS = ("secateur", "lm-eval")


def percent(figures: dict[str, Any]) -> str:
    return f"{100 * figures['value']:.2f} ± {100 * (figures['stderr'] or 0):.2f}"


def chance(p: float) -> str:
    """That two models differ so by accident; it's kept with twelve places."""
    return f"{p:.2g}" if p else "< 1e-12"


def tables(rows: list[dict[str, Any]]) -> str:
    """Every part that has been measured."""
    drawn = {"dense": draw_dense, "time": draw_time, "recover": draw_recover, "in use": draw_recover}
    drawn |= {"best": draw_recover, "aim": draw_aim, "chats": draw_chats}
    parts = []
    for part, draw in drawn.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            parts.append(f"{draw(own)}\n\n{circumstances(own)}")
    return "\n\n".join(parts)


def circumstances(rows: list[dict[str, Any]]) -> str:
    asked = [r for r in rows if r["part"] not in ("chats", "dense")]  # judged on texts; says how many items it had
    limits = {"all items" if r["limit"] is None else f"the first {r['limit']} items of each task" for r in asked}
    loads = [row["load_before"] for row in rows]
    threads = ", ".join(sorted({f"{n} thread" + "s" * (n > 1) for n in (row["threads"] for row in rows)}))
    dtypes = ", ".join(sorted({row["dtype"] for row in rows}))
    return "; ".join([*sorted(limits), f"{dtypes}, {threads}, load before {min(loads):g} to {max(loads):g}."])


def grid(lines: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def draw_dense(rows: list[dict[str, Any]]) -> str:
    """Of each task what most items say."""
    lines = [["dense", "items", *TOOLS]]
    for name in TASKS:
        own = {(row["items"], row["tool"]): row["metrics"] for row in rows if row["case"] == name}
        items = max((items for items, _ in own), default=0)
        figures = [own.get((items, tool), {}) for tool in TOOLS]
        for metric in ("acc", "acc_norm", "perplexity"):
            values = [of.get(metric) for of in figures]
            if any(value is not None for value in values):
                scale = 1 if metric == "perplexity" else 100
                shown = ["" if value is None else f"{scale * value:.2f}" for value in values]
                lines.append([f"{name}, {metric}", str(items), *shown])
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
    columns = [cell for row in rows for cell in (row["case"], "p")]
    lines, first, said = [["25 % of the channels", "dense", *columns]], rows[0]["tasks"], []
    for name, of in first.items():
        own = [row["tasks"][name] for row in rows]
        after = [cell for one in own for cell in (percent(one["after"]), chance(one["p"]))]
        lines.append([name, percent(of["before"]), *after])
    after = [cell for row in rows for cell in (f"{100 * means(row['tasks']):.2f}", "")]
    lines.append(["mean", f"{100 * means(first, 'before'):.2f}", *after])
    dense = means(first, "before")
    lead = dense - sum(of["chance"] or 0 for of in first.values()) / len(first)
    for row in rows:
        own = means(row["tasks"])
        lost = 100 * (dense - own) / lead
        web = f", perplexity of web text {row['web']['recovered']:.4g}" if "web" in row else ""
        said.append(
            f"{row['case']}: {100 * own / dense:.1f} % of dense, {lost:.1f} % of the lead over chance gone{web}"
        )
    return f"{grid(lines)}\n\n{'; '.join(said)}."


def means(tasks: dict[str, Any], side: str = "after") -> float:
    return sum(of[side]["value"] for of in tasks.values()) / len(tasks)


def draw_aim(rows: list[dict[str, Any]]) -> str:
    name = rows[0]["aim"]
    others = [task for task in TASKS if task != name]
    head = [f"{name}, held out", "over general text", *others, "mean of the five", "perplexity, web"]
    lines = [["40 % of the channels, calibrated on", *head]]
    first = rows[0]
    for side, own in [("before", first), *(("after", row) for row in rows)]:
        gained = own["gained"] if side == "after" else None
        over = "" if gained is None else f"{100 * gained['difference']:+.2f} ± {100 * gained['stderr']:.2f}"
        cells = [f"{100 * own['tasks'][task][side]['value']:.2f}" for task in others]
        text = next(iter(own["perplexity"][side].values()))
        case = "not pruned" if side == "before" else own["case"]
        mean = f"{100 * means(own['tasks'], side):.2f}"
        lines.append([case, percent(own["held_out"][side]), over, *cells, mean, f"{text:.4g}"])
    return f"{grid(lines)}\n\n{first['held_out']['items']} items of {name} are held out."


def draw_chats(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["perplexity"]["after"])
    lines = [["25 % of the channels, calibrated on", *(f"perplexity, {Path(name).stem}" for name in names)]]
    lines.append(["not pruned", *(f"{rows[0]['perplexity']['before'][name]:.4g}" for name in names)])
    lines += [[row["case"], *(f"{row['perplexity']['after'][name]:.4g}" for name in names)] for row in rows]
    return grid(lines)

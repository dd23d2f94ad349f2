"""Files of plain model folders and of runs: config, index, tokenizer, plan, recipe, text, report."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _fuzz.compressed import HOSTILE
from _fuzz.edits import Edit

# Whole files that no parser should meet unprepared.
TEXTS = (
    *(
        "",
        "\0",
        "\ufeff{}",
        "null",
        "[]",
        "{",
        '"',
        "1e999",
        "NaN",
        "\ud800",
        "a: &a [*a]",
        "- - - -",
        "!!python/none x",
    ),
    *(
        "&a [1,1,1,1,1,1,1,1]\n" + "\n".join("b: [*a,*a,*a]" for _ in range(3)),
        "[" * 3000,
        '{"a":' * 3000,
        "a" * 100_000,
    ),
    *(
        '{"text": 1}\n',
        '{"text": null}\n',
        '{"text": "\\ud800"}\n',
        '{"text": ""}\n' * 50,
        "[1]\n{}\n",
        "\x1b]0;x\x07\n" * 9,
    ),
)
RECIPE_KEYS = (
    *(
        "sites",
        "sparsity",
        "method",
        "quality",
        "pattern",
        "protect",
        "steps",
        "schedule",
        "allocate",
        "search",
        "round_to",
    ),
    *(
        "refit",
        "bias",
        "target",
        "reconstruct",
        "window",
        "masks",
        "calibrate",
        "samples",
        "length",
        "seed",
        "params",
        "x",
    ),
)
FILES = {
    "config": ("config.json",),
    "index": ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    "plan": ("plan.json",),
    "recipe": ("recipe.yaml",),
    "text": ("text.jsonl", "text.txt"),
    "report": ("report.json", "evidence.json"),
}
PATHS = (["../victim/thesis.txt"], ["../victim"], ["."], [".."], ["/"], [""], [None], [{}], ["report.json/.."])


def drawn(target: str, base: Path, choice: random.Random) -> list[Edit]:
    """One to three changes of the files of a target."""
    return [_one(target, base, choice) for _ in range(choice.choice((1, 1, 1, 2, 3)))]


def _one(target: str, base: Path, choice: random.Random) -> Edit:
    file = choice.choice([name for name in FILES[target] if (base / name).is_file()])
    data = (base / file).read_bytes()
    kind = choice.random()
    if kind < 0.1:
        return {"op": "flip", "file": file, "at": choice.randrange(len(data)), "bit": choice.randrange(8)}
    if kind < 0.15:
        return {"op": "cut", "file": file, "at": choice.randrange(len(data))}
    if kind < 0.25 or (target == "text" and file.endswith(".txt")):
        return {"op": "text", "file": file, "value": choice.choice(TEXTS)}
    if file.endswith(".yaml"):
        return {"op": "text", "file": file, "value": _recipe(choice)}
    if file.endswith(".jsonl"):
        line = json.dumps({choice.choice(("text", "messages", "x")): choice.choice(HOSTILE)})
        return {"op": "text", "file": file, "value": data.decode() + line + "\n"}
    length = int.from_bytes(data[:8], "little")
    value = json.loads(data[8 : 8 + length] if file.endswith(".safetensors") else data)
    path = choice.choice(list(_paths(value)))
    if path == ["files"] and target == "report":
        return {"op": "set", "file": file, "path": path, "value": choice.choice(PATHS)}
    if choice.random() < 0.15 and path:
        return {"op": "drop", "file": file, "path": path}
    return {"op": "set", "file": file, "path": path, "value": choice.choice(HOSTILE)}


def _recipe(choice: random.Random) -> str:
    lines = {"sites": "[channel]", "sparsity": "0.25"}
    for key in choice.sample(RECIPE_KEYS, choice.choice((1, 1, 2, 3))):
        value = choice.choice(HOSTILE)
        lines[key] = (
            json.dumps(value) if not isinstance(value, dict) or "$" not in str(value) else "[" * 50 + "]" * 50
        )
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _paths(value: Any, most: int = 30) -> Iterator[list[Any]]:
    """Of everything in a JSON value, of long lists and tables only the first entries."""
    yield []
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in pairs[:most]:
        yield from ([key, *path] for path in _paths(inner, 6))

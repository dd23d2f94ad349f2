"""What lies beside a model's weights and goes with them: everything that is neither weights nor code."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from secateur.errors import SecateurError
from secateur.model.files import read_index
from secateur.model.sentence_modules import module_folders

LARGEST = 100_000_000  # bytes of one file
TEMPLATES = "additional_chat_templates"  # the only folder that transformers reads beside a model
SAFE = ".safetensors"  # weights that modules of sentence-transformers may have
# fmt: off
# What a run of ours writes itself, or has written into a source that is a result.
OURS = frozenset((
    "config.json", "modeling_secateur.py", "compressed.json", "plan.json", "report.json", "events.jsonl",
    "evidence.json", "recipe.yaml", "report.html", "bench.json", "bench.html", "search.json", "search.html", "export",
    "dequantised.json",
))
CARD = "readme.md"  # of the source; a result has its own
WEIGHTS = frozenset((
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".npz",
    ".npy", ".pkl", ".pickle", ".joblib", ".tflite", ".ot", ".nemo", ".pb",
))
CODE = frozenset((
    ".py", ".pyc", ".pyo", ".pyd", ".ipynb", ".so", ".dll", ".dylib", ".sh", ".bash", ".zsh", ".bat", ".cmd",
    ".ps1", ".exe", ".jar", ".js", ".mjs", ".ts", ".wasm", ".rb", ".pl", ".lua", ".c", ".cc", ".cpp", ".cu",
    ".h", ".go", ".rs",
))
# fmt: on
NAMED = 8  # files that a note names, at most


def side_files(folder: Path, ours: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Names of the files that go with a model's weights, and what doesn't, each with the reason.

    Nothing is said of the model's own weights, of what a run of ours has written, and of hidden files.

    Args:
        ours: names that are taken although a run of ours may have written them.
    """
    taken: list[str] = []
    left: list[str] = []
    silent, modules = _own_weights(folder), module_folders(folder)
    for path in sorted(folder.iterdir()):
        if path.name in ours or not (path.name in silent or _is_silent(path.name)):
            why = _why_not(path, folder, modules)
            if why is None and path.is_dir():
                for inner in sorted(path.iterdir()):
                    name, why = f"{path.name}/{inner.name}", _why_not(inner, folder, modules, nested=True)
                    taken.append(name) if why is None else left.append(f"{name} ({why})")
            else:
                taken.append(path.name) if why is None else left.append(f"{path.name} ({why})")
    return taken, left


def copy_side_files(source: Path, target: Path, ours: Collection[str] = ()) -> None:
    """Copies them; only what they hold, no rights and no times."""
    for name in side_files(source, ours)[0]:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def copy_regular(source: Path, name: str, target: Path) -> None:
    """Copies one file by its name, where it is there and no link leads it out of the folder."""
    if _why_not(source / name, source) is None:
        shutil.copyfile(source / name, target / name)


def is_plain(path: Path, folder: Path) -> bool:
    """Whether a path in a model's folder is a file that can be read, and no link leads it out of there."""
    return within(path, folder) and stat.S_ISREG(path.stat().st_mode) and os.access(path, os.R_OK)


def left_behind(folder: Path, ours: Collection[str] = (), code: Collection[str] = ()) -> list[str]:
    """A note for a report on what doesn't go with the weights; empty where everything does.

    Args:
        code: names of files of code that goes along.
    """
    left = [one for one in side_files(folder, ours)[1] if one not in {f"{name} (code)" for name in code}]
    if not left:
        return []
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    return [f"not taken along from the model's folder: {', '.join(left[:NAMED])}{more}"]


def _own_weights(folder: Path) -> set[str]:
    """Files of the weights that a run reads."""
    try:
        return {file.name for file in read_index(folder).values()}
    except SecateurError:  # a compressed folder
        return set()


def _is_silent(name: str) -> bool:
    """Whether a name is no news: a run of ours writes such a file, or it's the weights, or it belongs to a tool."""
    low = name.lower()
    weights = low.startswith(("model", "compressed")) and low.endswith((".safetensors", ".safetensors.index.json"))
    return low in OURS or low == CARD or weights or low.startswith((".", "__"))


def _why_not(path: Path, folder: Path, modules: Collection[str] = (), nested: bool = False) -> str | None:
    """Why a file isn't taken; None: it is.

    Args:
        modules: folders of the model's parts.
        nested: it lies in a folder that is taken.
    """
    if not within(path, folder):
        return "a link that leads out of the folder"
    low, mode = path.name.lower(), path.stat().st_mode
    if stat.S_ISDIR(mode):
        return None if path.name in (TEMPLATES, *modules) and not nested else "a folder"
    if not stat.S_ISREG(mode):
        return "no regular file"
    if path.suffix.lower() in CODE:
        return "code"
    part = path.suffix.lower() == SAFE and path.parent.name in modules
    if (path.suffix.lower() in WEIGHTS and not part) or low.endswith(".index.json"):
        return "weights of another form"
    if path.stat().st_size > LARGEST:
        return f"over {LARGEST // 10**6} MB"
    return None if os.access(path, os.R_OK) else "can't be read"


def within(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in the model's folder or in the same model's part of the hub's cache.

    That has snapshots/COMMIT with links into blobs.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots" and (home.parents[1] / "blobs").is_dir():
        home = home.parents[1]
    try:
        return path.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # it leads nowhere, or round in circles
        return False

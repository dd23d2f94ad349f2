"""Tries cases of one target one after the other, in one process: python -m _fuzz.worker TARGET ROOT SEED FIRST COUNT.

It says `begin N` before case N and `end N CLASS ...` after it, so whoever reads along knows which case took the
process down. With `replay` instead of a number, it reads one case as JSON from its input.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _fuzz.edits import apply
from _fuzz.targets import TARGETS, Case, Command

MOST_MEMORY = 8 << 30  # of addresses: what asks for more gets an error, not the machine's last page


def main(words: list[str]) -> None:
    _limit_memory()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, root, seed, first = TARGETS[words[0]], Path(words[1]), int(words[2]), words[3]
    say = os.fdopen(os.dup(1), "w")  # commands may close or redirect theirs
    os.dup2(2, 1)  # and libraries that aren't Python print to it
    if first == "replay":
        case = json.load(sys.stdin)
        numbered = iter([(0, (case["base"], case["edits"]))])
    else:
        numbered = ((n, target.case(root, seed, n)) for n in range(int(first), int(first) + int(words[4])))
    for number, case in numbered:
        print(f"begin {number} {json.dumps({'base': case[0], 'edits': case[1]})}", file=say, flush=True)
        outcome, detail = run(root, case, target.commands)
        print(f"end {number} {outcome} {json.dumps(detail)}", file=say, flush=True)


def run(root: Path, case: Case, commands: Callable[[Path, Path], list[Command]]) -> tuple[str, str]:
    """The class of the worst that any command does with a case, and what it said."""
    base, edits = case
    folder, out = root / "case", root / "out"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / base, folder)
    apply(folder, edits)
    before, found = _outside(root), ("ok", "")
    for command in commands(folder, out):
        outcome = attempt(command)
        shutil.rmtree(out, ignore_errors=True)
        if _outside(root) != before:
            return "harmed", command.name
        if outcome[0] == "traceback":
            return "traceback", f"{command.name}: {outcome[1]}"
        if outcome[0] == "refused":
            found = outcome
            if command.gate:
                break
    return found


def attempt(command: Command) -> tuple[str, str]:
    """`ok`, `refused` in one line, or `traceback`."""
    from secateur.errors import SecateurError

    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            command.work()
    except SystemExit as end:
        lines = [line for line in error.getvalue().splitlines() if line.startswith("error: ")]
        if end.code in (0, None):
            return "ok", ""
        return ("refused", lines[0]) if len(lines) == 1 else ("traceback", f"exit {end.code} with no one-line error")
    except SecateurError as refusal:
        return ("refused", str(refusal)) if "\n" not in str(refusal) else ("traceback", f"two lines: {refusal}")
    except Exception as fault:
        frames = traceback.extract_tb(fault.__traceback__)
        ours = [frame for frame in frames if "secateur" in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return "traceback", f"{type(fault).__name__} at {where}: {str(fault)[:200]}"
    return "ok", ""


def _outside(root: Path) -> dict[str, Any]:
    """Every file that no command may touch, with its size and time."""
    found = {}
    for path in root.rglob("*"):
        if path.relative_to(root).parts[0] not in ("case", "out") and path.is_file():
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))


if __name__ == "__main__":
    main(sys.argv[1:])

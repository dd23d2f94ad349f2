"""Tries hostile files on the commands that read them, and says what became of it.

    python scripts/fuzz.py --seconds 300
    python scripts/fuzz.py --seconds 60 --target compressed --seed 7
    python scripts/fuzz.py --replay tests/fuzz_seeds/some.json

Files are changed with an eye to what they mean: fields of another type, sign or size, lies that agree with each
other, whole files of another kind; and now and then a flipped bit. Commands run in workers, many inputs in each, so
that one that dies is noticed and the rest goes on. It ends with 0 if no input gave a traceback, a signal, a hang of
more than 20 s of work, or harm to a file outside the output folder. What did is kept in tests/fuzz_seeds, one small
file each, which the tests play again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _fuzz import herd
from _fuzz.targets import TARGETS

SEEDS = Path(__file__).resolve().parents[1] / "tests" / "fuzz_seeds"
CLASSES = ("ok", "refused", *herd.BAD)
ENDLESS = 1 << 40


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seconds", type=float, default=300, help="in all (default 300)")
    words.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--keep", type=Path, default=SEEDS, help="folder for what failed")
    words.add_argument("--replay", type=Path, metavar="FILE", help="one case that was kept, nothing else")
    told = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="secateur-fuzz-") as place:
        if told.replay:
            case = json.loads(told.replay.read_text(encoding="utf-8"))
            root = Path(place) / case["target"]
            herd.build(case["target"], root)
            outcome, said = herd.replayed(case, root)
            print(f"{outcome}: {said}")
            return int(outcome in herd.BAD)
        return _all(told, Path(place))


def _all(told: argparse.Namespace, place: Path) -> int:
    roots: dict[object, Path] = {}  # targets that begin with the same folders share them
    for target in told.target:
        make = TARGETS[target].build
        if make not in roots:
            roots[make] = place / target
            herd.build(target, roots[make])
    print("".join(f"{word:>11}" for word in ("", *CLASSES)))
    begin, bad = time.monotonic(), 0
    for number, target in enumerate(told.target, 1):
        root = roots[TARGETS[target].build]
        found = herd.tried(target, root, told.seed, 0, ENDLESS, begin + told.seconds * number / len(told.target))
        print(f"{target:>11}" + "".join(f"{found.counts[each]:>11}" for each in CLASSES), flush=True)
        for case in _distinct(found.bad):
            file = _keep(told.keep, case)
            print(f"  {case['class']}: {case['said']}\n    python scripts/fuzz.py --replay {file}")
        bad += len(found.bad)
    return int(bad > 0)


def _distinct(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case of each fault: of a traceback the place counts, not the value."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        found.setdefault(f"{case['class']} {case['said'].partition(': ')[2].partition(': ')[0]}", case)
    return list(found.values())


def _keep(folder: Path, case: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(case, indent=1) + "\n"
    file = folder / f"{case['target']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    file.write_text(text, encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())

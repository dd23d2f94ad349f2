"""Breaks the package on purpose, one line at a time, and shows that a test notices.

python scripts/mutations.py [NAME ...] [--jobs N] [--list]

Each mutation is made in a copy of `src`, never in the work tree, and the tests that should notice it run against that
copy. The exit code is 1 if one of them is missed, or if its text isn't found exactly once: the code has moved on, and
the table in scripts/mutations.toml has to follow.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
SECONDS = 900  # one that never ends is noticed as well


class Mutation(NamedTuple):
    """`old` stands once in a file below src/secateur; with `new` in its place, one of the tests must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]


class Verdict(NamedTuple):
    caught: bool
    by: str


def read_table() -> list[Mutation]:
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Mutation(name, **row) for name, row in rows.items()]


def mutate(source: Path, mutation: Mutation) -> str | None:
    """Breaks a copy of the package; what is wrong with the mutation, if anything."""
    file = source / "secateur" / mutation.file
    if not file.is_file():
        return f"there is no {mutation.file}"
    text = file.read_text(encoding="utf-8")
    if (times := text.count(mutation.old)) != 1:
        return f"its text stands {times} times in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return None


def judge(mutation: Mutation) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        wrong = mutate(source, mutation)
        if wrong is not None:
            return Verdict(False, wrong)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        # First on the path, so that it stands before an installed copy; the tests' own processes inherit it.
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command += [f"--basetemp={folder}/tests", *mutation.tests]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Verdict(True, "it never ends")
    failed = re.search(r"^FAILED (\S+)|^ERROR (\S+::\S+)", done.stdout, flags=re.MULTILINE)
    if done.returncode == 1 and failed:  # other codes: the tests weren't run
        return Verdict(True, failed[1] or failed[2])
    said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing"])[-1]
    return Verdict(False, said if done.returncode else "all tests pass")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to make; all of them unless given")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--list", action="store_true", help="only name them")
    args = parser.parse_args()
    table = read_table()
    if unknown := set(args.names) - {mutation.name for mutation in table}:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}; --list names them")
    chosen = [mutation for mutation in table if not args.names or mutation.name in args.names]
    if args.list:
        print("\n".join(f"{mutation.name:32} {mutation.file}" for mutation in chosen))
        return 0
    missed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutation, verdict in zip(chosen, pool.map(judge, chosen), strict=True):
            missed += not verdict.caught
            print(f"{mutation.name:32} {'caught' if verdict.caught else 'MISSED'}  {verdict.by}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Whether constraints.txt can be installed on every Python that pyproject.toml promises, by metadata alone.

python scripts/resolve.py

`uv` resolves the package with all its extras, and only with wheels, for each promised version on Linux, macOS and
Windows. Nothing is installed. Where an index lacks a wheel that a source package stands in for, that is said and is
no failure; where it can't be asked at all, that is said too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PLATFORMS = {"Linux": "x86_64-manylinux_2_28", "macOS": "aarch64-apple-darwin", "Windows": "x86_64-pc-windows-msvc"}
OLDEST_MACOS = "14.0"  # what torch's wheels ask for
NO_INDEX = ("error sending request", "Failed to fetch", "dns error", "Connection refused", "timed out")
PATIENCE = 120  # seconds that one resolution may take


class Answer(NamedTuple):
    """What became of one resolution, and whether it is the pins' fault."""

    text: str
    failed: bool = False


def promised() -> list[str]:
    """The Python versions in the classifiers, checked against `requires-python`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    if project["requires-python"] != f">={found[0]}":
        sys.exit(
            f"pyproject.toml: requires-python is {project['requires-python']}, the classifiers begin at {found[0]}"
        )
    return found


def uv(version: str, platform: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Resolves the package under constraints.txt, as that Python on that platform would have to."""
    words = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", "--all-extras", "-c", "constraints.txt"]
    words += ["--python-version", version, "--python-platform", platform, *more, "pyproject.toml"]
    return subprocess.run(
        [sys.executable, "-m", "uv", *words],
        cwd=ROOT,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def resolve(version: str, platform: str) -> Answer:
    """With wheels alone; failing that, with source packages."""
    try:
        wheels = uv(version, platform, "--only-binary", ":all:")
        if wheels.returncode == 0:
            return Answer(f"resolves ({len(wheels.stdout.split())} packages)")
        if any(sign in wheels.stderr for sign in NO_INDEX):
            return Answer("not checked: the package index can't be reached")
        sources = uv(version, platform)
    except subprocess.TimeoutExpired:
        return Answer(f"not checked: the package index took more than {PATIENCE} s")
    if sources.returncode == 0:
        return Answer(f"resolves, but this index has no wheel for all of it: {reason(wheels.stderr)}")
    return Answer(f"does not resolve: {reason(sources.stderr)}", failed=True)


def reason(text: str) -> str:
    """The cause that uv names, in one line and without addresses."""
    cause = re.search(r"(?:cause:|╰─▶)(.*?)(?:\n\s*\n|\Z)", text, flags=re.DOTALL)
    line = " ".join((cause[1] if cause else text).split())
    return re.sub(r"https?://\S+", "the index", line)


def main() -> None:
    cases = list(product(promised(), PLATFORMS))
    answers = []
    with ThreadPoolExecutor(4) as pool:  # they wait for the index
        found = pool.map(lambda case: resolve(case[0], PLATFORMS[case[1]]), cases)
        for (version, name), answer in zip(cases, found, strict=True):
            print(f"Python {version}, {name}: {answer.text}", flush=True)
            answers.append(answer)
    if any(answer.failed for answer in answers):
        sys.exit("constraints.txt can't be installed everywhere that pyproject.toml promises")


if __name__ == "__main__":
    main()

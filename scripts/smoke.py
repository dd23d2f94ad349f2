"""Whether an installed wheel works away from the clone.

python scripts/smoke.py

Builds the wheel and puts it into a fresh environment that borrows everything else from the running one, then asks for
what a user would ask first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "secateur"
PRUNE = "prune embedded --sites channel --sparsity 0.25 --calibrate stdlib --samples 2 --length 64 --out small"
COMMANDS = ["--version", "methods", "inspect embedded", PRUNE]


def build(folder: Path) -> Path:
    """The wheel, which must hold every file of the package."""
    build_it = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build_it, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    files = (file for file in SOURCE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    wanted = {file.relative_to(SOURCE.parent).as_posix() for file in files} | {"secateur/py.typed"}
    missing = sorted(wanted - set(zipfile.ZipFile(wheel).namelist()))
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """The command of a fresh environment with the wheel, and with the running one's libraries behind it."""
    venv.create(folder, with_pip=False)
    scheme = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    words = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *words], check=True)
    # A plain path line: .pth files in that folder, such as an editable install's, are not followed.
    (Path(scheme) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        python = install(wheel, folder / "venv")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        secateur = python.with_name("secateur.exe" if os.name == "nt" else "secateur")
        where = "import secateur; print(secateur.__file__)"
        home = subprocess.run(
            [python, "-c", where], cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        if Path(home.stdout.strip()).is_relative_to(ROOT):
            sys.exit("the clone was tested, not the wheel")
        for line in COMMANDS:
            done = subprocess.run(
                [secateur, *line.split()], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode or not done.stdout:
                sys.exit(f"secateur {line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        if not (folder / "small" / "report.html").is_file():
            sys.exit("prune left no report.html")
        print(f"{wheel.name}: {len(COMMANDS)} commands work from the wheel")


if __name__ == "__main__":
    main()

"""Signals at any moment, and output that can't be written: one line or none, and the exit code that shells expect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secateur import errors
from secateur.errors import ResourceError
from secateur.workspace.room import check_room

KINDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
MAIN = "from secateur.__main__ import main; main()"


def python(code: str, *words: object, folder: Path | None = None, **how: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({} if folder is None else {"PYTHONPATH": _path(folder)})}
    environment |= how.pop("env", {})  # type: ignore[arg-type]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **how}
    # A shell starts its background jobs with SIGINT ignored, and the tests may be one.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], **told)  # type: ignore[call-overload]


def _path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_a_signal_while_the_program_is_imported(tmp_path: Path, kind: signal.Signals, code: int) -> None:
    """`typer` stands for whatever is imported; it swallows exceptions, as some libraries do."""
    (tmp_path / "typer.py").write_text(
        f"import os\ntry: os.kill(os.getpid(), {int(kind)})\nexcept BaseException: pass\nprint('went on')\n"
    )
    ended = python(MAIN, "inspect", "embedded", folder=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "error: stopped\n")


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_a_signal_while_a_run_imports_waits_for_the_end_of_that(
    tmp_path: Path, kind: signal.Signals, code: int
) -> None:
    (tmp_path / "slow.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(kind)})\ntime.sleep(0.2)\nprint('imported')\n"
    )
    work = (
        "from secateur.cli.stopping import exit_code, listen\n"
        "import sys, types, time\nlisten()\n"
        "ours = types.ModuleType('secateur.run')\n"
        "exec('def run():\\n import slow, time\\n time.sleep(5)', ours.__dict__)\n"
        "try: ours.run()\n"
        "except KeyboardInterrupt as stop: print(type(stop).__name__); sys.exit(exit_code())\n"
    )
    ended = python(work, folder=tmp_path)
    name = "Terminated" if kind is signal.SIGTERM else "KeyboardInterrupt"
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (code, ["imported", name], "")


def test_a_command_that_the_parser_stops_has_the_signals_own_code(tmp_path: Path) -> None:
    """The parser makes 130 of both."""
    stop = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    inspect = f"def inspect(*_):\n {stop}\n import time; time.sleep(5)\n"
    code = (
        "import sys, types\nfake = types.ModuleType('secateur.analysis.inspect')\n"
        f"exec({inspect!r}, fake.__dict__)\nsys.modules['secateur.analysis.inspect'] = fake\n{MAIN}"
    )
    ended = python(code, "inspect", "embedded")
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "error: stopped\n")


def test_an_alphabet_that_lacks_letters(tmp_path: Path) -> None:
    code = "from secateur.cli.stopping import write_anything; write_anything(); print('2 MB → 1 MB')"
    ended = python(code, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (ended.returncode, ended.stdout) == (0, "2 MB ? 1 MB\n")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """No file that the program opens takes their place."""
    code = "import os, sys\n" + "".join(f"os.close({n})\n" for n in closed)
    code += "".join(f"sys.{name} = None\n" for n, name in ((1, "stdout"), (2, "stderr")) if n in closed)
    code += (
        "from secateur.cli.stopping import open_streams\nopen_streams()\n"
        f"number = os.open({str(tmp_path / 'file')!r}, os.O_WRONLY | os.O_CREAT)\nassert number > 2\n"
        "print('words')\nprint('words', file=sys.stderr)\nsys.stdout.flush()\n"
    )
    ended = python(code)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_pipe_that_nobody_reads_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = python(MAIN, "--version", stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = python(MAIN, "--version", stdout=full)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "No space left" in ended.stderr


def test_the_command_for_an_extra_is_that_of_a_clone_or_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(errors.__file__).parents[2]
    assert errors.install("data") == f'pip install -e "{root}[data]"'
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "secateur" / "errors.py"))
    assert errors.install("data") == 'pip install "secateur[data]"'


def test_small_disks_are_told_in_units_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 3_000

    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    said = r"has 3.* kB free, the run needs about 5.* kB, 2.* kB more; free some space"
    with pytest.raises(ResourceError, match=said):
        check_room(tmp_path / "a" / "b", 5_000)
    check_room(tmp_path, 5_000, freed=2_000)


def test_an_empty_out_is_refused() -> None:
    ended = python(MAIN, "prune", "embedded", "--out", "")
    assert (ended.returncode, ended.stderr) == (2, "error: --out is empty; give the name of a folder\n")

"""Where the commands of docs/serving.md, and those of results' cards, are run: a folder with what they name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from _client_commands import Command, Rule, name_of
from _client_environments import NODE_PACKAGE, python_of, variables
from _client_lambada import TASK
from _client_server import PORT, Server

from secateur.export.reference import Reference

CLONE = Path(__file__).resolve().parents[1]
TIMEOUT = 1800  # seconds, of a command
_BEGIN = 'import json, pathlib\nwanted = json.loads(pathlib.Path("wanted.json").read_text())\n'


class Desk:
    """A working directory in which commands are run as they stand.

    Args:
        folder: made anew.
        folders: name in it, such as `out/small` -> what is copied there.
        wanted: what transformers does with `out/small`.
        tokens: how it goes on from the tokens 1, 50, 60, with which blocks of the page begin.
        lambada: the file of a task for lm-eval.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        threads: int,
        folders: dict[str, Path],
        wanted: Reference,
        tokens: list[int],
        lambada: Path,
    ) -> None:
        self.folder, self.work, self.threads, self.wanted = folder, work, threads, wanted
        self.server: Server | None = None
        shutil.rmtree(folder, ignore_errors=True)
        for name, source in folders.items():
            shutil.copytree(source, folder / name)
        (folder / "wanted.json").write_text(json.dumps({"tokens": tokens}), encoding="utf-8")
        (folder / "tasks").mkdir()
        (folder / "tasks" / "task.yaml").write_text(TASK.replace("FILE", str(lambada)), encoding="utf-8")

    def run(self, command: Command, rule: Rule) -> dict[str, Any]:
        """A row of the record: the command, whether it ran, with which version, and what came of it."""
        row: dict[str, Any] = {"command": name_of(command, rule), "language": command.language, "ran": False}
        if rule.why_not:
            return row | {"why_not": rule.why_not}
        if rule.way == "file":
            name = command.text.splitlines()[0].removeprefix("# ")
            (self.folder / name).write_text(command.text + "\n", encoding="utf-8")
            return row | {"ran": True, "package": "", "said": "taken by the next command"}
        python = python_of(rule.client, self.work)
        row |= {"package": rule.package, "version": self._version(python, rule)}
        if rule.way == "made":
            return row | {"ran": True, "said": "made the environment"}
        try:
            said = {"line": self._line, "block": self._block, "server": self._serve}[rule.way](command, rule, python)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return row | {"failed": str(error)[:300]}
        instead = [f"{new} in the place of {old}" for old, new in rule.replaced]
        return row | {"ran": True, "said": said} | ({"instead": "; ".join(instead)} if instead else {})

    def close(self) -> None:
        """Stops the server."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def _environment(self, client: str, python: Path) -> dict[str, str]:
        """Of a process: the environment's programs first, and `secateur` as an installed one would be."""
        programs = self.folder / "programs" / client
        programs.mkdir(parents=True, exist_ok=True)
        own = programs / "secateur"
        own.write_text(f'#!/bin/sh\nexec "{python}" -m secateur "$@"\n', encoding="utf-8")
        own.chmod(0o755)
        found = variables(client, self.work, self.threads)
        found["HF_MODULES_CACHE"] = str(self.folder / "modules")
        found["COLUMNS"] = "200"  # nothing is broken into lines
        found["PATH"] = os.pathsep.join([str(programs), str(python.parent), found["PATH"]])
        return found

    def _line(self, command: Command, rule: Rule, python: Path) -> str:
        text = command.text.replace(PORT, self.server.port) if self.server is not None else command.text
        for old, new in rule.replaced:
            text = text.replace(old, new)
        return self._output(["bash", "-c", text.replace("CLONE", str(CLONE))], rule, python)

    def _block(self, command: Command, rule: Rule, python: Path) -> str:
        if command.language == "js":
            modules = self.folder / "node_modules"
            if not modules.exists():
                modules.symlink_to(self.work / "environments" / rule.client / "node_modules")
            (self.folder / "block.mjs").write_text(command.text, encoding="utf-8")
            return self._output(["node", "block.mjs"], rule, python)
        after = f"\n{_BEGIN}{rule.check}\nprint()\nprint('SAID', said)\n"
        (self.folder / "block.py").write_text(command.text + after, encoding="utf-8")
        return self._output([str(python), "block.py"], rule._replace(says=r"SAID (.*)"), python)

    def _output(self, words: list[str], rule: Rule, python: Path) -> str:
        """What a process prints of what its rule asks for.

        Raises:
            RuntimeError: it fails, or prints nothing of the kind.
        """
        environment = self._environment(rule.client, python)
        done = subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {lines[-1] if lines else done.stdout[-300:]}")
        found = re.search(rule.says, done.stdout)
        if found is None:
            raise RuntimeError(f"it printed nothing like {rule.says}: {done.stdout[-200:]!r}")
        said = found[1] if rule.says else "resolves"
        return " ".join(said.replace("|", " ").split())

    def _serve(self, command: Command, rule: Rule, python: Path) -> str:
        """Starts the server, which stays until the next one or `close`, and compares its tokens."""
        self.close()
        self.server = Server(command.text, self.folder, self._environment(rule.client, python))
        return self.server.compared(self.wanted)

    def _version(self, python: Path, rule: Rule) -> str:
        if rule.package == NODE_PACKAGE:
            package = self.work / "environments" / rule.client / "node_modules" / NODE_PACKAGE / "package.json"
            return str(json.loads(package.read_text(encoding="utf-8"))["version"])
        if rule.package == "secateur":
            import secateur

            return secateur.__version__
        code = f"import importlib.metadata as m; print(m.version({rule.package!r}))"
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.strip()

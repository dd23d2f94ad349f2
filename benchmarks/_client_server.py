"""vLLM's server with the interface of OpenAI: started, asked for tokens by HTTP, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from secateur.export.reference import Reference, first_difference

PORT = "8000"  # as the page says; a free one takes its place
STARTS = 1800  # seconds until it has to be there: it compiles the model first
ANSWERS = 600  # seconds, of a request


class Server:
    """A process that serves until it's stopped.

    Args:
        command: the line that starts it; a port and fp32 are added where it doesn't name them.
        folder: its working directory, which gets its output.

    Raises:
        RuntimeError: it ends, or isn't ready in time.
    """

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        command = command.replace(PORT, self.port)
        command += "" if "--port" in command else f" --port {self.port}"
        command += "" if "--dtype" in command else " --dtype float32"
        self.model = command.split()[2]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            words = ["bash", "-c", f"exec {command}"]
            told: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(words, start_new_session=True, **told)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                lines = [line for line in self.log.read_text().splitlines() if "rror" in line]
                raise RuntimeError(f"the server ended: {lines[-1] if lines else self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"the server isn't ready after {STARTS} s")

    def stop(self) -> None:
        """Ends the process and those that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(60)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def compared(self, wanted: Reference) -> str:
        """How many greedy tokens are those of transformers.

        Raises:
            RuntimeError: not all of them.
        """
        alike = total = 0
        for prompt, expected in zip(wanted.prompts, wanted.tokens, strict=True):
            told = {"model": self.model, "prompt": prompt, "max_tokens": len(expected), "temperature": 0}
            own = self._ask(told | {"ignore_eos": True, "return_token_ids": True})["choices"][0]["token_ids"]
            place = first_difference(expected, own)
            total, alike = total + len(expected), alike + (len(expected) if place is None else place)
        said = f"{alike} of {total} tokens as in transformers, asked for by HTTP"
        if alike != total:
            raise RuntimeError(said)
        return said

    def _ask(self, told: dict[str, Any]) -> dict[str, Any]:
        url, kind = f"http://127.0.0.1:{self.port}/v1/completions", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(told).encode(), kind)
        try:
            with urllib.request.urlopen(request, timeout=ANSWERS) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"HTTP {error.code}: {error.read()[:200]!r}") from None

"""A GGUF file in llama.cpp itself, where one of its packages is installed: its tokens against those of transformers.

The npm package node-llama-cpp brings llama.cpp ready built; the folder that it's installed in is found as node finds
it, or is what SECATEUR_LLAMA_CPP says. The Python package llama-cpp-python is used where it can be imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from secateur.errors import VerificationError
from secateur.export.reference import NEW_TOKENS, Reference, judged, not_run, probe_texts, reference
from secateur.model.checkpoint import Checkpoint
from secateur.model.json_files import short
from secateur.report.schema.export import ClientProof

CLIENT = "llama.cpp"
PLACE = "SECATEUR_LLAMA_CPP"
TIMEOUT = 1800  # seconds
CONTEXT = 128
RUNNER = Path(__file__).with_name("run.mjs")
_NOT_HERE = "llama.cpp isn't installed here (npm install node-llama-cpp, or pip install llama-cpp-python)"


def prove(checkpoint: Checkpoint, tokenizer: Any, file: Path, context: int, exact: bool) -> ClientProof:
    """Runs the file, and compares tokens and tokenisation.

    Args:
        context: tokens that the file may be run with.
        exact: the file holds the same numbers, so the tokens must be the same.

    Raises:
        VerificationError: they aren't, or texts are tokenised otherwise, or llama.cpp doesn't run the file.
    """
    command = find()
    if command is None:
        return not_run(CLIENT, _NOT_HERE)
    wanted = reference(checkpoint, tokenizer, context)
    if wanted is None:
        return not_run(CLIENT, "the model doesn't fit in this machine's memory in fp32, to be compared with")
    texts = probe_texts()
    found = run(command, file, wanted, texts, context)
    alike = _alike(tokenizer, texts, found["texts"])
    proof = judged(CLIENT, found["version"], wanted, found["tokens"], len(texts), alike)
    if exact and proof["prompts_alike"] + proof["ties"] < proof["prompts"]:
        raise VerificationError(
            f"llama.cpp continues {proof['prompts_alike']} of {proof['prompts']} prompts with the tokens of "
            f"transformers ({proof['tokens_alike']} of {proof['new_tokens']} tokens); nothing was delivered"
        )
    if alike < 0.9 * len(texts):
        raise VerificationError(f"llama.cpp tokenises {alike} of {len(texts)} texts alike; nothing was delivered")
    return proof


def _alike(tokenizer: Any, texts: list[str], found: list[list[int]]) -> int:
    """Texts that the client tokenises as transformers does, special tokens left out."""
    return sum(
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) == list(own)
        for text, own in zip(texts, found, strict=True)
    )


def find() -> list[str] | None:
    """The command that runs a file, but for the name of the task; None where llama.cpp isn't installed."""
    node, package = shutil.which("node"), _node_package()
    if node is not None and package is not None:
        return [node, str(RUNNER), str(package)]
    if importlib.util.find_spec("llama_cpp") is not None:
        return [sys.executable, "-m", "secateur.export.gguf.llama_cpp"]
    return None


def _node_package() -> Path | None:
    named = os.environ.get(PLACE)
    places = [Path(named)] if named else [Path.cwd(), *Path.cwd().parents]
    places += [Path(part) for part in os.environ.get("NODE_PATH", "").split(os.pathsep) if part]
    for place in places:
        for package in (place / "node_modules" / "node-llama-cpp", place / "node-llama-cpp", place):
            if (package / "dist" / "index.js").is_file() and package.name == "node-llama-cpp":
                return package.resolve()
    return None


def run(
    command: list[str], file: Path, wanted: Reference, texts: list[str], context: int = CONTEXT
) -> dict[str, Any]:
    """What llama.cpp does with the prompts and the texts: {version, tokens, texts}.

    Raises:
        VerificationError: it doesn't run the file.
    """
    task = {
        "file": str(file.resolve()),
        "prompts": wanted.prompts,
        "new": max(map(len, wanted.tokens), default=NEW_TOKENS),
        "texts": texts,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or (os.cpu_count() or 1),
        "context": min(CONTEXT, context),
    }
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "task.json"
        given.write_text(json.dumps(task), encoding="utf-8")
        try:
            done = subprocess.run([*command, str(given)], capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"llama.cpp doesn't finish with {file.name} in {TIMEOUT} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in said if "rror" in line), said[-1] if said else f"exit {done.returncode}")
        raise VerificationError(f"llama.cpp doesn't run {file.name}: {reason.strip()[:300]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _main(given: str) -> None:
    """The same by llama-cpp-python, in a process of its own."""
    import llama_cpp

    task = json.loads(Path(given).read_text(encoding="utf-8"))
    model = llama_cpp.Llama(
        task["file"], n_ctx=task["context"], n_threads=task["threads"], verbose=False, type_k=0, type_v=0
    )
    tokens = []
    for prompt in task["prompts"]:
        own: list[int] = []
        for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            own.append(int(token))
            if len(own) >= task["new"]:
                break
        tokens.append(own)
    texts = [model.tokenize(text.encode("utf-8"), add_bos=False, special=True) for text in task["texts"]]
    print(json.dumps({"version": llama_cpp.__version__, "tokens": tokens, "texts": texts}))


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except Exception as error:
        sys.exit(f"Error: {short(error)}")

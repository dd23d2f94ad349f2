"""Which result runs where: ten results in five clients, tokens and tokenisation against transformers.

    python benchmarks/clients.py --work clients                        everything but what is timed
    python benchmarks/clients.py --work clients --parts matrix --clients onnx --results zeros,gpt2
    python benchmarks/clients.py --work clients --parts table --model path/to/SmolLM2 --pruned path/to/pruned --timed

Parts, each alone if wanted: `results` prunes the ten, `matrix` runs them, `tokens` compares tokenisation in
llama.cpp, `others` tries torchao, peft and lm-eval, `commands` runs every command of docs/serving.md and of the cards
of two results, `table` measures a model and its pruned one at several types of
numbers in llama.cpp (speed only with --timed, on a quiet machine), `page` writes docs/clients.md. Each part adds to
results/clients.json. Each client has an environment of its own below --work, made on its first use.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _client_cards import RESULTS as CARDS
from _client_cards import run_card
from _client_commands import SERVING, name_of
from _client_commands import commands as every_command
from _client_desk import Desk
from _client_environments import NODE_PACKAGE, python_of, variables
from _client_page import TITLES, write_page
from _client_results import RESULTS, SHARED, SMALL, make

import secateur
from secateur.data.embedded import embedded_path
from secateur.evaluation.loading import load
from secateur.export.reference import Reference, first_difference, greedy, is_tie, reference
from secateur.model.checkpoint import Checkpoint
from secateur.model.clients import CLIENTS, notes_of, refusal

HERE = Path(__file__).parent
RECORD = HERE / "results" / "clients.json"
NAMES = {"llama.cpp": "gguf", "llama-cpp-python": "gguf", "onnx": "onnx", "openvino": "openvino"}
TYPES = ("bf16", "q8_0", "q4_0")
PARTS = ("results", "matrix", "tokens", "others", "commands", "table", "page")
TIMEOUT = 3600


def run(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, done.stdout if not lines else lines[-1], errors[-1] if errors else ""


def exported(client: str, folder: Path, out: Path, arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """A result exported for a client, in its environment, where the export itself compares the tokens."""
    python, environment = python_of(client, arguments.work), variables(client, arguments.work, arguments.threads)
    command = [str(python), "-m", "secateur", "export", str(folder), "--to", NAMES.get(client, "padded"), *more]
    command += ["--out", str(out), "--overwrite", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    said = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr[-300:])
    return {"refused" if done.returncode == 2 else "failed": said.removeprefix("error: ")}


def by_export(client: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A cell of the matrix for a client that exports are made for."""
    found = exported(client, folder, arguments.work / "exports" / client / folder.name, arguments, "--type", "f32")
    if "client" not in found:
        return found
    proof = found["client"]
    keys = ("version", "new_tokens", "tokens_alike", "ties", "prompts", "prompts_alike", "texts", "texts_alike")
    return {key: proof[key] for key in keys} | {"notes": found["warnings"], "ran": proof["ran"]}


def by_loading(client: str, folder: Path, wanted: Reference, arguments: argparse.Namespace) -> dict[str, Any]:
    """A cell for a client that loads the folder as it is."""
    python, environment = python_of(client, arguments.work), variables(client, arguments.work, arguments.threads)
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place) / "prompts.json"
        prompts.write_text(json.dumps(wanted.prompts), encoding="utf-8")
        environment["HF_MODULES_CACHE"] = place
        command = [str(python), str(HERE / "_client_tokens.py"), client, str(folder), str(prompts), "20"]
        code, out, error = run(command, environment)
    if code != 0:
        return {"failed": error[:300]}
    found = json.loads(out)
    cell = {"version": found["version"], "new_tokens": 0, "tokens_alike": 0, "ties": 0, "ran": True, "notes": []}
    for expected, own, logits in zip(wanted.tokens, found["tokens"], wanted.logits, strict=True):
        place = first_difference(expected, own)
        cell["new_tokens"] += len(expected)
        cell["tokens_alike"] += len(expected) if place is None else place
        cell["ties"] += place is not None and is_tie(logits[place], expected[place], own[place])
    return cell


def refused_by(client: str, folder: Path) -> str | None:
    """Why `--for` would have refused such a cut."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    skips = {kind for layer in (config.get("per_layer_config") or {}).values() for kind in layer.get("skip", ())}
    uneven = bool(config.get("per_layer_config"))
    return refusal(client, config["model_type"], uneven=uneven, attention="attention" in skips, ffn="ffn" in skips)


def cell_of(client: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    if client in NAMES:
        return by_export(client, folder, arguments)
    checkpoint = Checkpoint.open(folder)
    wanted = reference(checkpoint, checkpoint.tokenizer())
    assert wanted is not None
    on_cpu = CLIENTS[client].heads_on_cpu
    if on_cpu is not None and checkpoint.head_dim not in on_cpu:
        return {"refused": notes_of(client, checkpoint.head_dim)[0]}
    reason = refused_by(client, folder)
    if reason is None:
        return by_loading(client, folder, wanted, arguments)
    padded = arguments.work / "exports" / "padded" / folder.name
    made = exported("transformers", folder, padded, arguments)
    cell: dict[str, Any] = {"refused": reason}
    if "files" in made:
        cell["padded"] = by_loading(client, padded, wanted, arguments)
    return cell


def matrix(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    for client in arguments.clients:
        for name in arguments.results:
            cell = cell_of(client, arguments.work / "results" / name, arguments)
            record.setdefault("matrix", {}).setdefault(name, {})[client] = cell
            print(f"{name} in {client}: {json.dumps(cell)[:300]}", flush=True)
            save(record)


def tokens(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Tokenisation in llama.cpp of whole vocabularies, each with the model that it's of."""
    folders = {"stories3M": SHARED / "models" / "stories3M-fp16", "stories260K": SHARED / "models" / "stories260K"}
    folders |= {"embedded": embedded_path(), "like Gemma's": gemma_like(arguments.work / "gemma-like")}
    if arguments.model is not None:
        folders["SmolLM2"] = arguments.model
    for name, folder in folders.items():
        found = by_export("llama.cpp", folder, arguments)
        record.setdefault("tokens", {})[name] = found
        print(f"{name}: {json.dumps(found)[:200]}", flush=True)
        save(record)


def others(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """What takes any model of transformers, on a result whose layers differ."""
    python, environment = python_of("others", arguments.work), variables("others", arguments.work, arguments.threads)
    folder, texts = arguments.work / "results" / "uneven", SHARED / "data" / "tasks" / "lambada_openai.jsonl"
    for what in ("torchao", "peft", "lm-eval"):
        script = HERE / "_client_others.py"
        code, out, error = run([str(python), str(script), what, str(folder), str(texts)], environment)
        record.setdefault("others", {})[what] = json.loads(out) if code == 0 else {"failed": error[:300]}
        print(what, record["others"][what], flush=True)


def commands(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Every command of docs/serving.md on a result whose layers differ, every line of the cards of two results."""
    listed = every_command(SERVING.read_text(encoding="utf-8"))
    desk = desk_of("uneven", arguments)
    rows = {row["command"]: row for row in record.get("commands", [])}
    try:
        for command, rule in listed:
            if rule.client in (*arguments.clients, "others") or rule.why_not:
                rows[name_of(command, rule)] = desk.run(command, rule)
                print(json.dumps(rows[name_of(command, rule)]), flush=True)
            names = [name_of(*one) for one in listed]
            record["commands"] = [rows[name] for name in names if name in rows]
            save(record)
    finally:
        desk.close()
    for name in CARDS:
        desk = desk_of(name, arguments)
        try:
            record.setdefault("cards", {})[name] = run_card(desk, desk.folder / "out" / "small")
        finally:
            desk.close()
        print(name, json.dumps(record["cards"][name], indent=1), flush=True)
        save(record)


def desk_of(name: str, arguments: argparse.Namespace) -> Desk:
    """A desk with a result as `out/small`."""
    results = arguments.work / "results"
    checkpoint = Checkpoint.open(results / name)
    wanted = reference(checkpoint, checkpoint.tokenizer())
    assert wanted is not None
    folders = {"out/small": results / name, "out/half": results / "zeros", "path/to/model": SMALL}
    lambada = SHARED / "data" / "tasks" / "lambada_openai.jsonl"
    tokens = greedy(load(checkpoint.path, "cpu", "float32").model, [1, 50, 60], 20)[0]
    place = arguments.work / "desk" / name
    return Desk(place, arguments.work, arguments.threads, folders, wanted, tokens, lambada)


def gemma_like(folder: Path) -> Path:
    """A small Llama with a vocabulary of Gemma's kind."""
    sys.path.insert(0, str(HERE.parent))
    from tests.export.test_vocabulary import gemma_like as vocabulary
    from tests.small import tiny_llama

    if not folder.exists():
        tiny_llama(vocab=700, context=256, bos_token_id=2, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
        vocabulary().save_pretrained(folder)
    return folder


def table(record: dict[str, Any], arguments: argparse.Namespace) -> None:
    """A model and its pruned one at several types: size, perplexity, and with --timed decoding speed, in turns."""
    pairs = {"dense": arguments.model, "pruned": arguments.pruned}
    if None in pairs.values():
        raise SystemExit("table: give --model and --pruned")
    files = []
    for which, folder in pairs.items():
        for kind in TYPES:
            out = arguments.work / "exports" / "table" / f"{which}-{kind}"
            if not out.exists():
                found = exported("llama.cpp", folder, out, arguments, "--type", kind)
                if "files" not in found:
                    raise SystemExit(f"{which} {kind}: {found}")
            files.append(next(out.glob("*.gguf")))
    windows = windows_of(arguments) if arguments.windows else []
    task = {"files": [str(file.resolve()) for file in files], "windows": windows, "prompt": list(range(1000, 1032))}
    task |= {"new": 64, "rounds": arguments.rounds if arguments.timed else 0, "threads": arguments.threads}
    found = in_node(task, arguments)
    labels = [f"{which} {kind}" for which in pairs for kind in TYPES]
    known = record.setdefault("table", {"model": arguments.model.name, "rows": {}})
    known |= {"version": found["version"], "threads": arguments.threads, "machine": platform.machine()}
    for label, row in zip(labels, found["rows"], strict=True):
        rates = row.pop("rates")
        kept = {key: value for key, value in row.items() if key != "file"}
        if rates:
            kept |= {"tokens_per_s": statistics.median(rates), "rates": [round(rate, 2) for rate in rates]}
        known["rows"][label] = known["rows"].get(label, {}) | kept
        print(label, kept, flush=True)


def windows_of(arguments: argparse.Namespace) -> list[list[int]]:
    """Pieces of 512 tokens of the evaluation text."""
    ids = Checkpoint.open(arguments.model).tokenizer()(arguments.text.read_text(encoding="utf-8")[:200_000])
    return [ids["input_ids"][at : at + 512] for at in range(0, 512 * arguments.windows, 512)]


def in_node(task: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    python_of("llama.cpp", arguments.work)
    package = arguments.work / "environments" / "llama.cpp" / "node_modules" / NODE_PACKAGE
    with tempfile.TemporaryDirectory() as place:
        given = Path(place) / "task.json"
        given.write_text(json.dumps(task), encoding="utf-8")
        command = ["node", str(HERE / "_client_speed.mjs"), str(package.resolve()), str(given)]
        code, out, error = run(command, variables("llama.cpp", arguments.work, arguments.threads))
    if code != 0:
        raise SystemExit(f"node: {error}")
    return dict(json.loads(out))


STEPS = {"matrix": matrix, "tokens": tokens, "others": others, "commands": commands, "table": table}


def save(record: dict[str, Any]) -> None:
    record["secateur"] = secateur.__version__
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = {"type": lambda text: text.split(",")}
    parser.add_argument("--work", type=Path, required=True, help="environments, results and exports")
    parser.add_argument("--parts", default=[part for part in PARTS if part != "table"], **listed)
    parser.add_argument("--clients", default=list(TITLES), **listed)
    parser.add_argument("--results", default=list(RESULTS), **listed)
    parser.add_argument("--model", type=Path, help="SmolLM2-135M, for tokens and table")
    parser.add_argument("--pruned", type=Path, help="the same with a quarter of its channels gone, for table")
    parser.add_argument("--text", type=Path, default=SHARED / "data" / "wikitext-2" / "test.txt")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, for perplexity")
    parser.add_argument("--timed", action="store_true", help="measure speed too; only on a quiet machine")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if "results" in arguments.parts:
        make(arguments.work, arguments.results)
    for part, step in STEPS.items():
        if part in arguments.parts:
            step(record, arguments)
            save(record)
    if "page" in arguments.parts:
        write_page(record)


if __name__ == "__main__":
    main()

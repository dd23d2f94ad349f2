"""The command line: parse, call, print. Everything it does is a function of the library."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from secateur.cli import runtime as compression
from secateur.cli import search, study, sweep
from secateur.cli.export import export
from secateur.cli.options import (
    Against,
    Device,
    Dtype,
    Json,
    Model,
    Quiet,
    Revision,
    Threads,
    Trust,
    at_least,
    check_data,
    check_tasks,
    completer,
    examples,
    model_path,
    one_of,
    output,
    text,
)
from secateur.cli.prune import prune
from secateur.cli.recover import recover
from secateur.cli.stopping import drop_output, exit_code, write_anything
from secateur.config.suggestions import closest
from secateur.errors import InputError, RanksLost, SecateurError, Stopped, Terminated
from secateur.model.clients import CLIENTS
from secateur.report.terminal.escape import printable
from secateur.system.display import starting
from secateur.system.malloc import keep_large_apart

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pruning shears for large language models: prune, repair, prove, save.",
)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="print the version and stop")] = False,
) -> None:
    if version:
        from secateur._version import __version__

        print(f"secateur {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog=examples("secateur inspect embedded", "secateur inspect path/to/model --forecast"))
def inspect(
    model: Model,
    client: Annotated[
        str | None,
        typer.Option(
            "--for",
            help=f"what a result has to run in: {', '.join(CLIENTS)}",
            callback=one_of(*CLIENTS),
            autocompletion=completer(CLIENTS),
        ),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="also say what pruning takes here: time, memory, disk")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is made of and what could be cut."""
    folder = model_path(model, revision)
    with starting(as_json):
        from secateur.analysis.inspect import inspect as look
        from secateur.report.terminal.tables import print_anatomy

    found = look(folder, client, forecast)
    _print_json(found) if as_json else print_anatomy(found)


app.command(
    epilog=examples(
        "secateur prune embedded --sites channel --sparsity 0.25 --out out/small",
        "secateur prune path/to/model --pattern 2:4 --quality fast --out out/sparse",
    )
)(prune)


@app.command(
    "eval",
    epilog=examples(
        "secateur eval out/small --data general.jsonl --against path/to/model",
        "secateur eval out/small --tasks questions.jsonl --against path/to/model",
    ),
)
def evaluate(
    model: Model,
    data: Annotated[
        str | None, text("--data", "-d", help=".jsonl, .txt, .parquet, stdlib or a hub id; several with commas")
    ] = None,
    tasks: Annotated[
        str | None, text("--tasks", "-t", help="files of questions, or names of lm-eval's tasks; commas")
    ] = None,
    limit: Annotated[int | None, text(help="only the first items of each task", callback=at_least(1))] = None,
    shots: Annotated[
        int | None, text(help="examples before each question of lm-eval's tasks", callback=at_least(0))
    ] = None,
    include_path: Annotated[str | None, text(help="folder of more tasks for lm-eval")] = None,
    against: Against = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    length: Annotated[int | None, text(help="tokens per window (default: the context)")] = None,
    speed: Annotated[bool, output(help="measure tokens a second and memory")] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity, bits per byte, size, speed and memory, or tasks; of two models also what differs.

    Models without a perplexity (classifiers, embeddings) are compared with --against: how far both agree.
    """
    if data is None and tasks is None:
        raise InputError("Missing option '--data', or '--tasks'; see secateur eval --help")
    if data is None and length is not None:
        raise InputError("--length cuts the text of --data; give that, or leave it out; see secateur eval --help")
    folder, other = model_path(model, revision), None if against is None else model_path(against)
    check_data(data)
    check_tasks(tasks)
    with starting(quiet or as_json):
        from secateur.report.terminal.agreement import print_agreement
        from secateur.report.terminal.tables import print_evaluation
        from secateur.report.terminal.tasks import print_tasks
        from secateur.system.device import set_threads

    set_threads(threads)
    how = (other, device, dtype)
    found: dict[str, Any] = {}
    if data is not None:
        with starting(quiet or as_json):
            from secateur.evaluation import evaluate_any

        found = {**evaluate_any(folder, data, *how, length, speed, quiet or as_json)}
    if tasks is not None:
        with starting(quiet or as_json):
            from secateur.evaluation.tasks import beside, evaluate_tasks

        asked = evaluate_tasks(folder, tasks, *how, limit, shots, include_path, quiet or as_json)
        found = beside(found, asked)
    if as_json:
        _print_json(found)
        return
    if data is not None:
        print_agreement(found) if "agreement" in found else print_evaluation(found)
    if tasks is not None:
        print_tasks(found)


for part in (compression, study, search, sweep):
    part.register(app)
app.command(
    epilog=examples(
        "secateur recover out/small --data general.jsonl --out out/recovered",
        "secateur recover out/small --how lora --data general.jsonl --steps 100 --out out/recovered",
    )
)(recover)

app.command(
    epilog=examples(
        "secateur export out/small --to gguf --type q8_0 --out out/gguf",
        "secateur export out/small --to hub --repo org/name --dry-run",
    )
)(export)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, 2 for what the user can put right, 1 for what the machine lacks.

    Args:
        arguments: those of the process, if None.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    write_anything()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    keep_large_apart()
    try:
        code = app(args=arguments, prog_name="secateur", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit:
        if type(sys.stdout).__name__ != "PacifyFlushWrapper":  # what the parser leaves of a pipe that was closed
            raise
        os._exit(128 + 13)
    except BrokenPipeError:
        os._exit(128 + 13)  # SIGPIPE: whoever read the output has seen enough
    except KeyboardInterrupt:  # outside the parser
        _fail("stopped", exit_code())
    except SecateurError as error:
        if os.environ.get("RANK", "0") != "0" and isinstance(error, (InputError, RanksLost, Stopped)):
            time.sleep(1)  # torchrun stops all ranks when one ends; the first shall have said why by then
            sys.exit(error.exit_code)
        _fail(str(error), error.exit_code)
    except Exception as error:
        _explain(error)
        raise
    if code == Stopped.exit_code:  # Ctrl-C, which the parser turns into this
        _fail("stopped", exit_code())
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> None:
    """Ends with one line for what isn't a mistake of ours: bad words, no memory, a file system that refuses."""
    said = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    ):
        _fail("not enough memory; use fewer --samples, a shorter --length, or --memory", 1)
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 1 if full else 2)
    # The parser's own complaints (an unknown flag, a missing argument) know how they are shown, and where.
    shown, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if shown is not None:
        command = context.command_path if context is not None else "secateur"
        _fail(f"{_meant(error) or shown().rstrip('.')}; see {command} --help", 2)


def _meant(error: Any) -> str | None:
    """For a flag or a command that isn't known, what it may have been."""
    known = getattr(error, "possibilities", None)
    if known:
        return f"{error.message}; did you mean {closest(error.option_name, known)}?"
    found = re.fullmatch(r"(No such command '.*')\. Did you mean (.*)\?", error.format_message())
    return f"{found[1]}; did you mean {found[2].replace(', ', ' or ')}?" if found else None


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    sys.exit(code)

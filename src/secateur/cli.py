"""The command line: parse, call, print. Everything it does is a function of the library."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from secateur import cli_runtime, cli_study
from secateur.cli_recover import recover
from secateur.errors import InputError, RanksLost, SecateurError, Stopped
from secateur.heap import keep_large_apart


class Terminated(KeyboardInterrupt):
    """SIGTERM, which torchrun and SLURM send: the run stops as it does for Ctrl-C."""


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pruning shears for large language models: prune, repair, prove, save.",
)

cut = partial(typer.Option, rich_help_panel="What to cut")
repair = partial(typer.Option, rich_help_panel="Repair")
text = partial(typer.Option, rich_help_panel="Data")
where = partial(typer.Option, rich_help_panel="Where it runs")
output = partial(typer.Option, rich_help_panel="Output")

Model = Annotated[str, typer.Argument(help="model folder, 'embedded', or a hub id", show_default=False)]
Json = Annotated[bool, output("--json", help="print one JSON object, no tables")]
Quiet = Annotated[bool, output("--quiet", "-q", help="no progress display")]
Device = Annotated[str, where(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, where(help="number format of the computation")]
Threads = Annotated[int | None, where(help="CPU threads")]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="print the version and stop")] = False,
) -> None:
    if version:
        import secateur

        print(f"secateur {secateur.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """Show what a model is made of and what could be cut."""
    folder = _path(model)
    from secateur.anatomy import inspect as look
    from secateur.report.tables import print_anatomy

    found = look(folder)
    _print_json(found) if as_json else print_anatomy(found)


@app.command()
def prune(
    model: Annotated[
        str | None, typer.Argument(help="model folder, 'embedded', or a hub id; or 'model' in the recipe")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="YAML file with these settings; flags override it")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="replay the cuts of this plan.json, choose nothing")] = None,
    sites: Annotated[
        str | None, cut(help="weight (default), channel, query_head, kv_group, expert, attention, ffn, layer")
    ] = None,
    sparsity: Annotated[
        str | None, cut("--sparsity", "-s", help="fraction that goes: 0.25, or channel:0.25,layer:0.1")
    ] = None,
    allocate: Annotated[
        str | None, cut(help="spread over layers: local (default), global, owl or sensitivity")
    ] = None,
    method: Annotated[str | None, cut("--method", "-m", help="see secateur methods; commas: one per kind")] = None,
    quality: Annotated[str | None, cut("--quality", "-Q", help="fast, balanced (default) or best")] = None,
    pattern: Annotated[str | None, cut(help="zeros of single weights: free (default) or N:M")] = None,
    protect: Annotated[str | None, cut(help="layers left alone, such as 0,-1")] = None,
    round_to: Annotated[int | None, cut(help="keep a multiple of this many channels")] = None,
    refit: Annotated[bool | None, repair(help="make up for cut units by least squares (default)")] = None,
    explain: Annotated[bool | None, output(help="write evidence.json: why each unit went (default)")] = None,
    bias: Annotated[str | None, repair(help="biases of the refit: own (default), add, none")] = None,
    target: Annotated[str | None, repair(help="what Linears are solved for: pruned, dense, residual")] = None,
    reconstruct: Annotated[int | None, repair(help="steps of block reconstruction, 0 for none")] = None,
    objective: Annotated[str | None, repair(help="tuning minimises: output, loss, predictions")] = None,
    window: Annotated[
        str | None, repair(help="tuned at once: half, block (default), or judged after N blocks")
    ] = None,
    masks: Annotated[str | None, repair(help="cuts while blocks are tuned: kept, or gradual")] = None,
    sequential: Annotated[bool | None, repair(help="weights: new statistics after each group of Linears")] = None,
    calibrate: Annotated[
        str | None, text(help="stdlib (default), .jsonl, .txt, .parquet, hub id; a:0.7,b:0.3; self")
    ] = None,
    samples: Annotated[int | None, text(help="calibration sequences (default 128)")] = None,
    length: Annotated[int | None, text(help="tokens per sequence (default 512)")] = None,
    seed: Annotated[int | None, text(help="of the draw of sequences (default 0)")] = None,
    evaluate: Annotated[str | None, text(help="text to evaluate on, or none (default: held-out sequences)")] = None,
    device: Annotated[str | None, where(help="auto, cpu, cuda or cuda:N")] = None,
    dtype: Annotated[str | None, where(help="of the computation: auto, float32, bfloat16")] = None,
    threads: Threads = None,
    memory: Annotated[
        str | None, where(help="for activations, such as 2GB; larger models are checked in blocks")
    ] = None,
    out: Annotated[Path | None, output("--out", "-o", help="output folder (required)")] = None,
    overwrite: Annotated[bool, output("--overwrite", help="replace an earlier result in --out")] = False,
    resume: Annotated[bool, output("--resume", help="go on with the interrupted run in --out")] = False,
    dry_run: Annotated[bool, output("--dry-run", help="write the plan and the forecast only")] = False,
    speed: Annotated[bool | None, output(help="measure tokens a second of both models (default)")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a model into a checkpoint that loads, with its plan, report and recipe."""
    given = {name: value for name, value in locals().items() if value is not None}
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    if model is not None:
        _path(model)  # what isn't there is said at once, not after torch has been imported
    _threads(threads)
    from secateur.journal import last_finished
    from secateur.pipeline import prune as run
    from secateur.plan import Plan
    from secateur.recipe import Recipe, load_recipe, make_recipe
    from secateur.report.terminal import print_report
    from secateur.workspace import WORK

    flags = {name: value for name, value in given.items() if name in Recipe.model_fields}
    replay = Plan.read(plan) if plan is not None else None
    if replay is not None:
        flags = {"sites": replay.sites, "sparsity": replay.sparsities, **flags}
    chosen = load_recipe(recipe, flags) if recipe is not None else make_recipe(flags)
    how = {"dry_run": dry_run, "overwrite": overwrite, "resume": resume, "quiet": quiet or as_json}
    try:
        report = run(chosen, out, plan=replay, **how)
    except KeyboardInterrupt as stop:
        last = last_finished(out / WORK)
        kept = "nothing was written" if last is None else f"the same command with --resume goes on after layer {last}"
        raise Stopped(f"stopped; {kept}", isinstance(stop, Terminated)) from None
    if report:  # under torchrun only the first rank has one
        _print_json(report) if as_json else print_report(report, out)


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[
        str, text("--data", "-d", help=".jsonl, .txt, .parquet, stdlib or a hub id; several with commas")
    ],
    against: Annotated[
        str | None, typer.Option("--against", "-a", help="reference model: adds its figures, ratios and the KL to it")
    ] = None,
    length: Annotated[int | None, text(help="tokens per window (default: the context)")] = None,
    speed: Annotated[bool, output(help="measure tokens a second and memory")] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure perplexity, bits per byte, KL, size, speed and memory."""
    folder, other = _path(model), None if against is None else _path(against)
    _threads(threads)
    from secateur.evaluation import evaluate as measure
    from secateur.report.tables import print_evaluation

    found = measure(folder, data, other, device, dtype, length, speed, quiet or as_json)
    _print_json(found) if as_json else print_evaluation(found)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="text to continue", show_default=False)],
    against: Annotated[
        str | None, typer.Option("--against", "-a", help="a second model, whose text is shown too")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="new tokens at most")] = 100,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Continue a prompt with one model, or with two to compare."""
    folder, other = _path(model), None if against is None else _path(against)
    from secateur.evaluation import generate as write
    from secateur.report.tables import print_generation

    found = write(folder, prompt, tokens, other, temperature, seed, device, dtype)
    _print_json(found) if as_json else print_generation(found)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the pruning methods: what each prunes, what it needs, its paper."""
    from secateur.methods import METHODS
    from secateur.report.tables import print_methods

    rows = [
        {"name": m.name, "title": m.title, "prunes": sorted(m.prunes), "needs": sorted(m.needs), "paper": m.paper}
        for m in METHODS.values()
    ]
    _print_json(rows) if as_json else print_methods(rows)


cli_runtime.register(app)
cli_study.register(app)
app.command()(recover)


def _path(model: str) -> str:
    from secateur.model.hub import local_folder

    return str(local_folder(model))


def _threads(count: int | None) -> None:
    if count is None:
        return
    if count < 1:
        raise InputError(f"--threads {count} is too small; give 1 or more")
    import torch

    torch.set_num_threads(count)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, 2 for what the user can put right, 1 for what the machine lacks.

    Args:
        arguments: those of the process, if None.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, _terminate)
    keep_large_apart()
    try:
        code = app(args=arguments, prog_name="secateur", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(0)  # whoever read the output has seen enough
    except SecateurError as error:
        if os.environ.get("RANK", "0") != "0" and isinstance(error, (InputError, RanksLost, Stopped)):
            time.sleep(1)  # torchrun stops all ranks when one ends; the first shall have said why by then
            sys.exit(error.exit_code)
        _fail(str(error), error.exit_code)
    except Exception as error:
        _explain(error)
        raise
    if code == Stopped.exit_code:  # Ctrl-C, which the parser turns into this
        _fail("stopped", code)
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
        _fail(f"{shown().rstrip('.')}; see {command} --help", 2)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

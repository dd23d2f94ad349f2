"""The command line: parse, call, print. Everything it does is a function of the library."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from secateur.errors import InputError, SecateurError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Pruning shears for large language models.",
)

ModelArgument = Annotated[str, typer.Argument(help="model folder, 'embedded' or a hub id")]
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object instead of tables")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="no progress display")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")]
DtypeOption = Annotated[str, typer.Option(help="of the computation: auto, float32, bfloat16, float16")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: torch's choice")]


@app.command()
def inspect(model: ModelArgument, as_json: JsonFlag = False) -> None:
    """What a model is made of, and what could be cut: sites, parameters, FLOPs, KV cache, legal counts."""
    from secateur.anatomy import inspect as look
    from secateur.report.tables import print_anatomy

    found = look(_path(model))
    _print_json(found) if as_json else print_anatomy(found)


@app.command()
def prune(
    model: Annotated[
        str | None, typer.Argument(help="model folder, 'embedded' or a hub id")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="output folder")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML recipe; flags override it")] = None,
    sites: Annotated[
        str | None, typer.Option(help="weight, channel, query_head, kv_group, layer")
    ] = None,
    sparsity: Annotated[str | None, typer.Option(help="fraction removed; 0.25, or channel:0.25,layer:0.1")] = None,
    method: Annotated[str | None, typer.Option(help="see `secateur methods`; with commas one per kind")] = None,
    pattern: Annotated[str | None, typer.Option(help="zeros of single weights: free or N:M")] = None,
    calibrate: Annotated[str | None, typer.Option(help="text: .jsonl, .txt, .parquet, stdlib, hub id")] = None,
    evaluate: Annotated[str | None, typer.Option(help="evaluation text, or none")] = None,
    samples: Annotated[int | None, typer.Option(help="calibration sequences (128)")] = None,
    length: Annotated[int | None, typer.Option(help="tokens per sequence (512)")] = None,
    seed: Annotated[int | None, typer.Option(help="of the draw of sequences (0)")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N")] = None,
    dtype: Annotated[str | None, typer.Option(help="of the computation: auto, float32, bfloat16")] = None,
    round_to: Annotated[int | None, typer.Option(help="keep a multiple of this many channels")] = None,
    refit: Annotated[bool | None, typer.Option(help="make up for structured cuts by least squares")] = None,
    bias: Annotated[str | None, typer.Option(help="of the refit: own, add or none")] = None,
    sequential: Annotated[bool | None, typer.Option(help="statistics anew after each group of Linears")] = None,
    speed: Annotated[bool | None, typer.Option(help="measure tokens a second of both models")] = None,
    protect: Annotated[str | None, typer.Option(help="layers left alone, such as 0,-1")] = None,
    memory: Annotated[str | None, typer.Option(help="activations that may stay in memory, such as 2GB")] = None,
    plan: Annotated[Path | None, typer.Option(help="replay this plan.json")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the plan and the forecast only")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier result in --out")] = False,
    threads: ThreadsOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Prunes a model and saves a checkpoint that loads; with plan, report and recipe."""
    given = {k: v for k, v in locals().items() if v is not None and k in _RECIPE_FLAGS}
    from secateur.pipeline import prune as run
    from secateur.plan import Plan
    from secateur.recipe import load_recipe, make_recipe
    from secateur.report.terminal import print_report

    replay = Plan.read(plan) if plan is not None else None
    if replay is not None:
        given.setdefault("sites", replay.sites)
        given.setdefault("sparsity", replay.sparsities)
    chosen = load_recipe(recipe, given) if recipe is not None else make_recipe(given)
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    _threads(threads)
    report = run(chosen, out, plan=replay, dry_run=dry_run, overwrite=overwrite, quiet=quiet or as_json)
    _print_json(report) if as_json else print_report(report, out)


_RECIPE_FLAGS = frozenset(
    ("model", "sites", "sparsity", "method", "pattern", "calibrate", "evaluate", "samples", "length", "seed")
    + ("device", "dtype", "round_to", "refit", "bias", "sequential", "speed", "protect", "memory")
)


@app.command("eval")
def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help="text: .jsonl, .txt, .parquet, stdlib, hub id; several with commas")],
    against: Annotated[str | None, typer.Option(help="a reference model: adds its figures and the KL to it")] = None,
    length: Annotated[int | None, typer.Option(help="tokens per window; default: the context")] = None,
    speed: Annotated[bool, typer.Option(help="measure tokens a second and memory")] = True,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Perplexity, bits per byte, KL, size, speed and memory of a model."""
    from secateur.evaluation import evaluate as measure
    from secateur.report.tables import print_evaluation

    _threads(threads)
    other = _path(against) if against is not None else None
    found = measure(_path(model), data, other, device, dtype, length, speed, quiet or as_json)
    _print_json(found) if as_json else print_evaluation(found)


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="text to continue")],
    against: Annotated[str | None, typer.Option(help="a second model, shown beside")] = None,
    tokens: Annotated[int, typer.Option(help="new tokens at most")] = 100,
    temperature: Annotated[float, typer.Option(help="0 = greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Continues a prompt, with two models side by side if asked."""
    from secateur.evaluation import generate as write
    from secateur.report.tables import print_generation

    other = _path(against) if against is not None else None
    found = write(_path(model), prompt, tokens, other, temperature, seed, device, dtype)
    _print_json(found) if as_json else print_generation(found)


@app.command()
def methods(as_json: JsonFlag = False) -> None:
    """The pruning methods: what each prunes, what it needs, its paper."""
    from secateur.methods import METHODS
    from secateur.report.tables import print_methods

    rows = [
        {"name": m.name, "title": m.title, "prunes": sorted(m.prunes), "needs": sorted(m.needs), "paper": m.paper}
        for m in METHODS.values()
    ]
    _print_json(rows) if as_json else print_methods(rows)


@app.command()
def version() -> None:
    """The version."""
    import secateur

    print(f"secateur {secateur.__version__}")


def _path(model: str) -> str:
    from secateur.model.hub import local_folder

    return str(local_folder(model))


def _threads(count: int | None) -> None:
    if count is not None:
        import torch

        if count < 1:
            raise InputError(f"--threads {count} is too small; give 1 or more")
        torch.set_num_threads(count)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def main() -> NoReturn:
    """Runs the command line; user errors are one line and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SecateurError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("stopped", 130)
    except KeyboardInterrupt:
        _fail("stopped; nothing was written", 130)
    except MemoryError:
        _fail("not enough memory; use fewer --samples, a shorter --length or --memory", 1)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        # click's own complaints (unknown flag, missing argument) carry their exit code.
        shown = getattr(error, "format_message", None)
        if shown is None:
            raise
        _fail(shown(), getattr(error, "exit_code", 2))


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

"""The commands around sparse weights that pay: compress, decompress, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.options import (
    Against,
    Json,
    Model,
    Out,
    Overwrite,
    Quiet,
    Revision,
    Threads,
    Trust,
    completer,
    examples,
    model_path,
    one_of,
    out_folder,
    output,
)
from secateur.errors import InputError
from secateur.system.display import starting

MOST = 2**20
EXAMPLES = {
    "compress": (
        "secateur compress out/sparse --out out/packed",
        "secateur compress out/sparse --values int8 --group 128 --out out/packed8",
    ),
    "decompress": (
        "secateur decompress out/packed --out out/dense",
        "secateur decompress out/packed --out out/dense --overwrite",
    ),
    "bench": (
        "secateur bench out/small --against path/to/model",
        "secateur bench out/small --batches 1 --contexts 128 --out out/bench",
    ),
}


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (compress, decompress, bench):
        app.command(epilog=examples(*EXAMPLES[command.__name__]))(command)


def compress(
    model: Model,
    out: Out = None,
    values: Annotated[
        str,
        typer.Option(
            help="keep: as they are, without loss; int8: rounded",
            callback=one_of("keep", "int8"),
            autocompletion=completer(("keep", "int8")),
        ),
    ] = "keep",
    group: Annotated[int | None, typer.Option(help="int8: columns that share a scale (default: a row)")] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    exact_bits: Annotated[
        bool, typer.Option("--exact-bits", help="keep -0.0 instead of taking it as a zero")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Store sparse matrices without their zeros: smaller on disk and in memory, faster to run."""
    folder, target = model_path(model, revision), _required(out)
    from secateur.report.html.bench import print_compression

    with starting(quiet or as_json):
        from secateur.runtime.compress import compress as run

    found = run(
        folder,
        target,
        values=values,
        group=group,
        exact_bits=exact_bits,
        overwrite=overwrite,
        quiet=quiet or as_json,
    )
    _print_json(found) if as_json else print_compression(found)


def decompress(
    model: Annotated[str, typer.Argument(help="folder that compress made", show_default=False)],
    out: Out = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Give the dense checkpoint of a compressed folder back, bit for bit."""
    folder, target = model_path(model, revision), _required(out)
    from secateur.report.html.bench import print_compression

    with starting(quiet or as_json):
        from secateur.runtime.decompress import decompress as run

    found = run(folder, target, overwrite=overwrite, quiet=quiet or as_json)
    _print_json(found) if as_json else print_compression(found)


def bench(
    model: Model,
    against: Against = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    batches: Annotated[str, typer.Option(help="sequences at a time")] = "1,4,16",
    contexts: Annotated[str, typer.Option(help="tokens of the prompt")] = "128,1024,4096",
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="new tokens that are timed")] = 32,
    limit: Annotated[float, typer.Option(help="seconds that one figure may take; slower ones are left out")] = 120.0,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="measure torch.compile too")] = True,
    dtype: Annotated[str, typer.Option(help="number format; stored: what the checkpoint holds")] = "stored",
    threads: Threads = None,
    out: Annotated[
        Path | None,
        output("--out", "-o", help="new folder for bench.json and bench.html", parser=out_folder, metavar="PATH"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure speed, memory, load time, size and energy of a model in every form that it can run in."""
    wanted = {"batches": _numbers(batches, "--batches"), "contexts": _numbers(contexts, "--contexts")}
    folder, other = model_path(model, revision), None if against is None else model_path(against)
    with starting(quiet or as_json):
        from secateur.benchmarking.bench import bench as run
    from secateur.report.html.bench import print_bench

    found = run(
        folder,
        other,
        **wanted,
        tokens=tokens,
        limit=limit,
        compile=compile_,
        dtype=dtype,
        threads=threads,
        out=out,
        overwrite=overwrite,
        quiet=quiet or as_json,
    )
    _print_json(found) if as_json else print_bench(found)


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text[:1000].split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or max(found) > MOST or len(found) > 32:
        raise InputError(f"{flag} {text[:60]}: give whole numbers from 1 to {MOST}, 32 at most, such as 1,4,16")
    return found


def _required(out: Path | None) -> Path:
    if out is None:
        raise InputError("no output folder given; add --out DIR")
    return out


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))

"""Every form that a model can run in on this machine, side by side: what pays here, and what doesn't.

A form is a checkpoint (the model, or the one it was pruned from) and a way to run it: as it is (eager), with
`torch.compile`, with frozen weights too, or from compressed weights. Each is measured in a process of its own, and
they take turns.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch

from secateur._version import __version__
from secateur.benchmarking.findings import headline, judge, verdicts
from secateur.benchmarking.machine import machine
from secateur.benchmarking.turns import WAYS, Form, measure_forms
from secateur.errors import InputError, SecateurError
from secateur.model.files import read_config
from secateur.model.hub import local_folder
from secateur.report.html.bench import bench_page
from secateur.report.schema.bench import Bench, BenchSettings
from secateur.runtime.compress import compress as compress_folder
from secateur.runtime.decompress import decompress as decompress_folder
from secateur.runtime.folder import is_compressed
from secateur.system.device import check_threads, dtype_name
from secateur.system.monitor import Monitor
from secateur.workspace.folder import MARK as REPORT
from secateur.workspace.folder import Workspace


def bench(
    model: str | Path,
    against: str | Path | None = None,
    *,
    batches: tuple[int, ...] = (1, 4, 16),
    contexts: tuple[int, ...] = (128, 1024, 4096),
    tokens: int = 32,
    limit: float = 120.0,
    compile: bool = True,
    dtype: str = "stored",
    threads: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Bench:
    """Measures a model's speed, memory, load time, size and energy in every form that it can run in, on the CPU.

    Args:
        model: dense or compressed. Zeros in a dense one are compressed in a temporary folder for the comparison.
        against: the model before it was pruned.
        batches: numbers of sequences at a time.
        contexts: lengths of the prompt, in tokens; each is measured with each of `batches`.
        tokens: new tokens of a timed segment, at least 4; there are three segments.
        limit: seconds that one figure may take; rows beyond are left out, and say so.
        compile: measure `torch.compile` too.
        dtype: `stored`: what the checkpoint holds; or float32, bfloat16, float16.
        threads: of torch; by default as many as it would take.
        out: a new folder for bench.json and bench.html; None writes nothing.
        overwrite: an earlier result in `out` may be replaced.
        quiet: no progress display.

    Returns:
        secateur (its version), model, against, settings, machine, notes, forms (each with its rows), headline,
        verdicts: docs/runtime.md.

    Raises:
        InputError: a model, a number or an output folder that can't be used.
        SecateurError: nothing could be measured.
    """
    if not 4 <= tokens <= 2**20 or not 0 < limit <= 1e6:
        raise InputError(f"--tokens {tokens}, --limit {limit}: give at least 4 tokens and some seconds")
    if threads is not None:
        check_threads(threads)
    folder = local_folder(model)
    other = None if against is None else local_folder(against)
    config = read_config(folder)
    stored = getattr(config, "dtype", None)
    name = dtype if dtype != "stored" else dtype_name(stored if isinstance(stored, torch.dtype) else torch.float32)
    settings: BenchSettings = {
        "batches": batches,
        "contexts": contexts,
        "tokens": tokens,
        "limit": limit,
        "dtype": name,
        "threads": threads or torch.get_num_threads(),
    }
    facts, notes = machine(settings["threads"]), list[str]()
    with ExitStack() as stack:
        read = [folder] if other is None else [folder, other]
        workspace = None if out is None else stack.enter_context(Workspace(out, overwrite, inputs=read).open())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="secateur-bench-")))
        monitor = stack.enter_context(Monitor(torch.device("cpu"), quiet))
        forms = _forms(folder, other, scratch, compile, notes)
        with monitor.stage("bench", len(forms) * (len(batches) * len(contexts) + 2)) as step:
            measured = measure_forms(forms, settings, step)
        if all("error" in form for form in measured):
            raise SecateurError(measured[0]["error"])
        notes += sorted({why for form in measured if (why := form.get("no_energy"))})
        judge(measured)
        found: Bench = {
            "secateur": __version__,
            "model": str(folder),
            "against": None if other is None else str(other),
            "settings": settings,
            "machine": facts,
            "notes": notes,
            "forms": measured,
            "headline": headline(measured),
            "verdicts": verdicts(measured),
        }
        if workspace is not None:
            _write(workspace, found)
    return found


def _forms(folder: Path, other: Path | None, scratch: Path, compiled: bool, notes: list[str]) -> list[Form]:
    """All forms; makes the dense or the compressed twin of the model where it's missing."""
    dense, packed = (None, folder) if is_compressed(folder) else (folder, None)
    if dense is None:
        dense = scratch / "dense"
        decompress_folder(folder, dense, quiet=True)
    if packed is None:
        try:
            packed = scratch / "compressed"
            compress_folder(folder, packed, quiet=True)
        except InputError as error:
            packed = None
            notes.append(f"no compressed form: {str(error).partition(': ')[2]}")
    ways = tuple(WAYS) if compiled else ("eager",)
    forms = [] if other is None else [Form("dense", other, way) for way in ways]
    forms += [Form("model" if other is None else "pruned", dense, way) for way in ways]
    if packed is not None:
        forms += [Form("compressed", packed, way, "auto") for way in ways if way != "frozen"]
    return forms


def _write(workspace: Workspace, found: Bench) -> None:
    files = ["bench.json", "bench.html", REPORT]
    (workspace.final / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (workspace.final / "bench.html").write_text(bench_page(found), encoding="utf-8")
    mark = {"secateur": __version__, "files": sorted(files)}
    (workspace.final / REPORT).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    workspace.deliver()

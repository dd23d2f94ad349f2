"""`secateur prune` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import Json, Out, Overwrite, Quiet, Resume, Threads, cut, output, repair, text, where
from secateur.errors import InputError, Stopped, Terminated


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
    params: Annotated[str | None, cut(help="instead: parameters left at most, such as 75% or 1.5B")] = None,
    size: Annotated[str | None, cut(help="instead: bytes on disk at most, such as 75% or 2GB")] = None,
    flops: Annotated[str | None, cut(help="instead: FLOPs a token at most, such as 75% or 3G")] = None,
    latency: Annotated[str | None, cut(help="instead: a decoding step here at most, such as 75% or 12ms")] = None,
    allocate: Annotated[
        str | None, cut(help="spread over layers: local (default), global, owl, sensitivity, evolve")
    ] = None,
    search: Annotated[str | None, cut(help="of evolve: 100 weighings (default), or a time such as 10min")] = None,
    method: Annotated[str | None, cut("--method", "-m", help="see secateur methods; commas: one per kind")] = None,
    steps: Annotated[int | None, cut(help="cuts one after the other; recover comes after each (default 1)")] = None,
    schedule: Annotated[str | None, cut(help="of the steps: cubic (default), much first, or linear")] = None,
    quality: Annotated[str | None, cut("--quality", "-Q", help="fast, balanced (default) or best")] = None,
    pattern: Annotated[str | None, cut(help="zeros of single weights: free (default) or N:M")] = None,
    protect: Annotated[str | None, cut(help="layers left alone, such as 0,-1")] = None,
    round_to: Annotated[int | None, cut(help="keep a multiple of this many channels")] = None,
    refit: Annotated[bool | None, repair(help="make up for cut units by least squares (default)")] = None,
    merge_experts: Annotated[
        bool | None, repair(help="experts that stay absorb those that go, where that helps")
    ] = None,
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
    allow_little_text: Annotated[bool | None, text(help="prune on less than a tenth of the samples")] = None,
    seed: Annotated[int | None, text(help="of the draw of sequences (default 0)")] = None,
    evaluate: Annotated[str | None, text(help="text to evaluate on, or none (default: held-out sequences)")] = None,
    device: Annotated[str | None, where(help="auto, cpu, cuda or cuda:N")] = None,
    dtype: Annotated[str | None, where(help="of the computation: auto, float32, bfloat16")] = None,
    threads: Threads = None,
    memory: Annotated[
        str | None, where(help="for activations, such as 2GB; larger models are checked in blocks")
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
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
        from secateur.model.hub import local_folder

        local_folder(model)  # what isn't there is said at once
    from secateur.config.plan import Plan
    from secateur.config.recipe import Recipe, load_recipe, make_recipe
    from secateur.pipeline.prune import prune as run
    from secateur.report.terminal.run import print_report
    from secateur.system.device import set_threads
    from secateur.workspace.folder import WORK
    from secateur.workspace.journal import last_finished

    set_threads(threads)
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
        kept = "nothing was written" if last is None else f"the same command with --resume goes on after {last}"
        raise Stopped(f"stopped; {kept}", isinstance(stop, Terminated)) from None
    if report:  # under torchrun only the first rank has one
        print(json.dumps(report, indent=1)) if as_json else print_report(report, out)

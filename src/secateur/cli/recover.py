"""`secateur recover` on the command line; `cli` puts it beside the other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import Device, Json, Out, Overwrite, Quiet, Resume, Threads, learn, output, train, where
from secateur.errors import InputError, Stopped


def recover(
    model: Annotated[str, typer.Argument(help="pruned model folder", show_default=False)],
    how: Annotated[str | None, learn(help="distill (default), full or lora")] = None,
    data: Annotated[str | None, learn("--data", "-d", help="text, or task data with prompts (required)")] = None,
    loss: Annotated[str | None, learn(help="lm, logits, hidden, or a mix: lm:0.5,logits:1")] = None,
    teacher: Annotated[str | None, learn(help="dense model (default: what the model was pruned from)")] = None,
    teacher_dtype: Annotated[str | None, learn(help="auto, float32, bfloat16, float16, int8: to fit")] = None,
    teacher_cache: Annotated[Path | None, learn(help="file of the teacher's top logits, made if missing")] = None,
    temperature: Annotated[float | None, learn(help="of the compared logits (default 1)")] = None,
    top_k: Annotated[int | None, learn(help="compare the teacher's k likeliest tokens only")] = None,
    steps: Annotated[int | None, train(help="of the optimiser (default 300)")] = None,
    batch: Annotated[int | None, train(help="sequences a step, of all processes (default 8)")] = None,
    micro_batch: Annotated[int | None, train(help="sequences at once, per process")] = None,
    length: Annotated[int | None, train(help="tokens per sequence (default 512)")] = None,
    optimizer: Annotated[str | None, train(help="muon (default), or adamw (lora always)")] = None,
    learning_rate: Annotated[float | None, train(help="peak (default: a range test picks it)")] = None,
    warmup: Annotated[float | None, train(help="share of the steps (default 0.05)")] = None,
    weight_decay: Annotated[float | None, train(help="the optimiser's (default 0)")] = None,
    rank: Annotated[int | None, train(help="lora: rank of the adapters (default 8)")] = None,
    alpha: Annotated[float | None, train(help="lora: scale times rank (default 2 x rank)")] = None,
    merge: Annotated[bool | None, train(help="lora: a plain checkpoint (default), or a peft adapter")] = None,
    evaluate_every: Annotated[int | None, train(help="steps between looks at held-out text")] = None,
    seed: Annotated[int | None, train(help="of the order of the sequences (default 0)")] = None,
    checkpointing: Annotated[bool | None, train(help="recompute activations: less memory, more time")] = None,
    shard: Annotated[bool | None, train("--shard", help="FSDP: spread the training over the processes")] = None,
    track: Annotated[str | None, train(help="tensorboard, wandb ...; commas")] = None,
    evaluate: Annotated[str | None, output(help="text for the report's figures, or none")] = None,
    device: Device = "auto",
    dtype: Annotated[str, where(help="of the products: auto, float32, bfloat16")] = "auto",
    threads: Threads = None,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    finish: Annotated[bool, output("--finish", help="with --resume: deliver the best state so far")] = False,
    dry_run: Annotated[bool, output("--dry-run", help="forecast the cost only")] = False,
    speed: Annotated[bool, output(help="measure tokens a second and memory")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a pruned model a little, zeros kept, to win back what pruning cost."""
    given = {name: value for name, value in locals().items() if value is not None}
    if out is None and not dry_run:
        raise InputError("no output folder given; add --out DIR")
    from secateur.config.training import Recovery, make_recovery
    from secateur.model.hub import local_folder

    settings = make_recovery({name: value for name, value in given.items() if name in Recovery.model_fields})
    local_folder(model)  # what isn't there is said at once, not after torch has been imported
    from secateur.recovery.recover import recover as run
    from secateur.recovery.recover import stopped_line
    from secateur.report.recovery import print_forecast, print_recovery
    from secateur.system.device import set_threads

    set_threads(threads)
    how_to_run = {"dry_run": dry_run, "overwrite": overwrite, "resume": resume, "finish": finish, "speed": speed}
    target = out or Path()
    try:
        report = run(
            model,
            target,
            settings,
            evaluate=evaluate,
            device=device,
            dtype=dtype,
            quiet=quiet or as_json,
            **how_to_run,
        )
    except KeyboardInterrupt as stop:
        by_scheduler = type(stop) is not KeyboardInterrupt  # SIGTERM arrives as a kind of it
        raise Stopped(stopped_line(target), by_scheduler) from None
    if not report:
        return  # under torchrun only the first rank has one
    if as_json:
        print(json.dumps(report, indent=1))
    elif dry_run:
        print_forecast(report)
    else:
        print_recovery(report, target)

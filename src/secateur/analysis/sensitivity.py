"""What cutting would cost, before anything is cut."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from secateur.allocation.allocate import measure
from secateur.allocation.job import Job
from secateur.calibration.gradients import WHOLE, check_gradients, gradients_of_model
from secateur.config.recipe import make_recipe
from secateur.cut.checks import check_comparable
from secateur.errors import InputError
from secateur.pipeline.inputs import memory_for
from secateur.pipeline.prune import prepare
from secateur.report.schema.model import Sensitivity
from secateur.system.device import resolve_device
from secateur.system.monitor import Monitor


def sensitivity(
    model: str | Path,
    calibrate: str = "stdlib",
    sites: Sequence[str] = ("channel", "query_head", "kv_group", "weight"),
    method: Sequence[str] = (),
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    samples: int = 16,
    length: int = 512,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    quiet: bool = True,
) -> Sensitivity:
    """Measures how much a model's predictions change when one kind of site of one layer is cut alone.

    Each cut is scored, made and refitted as `prune` would with these settings, on the untouched model. Nothing is
    written.

    Args:
        model: a folder, `embedded`, or a hub id.
        calibrate: the text, named as in `secateur.calibrate`.
        sites: the kinds to cut; `layer` is refused.
        method: names of methods; for a kind that none of them scores, and unless given, the default.
        levels: fractions to remove, between 0 and 1; they are rounded to what a site allows.
        samples: how many sequences of text.
        length: tokens of each.
        seed: of the draw of the sequences.
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda:1`, `mps`, or what torch has here.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, else what the checkpoint holds.
        quiet: no progress display.

    Returns:
        `sites`, one object for each cut that was measured: `site`, `kind`, `layer`, `level` (the fraction that went)
        and `kl` (nats per token, from the untouched model's predictions); and what it was measured on: model,
        calibration, data_sha256, tokens, methods.

    Raises:
        InputError: a level that isn't between 0 and 1, and whatever `prune` would refuse.
    """
    for level in levels:
        if not 0 < level < 1:
            raise InputError(f"level {level:g} is not between 0 and 1; give fractions such as 0.25,0.5")
    if not levels:
        raise InputError("no level given; give fractions such as 0.25,0.5")
    if "layer" in sites:
        raise InputError("whole layers are weighed by prune --sites layer; sensitivity takes what is inside them")
    given = {"model": str(model), "sites": tuple(sites), "sparsity": 0.5, "method": tuple(method), "evaluate": "none"}
    text = {"calibrate": calibrate, "samples": samples, "length": length, "seed": seed, "allow_little_text": True}
    text |= {"allow_unused_tensors": True, "general_text": 0.0}  # they change no trial; it looks at the text alone
    recipe = make_recipe({**given, **text, "reconstruct": 0, "device": device, "dtype": dtype})
    where = resolve_device(device)
    with Monitor(where, quiet, ["calibration text", "open", "sensitivity"]) as monitor:
        inputs = prepare(recipe, None, where, monitor, cutting=False)
        check_comparable(inputs.checkpoint)
        tokens, loss = inputs.calibration.tokens, inputs.rules.gradient_needs
        check_gradients(inputs.streamed, loss)
        gradients = None
        if loss & WHOLE:
            gradients = gradients_of_model(inputs.streamed, tokens, loss, counts=inputs.calibration.counts)
        everything = tuple(range(inputs.checkpoint.layers))
        scratch = tempfile.TemporaryDirectory(prefix="secateur-")
        with scratch as folder, monitor.stage("sensitivity", len(everything)) as step:
            limits = (gradients, step, memory_for(inputs.config, where), Path(folder))
            job = Job(inputs.config, inputs.rules, inputs.streamed, tokens, everything, *limits)
            job = job._replace(counts=inputs.calibration.counts)
            found = measure(job, tuple(levels))
    return {
        "model": str(model),
        "calibration": calibrate,
        "data_sha256": inputs.calibration.source_sha256,
        "tokens": min(len(tokens), samples) * tokens.shape[1],
        "methods": {kind: inputs.config.method_names[kind] for kind in recipe.sites},
        "sites": [
            {"site": f"layers.{c.layer}.{c.kind}", "kind": c.kind, "layer": c.layer, "level": c.level, "kl": kl}
            for c, kl in found.items()
        ],
    }

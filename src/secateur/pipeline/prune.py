"""The whole run, top to bottom: open, calibrate, choose, cut block by block, save, verify, evaluate, report.

`prune` is what the command line calls. Each step is a function of what the steps before it returned; the
only state is in the output folder's work area.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from secateur.calibration.activations import MemoryBudget
from secateur.calibration.gradients import WHOLE, check_gradients
from secateur.config.aim import calibration_of_run, general_of_run, tasks_of_run
from secateur.config.configuration import resolve
from secateur.config.plan import Plan
from secateur.config.recipe import Recipe
from secateur.cut.checks import check_comparable
from secateur.cut.rules import Rules
from secateur.data.batches import Calibration, check_enough
from secateur.data.documents import load_corpus
from secateur.data.sources import split_specs
from secateur.errors import InputError
from secateur.evaluation.own_text import SELF, own_calibration
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import check_extras, left_out
from secateur.model.files import attention_named
from secateur.model.heads import unused_positions
from secateur.model.hub import local_folder
from secateur.model.remote_code import carried
from secateur.model.side_files import left_behind
from secateur.model.site_kinds import SUB_BLOCKS
from secateur.model.source_check import check_source
from secateur.model.streamed import StreamedModel
from secateur.pipeline.calibration import calibration_for, with_general
from secateur.pipeline.export import STAGES, check_export, export_stage
from secateur.pipeline.gradual import check_steps, in_steps
from secateur.pipeline.hidden import check_hidden, filled_zeros
from secateur.pipeline.inputs import Inputs, Services, memory_for
from secateur.pipeline.limits import resolved
from secateur.pipeline.lineage import Lineage
from secateur.pipeline.one_shot import one_shot
from secateur.pipeline.recovery import check_stage, planned_recovery
from secateur.pipeline.result import PassResult
from secateur.pipeline.results.before_after import check_prompts
from secateur.pipeline.results.outputs import make_evidence, write_outputs
from secateur.pipeline.results.report import make_plan, make_report
from secateur.pipeline.results.tasks import check_tasks
from secateur.pipeline.schedule import pruning_steps
from secateur.pipeline.store import Store
from secateur.reconstruct.compiled import check_compiler
from secateur.report.schema.report import Report, no_report
from secateur.system import distributed
from secateur.system.device import dtype_name, pruning_dtype, resolve_device, resolve_dtype
from secateur.system.monitor import Monitor
from secateur.workspace.folder import EVENTS, WORK, Area, Workspace
from secateur.workspace.journal import Found, Journal, found_before
from secateur.workspace.room import check_room


def prune(
    recipe: Recipe,
    out: str | Path,
    *,
    plan: Plan | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> Report:
    """Prunes a checkpoint and writes the result, its plan and its report into the folder `out`.

    The layers are cut one after the other on calibration text. What was saved is loaded again and compared with the
    model in memory, then both models are evaluated. Under torchrun every rank calls this; rank 0 writes.

    Args:
        recipe: the model and all settings, from `make_recipe` or `load_recipe`.
        out: a new or empty folder.
        plan: cut what this plan says instead of choosing; the recipe's sites and sparsity then don't matter, but for
            hidden dimensions: those go before, as the recipe says, in a basis that is found anew.
        dry_run: choose and forecast, but save no model: `out` gets plan.json and report.json only.
        overwrite: an earlier result in `out` may be replaced.
        resume: go on with the interrupted run in `out`; its recipe, text, model and plan must be the same.
        quiet: no progress display.

    Returns:
        The report, as in report.json; empty on ranks other than 0.

    Raises:
        InputError: a setting, text or folder that can't be used as given.
        UnsupportedModelError: an architecture that isn't known, or a cut that nothing would load.
        VerificationError: what was saved doesn't compute what the model in memory did.
        SecateurError: all of these, and every other refusal, in one line. `out` is then as it was before, or holds
            what `resume` goes on from.
    """
    device = distributed.own_device(resolve_device(recipe.device))
    with distributed.group(device), ExitStack() as stack:
        with distributed.in_step():
            read = [local_folder(recipe.model)] if distributed.is_main() else []
            workspace = Workspace(out, overwrite, resume, read) if distributed.is_main() else None
            monitor = Monitor(device, quiet or workspace is None, planned_stages(recipe, plan, dry_run))
            stack.callback(monitor.close)
            found = found_before(workspace.work) if workspace is not None and resume else None
            inputs = prepare(recipe, plan, device, monitor, dry_run, found)
            memory = memory_for(inputs.config, device)
            if workspace is not None:
                _check_room(inputs, memory, workspace)
                stack.enter_context(workspace.open())
            # On other ranks it only says where things are.
            area = workspace or Area((Path(out) / WORK).absolute())
            store = Store(Journal(area.work, inputs.fingerprint(inputs.recipe.steps)), area)
            distributed.on_first(lambda: _begin(store, monitor))
        scratch = stack.enter_context(_scratch(store))
        result = run_passes(inputs, Services(monitor, store, memory, scratch))
        if workspace is None:
            return no_report()
        made = make_plan(inputs, result)
        exported = export_stage(inputs.recipe, workspace, monitor) if inputs.recipe.export and not dry_run else None
        report = make_report(inputs, result, made, workspace, monitor, memory)
        report |= {"export": exported} if exported is not None else {}
        write_outputs(report, made, inputs, workspace, make_evidence(inputs, result))
        workspace.deliver()
        return report


def run_passes(inputs: Inputs, services: Services) -> PassResult:
    """One pass over the model, or as many as the recipe has steps."""
    several = inputs.recipe.steps > 1 or "hidden" in inputs.recipe.sites
    return in_steps(inputs, services) if several else one_shot(inputs, services)


def _begin(store: Store, monitor: Monitor) -> None:
    """Opens the journal and the event file in the work area; both go on where an interrupted run left them."""
    resumed = store.notes.begin(store.area.resume)
    monitor.record(store.area.work / EVENTS, distributed.world(), resumed)


def planned_stages(recipe: Recipe, plan: Plan | None, dry_run: bool) -> list[str]:
    """Names of the stages that such a run goes through."""
    every = [stop.recipe for stop in pruning_steps(recipe)]
    names = [*(["target"] if recipe.limit is not None and plan is None else []), "calibration text", "open"]
    if "hidden" in recipe.sites:
        names += ["look at hidden dimensions", "narrow", *(["fit hidden dimensions"] if recipe.refit else [])]
    for number, told in enumerate(every, 1):
        own = planned_pass(told, plan, dry_run)
        own += ["evaluate"] if number < len(every) and recipe.evaluate != "none" else []
        names += [f"step {number}, {name}" if len(every) > 1 else name for name in own]
    names += [] if dry_run or recipe.evaluate == "none" else ["evaluate"]
    names += ["tasks"] if tasks_of_run(recipe) is not None and not dry_run else []
    if dry_run or recipe.export is None:
        return names
    return names + STAGES + (["evaluate the export"] if recipe.export.quantised and recipe.evaluate != "none" else [])


def planned_pass(recipe: Recipe, plan: Plan | None, dry_run: bool) -> list[str]:
    """Those of one pass over the model."""
    config, names = resolve(recipe), []
    if "layer" in recipe.sites and plan is None:
        names.append("choose layers")
    if set(SUB_BLOCKS) & set(recipe.sites) and plan is None:
        names.append("choose sub-blocks")
    if any(config.method(kind).loss & WHOLE for kind in config.sites):
        names.append("gradients")
    if config.objective == "loss":
        names.append("weigh errors")
    if recipe.allocate != "local" and plan is None:
        names.append("allocate")
    names.append("prune")
    if not dry_run:
        names += ["save", "verify"]
        names += planned_recovery(recipe.recover) if recipe.recover is not None else []
    return names


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """Where this rank's hidden states may spill: in the work area if it sees that, else where `TMPDIR` says."""
    shared = store.folder("")
    if distributed.is_main():
        yield store.area.work
        return
    area = str(shared) if shared.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="secateur-", dir=area, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _within_budget(recipe: Recipe, checkpoint: Checkpoint, monitor: Monitor, found: Found | None) -> Recipe:
    """The recipe with a sparsity, where it has a target instead.

    Args:
        found: what an interrupted run has found: measuring again might give another.
    """
    key = recipe.limit
    if key is None:
        return recipe
    if found is None:
        with monitor.stage("target") as step:
            recipe = resolved(recipe, checkpoint, step)
    else:
        recipe = recipe.model_copy(update={**found})
    recipe = distributed.share_object(recipe, 0)
    monitor.say(f"{key} {getattr(recipe, key)}: sparsity {recipe.sparsity:g} of {', '.join(recipe.sites)}")
    return recipe


def prepare(
    recipe: Recipe,
    plan: Plan | None,
    device: torch.device,
    monitor: Monitor,
    dry_run: bool = False,
    found: Found | None = None,
    cutting: bool = True,
) -> Inputs:
    """Opens everything that the run reads and refuses what can't work, before anything is written.

    Args:
        found: what an interrupted run has found for its target.
        cutting: the recipe says how much goes; otherwise only which kinds may, and what that costs is measured, in
            no less than the dtype that is asked for.
    """
    check_steps(recipe, plan is not None, dry_run)
    checkpoint = Checkpoint.open(local_folder(recipe.model))
    if not recipe.allow_unused_tensors:
        check_extras(checkpoint, "prune without it by --allow-unused-tensors")
    if plan is not None:
        plan.check(checkpoint.config.model_type, checkpoint.layers)
    recipe = _within_budget(recipe, checkpoint, monitor, found) if plan is None else recipe
    config = resolve(recipe)
    if config.compile_blocks:
        check_compiler(device)
    check_hidden(recipe, config, checkpoint, dry_run)
    if config.allocate in ("sensitivity", "evolve"):
        check_comparable(checkpoint)
    if plan is None:
        rules = Rules.from_recipe(config, checkpoint, counted=cutting)
    else:
        rules = Rules.from_plan(plan, config, checkpoint)
    check_stage(recipe, checkpoint)
    check_export(recipe, rules, checkpoint)
    with monitor.stage("calibration text"):
        calibration = _calibration(recipe, checkpoint)
        if recipe.evaluate not in (None, "none"):
            # Read now, so that a run doesn't find out at its end that there's nothing to evaluate on.
            for spec in split_specs(recipe.evaluate):
                load_corpus(spec, split="held_out")
        distributed.on_first(lambda: check_tasks(recipe, checkpoint))
        distributed.on_first(lambda: check_prompts(recipe, checkpoint))
    # Differences of predictions may be smaller than what bf16 rounds.
    dtype = (pruning_dtype if cutting else resolve_dtype)(recipe.dtype, device, checkpoint.config)
    with monitor.stage("open"):
        distributed.on_first(lambda: check_source(checkpoint, config.memory))
        streamed = StreamedModel(checkpoint, device, dtype)
    check_gradients(streamed, rules.gradient_needs)
    code = carried(checkpoint.path, getattr(checkpoint.config, "auto_map", None))
    notes = [*calibration.notes, *rules.notes, *left_behind(checkpoint.path, code=code)]
    notes += [*left_out(checkpoint), *attention_named(checkpoint.path)]
    if device.type != "cpu":
        notes += [f"{part} of this model: no fused kernel, so slow on {device.type}" for part in streamed.eager]
    for line in filled_zeros(recipe, checkpoint):
        monitor.say(f"note: {line}")
        notes.append(line)
    if torch.finfo(dtype).eps > torch.finfo(checkpoint.dtype).eps:
        notes.append(f"the layers' weights are rounded to {dtype_name(dtype)}, in which the run computes")
    lineage = Lineage.of(checkpoint.path, checkpoint.layers)
    return Inputs(recipe, config, checkpoint, calibration, streamed, rules, lineage, dry_run, tuple(notes))


def _check_room(inputs: Inputs, memory: MemoryBudget, workspace: Workspace) -> None:
    """The work area and the result need about the checkpoint's size each, as do two steps in a row; hidden states
    what is over the budget."""
    recipe, rules, checkpoint = inputs.recipe, inputs.rules, inputs.checkpoint
    # The pruned model's, the untouched model's, and a block's targets.
    streams = 1 + rules.needs_dense + (rules.tuning is not None)
    tokens, width = inputs.calibration.tokens.numel(), checkpoint.config.hidden_size
    hidden = streams * tokens * width * inputs.streamed.dtype.itemsize
    copies = 2 if recipe.steps == 1 and "hidden" not in recipe.sites else 4
    need = copies * checkpoint.bytes_on_disk + max(0, hidden - (memory.left or 0))
    check_room(workspace.out, need, workspace.finished_bytes)


def _calibration(recipe: Recipe, checkpoint: Checkpoint) -> Calibration:
    context = getattr(checkpoint.config, "max_position_embeddings", None)
    context = None if context is None else context - unused_positions(checkpoint.config)
    if context is not None and recipe.length > context:
        raise InputError(f"--length {recipe.length} is more than the model's context; use --length {context} or less")
    text = calibration_of_run(recipe)
    amount = (recipe.samples, recipe.length, recipe.seed)
    if text == SELF:
        calibration = own_calibration(checkpoint.path, *amount, recipe.device)
    else:
        calibration = calibration_for(checkpoint, text, *amount)
        if not recipe.allow_little_text:
            check_enough(calibration, recipe.samples)
    general = general_of_run(recipe)
    return with_general(checkpoint, calibration, general, recipe.seed) if general else calibration

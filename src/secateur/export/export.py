"""`secateur export`: a result in the form that another program runs, proved against transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from secateur._version import __version__
from secateur.config.export import Export
from secateur.errors import UnsupportedModelError
from secateur.export.padded import write_padded
from secateur.export.result import Job, Made
from secateur.model.checkpoint import Checkpoint
from secateur.model.extras import check_extras
from secateur.model.gguf import is_gguf
from secateur.model.hub import EMBEDDED, id_of, local_folder
from secateur.model.licence import CARD
from secateur.model.round_trip import verify, write_probe
from secateur.model.side_files import copy_regular, left_behind
from secateur.model.streamed import StreamedModel
from secateur.report.derived_card import exported_card
from secateur.report.schema.export import Exported, ExportMark
from secateur.report.terminal.listening import telling
from secateur.runtime.transfer import write_card
from secateur.system.monitor import Monitor
from secateur.workspace.folder import MARK, Workspace
from secateur.workspace.ownership import names_for_report
from secateur.workspace.room import check_room

# What a pruning has written that belongs to the model wherever it goes.
BESIDE = ("README.md", "plan.json", "recipe.yaml")
ANY = ("padded", "compressed", "hub")  # what is made of models, too, that predict no next token
SUFFIXES = (".safetensors", ".gguf", ".onnx", ".onnx.data", ".data", ".bin")


def export(
    model: str | Path, out: str | Path, told: Export, *, overwrite: bool = False, quiet: bool = False
) -> Exported:
    """Writes a model in another program's form into the folder `out`, and proves that it does the same there.

    Args:
        model: a result, or any model folder of a known architecture.
        told: which form; see `make_export`.
        overwrite: an earlier result in `out` may be replaced.

    Returns:
        what was written, its size before and after, and how it was proved: every tensor read back, and the tokens of
        the client where it's installed.

    Raises:
        SecateurError: in one line: what the client would compute otherwise, a package that isn't installed, or an
            export that doesn't do the same.
    """
    source = local_folder(model)
    checkpoint = Checkpoint.open(source)
    check_extras(checkpoint)
    if not checkpoint.family.causal and told.to not in ANY:
        raise UnsupportedModelError(f"{source}: {checkpoint.family.name} predicts no next token; nothing to export")
    refuse_detected(checkpoint, told)
    workspace = Workspace(out, overwrite, inputs=[source])
    check_room(workspace.out, checkpoint.bytes_on_disk + 4 * checkpoint.parameters)  # f32 takes most
    stages = ["write", "prove"]
    begun = time.monotonic()
    with Monitor(torch.device("cpu"), quiet, stages) as monitor, workspace.open():
        made = make(checkpoint, workspace.final, workspace.work, told, monitor, name_of(model, source))
        found = told_of(checkpoint, workspace.final, str(model), str(out), told, made)
        found["seconds"] = round(time.monotonic() - begun, 3)
        write_export_card(workspace.final, source, found)
        mark: ExportMark = {
            "secateur": __version__,
            "export": found,
            "files": names_for_report(workspace.final),
        }
        (workspace.final / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        workspace.deliver()
    return found


def name_of(model: str | Path, source: Path) -> str:
    """What a model is called in the form: as its folder or its GGUF file is, or on the hub.

    Args:
        source: the folder that was found for it, which for the latter two lies in a cache.
    """
    path = Path(model).expanduser()
    if is_gguf(path):
        return path.stem
    if path.exists() or str(model) == EMBEDDED:
        return source.resolve().name
    return id_of(str(model)).partition("@")[0].rpartition("/")[2]


def make(checkpoint: Checkpoint, folder: Path, work: Path, told: Export, monitor: Monitor, name: str) -> Made:
    """Writes and proves one export.

    Args:
        folder: gets the files; exists.
        work: for what is needed meanwhile; exists.
        name: of the model, where the form has one.
    """
    return _MAKERS[str(told.to)](Job(checkpoint, folder, work, told, monitor, name))


def refuse_detected(checkpoint: Checkpoint, told: Export) -> None:
    """Refuses models whose layers are known by looking at them alone: what their parts compute isn't known.

    Raises:
        UnsupportedModelError: in one line.
    """
    if checkpoint.family.anatomies and told.to not in ("compressed", "hub"):
        raise UnsupportedModelError(
            f"{checkpoint.path}: {checkpoint.family.name} is no architecture of the table but was detected, and of "
            f"those no {told.to} is made; transformers runs the folder"
        )


def ready(checkpoint: Checkpoint, told: Export) -> None:
    """Refuses what is known without a result: a package that isn't there, a model that the program doesn't run.

    Raises:
        SecateurError: in one line.
    """
    refuse_detected(checkpoint, told)
    if told.to == "gguf":
        from secateur.export.gguf.architectures import row_of
        from secateur.export.gguf.export import package

        package()
        row_of(checkpoint)
    elif told.to == "onnx":
        from secateur.export.onnx import packages

        packages()
    elif told.to == "openvino":
        from secateur.export.openvino import package as openvino

        openvino()


def _padded(job: Job) -> Made:
    checkpoint, folder, work, monitor = job.checkpoint, job.folder, job.work, job.monitor
    with monitor.stage("write"):
        stock = write_padded(checkpoint, folder, job.told.multiple)
    for name in BESIDE:
        if (checkpoint.path / name).exists():
            copy_regular(checkpoint.path, name, folder)
    card = folder / CARD
    if card.exists():
        card.write_text(told_first(card.read_text(encoding="utf-8")), encoding="utf-8")
    with monitor.stage("prove"):
        probe = work / "probe.safetensors"
        ids, logits = logits_of(checkpoint)
        write_probe(probe, ids, logits)
        gate = verify(folder, probe, None, checkpoint.path)
    after = Checkpoint.open(folder)
    note = f"loaded by {gate['how']}: logits differ by {gate['max_logit_difference']:.1e} of the largest"
    return Made(stock.config["architectures"][0], after.parameters, notes=[note])


def told_first(card: str) -> str:
    """A result's card, which begins with what has been done to it since."""
    told = (
        "> Filled up with zeros to its stock class by `secateur export`: it loads without remote code. What follows\n"
    )
    told += "> is the card of what it was made from.\n\n"
    head, title, rest = card.partition("\n# ")
    return f"{head}\n{told}# {rest}" if title else told + card


@torch.no_grad()
def logits_of(checkpoint: Checkpoint, tokens: int = 24) -> tuple[Tensor, Tensor]:
    """Token ids (1, tokens) from all over the vocabulary, and what the model computes of them in fp32."""
    size = int(checkpoint.config.vocab_size)
    context = getattr(checkpoint.config, "max_position_embeddings", None) or tokens
    ids = (torch.arange(1, min(tokens, context) + 1) * 7919 % size)[None]
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    hidden, calls = streamed.embed(ids)
    for index in telling("layers", range(checkpoint.layers), checkpoint.layers):
        hidden = calls[index](streamed.load(index), hidden)
    return ids, streamed.logits(ids, hidden)


def told_of(checkpoint: Checkpoint, folder: Path, model: str, out: str, told: Export, made: Made) -> Exported:
    """The report of an export whose files lie in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = [path for path in files if path.name.endswith(SUFFIXES)]
    return {
        "model": model,
        "to": str(told.to),
        "out": out,
        "architecture": made.architecture,
        "type": made.numbers,
        "files": [{"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size} for path in files],
        "parameters_before": checkpoint.parameters,
        "parameters_after": made.parameters,
        "bytes_before": checkpoint.bytes_on_disk,
        "bytes_after": sum(path.stat().st_size for path in weights),
        "read_back": made.read_back,
        "client": made.client,
        "seconds": 0.0,
        "warnings": [*made.notes, *left_behind(checkpoint.path, BESIDE)],
    }


def write_export_card(folder: Path, source: Path, found: Exported) -> None:
    """The card of an export, which `told_first` has written already where it came along."""
    if found["to"] != "padded" or not (folder / CARD).exists():
        write_card(folder, source, partial(exported_card, found))


Maker = Callable[[Job], Made]


def _gguf(job: Job) -> Made:
    from secateur.export.gguf.export import export as run

    return run(job)


def _onnx(job: Job) -> Made:
    from secateur.export.onnx import export as run

    return run(job)


def _openvino(job: Job) -> Made:
    from secateur.export.openvino import export as run

    return run(job)


def _compressed(job: Job) -> Made:
    from secateur.export.compressed import export as run

    return run(job)


_MAKERS: dict[str, Maker] = {
    "padded": _padded,
    "gguf": _gguf,
    "onnx": _onnx,
    "openvino": _openvino,
    "compressed": _compressed,
}

"""A checkpoint as a GGUF file for llama.cpp and what is built on it, with a Modelfile for ollama."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from secateur._version import __version__
from secateur.errors import InputError, VerificationError, install
from secateur.export.gguf import llama_cpp
from secateur.export.gguf.architectures import Row, context_of, row_of
from secateur.export.gguf.metadata import add_model, add_vocabulary, rotation_tensors
from secateur.export.gguf.numbers import ALLOWED, BLOCK, FILE_TYPES, STORED, encoded, error_of, type_of
from secateur.export.gguf.tensors import Layout, layout_of, tensors_of
from secateur.export.gguf.vocabulary import Vocabulary, vocabulary_of
from secateur.export.padded import Stock, is_stock, stock_of
from secateur.export.reference import probe_texts
from secateur.export.result import Job, Made
from secateur.model.checkpoint import Checkpoint
from secateur.report.schema.export import TensorProof

TENSOR_INFO = 100  # bytes of a tensor's name, shape and place, and of what fills up to the next one, about


def export(job: Job) -> Made:
    """Writes `NAME-TYPE.gguf` and `Modelfile`, reads every tensor back, and runs the file where llama.cpp is.

    Raises:
        InputError: the package `gguf` isn't installed, or there is no tokenizer.
        UnsupportedModelError: llama.cpp doesn't know the model, or would compute something else.
        VerificationError: the file doesn't say what the model does.
    """
    checkpoint, folder, told, monitor = job.checkpoint, job.folder, job.told, job.monitor
    gguf, tokenizer = package(), checkpoint.tokenizer()
    numbers = told.type or STORED[checkpoint.dtype]
    parts = _parts(checkpoint, numbers, told.multiple)
    row, layout, vocabulary, stock = parts
    title = _plain(job.name)
    name = f"{title}-{numbers}.gguf"
    with monitor.stage("write"):
        written, notes = _write(gguf, folder / name, title, checkpoint, parts, numbers)
        (folder / "Modelfile").write_text(modelfile(name, vocabulary), encoding="utf-8")
    with monitor.stage("prove"):
        proof = _read_back(gguf, folder / name, checkpoint, row, layout)
        client = llama_cpp.prove(
            checkpoint, tokenizer, folder / name, context_of(checkpoint.config, row)[0], numbers == "f32"
        )
    notes += [*vocabulary.notes, *_widened(checkpoint, row, layout, stock), *_odd(written, numbers)]
    entries = sum(entries for _, entries in written.values())
    return Made(layout.architecture, entries, numbers, proof, client, notes)


class Parts(NamedTuple):
    """What a file is made of, beside the weights."""

    row: Row
    layout: Layout
    vocabulary: Vocabulary
    stock: Stock


def _parts(checkpoint: Checkpoint, numbers: str, multiple: int) -> Parts:
    row = row_of(checkpoint)
    multiple = max(multiple, BLOCK) if numbers.startswith("q") else multiple
    stock = stock_of(checkpoint, multiple, row.square)
    size, ends = int(checkpoint.config.vocab_size), getattr(checkpoint.config, "eos_token_id", None)
    vocabulary = vocabulary_of(checkpoint.tokenizer(), size, probe_texts(), ends)
    return Parts(row, layout_of(checkpoint, row, stock, multiple), vocabulary, stock)


def header_bytes(checkpoint: Checkpoint, numbers: str) -> int:
    """What a file takes beside its tensors: configuration, vocabulary, the tensors' names.

    Raises:
        InputError, UnsupportedModelError: as `export`.
    """
    gguf = package()
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        file = Path(folder) / "header.gguf"
        writer, _ = _begun(gguf, file, "model", checkpoint, _parts(checkpoint, numbers, 1), numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return file.stat().st_size + TENSOR_INFO * len(checkpoint.targets)


def package() -> Any:
    """The package that writes GGUF files.

    Raises:
        InputError: it isn't installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            f"GGUF files are written with the package gguf; install it with: {install('gguf')}"
        ) from None
    return gguf


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _write(
    gguf: Any,
    file: Path,
    title: str,
    checkpoint: Checkpoint,
    parts: Parts,
    numbers: str,
) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Writes the file; returns each tensor's type and entries, and notes.

    Tensors wait in a temporary file until the header is known, so memory holds one layer.
    """
    writer, notes = _begun(gguf, file, title, checkpoint, parts, numbers)
    written: dict[str, tuple[str, int]] = {}
    for name, value in _all_tensors(gguf, checkpoint, parts.row, parts.layout):
        kind = type_of(name, value, numbers)
        array, stored = encoded(value, kind)
        writer.add_tensor(name, array, raw_dtype=stored)
        written[name] = kind, value.numel()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written, notes


def _begun(
    gguf: Any, file: Path, title: str, checkpoint: Checkpoint, parts: Parts, numbers: str
) -> tuple[Any, list[str]]:
    """The writer of a file that has all but tensors, and notes."""
    writer = gguf.GGUFWriter(str(file), parts.layout.architecture, use_temp_file=True)
    writer.add_name(title)
    writer.add_description(f"pruned with Secateur {__version__}")
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[numbers]])
    notes = add_model(writer, checkpoint, parts.row, parts.layout)
    add_vocabulary(writer, parts.vocabulary)
    return writer, notes


def _all_tensors(gguf: Any, checkpoint: Checkpoint, row: Row, layout: Layout) -> Any:
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.architecture)
    names = gguf.get_tensor_name_map(architecture, checkpoint.layers)
    yield from rotation_tensors(checkpoint, row).items()
    yield from tensors_of(checkpoint, row, layout, names)


def _read_back(gguf: Any, file: Path, checkpoint: Checkpoint, row: Row, layout: Layout) -> TensorProof:
    """Compares every tensor of the file, turned back into numbers, with the model's.

    Raises:
        VerificationError: one is missing, has another shape, or differs by more than its type rounds.
    """
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    worst, allowed, count = 0.0, 0.0, 0
    for name, value in _all_tensors(gguf, checkpoint, row, layout):
        tensor = held.pop(name, None)
        if tensor is None:
            raise VerificationError(f"{file.name}: lacks tensor {name}")
        kind = tensor.tensor_type.name.lower()
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(value.shape))
        error = error_of(value, found, kind)
        if not error <= ALLOWED[kind] + 1e-6:
            raise VerificationError(
                f"{file.name}: tensor {name} reads back {error:.2e} off, above {ALLOWED[kind]:.2e}"
            )
        worst, allowed, count = max(worst, error), max(allowed, ALLOWED[kind]), count + 1
    if held:
        raise VerificationError(f"{file.name}: holds tensor {min(held)}, which the model hasn't")
    return {"tensors": count, "largest_error": worst, "allowed": allowed}


def modelfile(name: str, vocabulary: Vocabulary) -> str:
    """What `ollama create NAME -f Modelfile` reads. ollama takes the chat template from the file."""
    lines = [f"FROM ./{name}"]
    end = vocabulary.special.get("eos")
    quoted = _quoted(vocabulary.tokens[end]) if end is not None else None
    if quoted is not None:
        lines.append(f"PARAMETER stop {quoted}")
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str | None:
    """A value as ollama reads it: between quotes or three of them, where nothing is escaped. None where neither can
    hold it: the end is in the GGUF file too."""
    if not value.isprintable() or '"""' in value or value.endswith('"'):
        return None
    return f'"""{value}"""' if '"' in value else f'"{value}"'


def _widened(checkpoint: Checkpoint, row: Row, layout: Layout, stock: Stock) -> list[str]:
    """What zeros were added, and what that costs."""
    if layout.stock is None:
        key = checkpoint.family.ffn.width_key
        own = [stock.own[i].get(key, 0) for i in range(checkpoint.layers)]
        grown = [(now, had) for now, had in zip(layout.channels, own, strict=True) if now != had]
        if not grown:
            return []
        more = sum(now - had for now, had in grown)
        return [f"{more} channels of zeros in {len(grown)} layers, so that rows are whole blocks or a layer is there"]
    if is_stock(checkpoint, layout.stock):
        return []
    why = "" if row.uneven else f": llama.cpp's {row.name} has the same widths in every layer"
    heads = f"{layout.heads[0]} heads, {layout.kv_heads[0]} of keys"
    return [f"filled up with zeros to {max(layout.channels)} channels and {heads} in every layer{why}"]


def _odd(written: dict[str, tuple[str, int]], numbers: str) -> list[str]:
    odd = [name for name, (kind, _) in written.items() if kind == "f16" and numbers.startswith("q")]
    if not odd:
        return []
    return [f"{len(odd)} tensors stay in f16: their rows are no multiple of {BLOCK} ({odd[0]})"]

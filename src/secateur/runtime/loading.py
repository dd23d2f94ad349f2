"""A folder of compressed weights as a `transformers` model whose sparse Linears run from the packed form."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from secateur.errors import InputError
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import text_config
from secateur.model.complete import check_complete
from secateur.model.detection.cache import row_of
from secateur.model.files import read_config
from secateur.model.tied import stored_twice
from secateur.report.schema.bench import PackedShape, PlainShape, RuntimeFacts
from secateur.runtime.choose import Choice, choose
from secateur.runtime.entries import MANIFEST, reason, shown
from secateur.runtime.few_rows import Limit, speed_up
from secateur.runtime.folder import Reader
from secateur.runtime.format import Packed, pack, unpack
from secateur.runtime.gpu import choose as gpu
from secateur.runtime.gpu.matrix import VARIANT as TRITON
from secateur.runtime.kernels.jit import MISSING, variants
from secateur.runtime.linear import PackedLinear
from secateur.runtime.matrix import Matrix
from secateur.runtime.one_query import speed_up_attention
from secateur.runtime.pages import move_large
from secateur.system.malloc import give_back
from secateur.system.names import RUNTIMES


class _Later:
    """A tensor that is read, or unpacked, when it's asked for."""

    def __init__(self, reader: Reader, name: str) -> None:
        self.reader, self.name = reader, name

    def __getitem__(self, index: Any) -> Tensor:
        return self.reader.dense(self.name)[index]


def _facts(
    ran: Counter[tuple[int, int, Choice]], plain: Counter[tuple[int, int, Limit]], kernel: str | None
) -> RuntimeFacts:
    """What became of the packed matrices, as plain data for reports: (rows, columns, choice) -> how many.

    Args:
        plain: (rows, columns, limit) -> how many of the others have a kernel of ours.
        kernel: the usual one here.
    """
    shapes: list[PackedShape] = [
        {
            "rows": rows,
            "columns": columns,
            "count": count,
            "runs": "compressed" if choice.packed else "dense",
            "kernel": (choice.variant or kernel) if choice.packed else None,
            "kernel_rows": choice.limit,
            "tiles_in_float32": choice.wide,
            "seconds_compressed": choice.seconds_packed,
            "seconds_dense": choice.seconds_dense,
        }
        for (rows, columns, choice), count in sorted(ran.items(), key=lambda item: item[0][:2])
    ]
    others: list[PlainShape] = [
        {
            "rows": rows,
            "columns": columns,
            "count": count,
            "kernel_rows": limit.rows,
            "seconds_kernel": limit.seconds_kernel,
            "seconds_torch": limit.seconds_torch,
        }
        for (rows, columns, limit), count in sorted(plain.items(), key=lambda item: item[0][:2])
    ]
    return {"kernel": kernel, "shapes": shapes, "plain": others}


def check_runtime(runtime: str, device: torch.device) -> str:
    """What `auto` means on a device, and whether anything else can be had there.

    Raises:
        InputError: no such way to run, or not on this device.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime} is unknown; use auto, compressed, dense or gpu")
    if runtime == "gpu":
        gpu.check(device)
        return runtime
    if device.type != "cpu" and runtime == "compressed":
        raise InputError(f"compressed weights run on a CPU, not on {device}; use runtime auto or dense there")
    if device.type != "cpu":
        return "dense"
    if runtime == "auto" and not variants():
        warnings.warn(MISSING, stacklevel=2)
        return "dense"
    return runtime


def load_compressed(folder: Path, device: torch.device, dtype: torch.dtype, runtime: str = "auto") -> Any:
    """Loads what `compress` made.

    Args:
        dtype: of activations, embeddings and whatever isn't packed; packed values stay as they are stored.
        runtime: `auto`: each shape of matrix runs in the form that is faster here, measured once; `compressed`: all
            packed; `dense`: all unpacked; `gpu`: as `auto`, on a CUDA device.

    Returns:
        The model in eval mode; its `secateur_runtime` says how its matrices run.
    """
    runtime = check_runtime(runtime, device)
    reader = Reader(folder)
    checkpoint = _checkpoint(folder, reader)
    model = checkpoint.skeleton(dtype)
    packed = {} if runtime == "dense" else _packable(checkpoint, model, reader)
    rest = {name: _Later(reader, name) for name in checkpoint.files if name not in packed}
    checkpoint.put_into(model, rest)
    ran: Counter[tuple[int, int, Choice]] = Counter()
    for name, module in packed.items():
        W = reader.packed(name)
        if isinstance(model.get_submodule(module), Conv1D):
            W = pack(unpack(W).T.contiguous())
        choice = gpu.choose(W, dtype, device) if runtime == "gpu" else choose(W, dtype, runtime == "compressed")
        put_matrix(model, module, W, choice, dtype, device)
        ran[W.rows, W.columns, choice] += 1
        del W
        give_back()
    model.tie_weights()
    lost = next((name for name, tensor in model.named_parameters() if tensor.is_meta), None)
    if lost is not None:
        raise InputError(f"{folder}: lacks the tensor '{lost}', which its config.json asks for")
    plain: Counter[tuple[int, int, Limit]] = Counter()
    if device.type == "cpu" and runtime not in ("dense", "gpu"):
        plain = speed_up_rest(model, dtype)
    elif device.type == "cpu":
        move_large(model)
    if (folder / "generation_config.json").is_file():
        model.generation_config = _generation_config(folder)
    model.secateur_runtime = _facts(ran, plain, TRITON if runtime == "gpu" else next(iter(variants()), None))
    return model.to(device).eval().requires_grad_(False)


def speed_up_rest(model: Any, dtype: torch.dtype) -> Counter[tuple[int, int, Limit]]:
    """Speeds up what isn't packed, in place, on a CPU; (rows, columns, limit) -> how many have a kernel of ours."""
    move_large(model)
    plain = speed_up(model)
    if dtype == torch.bfloat16:
        speed_up_attention(model)
    return plain


def _checkpoint(folder: Path, reader: Reader) -> Checkpoint:
    """The compressed folder as a checkpoint: names and sizes are those of the dense one."""
    config = read_config(folder)
    sizes = {entry.name: entry.size for entry in reader}
    dtypes = {entry.name: entry.dtype for entry in reader}
    files = {entry.name: reader.path(entry.name) for entry in reader}
    checkpoint = Checkpoint(folder, text_config(config), row_of(config), files, dtypes, sizes, config)
    check_complete(checkpoint, checkpoint.towers)
    pairs = stored_twice(checkpoint).items()
    apart = any(not torch.equal(reader.dense(one), reader.dense(other)) for one, other in pairs)
    return checkpoint.untied() if apart else checkpoint


def _generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file raises whatever transformers makes of it
        raise InputError(f"{folder / 'generation_config.json'}: doesn't load ({reason(error)})") from None


def _packable(checkpoint: Checkpoint, model: nn.Module, reader: Reader) -> dict[str, str]:
    """Packed tensor -> the module in the model that can run from it. Experts are unpacked.

    Raises:
        InputError: the matrix has another shape than the module: kernels would read and write beyond its ends.
    """
    found, places = {}, dict(model.named_modules())
    for name, target in checkpoint.targets.items():
        module, _, parameter = target.rpartition(".")
        entry = reader.entries[name]
        if not entry.packed or parameter != "weight" or len(entry.shape) != 2:
            continue
        place = places.get(module)
        # int8 scales belong to rows as stored, which for Conv1D are the columns of W.
        if type(place) is nn.Linear or (isinstance(place, Conv1D) and not entry.int8):
            if entry.shape != tuple(place.weight.shape):
                wanted = " x ".join(str(n) for n in place.weight.shape)
                raise InputError(
                    f"{reader.folder / MANIFEST}: {shown(name)} is {entry.shape[0]} x {entry.shape[1]}, but "
                    f"the config.json beside it asks for {wanted}"
                )
            found[name] = module
    return found


def put_matrix(
    model: nn.Module, path: str, packed: Packed, choice: Choice, dtype: torch.dtype, device: torch.device
) -> None:
    """Puts a matrix in the place of a Linear, packed or dense."""
    old = model.get_submodule(path)
    transposed = isinstance(old, Conv1D)
    if choice.packed:
        bias = getattr(old, "bias", None)
        bias = None if bias is None else bias.detach().to(dtype)
        if choice.variant is not None and gpu.makes(choice.variant):
            new = PackedLinear(gpu.matrix_of(packed, bias, device, choice.variant))
        else:
            new = PackedLinear(Matrix(packed, bias, choice.limit, choice.wide, choice.variant))
        new.stored_transposed = transposed
        model.set_submodule(path, new)
        return
    W = Matrix(packed).dense(dtype=dtype)
    stored = (W.T if transposed else W).contiguous()
    old.register_parameter("weight", nn.Parameter(stored, requires_grad=False))

"""Reading a model folder's files, and saying in one line what is wrong with them.

safetensors only: a pickled checkpoint is refused, because reading one can run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from secateur.errors import InputError, UnsupportedModelError


def read_config(folder: Path) -> Any:
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give a model folder with config.json and *.safetensors")
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the folder that holds config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json, so it's not a Hugging Face model folder")
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: is not valid JSON ({error})") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise InputError(f"{folder / 'config.json'}: has no model_type")
    try:
        # Said outright: left open, transformers would ask on the terminal whether to run the checkpoint's code.
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here, all meaning "this config is no good"
        if "does not recognize" in str(error) or "auto_map" in raw or isinstance(error, KeyError):
            raise UnsupportedModelError(
                f"{folder}: transformers doesn't know the architecture '{raw['model_type']}', "
                "and code that comes with a checkpoint is not run"
            ) from None
        raise InputError(f"{folder / 'config.json'}: {str(error).splitlines()[0]}") from None


def read_index(folder: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            # A shard lies in the folder itself: an index must not lead anywhere else.
            if any(Path(file).name != file for file in names.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: is not a valid index of shards") from None
        files = {name: folder / file for name, file in names.items()}
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise InputError(f"{folder}: the index names {file.name}, which is not there")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return {name: single for name, _, _ in read_header(single)}
    if (folder / "compressed.json").is_file():
        raise InputError(
            f"{folder}: its weights are compressed; secateur decompress gives a dense checkpoint for this"
        )
    pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise InputError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when read; "
            "convert them to safetensors first"
        )
    raise InputError(f"{folder}: has no model.safetensors and no model.safetensors.index.json")


def read_header(file: Path) -> list[tuple[str, str, int]]:
    """(name, dtype, entries) of every tensor of a safetensors file, checked against the file's length."""
    try:
        with safe_open(file, framework="pt") as handle:
            out = []
            for name in handle.keys():  # noqa: SIM118 - a handle is not a mapping
                part = handle.get_slice(name)
                entries = int(torch.Size(part.get_shape()).numel())
                out.append((name, str(part.get_dtype()), entries))
            return out
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: is damaged or cut short ({str(error).splitlines()[0]}); fetch it again") from None

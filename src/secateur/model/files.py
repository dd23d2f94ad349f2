"""Reading a model folder's files, and saying in one line what is wrong with them.

safetensors only: a pickled checkpoint is refused, because reading one can run code.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

from secateur.errors import InputError, UnsupportedModelError
from secateur.model.json_files import ConfigKeys, GenerationKeys, Json, read_object, short
from secateur.model.remote_code import allowed, brings_code, register
from secateur.model.sentence_modules import MODULES, body_folder

# What wrappers put in front of, or into, the names of what they wrap; and how to be rid of it.
_WRAPPERS = {
    "_orig_mod.": "a model that torch.compile has wrapped: save model._orig_mod",
    "_fsdp_wrapped_module.": "a model that FSDP has wrapped: save its full state dict",
    "_checkpoint_wrapped_module.": "a model wrapped for activation checkpointing: save what is in the wrapper",
    "_forward_module.": "a model that Lightning or DeepSpeed has wrapped: save the module in it",
    "module.": "a model that DataParallel or DeepSpeed has wrapped: save model.module",
    "base_model.model.": "a model that peft has wrapped: merge the adapter (merge_and_unload) and save that",
}
_TOKENIZER_JSON_BYTES = 2**28  # a vocabulary of a million words has a tenth of it


def read_config(folder: Path) -> Any:
    """Reads a model folder's configuration as `transformers` does; code that comes with it is run only where
    `remote_code.allow` was called.

    Raises:
        InputError: no such folder, no config.json in it, or one that doesn't load; or an adapter beside the weights.
        UnsupportedModelError: `transformers` doesn't know the architecture.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give a model folder with config.json and *.safetensors")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: {_what_it_is(folder)}")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder}: holds an adapter (adapter_config.json) beside the weights, and it's open which of the two is "
            "the model; merge it (peft: merge_and_unload), or move its files away"
        )
    raw = read_object(folder / "config.json", ConfigKeys)
    if (folder / "generation_config.json").exists():
        read_object(folder / "generation_config.json", GenerationKeys)
    register(folder, raw)
    try:
        # Said outright: left open, transformers would ask on the terminal whether to run the checkpoint's code.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _with_attention_of_here(config)
    except RecursionError:
        raise InputError(f"{folder / 'config.json'}: is nested too deeply") from None
    except Exception as error:  # transformers raises many kinds here, all meaning "this config is no good"
        if "does not recognize" in str(error) or "auto_map" in raw or isinstance(error, KeyError):
            raise UnsupportedModelError(
                f"{folder}: transformers doesn't know the architecture '{raw['model_type']}', "
                "and code that comes with a checkpoint is not run"
                + ("; --trust-remote-code runs it, with all rights that you have" if _has_code(raw) else "")
            ) from None
        raise InputError(f"{folder / 'config.json'}: {' '.join(str(error).split())[:300] or short(error)}") from None


def _has_code(raw: Json) -> bool:
    return brings_code(raw.get("auto_map")) and not allowed()


def _with_attention_of_here(config: Any) -> Any:
    """The configuration without an attention kernel that isn't installed: torch's own computes the same."""
    named = str(getattr(config, "_attn_implementation", None))
    here = named in ("None", "eager", "sdpa") or (named == "flash_attention_2" and is_flash_attn_2_available())
    if not here:
        config._attn_implementation = None
    return config


def attention_named(folder: Path) -> list[str]:
    """A note where config.json names an attention kernel: `transformers` reads that key and never writes it, and
    with it a model loads only where the kernel is installed."""
    named = read_object(folder / "config.json").get("_attn_implementation")
    return [] if named is None else [f"not taken along from config.json: _attn_implementation {str(named)[:80]}"]


def _what_it_is(path: Path) -> str:
    """A path that is no model folder, called what it is, with the way out."""
    if path.is_file():
        if path.suffix == ".gguf":
            return "is a GGUF file, made for llama.cpp; give the folder of the safetensors that it was made from"
        return "is a file; give the folder that holds config.json and *.safetensors"
    if (path / "adapter_config.json").is_file():
        return "is an adapter and no model; merge it into its base model (peft: merge_and_unload) and give that"
    snapshots = sorted((path / "snapshots").glob("*/config.json"))
    if snapshots:
        return f"is a folder of the hub's cache; the model in it is {snapshots[-1].parent}"
    if any(path.glob("models--*")):
        return "is the hub's cache; give a hub id, or a folder models--*/snapshots/* in it"
    if any(path.glob("*.gguf")):
        return "holds GGUF files, made for llama.cpp; give the folder of the safetensors that they were made from"
    if (path / MODULES).is_file() and (body := body_folder(path)) is not None:
        return f"is a model of sentence-transformers whose body lies in a folder of its own; give {path / body}"
    return "has no config.json, so it's not a Hugging Face model folder"


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        InputError: it has none, or one that doesn't load.
    """
    for name, most in (("tokenizer.json", _TOKENIZER_JSON_BYTES), ("tokenizer_config.json", 2**26)):
        if (folder / name).exists():
            read_object(folder / name, most_bytes=most)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=allowed())
        bos = tokenizer.bos_token_id
        if bos is not None and not isinstance(bos, int):
            raise TypeError(f"bos_token_id is {bos!r}")
        tokenizer("a b", add_special_tokens=False)
        tokenizer.decode([0], skip_special_tokens=True)
        return tokenizer
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # its parser raises many kinds, and Rust's panics aren't even exceptions
        reason = short(error)
        raise InputError(f"{folder}: no tokenizer that loads ({reason}); see its tokenizer files") from None


def read_index(folder: Path) -> dict[str, Path]:
    """Tells which safetensors file of a folder holds each tensor: name on disk -> file. No weights are read.

    Raises:
        InputError: no safetensors, a missing shard, or an index that leads out of the folder or doesn't fit the
            files.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            names = read_object(index, most_bytes=2**28)["weight_map"]
            # A shard lies in the folder itself: an index must not lead anywhere else.
            if any(Path(file).name != file for file in names.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: is not a valid index of shards") from None
        _refuse_wrapped(folder, names)
        files = {name: folder / file for name, file in names.items()}
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise InputError(f"{folder}: the index names {file.name}, which is not there")
        if single.exists() and single not in files.values():
            raise InputError(
                f"{folder}: holds {single.name} and an index of other files, and readers differ in which they take; "
                "move one of the two away"
            )
        _check_index(folder, files)
        return files
    if single.is_file():
        held = [name for name, _, _ in read_header(single)]
        _refuse_wrapped(folder, held)
        return dict.fromkeys(held, single)
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


def _refuse_wrapped(folder: Path, names: Iterable[str]) -> None:
    """Names of tensors that only a wrapper gives: no class knows them."""
    for name in names:
        for prefix, what in _WRAPPERS.items():
            if name.startswith(prefix) or (prefix.startswith("_") and f".{prefix}" in name):
                raise InputError(f"{folder}: tensor '{name}' is of {what}, or take '{prefix}' out of the names")


def _check_index(folder: Path, files: dict[str, Path]) -> None:
    """Refuses an index that doesn't say what the shards hold: readers that look at one of them alone would differ."""
    found: set[tuple[str, Path]] = set()
    for file in sorted(set(files.values())):
        for name, _, _ in read_header(file):
            if files.get(name) != file:
                where = f"says it's in {files[name].name}" if name in files else "doesn't name it"
                raise InputError(f"{folder}: {file.name} holds tensor '{name}', but the index {where}")
            found.add((name, file))
    lost = sorted(name for name, file in files.items() if (name, file) not in found)
    if lost:
        raise InputError(f"{folder}: the index names '{lost[0]}', but its file doesn't hold it")


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

"""A GGUF file as a model: its weights are dequantised once, into a folder of safetensors in the user's cache.

transformers reads the file (`gguf_file`), which needs the package `gguf`. The folder is named after what is in the
file, so a file that was read before isn't read again.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

from secateur.errors import InputError, UnsupportedModelError, install
from secateur.model.containers.cache import ORIGIN, fingerprint, made_once

MAGIC = b"GGUF"
KIND = "gguf"


def is_gguf(path: Path) -> bool:
    """Whether a path is meant as a GGUF file."""
    return path.suffix == ".gguf" and path.is_file()


def folder_of_gguf(file: Path) -> Path:
    """The folder that a GGUF file's model is in, made where it isn't there yet.

    Raises:
        InputError: it's no GGUF file, it can't be read, or the package `gguf` is missing.
    """
    with file.open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{file}: is called .gguf, but is no GGUF file")
    return made_once(KIND, _name(file), partial(_convert, file))


def _convert(file: Path, out: Path) -> None:
    try:
        import gguf  # noqa: F401 - transformers imports it
    except ImportError:
        raise InputError(f"{file}: reading GGUF needs a package; {install('gguf')}") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from secateur.model.json_files import short
    from secateur.model.quiet import quiet_loading

    told = {"gguf_file": file.name, "local_files_only": True}
    try:
        with quiet_loading(), redirect_stderr(io.StringIO()):  # a bar that can't be switched off otherwise
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **told)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **told)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # the reader and each class raise their own kinds
        raise UnsupportedModelError(f"{file}: transformers doesn't read this GGUF file ({short(error)})") from None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain numbers now
    # A model that was read from GGUF isn't saved; one that was built from its configuration is.
    plain = type(model)._from_config(model.config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.config.name_or_path = file.stem
    with quiet_loading():
        plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    said = {"stored_as": f"a GGUF file ({file.name})"}
    (out / ORIGIN).write_text(json.dumps(said) + "\n", encoding="utf-8")


def _name(file: Path) -> str:
    """The file's name, and a hash of its size and both ends."""
    return f"{file.stem}-{fingerprint([file])}"

"""A GGUF file as a model: its weights are dequantised once, into a folder of safetensors in the user's cache.

transformers reads the file (`gguf_file`), which needs the package `gguf`. The folder is named after what is in the
file, so a file that was read before isn't read again.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from secateur.data.cache import cache_folder
from secateur.errors import InputError, UnsupportedModelError, install

MAGIC = b"GGUF"
ENDS = 1 << 20  # bytes of both ends that name a file


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
    target = _cache() / _name(file)
    if (target / "config.json").is_file():
        return target
    try:
        import gguf  # noqa: F401 - transformers imports it
    except ImportError:
        raise InputError(f"{file}: reading GGUF needs a package; {install('gguf')}") from None
    _cache().mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=_cache()))
    try:
        _convert(file, work)
        work.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, out: Path) -> None:
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


def _cache() -> Path:
    return cache_folder("gguf")


def _name(file: Path) -> str:
    """The file's name, and a hash of its size and both ends."""
    size = file.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        total.update(handle.read(ENDS))
        handle.seek(max(0, size - ENDS))
        total.update(handle.read())
    return f"{file.stem}-{total.hexdigest()[:16]}"

"""The small Llama that ships inside the package, so that every command can be tried with no download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from secateur.errors import ResourceError


def embedded_path() -> Path:
    """Folder of the embedded model; `AutoModelForCausalLM.from_pretrained` reads it. Its card is README.md.

    Raises:
        ResourceError: the package was installed without its data, or runs from a zip archive.
    """
    folder = Path(str(files("secateur"))) / "embedded"
    if not (folder / "model.safetensors").is_file():
        raise ResourceError(f"no embedded model in {folder}; install secateur from its wheel, unpacked")
    return folder

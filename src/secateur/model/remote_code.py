"""Code that comes with a checkpoint: run only where the user has said so, for this process and those that it starts.

Its classes are made known to transformers under their `model_type`, and from then on they're like any other: detected
and proved on a small copy, built without weights, loaded as a whole. A result carries the code along.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from secateur.errors import InputError
from secateur.model.json_files import Json, short

VARIABLE = "SECATEUR_TRUST_REMOTE_CODE"  # of the environment, which processes inherit
OURS = "modeling_secateur"  # the modelling file of results, which is no foreign code
AUTO = "AutoModelForCausalLM"
MOST_BYTES = 2**24


def allow() -> None:
    """From now on code of model folders is run. `--trust-remote-code` calls this."""
    os.environ[VARIABLE] = "1"


def allowed() -> bool:
    return os.environ.get(VARIABLE) == "1"


def brings_code(auto_map: Any) -> bool:
    """Whether the `auto_map` of a configuration names code that isn't ours."""
    return isinstance(auto_map, dict) and bool(auto_map) and not any(OURS in str(v) for v in auto_map.values())


def code_files(folder: Path) -> list[str]:
    """Names of the Python files of a folder that classes of it may import, links out of it left aside."""
    from secateur.model.side_files import within

    found = [path for path in sorted(folder.glob("*.py")) if path.is_file() and path.stem != OURS]
    return [path.name for path in found if within(path, folder) and path.stat().st_size <= MOST_BYTES]


def carried(source: Path, auto_map: Any) -> list[str]:
    """Names of the files of code that go with a model's weights, where its configuration names such."""
    return code_files(source) if brings_code(auto_map) else []


def copy_code(source: Path, folder: Path, config: Json) -> None:
    """Gives a folder the code that its configuration names: what `source` has of it, or our own modelling file."""
    for name in carried(source, config.get("auto_map")):
        shutil.copyfile(source / name, folder / name)
    if config.get("auto_map") and not brings_code(config["auto_map"]):
        from secateur.model import modeling_secateur

        shutil.copyfile(Path(modeling_secateur.__file__), folder / f"{OURS}.py")


def hashes(folder: Path) -> dict[str, str]:
    """Python file -> SHA-256, for a report."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in code_files(folder)}


def register(folder: Path, raw: Json) -> None:
    """Runs a checkpoint's code, where it's allowed and transformers has no class of its own, and says so.

    Args:
        raw: the object in config.json.

    Raises:
        InputError: the code is of another repository, isn't there, or doesn't give the classes.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named, kind = raw.get("auto_map"), raw["model_type"]
    if not (allowed() and brings_code(named)) or kind in CONFIG_MAPPING:
        return
    assert isinstance(named, dict)
    references = [named.get("AutoConfig"), named.get(AUTO)]
    if not all(isinstance(one, str) and "--" not in one for one in references):
        raise InputError(
            f"{folder}: auto_map must name AutoConfig and {AUTO} in files of this folder; code of other repositories "
            "is not fetched"
        )
    files = code_files(folder)
    if os.environ.get("RANK", "0") == "0":
        print(f"WARNING: --trust-remote-code: running code of {folder}: {', '.join(files)}", file=sys.stderr)
    try:
        config_class, model_class = (
            get_class_from_dynamic_module(one, str(folder), local_files_only=True) for one in references
        )
        AutoConfig.register(kind, config_class)
        AutoModelForCausalLM.register(config_class, model_class)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # whatever foreign code raises
        raise InputError(f"{folder}: its code doesn't run here ({type(error).__name__}: {short(error)})") from None

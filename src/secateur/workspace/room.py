"""Whether the disk has room for what a run will write."""

from __future__ import annotations

import shutil
from pathlib import Path

from secateur.errors import ResourceError
from secateur.report.numbers import size


def check_room(out: Path, need: int, freed: int = 0, way: str = "choose another --out") -> None:
    """Refuses where it hasn't.

    Args:
        out: where it goes; need not exist.
        need: bytes, about.
        freed: bytes that are there already and will be used again.
        way: what else would work.

    Raises:
        ResourceError: in one line.
    """
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free + freed
    if free < need:
        raise ResourceError(
            f"{out}: the disk has {size(free)} free, the run needs about {size(need)}, {size(need - free)} more; "
            f"free some space or {way}"
        )

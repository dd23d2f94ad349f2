"""What a device is asked to wait for and to send, by the line of the product that asks."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


@dataclass
class Counts:
    """Counts since they were made.

    Args:
        waits: how often the host waits for the device: a number or a shape that it must know, a copy to the host.
        to_host, to_device: bytes that were copied.
        places: the same by place, "file.py:function:line" of the product.
    """

    waits: int = 0
    to_host: int = 0
    to_device: int = 0
    places: dict[str, Counter[str]] = field(default_factory=dict)

    def wait(self, why: str) -> None:
        self.waits += 1
        self._note("waits", 1, why)

    def copy(self, size: int, to_host: bool) -> None:
        if to_host:
            self.to_host += size
        else:
            self.to_device += size
        self._note("to_host" if to_host else "to_device", size, "copy")

    def _note(self, kind: str, much: int, why: str) -> None:
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(SOURCE):
            frame = frame.f_back  # type: ignore[assignment]
        where = "elsewhere"
        if frame is not None:
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}"
        self.places.setdefault(kind, Counter())[f"{where} {why}"] += much

    def shown(self, kind: str, most: int = 12) -> str:
        """The places that count most, one a line."""
        return "\n".join(f"{much:>12,} {place}" for place, much in self.places.get(kind, Counter()).most_common(most))

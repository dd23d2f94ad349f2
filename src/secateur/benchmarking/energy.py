"""Energy counters of the processor, where the system shows them (RAPL under Linux)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Energy:
    """Reads the packages' counters.

    Attributes:
        why_not: why there's nothing to read; empty if there is.
    """

    def __init__(self, root: Path = ROOT) -> None:
        # intel-rapl:0 is a package (AMD's too); intel-rapl:0:1 is a part of one and would count twice.
        found = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
        self._zones: list[tuple[Path, int]] = []
        self.why_not = "" if found else f"this machine shows no energy counters ({root} has none)"
        for zone in found:
            try:
                int((zone / "energy_uj").read_text())
                self._zones.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError):
                self.why_not = f"{zone / 'energy_uj'} can't be read by this user"
        if self.why_not:
            self._zones.clear()

    def read(self) -> list[int] | None:
        """Microjoules by package, counted from an unknown start; None where there are no counters."""
        return [int(file.read_text()) for file, _ in self._zones] if self._zones else None

    def joules(self, begin: list[int] | None, end: list[int] | None) -> float | None:
        """Between two readings; a counter that started over in between is made up for."""
        if begin is None or end is None:
            return None
        ranges = [size for _, size in self._zones]
        return sum((b - a) % size for a, b, size in zip(begin, end, ranges, strict=True)) / 1e6

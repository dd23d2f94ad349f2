"""benchmarks/gpu.py runs to its end on a device that isn't the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.simulated.device import simulate


def test_it_runs_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import gpu

    gpu.main(["--tiny", "--device", simulate().type])
    told = capsys.readouterr().out
    assert told.startswith("simulated device: ")
    assert "left out" not in told
    for what in (
        "wanda",
        "sparsegpt",
        "balanced",
        "best, two layers",
        "plain loop",
        "decode a token, 30% of",
        "70% zeros (7 dense)",
    ):
        assert what in told
    assert told.count("\n| ") == 2 + 2 + 4 + 6 + 6
    with pytest.raises(SystemExit, match="this machine or this build of torch has none"):
        gpu.main(["--tiny", "--device", "xpu"])
    for name in ("gpu", "_gpu_zeros"):
        sys.modules.pop(name)

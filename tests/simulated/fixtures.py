"""What tests of devices share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secateur.numerics import precision
from tests.simulated import device as sim


@pytest.fixture
def no_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulated device has no fp64."""
    monkeypatch.setattr(sim, "DOUBLE", False)
    _forget()
    yield
    _forget()


def _forget() -> None:
    for found in (precision.has_double, precision.sums_dtype):
        found.cache_clear()

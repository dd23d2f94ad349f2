"""A search that dies and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.config.searching import SearchSettings
from secateur.report.schema.search import SearchReport
from secateur.search import search as room
from secateur.search.search import search
from secateur.search.trial import Trials


def interrupted(settings: SearchSettings, out: Path, monkeypatch: pytest.MonkeyPatch) -> SearchReport:
    """What a search finds that died before it wrote anything and was resumed, with nothing measured twice."""

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "_write", dies)
        with pytest.raises(KeyboardInterrupt):
            search(settings, out, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(Trials, "evaluate", dies)
        patch.setattr(Trials, "roughly", dies)
        return search(settings, out, resume=True, quiet=True)

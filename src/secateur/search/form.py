"""One way of storing the whole model: a number format, or zeros of single weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from secateur.allocation.job import ProgressStep
from secateur.config.export import Export
from secateur.search.space import Piece, Space
from secateur.search.trial import Against, Trials
from secateur.search.wanted import Measures
from secateur.search.zeros import Zeros


@dataclass(frozen=True)
class Form:
    """One way of storing the whole model.

    Args:
        name: as it's told, and kept in the journal.
        measures: what models take in it.
        space: the pieces that may go from a model in it.
        trials: what measures candidates as they'd be in it, from the files of their pieces, a folder for hidden
            states that exceed the memory, the untouched model, and what is called after each layer. None: they are as
            without a form.
        export: what the result ends with.
        zeros: what its weights get.
    """

    name: str
    measures: Measures
    space: Space
    trials: Callable[[Path, Path, Against, ProgressStep], AbstractContextManager[Trials]] | None
    export: Export | None = None
    zeros: Zeros | None = None


def size_measures(measures: Measures, whole: float, saves: Mapping[Piece, float]) -> Measures:
    """What models take where they have other bytes, as parts of the untouched model's.

    Args:
        whole, saves: bytes of the untouched model in that form, and what each piece saves of them; of some pieces,
            where not all may go.
    """
    gone = measures.whole["size"] - whole
    own = {about: {piece: of[piece] for piece in saves} for about, of in measures.saves.items()}
    memory = {piece: saves[piece] + own["memory"][piece] - own["size"][piece] for piece in saves}
    return Measures(measures.whole, {**own, "size": saves, "memory": memory}, {"size": gone, "memory": gone})

"""Zeros of single weights as forms of the whole model: bytes are those that `secateur compress` comes to.

Which weights go from a layer, and what the others become, is solved for what enters it: of a candidate's layer for
what leaves the layers before it with the same zeros and nothing else gone. So a layer is solved once for each set of
pieces that goes from it, however many candidates have that. It's solved on other sequences of the calibration text
than candidates are measured on, where there are any; otherwise what is learned by heart would count as kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from secateur.allocation.job import Job, ProgressStep
from secateur.calibration.stream import Stream
from secateur.calibration.walk import Block
from secateur.config.export import make_export
from secateur.cut.checks import check_pattern
from secateur.cut.weights import cut_weights
from secateur.errors import InputError
from secateur.methods import METHODS
from secateur.model.linears import linears_of
from secateur.numerics.patterns import removed_count
from secateur.runtime.format import packed_bytes
from secateur.search.form import Form, size_measures
from secateur.search.space import Piece, Space, by_piece
from secateur.search.trial import Against, Trials
from secateur.search.wanted import Measures
from secateur.search.zeros import Zeros, zeros_of

NAMED = 160  # bytes, about, that a second tensor of a matrix takes in the header of its file
METHOD = "sparsegpt"  # fast enough to solve each layer again for each set of pieces
NONE = "no zeros"


def zero_forms(told: Sequence[str], measures: Measures, job: Job, space: Space) -> list[Form]:
    """The model without zeros, and a form for each share or pattern, the fewest zeros first.

    Raises:
        InputError: a pattern that doesn't fit the model, or so few zeros that nothing is saved.
    """
    found = [Form(NONE, measures, space, None)]
    for one in sorted(told, key=lambda text: zeros_of(text).share):
        zeros = zeros_of(one)
        check_pattern(zeros.pattern, job.streamed.checkpoint)
        zeros_take, pieces_take = _left_out(zeros, job, space)
        if zeros_take <= 0:
            raise InputError(f"zeros {one}: leaving out so few saves no bytes; give more, such as 0.3")
        sizes = {piece: measures.saves["size"][piece] - taken for piece, taken in pieces_take.items()}
        own = size_measures(measures, measures.whole["size"] - zeros_take, sizes)
        fitting = replace(space, saves={piece: space.saves[piece] for piece in sizes})
        export = make_export({"to": "compressed"})
        found.append(Form(f"zeros {one}", own, fitting, partial(_trials, job, zeros), export, zeros))
    return found


def _trials(
    job: Job, zeros: Zeros, folder: Path, scratch: Path, against: Against, step: ProgressStep
) -> AbstractContextManager[Trials]:
    return Trials.of(job._replace(step=step), folder, scratch, against, partial(with_zeros, job, zeros))


@torch.no_grad()
def with_zeros(job: Job, zeros: Zeros, layer: nn.Module, index: int, stream: Stream) -> None:
    """Puts zeros into the Linears of a layer, in place; none where layers are protected.

    Args:
        stream: what enters the layer.
    """
    if index not in job.rules.protected:
        block = Block(index, layer, job.streamed, stream)
        cut_weights(block, METHODS[METHOD], zeros.pattern, lambda linear: zeros.share)


def _left_out(zeros: Zeros, job: Job, space: Space) -> tuple[float, dict[Piece, float]]:
    """Bytes that the untouched model has less where its zeros are left out, and how many of those go with a piece.

    Pieces that leave a width which the pattern doesn't fit aren't among them.
    """
    return by_piece(job, space, partial(_of_layer, zeros, job), job.rules.protected)


def _of_layer(zeros: Zeros, job: Job, layer: nn.Module, index: int) -> float | None:
    """Bytes that a layer has less; None where its widths don't fit the pattern."""
    checkpoint, total = job.streamed.checkpoint, 0.0
    for linear in linears_of(layer, checkpoint.family):
        rows, columns = linear.shape
        if zeros.pattern.of is not None and columns % zeros.pattern.of:
            return None
        width = checkpoint.stored_dtype(index, linear.parameter_name).itemsize
        count = rows * columns - removed_count(rows * columns, zeros.share)
        total += max(0, rows * columns * width - packed_bytes(rows, columns, count, width) - NAMED)
    return total

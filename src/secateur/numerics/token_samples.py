"""Single tokens behind the statistics: a thinned sample of them, and where each input was largest.

Sums can't tell a nonlinear dependence, nor which token a unit answered to. Both are kept small: at most
`SAMPLE` whole rows, and `PEAKS` places for each input. No random numbers: every stride-th token is kept, and the
stride doubles whenever the sample is full.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 2048
PEAKS = 5


class TokenSamples:
    """What is remembered of the inputs X (tokens, features) of one Linear.

    Args:
        sample: keep rows; peaks: keep the places of the largest |x_j| of each input j.
    """

    def __init__(self, features: int, sample: bool, max_activating: bool) -> None:
        self.seen = 0
        self._stride = 1
        self._rows: list[Tensor] = [torch.zeros(0, features)] if sample else []
        self._places: list[Tensor] = [torch.zeros(0, dtype=torch.int64)] if sample else []
        self._peaks = torch.zeros(0, features) if max_activating else None
        self._at = torch.zeros(0, features, dtype=torch.int64)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add a batch of rows (tokens, features) fp32."""
        place = torch.arange(self.seen, self.seen + len(x))
        self.seen += len(x)
        if self._rows:
            due = place % self._stride == 0
            self._rows.append(x[due.to(x.device)].cpu())
            self._places.append(place[due])
            self._thin(self._stride)
        if self._peaks is not None:
            at = x.abs().topk(min(PEAKS, len(x)), dim=0).indices
            self._keep_peaks(x.gather(0, at).cpu(), place[at.cpu()])

    def _thin(self, stride: int) -> None:
        """Doubles the stride until the sample is no longer than it may be."""
        places = torch.cat(self._places)
        keep = places % stride == 0
        while int(keep.sum()) > SAMPLE:
            stride *= 2
            keep = places % stride == 0
        if stride != self._stride or not bool(keep.all()):
            self._rows, self._places = [torch.cat(self._rows)[keep]], [places[keep]]
        self._stride = stride

    def _keep_peaks(self, values: Tensor, at: Tensor) -> None:
        assert self._peaks is not None
        values, at = torch.cat([self._peaks, values]), torch.cat([self._at, at])
        # Stable, so that of equal values the earlier token stays.
        order = values.abs().argsort(dim=0, descending=True, stable=True)[:PEAKS]
        self._peaks, self._at = values.gather(0, order), at.gather(0, order)

    @classmethod
    def join(cls, parts: Sequence[TokenSamples]) -> TokenSamples:
        """What would be remembered had the tokens of all parts been seen one part after the other; of the sample,
        whose strides may differ, the widest stride counts."""
        whole, first = parts[0], parts[0].seen
        for part in parts[1:]:
            if whole._rows:
                stride = max(whole._stride, part._stride)
                keep = torch.cat(part._places) % stride == 0
                whole._thin(stride)
                whole._rows.append(torch.cat(part._rows)[keep])
                whole._places.append(torch.cat(part._places)[keep] + first // stride * stride)
                whole._thin(stride)
            if whole._peaks is not None and part._peaks is not None:
                whole._keep_peaks(part._peaks, part._at + first)
            first += part.seen
        whole.seen = first
        return whole

    @property
    def sample(self) -> Tensor:
        """(rows, features) fp32 on the CPU, at most `SAMPLE` rows, in the order of the tokens."""
        return torch.cat(self._rows)

    @property
    def max_activating(self) -> tuple[Tensor, Tensor]:
        """(values, places), each (at most PEAKS, features): x where |x| was largest, and the token's number."""
        assert self._peaks is not None
        return self._peaks, self._at

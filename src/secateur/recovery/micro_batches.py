"""A training step in parts that the memory of a device suffices for: the same step, whose gradients add up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.system.halving import AtOnce, halve, tried

Inputs = dict[str, Tensor]


class MicroBatches:
    """The passes of a step, each of as many sequences as memory suffices for.

    Each pass adds to the gradients. One that runs out of memory may have added some of its own already, so all passes
    of the step are taken again, in halves.

    Args:
        device: whose memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._room = device, AtOnce()
        self._taken: list[Inputs] = []

    def take(self, inputs: Inputs, run: Callable[[Inputs], Tensor], clear: Callable[[], None], last: bool) -> Tensor:
        """Runs one pass, in halves where it must; gives its loss.

        Args:
            inputs: tensors of the same sequences.
            run: goes forward and back through some of them; its losses add up.
            clear: forgets the gradients.
            last: of its step.
        """
        self._taken.append(inputs)
        due, count = [inputs], len(next(iter(inputs.values())))
        while not (found := tried(lambda due=due: [self._run(one, run) for one in due][-1])):  # type: ignore[misc]
            clear()
            halve(self._room, min(count, self._room.most or count), self._device)
            due = self._taken
        if last:
            self._taken = []
        return found[0]

    def _run(self, inputs: Inputs, run: Callable[[Inputs], Tensor]) -> Tensor:
        count = len(next(iter(inputs.values())))
        step = self._room.most or count
        if step >= count:
            return run(inputs)
        parts = [{name: x[i : i + step] for name, x in inputs.items()} for i in range(0, count, step)]
        return torch.stack([run(part) for part in parts]).sum()

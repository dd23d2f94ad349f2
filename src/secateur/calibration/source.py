"""Layers in the order in which a walk needs them, read ahead where that pays."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import nn

from secateur.model.streamed import StreamedModel


class LayerSource:
    """Reads layers; on an accelerator the next one is read by a thread while the present one is worked on.

    On a CPU nothing is read ahead: the memory of a second layer costs more than its reading time.
    """

    def __init__(self, streamed: StreamedModel) -> None:
        self._outer = streamed
        self._thread = ThreadPoolExecutor(1) if streamed.device.type != "cpu" else None
        self._ahead: tuple[int, Future[nn.Module]] | None = None

    def take(self, index: int) -> nn.Module:
        if self._ahead is not None and self._ahead[0] == index:
            layer = self._ahead[1].result()
        else:
            if self._ahead is not None:
                self._ahead[1].result()  # one consumer at a time
            layer = self._outer.load(index)
        self._ahead = None
        if self._thread is not None and index + 1 < self._outer.checkpoint.layers:
            self._ahead = index + 1, self._thread.submit(self._outer.load, index + 1)
        return layer

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

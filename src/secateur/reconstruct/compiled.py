"""Tuning a block by `torch.compile`: its forward and its backward pass as generated code.

Weights are arguments of that code, so all blocks of one shape share it, whatever their zeros. Each shape (of the
weights, of a step's sequences) is compiled by itself, and nothing is chosen by the clock: what a block computes then
depends on that block alone and not on what was compiled before, and an interrupted run ends with the same bytes. It
rounds otherwise than the block's own operations do, step by step, so a tuned block's weights differ.

A block that can't be compiled as a whole, such as one whose shapes depend on its data, runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import InputError

MOST = 4096  # shapes of one run; torch's own limit of 8 is less than a model of uneven layers has
INSTALL = {"cpu": "a C++ compiler (g++, or another that CXX names)", "cuda": "Triton and a C compiler"}


class CompiledLayer(nn.Module):
    """Calls a layer compiled, as long as that can be done; it is compiled at the first call.

    Args:
        layer: whose parameters may be changed in place between two calls.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.failure: str | None = None
        """Why it can't be compiled; None as long as it can."""
        self._call = _compiled(layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives."""
        if self.failure is not None:
            return self.layer(*args, **kwargs)
        with torch._dynamo.config.patch(recompile_limit=MOST, accumulated_recompile_limit=MOST):
            return self._call(*args, **kwargs)


def compiles(layer: nn.Module, run: Callable[[], None]) -> bool:
    """Runs something that goes through the layer. False where that ended as the layer can't be compiled: from now on
    it is called as it is, and `run` has to begin anew."""
    if not isinstance(layer, CompiledLayer) or layer.failure is not None:
        run()
        return True
    try:
        run()
    except torch._dynamo.exc.TorchDynamoException as error:
        layer.failure = _reason(error)
        return False
    return True


def check_compiler(device: torch.device) -> None:
    """Compiles a function of one line, forward and backward.

    Raises:
        InputError: what that needs isn't here.
    """
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        if device.type == "cpu":  # a function that was compiled before needs no compiler
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
        _compiled(_cubed)(x).sum().backward()
    except (RuntimeError, ImportError, OSError) as error:
        needs = INSTALL.get(device.type, "a backend of torch.compile for it")
        raise InputError(
            f"compile_blocks: torch.compile doesn't work for {device} here ({_reason(error)}); "
            f"it needs {needs}; leave --compile-blocks out"
        ) from None


def _cubed(x: Tensor) -> Tensor:
    return x * x * x


def _compiled(what: Any) -> Any:
    from torch._inductor import config

    # Deterministic: no kernel wins by being measured. Not in torch before 2.9, which measures on GPUs alone.
    options: dict[str, Any] = {"deterministic": True} if hasattr(config, "deterministic") else {}
    return torch.compile(what, fullgraph=True, dynamic=False, options=options)


def _reason(error: BaseException) -> str:
    """In a line; of an error inside an error, the inner one. A lack of memory isn't a reason.

    Raises:
        torch.OutOfMemoryError: it was that.
    """
    inner = getattr(error, "inner_exception", None) or error
    if isinstance(inner, torch.OutOfMemoryError):
        raise inner
    lines = str(inner).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(inner).__name__

"""Muon for the matrices of the layers, AdamW for everything else, as one optimiser.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) makes a matrix's step orthogonal: all its directions go
equally far, where AdamW follows the few that dominate the gradient. Its steps are scaled by 0.2 sqrt(max(rows,
columns)) (Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2), so one learning rate serves both parts.
torch has a Muon since 2.9; it multiplies in bf16 wherever it runs, which CPUs without instructions for it do ten
times slower than fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.numerics.support import keep_only
from secateur.recovery.shard import local, own
from secateur.system import accelerator

MOMENTUM = 0.9
BETAS = (0.9, 0.99)  # AdamW's. Both are short, as a recovery has hundreds of steps, not thousands
# Of the odd polynomial a s + b s^3 + c s^5 that brings singular values s in (0, 1] near one; Jordan's, five times.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


class MuonAndAdamW(torch.optim.Optimizer):
    """Both behind one state, so that whatever saves, scales or schedules an optimiser does so for the two.

    Args:
        model: its trained parameters.
        layers: path of the module that holds the layers. Their 2-D parameters are Muon's; experts' 3-D ones aren't.
        masks: parameter name -> bool mask (True = keep) in its shape. An orthogonal step fills zeros, so each step
            is cut to the mask before anything computes with it.
    """

    def __init__(
        self, model: nn.Module, layers: str, masks: dict[str, Tensor], learning_rate: float, weight_decay: float
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {name: p for name, p in trained.items() if p.dim() == 2 and name.startswith(f"{layers}.")}
        others = [p for name, p in trained.items() if name not in matrices]
        self._held = [(p, own(masks[name], p)) for name, p in matrices.items() if name in masks]
        muon = _Muon(matrices.values(), {"lr": learning_rate, "weight_decay": weight_decay})
        self._parts = [muon, torch.optim.AdamW(others, learning_rate, BETAS, weight_decay=weight_decay)]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        for parameter, mask in self._held:
            keep_only(local(parameter), mask)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


class _Muon(torch.optim.Optimizer):
    """With Nesterov's momentum, and weight decay apart from the gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                step = orthogonal(parameter.grad.lerp(state["momentum"], MOMENTUM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(G: Tensor) -> Tensor:
    """About U Vᵀ of the singular value decomposition U S Vᵀ of G (m, n), by a Newton-Schulz iteration.

    In bf16 where the hardware multiplies that, which loses nothing that counts. Singular values come out between 0.7
    and 1.2, those below a thousandth of the largest lower.
    """
    X = G.to(torch.bfloat16 if accelerator.multiplies_bf16(G.device) else torch.float32)
    wide = X.shape[0] <= X.shape[1]
    X = X if wide else X.T
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(ROUNDS):
        square = X @ X.T
        X = A * X + (B * square + C * square @ square) @ X
    return (X if wide else X.T).to(G.dtype)

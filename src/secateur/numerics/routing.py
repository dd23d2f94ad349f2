"""Which experts the tokens of a text are routed to, and how much those write: sums over the tokens.

As with `numerics.moments` only sums are kept, so batches and processes add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.numerics.precision import wide_dtype

# routes: tokens and gates; expert_outputs: also what each expert writes, which costs its forward pass.
ROUTING = frozenset({"routes", "expert_outputs"})


class Routing:
    """Statistics of the experts of one layer.

    Args:
        experts: how many there are.
        needs: any of `ROUTING`; `expert_outputs` brings `routes` along.
        device: where the sums live.

    Sums are in fp64 (fp32 on devices without it). With no token seen, all is zero.
    """

    def __init__(self, experts: int, needs: frozenset[str], device: torch.device | str | None = None) -> None:
        unknown = needs - ROUTING
        if unknown:
            raise SecateurError(f"routing {sorted(unknown)} is unknown; known are {sorted(ROUTING)}")
        self.needs = needs
        where = torch.device(device or "cpu")
        wide = wide_dtype(where)
        names = ("tokens", "gates", "outputs") if "expert_outputs" in needs else ("tokens", "gates")
        self._sums = {name: torch.zeros(experts, dtype=wide, device=where) for name in names if needs}
        self._seen = torch.zeros((), dtype=wide, device=where)

    @torch.no_grad()
    def see(self, tokens: int) -> None:
        """Counts tokens that were routed, to whichever experts."""
        self._seen += tokens

    @torch.no_grad()
    def add(self, expert: int, gates: Tensor, norms: Tensor | None = None) -> None:
        """Adds the tokens of a batch that were routed to one expert.

        Args:
            gates: (tokens,), what the layer multiplies the expert's output with.
            norms: (tokens,), the L2 norms of those outputs, before that; for `expert_outputs`.
        """
        wide = gates.to(self._seen.device, self._seen.dtype)
        self._sums["tokens"][expert] += len(wide)
        self._sums["gates"][expert] += wide.sum()
        if "outputs" in self._sums:
            if norms is None:
                raise ValueError("routing with the need 'expert_outputs' takes norms in every call")
            self._sums["outputs"][expert] += (wide * norms.to(wide)).sum()

    def tensors(self) -> list[Tensor]:
        """The raw sums, in a fixed order; all-reduce them in place (sum) before the first read."""
        return [self._seen, *self._sums.values()]

    @property
    def seen(self) -> int:
        """Tokens in all, each of which was routed to several experts."""
        return int(self._seen)

    @property
    def tokens(self) -> Tensor:
        """(experts,) tokens that were routed to each."""
        return self._sum("tokens", "routes")

    @property
    def gates(self) -> Tensor:
        """(experts,) the sum of their gate values."""
        return self._sum("gates", "routes")

    @property
    def outputs(self) -> Tensor:
        """(experts,) the sum of gate value times the L2 norm of the expert's output."""
        return self._sum("outputs", "expert_outputs")

    def _sum(self, name: str, need: str) -> Tensor:
        if name not in self._sums:
            raise SecateurError(f"'{name}' wasn't gathered; ask for the need '{need}'")
        return self._sums[name]

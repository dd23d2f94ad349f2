"""Streaming statistics of the inputs of one Linear.

What is kept are sums (count, sum, sum of squares, XᵀX), so that batches add up, processes add up with one
all-reduce, and nothing has to be revisited. The means that methods read are derived from the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from secateur.errors import ResourceError, SecateurError
from secateur.numerics.precision import add_compensated, sums_dtype
from secateur.numerics.token_samples import TokenSamples
from secateur.numerics.tokens import over_tokens

NEEDS = frozenset({"mean", "mean_abs", "rms", "gram", "cross", "drift", "sample", "peaks"})

# Columns of XᵀX that are accumulated at once. Only blocks on and above the diagonal are computed: for wide
# inputs that saves close to half of the work, and up to this width it is one plain matmul.
GRAM_BLOCK = 1024

# An input whose variance is less than this part of its mean square doesn't vary: products are rounded to fp32.
CONSTANT = 1e-6

T = TypeVar("T")


class Moments:
    """Statistics over all tokens seen of the inputs X (tokens, features) of one Linear.

    Fill it with `update`, then read the means: `mean`, `rms`, `gram` and so on. Reading one whose need wasn't named
    is a SecateurError. Each batch is multiplied in fp32 and added up in fp64 (`numerics.precision` has what devices
    without it do), so that neither the number of batches nor that of the ranks that share them shows in the result.
    With no token seen, all is zero.

    Args:
        features: width of the inputs.
        needs: any of `NEEDS`; `gram` brings `rms` along (its diagonal).
        device: where the sums live, and where `update` expects (or moves) its batches.
        target_features: width of the second stream for `cross`; equal to `features` unless given.
        drift_features: width of the residual stream for `drift`.
    """

    def __init__(
        self,
        features: int,
        needs: frozenset[str],
        device: torch.device | str | None = None,
        target_features: int | None = None,
        drift_features: int | None = None,
    ) -> None:
        unknown = needs - NEEDS
        if unknown:
            raise SecateurError(f"moments {sorted(unknown)} are unknown; known are {sorted(NEEDS)}")
        self.features = features
        self.target_features = target_features or features
        self.needs = needs
        self.device = torch.device(device or "cpu")
        wide = sums_dtype(self.device)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self._count = zeros(dtype=torch.int64)
        self._sums: dict[str, Tensor] = {}
        self._lost: dict[str, Tensor] = {}
        for name in ("mean", "mean_abs", "rms"):
            if name in needs:
                self._sums[name] = zeros(features, dtype=wide)
        if "gram" in needs:
            self._sums["gram"] = zeros(features, features, dtype=wide)
        if "cross" in needs:
            self._sums["cross"] = zeros(self.target_features, features, dtype=wide)
            self._sums["target"] = zeros(self.target_features, dtype=wide)
        if "drift" in needs:
            assert drift_features is not None
            self._sums["drift"] = zeros(drift_features, features, dtype=wide)
            self._sums["drift_mean"] = zeros(drift_features, dtype=wide)
        if wide == torch.float32:
            self._lost = {name: torch.zeros_like(own) for name, own in self._sums.items()}
        self.token_samples: TokenSamples | None = None
        if needs & {"sample", "peaks"}:
            self.token_samples = TokenSamples(features, "sample" in needs, "peaks" in needs)
        self._memo: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"Moments(features={self.features}, n={self.n}, needs={sorted(self.needs)})"

    @torch.no_grad()
    def update(self, x: Tensor, target_x: Tensor | None = None, drift: Tensor | None = None) -> None:
        """Adds a batch of inputs to the sums.

        Args:
            x: inputs, (..., features).
            target_x: for the need `cross`: (..., target_features), what the other model has in the place of x, token
                for token; the dense model's inputs, say, where x are the pruned one's.
            drift: for the need `drift`: what the residual stream lacks at that point, (..., drift_features).

        Raises:
            ValueError: another width, or a missing counterpart.
            torch.OutOfMemoryError: there's no room for the batch in fp32; nothing of it was added.
            ResourceError: there's none for its sums, whatever part of it is taken.
        """
        x = self._rows(x, self.features, "x")
        others: dict[str, Tensor] = {}
        for need, name, given in (("cross", "target_x", target_x), ("drift", "drift", drift)):
            if need in self._sums:
                if given is None:
                    raise ValueError(f"moments with the need '{need}' take {name} in every update")
                others[need] = self._rows(given, self._sums[need].shape[0], name)
        self._memo.clear()
        try:
            self._take(x, others)
        except torch.OutOfMemoryError:  # some sums have these tokens by now, so nobody may try again
            raise ResourceError(f"not enough memory on {self.device} for sums over {self.features} inputs") from None

    def _take(self, x: Tensor, others: dict[str, Tensor]) -> None:
        wide = sums_dtype(self.device)
        self._count += x.shape[0]
        self._add("mean", lambda x: x.sum(0, dtype=wide), x)
        if self.token_samples is not None:
            self.token_samples.update(x)
        self._add("mean_abs", lambda x: x.abs().sum(0, dtype=wide), x)
        self._add("rms", lambda x: x.square().sum(0, dtype=wide), x)
        for start in range(0, self.features if "gram" in self._sums else 0, GRAM_BLOCK):
            place = slice(min(start + GRAM_BLOCK, self.features)), slice(start, start + GRAM_BLOCK)
            self._add("gram", lambda x, rows, columns: x[:, rows].T @ x[:, columns], x, *place)
        for need, mean in (("cross", "target"), ("drift", "drift_mean")):
            if need in others:
                self._add(need, lambda other, x: other.T @ x, others[need], x)
                self._add(mean, lambda other: other.sum(0, dtype=wide), others[need])

    def _add(self, name: str, make: Callable[..., Tensor], *given: Tensor | slice) -> None:
        """Adds what `make` gives for tensors of tokens; the slices among what it's given say where."""
        if name not in self._sums:
            return
        place = tuple(each for each in given if isinstance(each, slice))
        total = self._sums[name][place]
        for part in over_tokens(make, *given):
            if name in self._lost:
                add_compensated(total, self._lost[name][place], part)
            else:
                total += part

    def _rows(self, x: Tensor, features: int, name: str) -> Tensor:
        if x.shape[-1] != features:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; its last axis should be {features}")
        return x.detach().reshape(-1, features).to(self.device, torch.float32)

    def merge(self, other: Moments) -> None:
        """Adds the sums of another `Moments` of the same needs and widths, as if its batches had been seen here.

        Raises:
            ValueError: they hold different things.
        """
        if other.needs != self.needs or other.features != self.features:
            raise ValueError(f"cannot merge {other} into {self}")
        self._memo.clear()
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine.device)
        if self.token_samples is not None and other.token_samples is not None:
            self.token_samples = TokenSamples.join([self.token_samples, other.token_samples])

    def tensors(self) -> list[Tensor]:
        """The raw sums, in a fixed order. To add up those of all ranks, all-reduce them before the first read."""
        return [self._count, *self._sums.values(), *self._lost.values()]

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Returns `make()`, computed once for each `key` and remembered until the next update.

        Linears that share their input (q, k, v) share the Moments, and so the factor of the Gram matrix, which costs
        as much as the solve itself.
        """
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]  # type: ignore[return-value]

    def _sum(self, need: str) -> Tensor:
        if need not in self._sums:
            raise SecateurError(f"moments hold {sorted(self.needs)} only; ask for '{need}' before calibrating")
        return self._sums[need]

    @property
    def n(self) -> int:
        """Tokens seen."""
        return self.once("n", lambda: int(self._count))

    @property
    def _divisor(self) -> int:
        return max(self.n, 1)

    @property
    def mean(self) -> Tensor:
        """Mean of each input, E[x], (features,) fp32."""
        return (self._sum("mean") / self._divisor).float()

    @property
    def mean_abs(self) -> Tensor:
        """Mean size of each input, E|x|, (features,) fp32."""
        return (self._sum("mean_abs") / self._divisor).float()

    @property
    def sample(self) -> Tensor:
        """A thinned sample of the inputs themselves, (rows, features) fp32 on the CPU; see `TokenSamples`."""
        if self.token_samples is None or "sample" not in self.needs:
            raise SecateurError(f"moments hold {sorted(self.needs)} only; ask for 'sample' before calibrating")
        return self.token_samples.sample

    @property
    def second_moment(self) -> Tensor:
        """Mean square of each input, E[x²], (features,) fp32. Comes with `rms` or `gram`."""
        if "rms" not in self._sums and "gram" in self._sums:
            return (self._sums["gram"].diagonal() / self._divisor).float()
        return (self._sum("rms") / self._divisor).float()

    @property
    def rms(self) -> Tensor:
        """Root mean square of each input, √E[x²], (features,) fp32: its norm over the tokens, divided by √n."""
        return self.second_moment.sqrt()

    @property
    def var(self) -> Tensor:
        """Variance of each input, E[x²] - E[x]², biased, never below zero, (features,) fp32.

        Needs `mean`, and `rms` or `gram`.
        """
        square = self._sum("rms") if "rms" in self._sums else self._sum("gram").diagonal()
        mean = self._sum("mean") / self._divisor
        return (square / self._divisor - mean.square()).clamp_min(0).float()

    @property
    def gram(self) -> Tensor:
        """Gram matrix of the inputs, XᵀX / n, (features, features) fp32, a fresh tensor at each read."""
        gram = (self._sum("gram") / self._divisor).float()
        for start in range(GRAM_BLOCK, self.features, GRAM_BLOCK):
            stop = min(start + GRAM_BLOCK, self.features)
            gram[start:stop, :start] = gram[:start, start:stop].T
        return gram

    @property
    def covariance(self) -> Tensor:
        """Covariance of the inputs, E[x xᵀ] - E[x] E[x]ᵀ, (features, features) fp32. Needs `gram` and `mean`."""
        mean = self.mean
        return self.gram.addr_(mean, mean, alpha=-1)

    def centred(self) -> Moments:
        """Gives the statistics of the same tokens about their means, as a solve with a free bias needs them.

        Needs `gram` and `mean`. An input that never varies becomes zero throughout: a bias can stand in for it.
        """
        drift = self._sums.get("drift")
        out = Moments(
            self.features,
            self.needs,
            self.device,
            self.target_features,
            drift_features=None if drift is None else drift.shape[0],
        )
        out._count = self._count.clone()
        total = self._sum("mean")
        own = self._sum("gram").diagonal()
        varies = (own - total.square() / self._divisor) > CONSTANT * own
        means = {"gram": total, "cross": self._sums.get("target"), "drift": self._sums.get("drift_mean")}
        for name, of in means.items():
            if of is not None:
                about = self._sums[name] - torch.outer(of, total / self._divisor)
                out._sums[name] = about * varies
        out._sums["gram"] *= varies[:, None]
        if "rms" in self.needs:
            out._sums["rms"] = out._sums["gram"].diagonal().clone()
        if "mean_abs" in self.needs:
            out._sums["mean_abs"] = self._sums["mean_abs"].clone()
        out.token_samples = self.token_samples
        return out

    @property
    def cross(self) -> Tensor:
        """E[target_x xᵀ], (target_features, features) fp32: W @ cross is the target's cross moment."""
        return (self._sum("cross") / self._divisor).float()

    @property
    def target_mean(self) -> Tensor:
        """E[target_x], (target_features,) fp32. Comes with `cross`."""
        return (self._sum("target") / self._divisor).float()

    @property
    def drift(self) -> Tensor:
        """E[drift xᵀ], (drift_features, features) fp32: what a writer of the residual stream may make up for."""
        return (self._sum("drift") / self._divisor).float()

    @property
    def drift_mean(self) -> Tensor:
        """E[drift], (drift_features,) fp32. Comes with `drift`."""
        return (self._sum("drift_mean") / self._divisor).float()

"""The parts of deep generative models on bits: directed layers, and priors on the last code.

A prior is a module whose `forward` returns the law of the code, event shape (n,); the law of an `RBM` is one too.
(Equation ids of `zoo.layerwise`.)
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from pyro.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from guides.codes import BITS, Tabular, states, table
from zoo.lab import exact

EXACT_BITS = 26  # of two neighbouring layers together, for an exact likelihood


class Decoder(nn.Module):
    """P_I(below | h): independent bits with logits h W + b.

    Args:
        above, below: numbers of units. scale: standard deviation of the initial W.
    """

    def __init__(self, above: int, below: int, *, scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(above, below))
        self.b = nn.Parameter(torch.zeros(below))

    @property
    def above(self) -> int:
        """Number of units of the code."""
        return len(self.W)

    def logits(self, h: Tensor) -> Tensor:
        """eta(h) = h W + b. h: (..., above); returns (..., below)."""
        return h @ self.W + self.b

    def forward(self, h: Tensor) -> Distribution:
        """The law of the layer below, batch shape `h.shape[:-1]`; grey values in [0, 1] count as probabilities."""
        return Bernoulli(logits=self.logits(h), validate_args=False).to_event(1)

    def table(self, below: Tensor, codes: Tensor | None = None) -> Tensor:
        """log P_I(below_n | h) of every code in one product, nats.

        Args:
            below: (n, D). codes: (C, above); all 2^above if not given.

        Returns:
            (n, C).
        """
        eta = self.logits(states(self.above, like=self.W) if codes is None else codes)  # (C, D)
        return below @ eta.mT - softplus(eta).sum(-1)  # lw.2


class GaussianDecoder(Decoder):
    """Real pixels: independent normals with mean h W + b and a standard deviation for each pixel."""

    def __init__(self, above: int, below: int, *, scale: float = 0.1) -> None:
        super().__init__(above, below, scale=scale)
        self.log_sd = nn.Parameter(torch.zeros(below))

    def forward(self, h: Tensor) -> Distribution:
        return Normal(self.logits(h), self.log_sd.exp()).to_event(1)

    def table(self, below: Tensor, codes: Tensor | None = None) -> Tensor:
        precision = (-2 * self.log_sd).exp()
        eta = self.logits(states(self.above, like=self.W) if codes is None else codes)
        squares = (below.square() @ precision)[:, None] - 2 * (below * precision) @ eta.mT + eta.square() @ precision
        return -0.5 * squares - self.log_sd.sum() - 0.5 * len(precision) * math.log(2 * math.pi)


class Layered(nn.Module):
    """What deep models of bits have in common: sites x, h1, h2, ..., `decoders` from the bottom up, a top `prior`.

    A subclass sets `hidden` (n_1, n_2, ...: units of the codes h1, h2, ..., the last one that of the prior), `decoders`
    and `prior`, and tells the story in `forward`.
    """

    hidden: list[int]
    decoders: nn.ModuleList
    prior: Any

    def decoder(self, layer: int) -> Decoder:
        """The decoder below h_layer, 1 being the bottom."""
        found = self.decoders[layer - 1]
        assert isinstance(found, Decoder)
        return found

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """What a guide's family sees at each layer: the one below."""
        return {f"h{k}": (f"h{k - 1}",) for k in range(2, len(self.hidden) + 1)}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def log_prior(self, layer: int = 1) -> Tensor:
        """log P(h_layer) of every code by enumeration downwards from the top, nats, (2^n)."""
        log_p = table(self.prior())
        for k in range(len(self.hidden), layer, -1):
            below = states(self.hidden[k - 2], like=log_p)
            log_p = exact.log_likelihood(self.decoder(k).table, below, log_p)
        return log_p

    def log_evidence(self, x: Tensor) -> Tensor:
        """log P(x_n) exactly, nats, (n,), with its gradient."""
        if not self.hidden:
            return self.prior().log_prob(x)
        return exact.log_likelihood(self.decoder(1).table, x, self.log_prior())  # lw.1

    @property
    def enumerable(self) -> bool:
        """Whether the exact likelihood is within reach."""
        if not self.hidden:
            return bool(getattr(self.prior, "enumerable", True))
        sizes = [sum(pair) for pair in pairwise(self.hidden)]
        return max(self.hidden) <= BITS and max(sizes, default=0) <= EXACT_BITS

    @property
    def annealed(self) -> Any:
        """The estimate of the top's log Z by which this model is scored, `rbm.AIS`; None where log Z is exact."""
        return self.prior.annealing() if hasattr(self.prior, "annealing") else None

    @torch.no_grad()
    def loglik(self, x: Tensor, **ignored: Any) -> Tensor | None:
        """The exact log-likelihood of each datum, nats, (n,); None where it cannot be enumerated."""
        return self.log_evidence(x) if self.enumerable else None


class TablePrior(nn.Module):
    """Any law on the codes of n bits, as a table of 2^n logits: Q, the BLM, or a free P_J."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(states(n))))

    def forward(self) -> Distribution:
        return Tabular(self.logits)


class BitsPrior(nn.Module):
    """Independent bits: a control."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n))

    def forward(self) -> Distribution:
        return Bernoulli(logits=self.logits, validate_args=False).to_event(1)


class AggregatedPosterior(nn.Module):
    """q_D, the mixture of q(h | x_n) over the training data; q is that of a guide, and its parameters stay there.

    Until q is shared (`share`) the law is uniform. It is a table where the codes can be enumerated.
    """

    data: Tensor

    def __init__(self, n: int, N: int, features: int) -> None:
        super().__init__()
        self.n = n
        self._q: tuple[nn.Module, ...] = ()  # in a tuple: the guide's parameters are not the model's
        self.register_buffer("data", torch.zeros(N, features))

    @property
    def q(self) -> nn.Module | None:
        """The family that is shared; None before."""
        return self._q[0] if self._q else None

    def share(self, q: nn.Module) -> None:
        """Take the family q of a guide, `forward(x) -> q(h | x)`."""
        self._q = (q,)

    def forward(self) -> Distribution:
        if self.q is None:
            return Bernoulli(logits=self.data.new_zeros(self.n), validate_args=False).to_event(1)
        if self.n > BITS:
            return MixtureSameFamily(Categorical(logits=self.data.new_zeros(len(self.data))), self.q(self.data))
        rows, log_w = exact.distinct(self.data)
        parts = zip(*(part.split(max(1, exact.CELLS >> self.n)) for part in (rows, log_w)), strict=True)
        return Tabular(torch.stack([exact.aggregated(table(self.q(some)), w) for some, w in parts]).logsumexp(0))

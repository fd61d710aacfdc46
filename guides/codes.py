"""Laws on binary codes h in {0, 1}^n, and their tables: the log-probability of every code.

Codes are numbered: row i of `states(n)` holds the binary digits of i, the most significant first. Every law here has
event shape (n,); `table(law)` is (*batch, 2^n).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Size, Tensor
from torch.distributions import Distribution, constraints, register_kl
from torch.nn.functional import softplus

BITS = 20  # of a table: a million log-probabilities for each element of the batch

BINARY = constraints.independent(constraints.boolean, 1)


def states(n: int, *, like: Tensor | None = None) -> Tensor:
    """All codes of n bits, (2^n, n), in the dtype and on the device of `like`. Shared: never write into it.

    Raises:
        ValueError: more than `BITS` bits.

    Example:
        >>> states(2).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    if n > BITS:
        raise ValueError(f"2^{n} codes cannot be enumerated, only up to 2^{BITS}; draw codes instead")
    dtype = torch.get_default_dtype() if like is None else like.dtype
    return _states(n, dtype, torch.device("cpu") if like is None else like.device)


@lru_cache(maxsize=16)
def _states(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    shifts = torch.arange(n - 1, -1, -1, device=device)
    return ((torch.arange(2**n, device=device)[:, None] >> shifts) & 1).to(dtype)


def index(h: Tensor) -> Tensor:
    """The number of each code. h: (..., n); returns (...), int64."""
    powers = 2 ** torch.arange(h.shape[-1] - 1, -1, -1, device=h.device)
    return (h.long() * powers).sum(-1)


def table(law: Distribution) -> Tensor:
    """log q(h) of every code h, (*batch, 2^n); rows of a normalised law sum to 1 in probability."""
    base = getattr(law, "base_dist", law)
    if isinstance(base, torch.distributions.Bernoulli) and len(law.event_shape) == 1:
        # log q(h) = h.l - sum_j softplus(l_j)  lw.3
        logits = base.logits
        return logits @ states(logits.shape[-1], like=logits).mT - softplus(logits).sum(-1, keepdim=True)
    if hasattr(law, "table"):
        return law.table()
    codes = states(law.event_shape[0], like=law.mean)
    return law.log_prob(codes.reshape(-1, *[1] * len(law.batch_shape), codes.shape[-1])).movedim(0, -1)


class Codes(TorchDistribution):
    """What laws on codes share: binary support, enumeration, the mean. A subclass has `log_prob`, `table`, `like`."""

    support = BINARY
    has_enumerate_support = True

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and on the device of the codes."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """The log-probability of every code, (*batch, 2^n)."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """E h, (*batch, n)."""
        logp = self.table()
        return logp.exp() @ states(self.event_shape[0], like=logp)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every code along a new first dimension, as Pyro's enumeration wants it."""
        n = self.event_shape[0]
        codes = states(n, like=self.like).reshape(2**n, *[1] * len(self.batch_shape), n)
        return codes.expand(2**n, *self.batch_shape, n) if expand else codes


class Tabular(Codes):
    """Any law on the codes of n bits, by a table of its log-probabilities.

    Args:
        logits: (*batch, 2^n), normalised here.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012 - as torch writes it

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        n = (logits.shape[-1] - 1).bit_length()
        if 2**n != logits.shape[-1]:
            raise ValueError(f"a table over codes has 2^n entries, not {logits.shape[-1]}")
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], Size([n]), validate_args=validate_args)

    @property
    def like(self) -> Tensor:
        return self.logits

    def table(self) -> Tensor:
        return self.logits

    def log_prob(self, value: Tensor) -> Tensor:
        if value.requires_grad:
            raise ValueError("a table of codes has no derivative in the code; relaxed codes need another law")
        if self._validate_args:
            self._validate_sample(value)
        i = index(value)
        shape = torch.broadcast_shapes(i.shape, self.batch_shape)
        if not self.batch_shape:
            return self.logits[i]
        logits = self.logits.expand(*shape, -1)
        return logits.gather(-1, i.expand(shape).unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 - immutable, as torch writes it
        with torch.no_grad():
            i = dist.Categorical(logits=self.logits).sample(Size(sample_shape))
            return states(self.event_shape[0], like=self.logits)[i]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Tabular:
        new = self._get_checked_instance(Tabular, _instance)
        new.logits = self.logits.expand(*batch_shape, -1)  # a view: normalising it again would fill the memory
        super(Tabular, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class AutoregressiveBits(Codes):
    """Bits drawn one after the other, log q(h) = sum_j log Bernoulli(h_j; sigma(logits_j + sum_{i<j} lower_ji h_i)).

    Args:
        logits: (*batch, n). lower: (n, n), of which only the part below the diagonal counts.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012 - as torch writes it

    def __init__(self, logits: Tensor, lower: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits, self.lower = logits, lower.tril(-1)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits + value @ self.lower.mT
        return (value * logits - softplus(logits)).sum(-1)

    @property
    def like(self) -> Tensor:
        return self.logits

    def table(self) -> Tensor:
        return self.log_prob_of(states(self.event_shape[0], like=self.logits))

    def log_prob_of(self, codes: Tensor) -> Tensor:
        """log q of each code for each element of the batch. codes: (C, n); returns (*batch, C)."""
        logits = self.logits.unsqueeze(-2) + codes @ self.lower.mT  # (*batch, C, n)
        return (codes * logits - softplus(logits)).sum(-1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 - immutable, as torch writes it
        with torch.no_grad():
            logits = self.logits.expand(*sample_shape, *self.logits.shape)
            bits: list[Tensor] = []
            for j in range(logits.shape[-1]):
                before = (torch.stack(bits, -1) * self.lower[j, :j]).sum(-1) if bits else 0.0
                bits.append(torch.bernoulli((logits[..., j] + before).sigmoid()))
            return torch.stack(bits, -1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBits:
        return AutoregressiveBits(self.logits.expand(*batch_shape, -1), self.lower, validate_args=self._validate_args)


class ConcreteBits(TorchDistribution):
    """Relaxed bits, sigma((logits + logistic noise) / temperature): draws that can be differentiated.

    `log_prob` is that of the bits, h.l - sum_j softplus(l_j), read at a relaxed h: the integrand of a bound for binary
    codes, taken at relaxed ones, whose gradient is biased.

    Reference: Maddison, Mnih, Teh (2017); Jang, Gu, Poole (2017).
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012 - as torch writes it
    support = constraints.independent(constraints.unit_interval, 1)
    has_rsample = True
    relaxation = dist.RelaxedBernoulli
    relaxed = True  # a draw is no code, so that a bound estimated with it bounds nothing

    def __init__(self, logits: Tensor, temperature: float = 0.5, *, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """sigma(logits), the mean of the bits, (*batch, n)."""
        return self.logits.sigmoid()

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 - immutable, as torch writes it
        temperature = self.logits.new_tensor(self.temperature)
        return self.relaxation(temperature, logits=self.logits).rsample(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return (value * self.logits - softplus(self.logits)).sum(-1)

    @property
    def bits(self) -> TorchDistribution:
        """The law of the bits, which `log_prob` and `table` are of."""
        return dist.Bernoulli(logits=self.logits).to_event(1)

    def table(self) -> Tensor:
        """The log-probability of every binary code, (*batch, 2^n)."""
        return table(self.bits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConcreteBits:
        return type(self)(self.logits.expand(*batch_shape, -1), self.temperature, validate_args=self._validate_args)


class StraightThroughBits(ConcreteBits):
    """Bits that are exact when drawn, with the gradient of `ConcreteBits`: unbiased values, biased gradients.

    Reference: Bengio, Leonard, Courville (2013).
    """

    relaxation = dist.RelaxedBernoulliStraightThrough
    relaxed = False


class Binary(Messenger):
    """Within it a guide draws the bits of relaxed laws, not relaxed ones: for scores, which are of binary codes."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = getattr(msg["fn"], "bits", msg["fn"])


@register_kl(Tabular, Tabular)
def _kl_tabular(p: Tabular, q: Tabular) -> Tensor:
    mass = p.logits.exp()
    return (mass * (p.logits - q.logits).masked_fill(mass == 0, 0.0)).sum(-1)  # empty codes count nothing

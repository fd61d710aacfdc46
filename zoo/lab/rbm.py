"""The restricted Boltzmann machine: an energy on two layers of bits, its exact marginals, and how it is trained.

E(v, h) = -v'Wh - b'v - c'h (equation ids of `zoo.layerwise`). Everything is exact while the smaller layer has at most
`codes.BITS` units, since log Z is then one sum over its states. Reference: Smolensky (1986); Hinton (2002) for CD;
Tieleman (2008) for PCD; Salakhutdinov, Murray (2008) for annealed importance sampling.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import softplus

from guides.codes import BINARY, BITS, Codes, Tabular, states
from zoo.lab.exact import log_mean
from zoo.lab.layers import Decoder

SWEEPS = 1000  # of block Gibbs for a draw from a machine that cannot be enumerated


class AIS(NamedTuple):
    """An estimate of log Z in nats, its standard error, and the log weights (chains,) it is the mean of."""

    log_z: float
    error: float
    log_weights: Tensor


class RBM(nn.Module):
    """An RBM of `visible` and `hidden` units; `forward` returns the law of its visible layer.

    Args:
        scale: standard deviation of the initial weights; biases start at 0.
        particles: persistent chains of `pcd`, and of log Z where it cannot be enumerated.

    Attributes:
        W: (visible, hidden). b: (visible,). c: (hidden,).
        annealed: the last estimate of log Z by `anneal`, with its error; None before.
    """

    particles: Tensor
    estimate: Tensor
    annealed: AIS | None = None
    annealed_at: tuple[int, ...] = ()

    def __init__(self, visible: int, hidden: int, *, scale: float = 0.1, particles: int = 100) -> None:
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(visible, hidden))
        self.b = nn.Parameter(torch.zeros(visible))
        self.c = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("particles", torch.zeros(particles, visible))
        self.register_buffer("estimate", torch.tensor(math.inf, dtype=torch.get_default_dtype()))

    @property
    def visible(self) -> int:
        """Number of visible units."""
        return len(self.b)

    @property
    def hidden(self) -> int:
        """Number of hidden units."""
        return len(self.c)

    @property
    def enumerable(self) -> bool:
        """Whether log Z is one sum over the states of the smaller layer."""
        return min(self.visible, self.hidden) <= BITS

    def forward(self) -> RBMLaw:
        """The law P(v) of the visible layer, event shape (visible,)."""
        return RBMLaw(self)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """Logits of P(h_j = 1 | v), c + v'W. v: (..., visible); returns (..., hidden)."""
        return self.c + v @ self.W  # lw.17

    def visible_logits(self, h: Tensor) -> Tensor:
        """Logits of P(v_i = 1 | h), b + W h. h: (..., hidden); returns (..., visible)."""
        return self.b + h @ self.W.mT  # lw.17

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -b'v - sum_j softplus(c + v'W)_j, so that log P(v) = -F(v) - log Z; nats, (...)."""
        return -v @ self.b - softplus(self.hidden_logits(v)).sum(-1)  # lw.17, mix.1

    def hidden_score(self, h: Tensor) -> Tensor:
        """c'h + sum_i softplus(b + W h)_i, so that log P(h) is this less log Z; nats, (...)."""
        return h @ self.c + softplus(self.visible_logits(h)).sum(-1)  # lw.17

    def log_z(self) -> Tensor:
        """log Z in nats, differentiable.

        Beyond enumeration its value is an estimate by `anneal`, made anew without gradients (`torch.no_grad`) whenever
        the parameters have changed, and kept during training. Its gradient is that of the persistent particles, -E dF,
        which every call with gradients moves by a sweep: gradients of a likelihood are then those of PCD.
        """
        if self.enumerable:
            return (
                (-self.free_energy(states(self.visible, like=self.b))).logsumexp(0)  # lw.17
                if self.visible <= self.hidden
                else self.hidden_score(states(self.hidden, like=self.c)).logsumexp(0)  # lw.17
            )
        if self.estimate.isinf() or not torch.is_grad_enabled():
            self.annealing()
        if torch.is_grad_enabled():
            self.particles.copy_(self.gibbs(self.particles))
        surrogate = -self.free_energy(self.particles).mean()
        return self.estimate + surrogate - surrogate.detach()

    def annealing(self) -> AIS | None:
        """The estimate of log Z for these parameters, made anew if they have changed; None where log Z is exact."""
        if self.enumerable:
            return None
        if self.annealed is None or self.annealed_at != self._stamp():
            self.anneal()
        return self.annealed

    def log_prob(self, v: Tensor) -> Tensor:
        """log P(v) in nats, (...)."""
        return -self.free_energy(v) - self.log_z()

    @torch.no_grad()
    def gibbs(self, v: Tensor, sweeps: int = 1) -> Tensor:
        """Block Gibbs from v (..., visible): hidden given visible, visible given hidden, `sweeps` times."""
        for _ in range(sweeps):
            h = torch.bernoulli(self.hidden_logits(v).sigmoid())
            v = torch.bernoulli(self.visible_logits(h).sigmoid())
        return v

    def contrast(self, data: Tensor, model: Tensor) -> Tensor:
        """mean F(data) - mean F(model): its gradient is that of -log P where `model` are draws of the machine.

        The value is no likelihood. data: (n, visible); model: (m, visible).
        """
        return self.free_energy(data).mean() - self.free_energy(model.detach()).mean()  # lw.18, mix.2

    def cd(self, v: Tensor, *, k: int = 1) -> Tensor:
        """The surrogate of contrastive divergence: the model's draws are k sweeps away from the data v (n, visible)."""
        return self.contrast(v, self.gibbs(v, k))  # lw.18

    def pcd(self, v: Tensor, *, k: int = 1) -> Tensor:
        """The surrogate of persistent CD: the model's draws are the particles, moved by k sweeps at every call."""
        self.particles.copy_(self.gibbs(self.particles, k))
        return self.contrast(v, self.particles)  # lw.18

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws of the visible layer, (n, visible): exact where enumerable, else by Gibbs from coin flips."""
        if self.visible <= BITS:
            return Tabular(-self.free_energy(states(self.visible, like=self.b))).sample(Size([n]))
        if self.hidden <= BITS:
            h = Tabular(self.hidden_score(states(self.hidden, like=self.c))).sample(Size([n]))
            return torch.bernoulli(self.visible_logits(h).sigmoid())
        return self.gibbs(torch.bernoulli(self.b.new_full((n, self.visible), 0.5)), SWEEPS)

    @torch.no_grad()
    def anneal(self, *, chains: int = 100, steps: int = 1000, base: Tensor | None = None) -> AIS:
        """Annealed importance sampling of log Z; the estimate is kept for `log_z`.

        Machines with (beta W, (1 - beta) b_0 + beta b, beta c), beta from 0 to 1 in equal steps. exp(log Z) is
        unbiased, so log Z is too low in the mean, and likelihoods are too high.

        Args:
            base: b_0 (visible,), logits of independent bits; the machine's own b if not given.

        Returns:
            `AIS`; the standard error of log Z is that of the mean weight, relative to it.
        """
        b0 = self.b if base is None else base.to(self.b)
        v = torch.bernoulli(b0.sigmoid().expand(chains, -1))
        log_w = self.b.new_full((chains,), float(softplus(b0).sum()) + self.hidden * math.log(2))
        betas = torch.linspace(0, 1, steps + 1, dtype=self.b.dtype)
        for beta, following in pairwise(betas):
            log_w = log_w + self._tempered(v, b0, beta) - self._tempered(v, b0, following)  # lw.18, mix.5
            h = torch.bernoulli((following * self.hidden_logits(v)).sigmoid())
            v = torch.bernoulli(((1 - following) * b0 + following * self.visible_logits(h)).sigmoid())
        log_z = log_mean(log_w)
        relative = (log_w - log_z).exp()
        self.estimate.copy_(log_z)
        self.annealed = AIS(float(log_z), float(relative.std() / math.sqrt(chains)), log_w)
        self.annealed_at = self._stamp()
        return self.annealed

    def _stamp(self) -> tuple[int, ...]:
        """Changes with every update of the parameters."""
        return tuple(p._version for p in (self.W, self.b, self.c))

    def _tempered(self, v: Tensor, b0: Tensor, beta: Tensor) -> Tensor:
        """F_beta(v), the free energy of the machine at inverse temperature beta."""
        return -v @ ((1 - beta) * b0 + beta * self.b) - softplus(beta * self.hidden_logits(v)).sum(-1)


class TiedMachine(RBM):
    """The RBM of a decoder: its W and b are the decoder's, only the hidden bias c is its own."""

    def __init__(self, decoder: Decoder, *, particles: int = 100) -> None:
        nn.Module.__init__(self)
        self._decoder = (decoder,)  # in a tuple: the model's parameters are not the guide's
        self.c = nn.Parameter(torch.zeros(decoder.above))
        self.register_buffer("particles", torch.zeros(particles, len(decoder.b)))
        self.register_buffer("estimate", torch.tensor(math.inf, dtype=torch.get_default_dtype()))

    @property
    def W(self) -> Tensor:  # type: ignore[override]
        return self._decoder[0].W.mT

    @property
    def b(self) -> Tensor:  # type: ignore[override]
        return self._decoder[0].b


class RBMLaw(Codes):
    """The visible marginal of an RBM as a Pyro distribution, event shape (visible,).

    `log_prob` and its gradient are exact where the machine can be enumerated; see `RBM.log_z` beyond. So are draws.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch writes it
    support = BINARY

    def __init__(self, rbm: RBM, batch_shape: Size = Size(), *, validate_args: bool | None = None) -> None:  # noqa: B008
        self.rbm = rbm
        super().__init__(batch_shape, Size([rbm.visible]), validate_args=validate_args)

    @property
    def like(self) -> Tensor:
        return self.rbm.b

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = self.rbm.log_prob(value)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def table(self) -> Tensor:
        """log P(v) of every state of the visible layer, (*batch, 2^visible)."""
        return self.rbm.log_prob(states(self.rbm.visible, like=self.rbm.b)).expand(*self.batch_shape, -1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008 - immutable, as torch writes it
        shape = Size(sample_shape) + self.batch_shape
        return self.rbm.sample(shape.numel()).reshape(*shape, -1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RBMLaw:
        return RBMLaw(self.rbm, Size(batch_shape), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """E v, (*batch, visible): by the table where there is one, else over draws."""
        if self.rbm.visible <= BITS:
            return super().mean
        return self.rbm.sample(1000).mean(0).expand(*self.batch_shape, -1)

"""Steps of Markov chains on bits, for `chains.walk`: a step moves a batch of states (M, n), each with its own noise.

    block_gibbs       hidden given visible, visible given hidden, of an RBM
    single_site       a sweep of x_i ~ P(x_i | x_-i)
    flips             Metropolis, one random pixel flipped at a time
    Tempering         parallel tempering of an RBM
    tempered          tempered transitions of an RBM: heated, cooled, and accepted or not
    independent       no chain at all: the ceiling
    corrected         z given x by a proposal q(z | x), accepted or not

All leave the law they are made for invariant. (Equation ids of `zoo.mixing`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from guides.codes import states
from zoo.lab.noise import Noise

Step = Callable[[Tensor, Noise], Tensor]
LogProb = Callable[[Tensor], Tensor]


def block_gibbs(rbm: Any) -> Step:
    """Block Gibbs of an RBM on its visible layer; its work is that of visible + hidden units."""
    W, b, c = rbm.W.detach(), rbm.b.detach(), rbm.c.detach()

    def step(v: Tensor, noise: Noise) -> Tensor:
        h = noise.bernoulli(torch.addmm(c, v, W).sigmoid_())
        return noise.bernoulli(torch.addmm(b, h, W.mT).sigmoid_())  # mix.7, mix.9

    return step


def single_site(log_p: LogProb) -> Step:
    """One sweep of single-site Gibbs, first to last unit; two evaluations of log_p (M, n) -> (M) for each."""

    def step(x: Tensor, noise: Noise) -> Tensor:
        x, u = x.clone(), noise.uniform(x.shape[1])
        for site in range(x.shape[1]):
            x[:, site] = 1
            on = log_p(x)
            x[:, site] = 0
            x[:, site] = (u[:, site] < (on - log_p(x)).sigmoid()).to(x)
        return x  # mix.10

    return step


def flips(log_p: LogProb) -> Step:
    """As many random-walk Metropolis steps as there are units, each flipping one unit chosen at random."""

    def step(x: Tensor, noise: Noise) -> Tensor:
        n, now = x.shape[1], log_p(x)
        chosen, u = (noise.uniform(n) * n).long().clamp_max(n - 1), noise.uniform(n)
        for k in range(n):
            site = chosen[:, k : k + 1]
            proposal = x.scatter(1, site, 1 - x.gather(1, site))
            then = log_p(proposal)
            accepted = u[:, k].log() < then - now
            x, now = torch.where(accepted[:, None], proposal, x), torch.where(accepted, then, now)
        return x

    return step


def independent(law: Tensor, n: int) -> Step:
    """Independent draws of n bits from a table of log-probabilities (2^n)."""
    codes = states(n, like=law)
    return lambda state, noise: codes[noise.category(law)].to(state)


class Tempering:
    """Parallel tempering of an RBM: machines (beta W, (1 - beta) b_0 + beta b, beta c) side by side, exchanging states.

    A state is (M, K, n): one replica for each beta, the last the machine itself.

    Args:
        betas: from 0 or more up to 1. base: b_0, logits of independent bits; the machine's own b if not given.

    Reference: Swendsen, Wang (1986); Desjardins et al. (2010) for RBMs.
    """

    def __init__(self, rbm: Any, betas: Sequence[float], *, base: Tensor | None = None) -> None:
        if not betas or list(betas) != sorted(set(betas)) or betas[0] < 0 or betas[-1] != 1:
            raise ValueError("inverse temperatures rise from 0 or more to 1, such as 0, 0.5, 1")
        self.rbm, self.base = rbm, rbm.b.detach() if base is None else base.to(rbm.b)
        self.betas = torch.as_tensor(betas, dtype=rbm.b.dtype, device=rbm.b.device)

    def start(self, v: Tensor) -> Tensor:
        """Every replica of a chain at its v. v: (M, n); returns (M, K, n)."""
        return v[:, None].expand(-1, len(self.betas), -1).contiguous()

    @staticmethod
    def cold(state: Tensor) -> Tensor:
        """The replica at beta = 1, (M, n)."""
        return state[:, -1]

    @torch.no_grad()
    def __call__(self, state: Tensor, noise: Noise) -> Tensor:
        """A sweep of block Gibbs in every replica, then exchanges of neighbours, of even pairs and of odd ones."""
        beta = self.betas[:, None]
        state = tempered_sweep(self.rbm, self.base, state, beta, noise)
        for first in (0, 1):
            low = torch.arange(len(self.betas) - 1)[first::2]
            if not len(low):
                continue
            cold, hot = state[:, low + 1], state[:, low]
            log_ratio = (
                -tempered_energy(self.rbm, self.base, cold, self.betas[low])
                - tempered_energy(self.rbm, self.base, hot, self.betas[low + 1])
                + tempered_energy(self.rbm, self.base, cold, self.betas[low + 1])
                + tempered_energy(self.rbm, self.base, hot, self.betas[low])
            )
            swap = (noise.uniform(len(low)).log() < log_ratio)[..., None]
            state = state.clone()
            state[:, low + 1], state[:, low] = torch.where(swap, hot, cold), torch.where(swap, cold, hot)
        return state


def tempered(rbm: Any, betas: Sequence[float], *, base: Tensor | None = None) -> Step:
    """Tempered transitions: the state is heated from beta = 1 down `betas`, cooled again, and accepted or put back.

    Args:
        betas: falling, below 1, such as .9, .8, .7. base: as in `Tempering`.

    Reference: Neal (1996).
    """
    if not betas or list(betas) != sorted(set(betas), reverse=True) or betas[0] >= 1 or betas[-1] < 0:
        raise ValueError("inverse temperatures fall from below 1 to 0 or more, such as .9, .8, .7")
    b0 = rbm.b.detach() if base is None else base.to(rbm.b)
    ladder = [torch.as_tensor(beta, dtype=rbm.b.dtype, device=rbm.b.device) for beta in (1.0, *betas)]

    @torch.no_grad()
    def step(v: Tensor, noise: Noise) -> Tensor:
        now, log_w = v, v.new_zeros(len(v))
        for before, beta in pairwise(ladder):
            log_w += tempered_energy(rbm, b0, now, before) - tempered_energy(rbm, b0, now, beta)
            now = tempered_sweep(rbm, b0, now, beta, noise)
        for beta, after in pairwise(ladder[::-1]):
            now = tempered_sweep(rbm, b0, now, beta, noise)
            log_w += tempered_energy(rbm, b0, now, beta) - tempered_energy(rbm, b0, now, after)
        accepted = noise.uniform().log() < log_w
        return torch.where(accepted[:, None], now, v)

    return step


def tempered_energy(rbm: Any, b0: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Free energy of (beta W, (1 - beta) b_0 + beta b, beta c), nats. v: (..., n), beta broadcasts to (...)."""
    beta = beta[..., None]
    return -(v * ((1 - beta) * b0 + beta * rbm.b)).sum(-1) - softplus(beta * rbm.hidden_logits(v)).sum(-1)


def tempered_sweep(rbm: Any, b0: Tensor, v: Tensor, beta: Tensor, noise: Noise) -> Tensor:
    """Block Gibbs at inverse temperature beta, which broadcasts to v (M, ..., n)."""
    h = noise.bernoulli((beta * rbm.hidden_logits(v)).sigmoid())
    return noise.bernoulli(((1 - beta) * b0 + beta * rbm.visible_logits(h)).sigmoid())


def corrected(
    decode: Callable[[Tensor, Noise], Tensor],
    propose: Callable[[Tensor, Noise], Tensor],
    log_joint: Callable[[Tensor, Tensor], Tensor],
    log_q: Callable[[Tensor, Tensor], Tensor],
) -> Step:
    """x ~ p(x | z), z' ~ q(. | x), accepted with min(1, p(x, z') q(z | x) / (p(x, z) q(z' | x))).

    Leaves p(z) invariant whatever q; without the acceptance (`uncorrected`) only the true posterior would.

    Args:
        decode, propose: draws of x given z, of z given x, (M, ...). log_joint: log p(x, z). log_q: log q(z | x); (M).
    """

    @torch.no_grad()
    def step(z: Tensor, noise: Noise) -> Tensor:
        x = decode(z, noise)
        proposal = propose(x, noise)
        log_ratio = log_joint(x, proposal) - log_joint(x, z) + log_q(z, x) - log_q(proposal, x)
        accepted = noise.uniform().log() < log_ratio
        return torch.where(accepted.reshape(-1, *[1] * (z.dim() - 1)), proposal, z)  # mix.11

    return step


def uncorrected(decode: Callable[[Tensor, Noise], Tensor], propose: Callable[[Tensor, Noise], Tensor]) -> Step:
    """Pseudo-Gibbs, x ~ p(x | z), z ~ q(. | x): no sampler of the model unless q is its posterior."""

    @torch.no_grad()
    def step(z: Tensor, noise: Noise) -> Tensor:
        return propose(decode(z, noise), noise)  # mix.11

    return step

"""Probabilistic twins of stacked auto-encoders: VAEs of one or more levels, whose walks have a known target.

Between level l - 1 and level l, x ~ p(z_{l-1} | z_l) and z_l ~ q(. | z_{l-1}) make a walk on z_l. Accepted or not
(`kernels.corrected`), it leaves the model's law of z_l invariant; without the acceptance (pseudo-Gibbs) it does not.
(Equation ids of `zoo.mixing`.) Reference: Kingma, Welling (2014); Rezende, Mohamed, Wierstra (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from pyro import sample
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn

from guides import Guide, NormalEncoder, data_plate
from zoo.lab import kernels
from zoo.lab.chain_reports import Walk
from zoo.lab.kernels import Step
from zoo.lab.noise import Noise


class VAE(nn.Module):
    """z_L ~ N(0, I); z_{l-1} | z_l ~ N(m(z_l), s^2); x | z_1 independent bits; all by perceptrons with tanh units.

    Args:
        in_features: D. latents: sizes of z_1, ..., z_L, from the bottom up. hidden: units of every perceptron.
        N: size of the data set; None follows the batch.
    """

    def __init__(
        self, in_features: int, latents: Sequence[int] = (16,), hidden: int = 64, N: int | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.latents, self.hidden, self.N = in_features, list(latents), hidden, N
        sizes = [in_features, *latents]
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(above, hidden), nn.Tanh(), nn.Linear(hidden, below))
            for below, above in pairwise(sizes)
        )
        self.log_sd = nn.ParameterList(torch.zeros(size) for size in latents[:-1])

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """What a bottom-up guide sees at each level: the one below."""
        return {f"z{k}": (f"z{k - 1}",) for k in range(2, len(self.latents) + 1)}

    def below(self, level: int, z: Tensor) -> Any:
        """p(z_{level-1} | z_level), or p(x | z_1). z: (..., latents[level - 1])."""
        out = self.nets[level - 1](z)
        if level == 1:
            return Bernoulli(logits=out).to_event(1)
        return Normal(out, self.log_sd[level - 2].exp()).to_event(1)

    def top(self, n: int) -> Any:
        """p(z_L) of n rows."""
        zeros = next(self.parameters()).new_zeros(n, self.latents[-1])
        return Normal(zeros, 1.0).to_event(1)

    def forward(self, x: Tensor | None = None, **ignored: Any) -> Tensor:
        """The generative story. x: (n, D), or None for N dreams."""
        n = self.N or 1 if x is None else len(x)
        L = len(self.latents)
        with data_plate(n, self.N):
            z = sample(f"z{L}", self.top(n))
            for level in range(L, 1, -1):
                z = sample(f"z{level - 1}", self.below(level, z))
            return sample("x", self.below(1, z), obs=x)

    @staticmethod
    def for_data(train: Any, *, latents: Sequence[int] = (16,), hidden: int = 64) -> VAE:
        """The model of a table of bits."""
        return VAE(train["x"].shape[-1], latents, hidden, len(train))


def bottom_up(model: VAE, batch: Any) -> Guide:
    """q(z_1 | x) q(z_2 | z_1) ..., normal encoders."""
    return Guide(model, batch, latents=NormalEncoder, given=model.given)


def walk(model: VAE, guide: Guide, *, corrected: bool = True) -> Walk:
    """The walk on z_L, decoded downwards.

    Args:
        corrected: whether proposals of the guide are accepted by Metropolis and Hastings, so that z_L has the model's
            own law; if not, pseudo-Gibbs.
    """
    L, families = len(model.latents), guide.q

    def q(level: int, below: Tensor) -> Any:
        return families[f"z{level}"](below)  # type: ignore[index, operator]

    def drawn(law: Any, noise: Noise) -> Tensor:
        base = law.base_dist
        if isinstance(base, torch.distributions.Bernoulli):
            return noise.bernoulli(base.probs)
        return base.mean + base.stddev * noise.normal(*base.mean.shape[1:])

    def decode(z: Tensor, noise: Noise) -> Tensor:
        return drawn(model.below(L, z), noise)

    def propose(below: Tensor, noise: Noise) -> Tensor:
        return drawn(q(L, below), noise)

    def start(x: Tensor, noise: Noise) -> Tensor:
        for level in range(1, L + 1):
            x = drawn(q(level, x), noise)
        return x

    def all_down(z: Tensor, noise: Noise) -> Tensor:
        for level in range(L, 0, -1):
            z = drawn(model.below(level, z), noise)
        return z

    def means(z: Tensor) -> Tensor:
        for level in range(L, 0, -1):
            z = model.below(level, z).base_dist.mean
        return z

    step: Step = kernels.uncorrected(decode, propose)
    if corrected:
        step = kernels.corrected(
            decode,
            propose,
            lambda below, z: model.below(L, z).log_prob(below) + model.top(len(z)).log_prob(z),
            lambda z, below: q(L, below).log_prob(z),
        )
    return Walk(step, start, torch.no_grad()(all_down), torch.no_grad()(means), lambda s: {"|z|": s.norm(dim=-1)})

"""Two models of posteriordb, as its documents describe them, with their exact evidence.

A flat prior is written as a normal (or half normal) at least 10^4 times as wide as the posterior. For a linear model
that changes posterior precisions by a share of 10^-8 and no mean that is at the origin of its coordinates, which no
10,000 draws can see. Bound and evidence share its normalising constant, so their level is arbitrary and their gap is
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal

from guides import data_plate

FLAT = 1e4


class EightSchools(nn.Module):
    """Non-centred: mu ~ N(0, 5), tau ~ HalfCauchy(5), t_j ~ N(0, 1), y_j ~ N(theta_j, sigma_j), theta_j = mu + tau t_j.

    The eight t_j are one global site `theta_trans`: the schools are fixed, so their law may be joint.
    """

    def forward(self, sigma: Tensor, y: Tensor | None = None) -> None:
        """The generative story; sigma and y have shape (8,)."""
        mu = pyro.sample("mu", dist.Normal(sigma.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(sigma.new_tensor(5.0)))
        t = pyro.sample("theta_trans", dist.Normal(torch.zeros_like(sigma), 1.0).to_event(1))
        t = t.squeeze(-2) if t.dim() > 1 else t  # draws have the slot of plate "data"
        with data_plate(len(sigma), len(sigma)):
            pyro.sample("y", dist.Normal(mu + tau * t, sigma), obs=y)

    def start(self) -> dict[str, Tensor]:
        """Where a fit starts."""
        return {"tau": torch.tensor(3.0)}

    def parameters_of(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The posterior's own numbers, (S, ...)."""
        mu, tau = latents["mu"], latents["tau"]
        return {"theta": mu[:, None] + tau[:, None] * latents["theta_trans"], "mu": mu, "tau": tau}

    def evidence(self, sigma: Tensor, y: Tensor) -> float:
        """log p(y) in nats: given tau, y ~ N(0, diag(sigma^2 + tau^2) + 5^2 1 1^T)."""
        sigma, y = sigma.double(), y.double()

        def log_joint(tau: Tensor) -> Tensor:
            law = LowRankMultivariateNormal(
                torch.zeros_like(y), torch.full((8, 1), 5.0).to(y), sigma**2 + tau[:, None] ** 2
            )
            return law.log_prob(y) + dist.HalfCauchy(torch.full_like(tau, 5.0)).log_prob(tau)

        return _integral(log_joint, 1e-8, 1e8)


class FlatRegression(nn.Module):
    """y_n ~ N(beta_1 + beta_2 x_n, sigma), beta flat; sigma HalfCauchy or flat on its own scale.

    The sites are in units that every family can start in: beta_i = origin_i + unit_i b_i and sigma = s times the
    residual standard deviation, with the least-squares estimate and its standard errors. That moves and stretches
    each coordinate and leaves their correlation, about -.99 here, to the family.

    Args:
        x, y: the data, (N,).
        cauchy: scale of the half-Cauchy prior of sigma; None is a flat one.
    """

    def __init__(self, x: Tensor, y: Tensor, *, cauchy: float | None = None) -> None:
        super().__init__()
        design = _design(x)
        inverse = torch.linalg.inv(design.mT @ design)
        origin = inverse @ design.mT @ y.double()
        residual_sd = (y - design @ origin).square().mean().sqrt()
        self.origin, self.residual_sd = origin.to(x), residual_sd.to(x)  # (2,), ()
        self.unit = (residual_sd * inverse.diagonal().sqrt()).to(x)  # (2,)
        self.cauchy = None if cauchy is None else cauchy / self.residual_sd

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        """The generative story; x and y have shape (N,)."""
        b = pyro.sample("b", dist.Normal(x.new_zeros(2), FLAT).to_event(1))
        s = pyro.sample("s", self.prior())
        beta = self.origin + self.unit * b
        with data_plate(len(x), len(x)):
            pyro.sample("y", dist.Normal(beta[..., 0] + beta[..., 1] * x, s * self.residual_sd), obs=y)

    def prior(self) -> dist.TorchDistribution:
        """p(s)."""
        return (
            dist.HalfNormal(torch.full_like(self.residual_sd, FLAT))
            if self.cauchy is None
            else dist.HalfCauchy(self.cauchy)
        )

    def start(self) -> dict[str, Tensor]:
        """Where a fit starts: at least squares, not at the median of prior draws as wide as these."""
        return {"b": torch.zeros(2), "s": torch.ones(())}

    def parameters_of(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The posterior's own numbers, (S, ...)."""
        return {"beta": self.origin + self.unit * latents["b"], "sigma": latents["s"] * self.residual_sd}

    def evidence(self, x: Tensor, y: Tensor) -> float:
        """log p(y) in nats: given s, b is Gaussian. The level rests on the width of the flat priors; a gap does not."""
        design = _design(x) * self.unit
        residual = y.double() - _design(x) @ self.origin.double()
        gram, inner = design.mT @ design, design.mT @ residual

        def log_joint(s: Tensor) -> Tensor:
            variance = (s * self.residual_sd.double()).square()
            precision = gram / variance[:, None, None] + torch.eye(2).to(gram) / FLAT**2
            shift = inner / variance[:, None]
            fit = residual.square().sum() / variance - (shift * torch.linalg.solve(precision, shift)).sum(-1)
            spread = torch.logdet(precision) + 4 * math.log(FLAT)
            return -(len(y) * (2 * math.pi * variance).log() + fit + spread) / 2 + self.prior().log_prob(s)

        return _integral(log_joint, 0.5, 2.0)


def _design(x: Tensor) -> Tensor:
    x = x.double()
    return torch.stack([torch.ones_like(x), x], 1)  # (N, 2)


def _integral(log_density: Callable[[Tensor], Tensor], least: float, most: float) -> float:
    """log of the integral over a positive scale, by the trapezium rule in its logarithm."""
    nodes = torch.linspace(math.log(least), math.log(most), 20_001, dtype=torch.float64)
    return float((log_density(nodes.exp()) + nodes).logsumexp(0) + nodes.diff()[0].log())

"""Regressions whose posterior and evidence are known exactly: linear in the weights, Gaussian given the noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class LinearPosterior(NamedTuple):
    """The exact posterior of one output of the model without hidden layers; see `linear_posterior`."""

    evidence: float
    tau_mean: float
    tau_sd: float
    mean: Tensor
    covariance: Tensor


def linear_loglik(X: Tensor, y: Tensor, tau: Tensor) -> Tensor:
    """log p(y | tau) for f = X w, w ~ N(0, I). X: (N, d); y: (N,); tau: (T,); returns (T,), nats for the data set."""
    eigenvalues, vectors = torch.linalg.eigh(X.mT @ X)
    beta, tau = vectors.mT @ (X.mT @ y), tau[:, None]
    spread = 1 + tau * eigenvalues.clamp(min=0)  # (T, d)
    fit = tau[:, 0] * (y @ y) - (tau.square() * beta.square() / spread).sum(-1)
    return 0.5 * (len(y) * (tau[:, 0] / (2 * math.pi)).log() - spread.log().sum(-1) - fit)  # mg.27


def linear_posterior(
    X: Tensor, y: Tensor, *, noise: tuple[float, float] = (6.0, 6.0), nodes: int = 4001
) -> LinearPosterior:
    """Exact posterior and evidence of y = X w + noise, w ~ N(0, I), tau ~ Gamma(noise), in double precision.

    Given tau all is Gaussian; what remains is one integral over log tau, by the trapezium rule on a grid around the
    mode, which is exact to rounding for so smooth an integrand.

    Args:
        X: design (N, d). y: targets (N,). noise: shape and rate. nodes: of the grid.
    """
    X, y = X.double(), y.double()
    tau, log_joint = _tau_grid(X, y, noise, nodes)
    width = tau.log().diff()[0]
    weights = log_joint.softmax(0)
    eigenvalues, vectors = torch.linalg.eigh(X.mT @ X)
    shrink = 1 / (1 + tau[:, None] * eigenvalues.clamp(min=0))
    means = (tau[:, None] * shrink * (vectors.mT @ (X.mT @ y))) @ vectors.mT  # (T, d)
    mean, tau_mean = weights @ means, weights @ tau
    spread = (means - mean).mT @ (weights[:, None] * (means - mean))
    covariance = vectors @ torch.diag(weights @ shrink) @ vectors.mT + spread
    tau_sd = (weights @ (tau - tau_mean).square()).sqrt()
    return LinearPosterior(
        float(log_joint.logsumexp(0) + width.log()), float(tau_mean), float(tau_sd), mean, covariance
    )


def _tau_grid(X: Tensor, y: Tensor, noise: tuple[float, float], nodes: int) -> tuple[Tensor, Tensor]:
    """tau on an even grid of log tau that covers its posterior, and log p(y, log tau) there."""
    shape, rate = noise

    def log_joint(log_tau: Tensor) -> Tensor:
        prior = shape * math.log(rate) - math.lgamma(shape) + shape * log_tau - rate * log_tau.exp()
        return prior + linear_loglik(X, y, log_tau.exp())

    coarse = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    values = log_joint(coarse)
    likely = coarse[values > values.max() - 60]
    grid = torch.linspace(float(likely[0]), float(likely[-1]), nodes, dtype=torch.float64)
    return grid.exp(), log_joint(grid)

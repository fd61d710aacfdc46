"""Predictive scores. A log-likelihood is in nats per datum and in the units of y; its name says which one it is.

S draws give S predictions for each datum. Four numbers go by the name of "test log-likelihood"; they differ, so every
table says which it shows (Louizos & Welling 2016; matrix_gaussian mg.26):

    loglik_mixture    log of the mean density over draws of all latents, noise precision included
    loglik_student    the same with the noise precision integrated exactly under q(tau) = Gamma(a, b)
    loglik_expected   the precision replaced by its expectations E tau, E log tau (the authors' code); never above it
    loglik_gaussian   one Gaussian with the mixture's mean and variance
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal, StudentT


def rmse(y: Tensor, mean: Tensor) -> float:
    """Root mean squared error in the units of y. y: (n, ...); mean: predictive mean of the same shape."""
    return float((y - mean).square().mean().sqrt())  # mg.26


def error_rate(y: Tensor, probs: Tensor) -> float:
    """Fraction of data whose most probable class is not the true one. y: (n,); probs: (n, classes)."""
    return float((probs.argmax(-1) != y).double().mean())


def loglik_mixture(log_prob: Tensor) -> float:
    """mean_n log (1/S) sum_s p(y_n | draw s). log_prob: (S, n)."""
    return float((log_prob.logsumexp(0) - math.log(len(log_prob))).mean())


def loglik_expected(y: Tensor, f: Tensor, a: Tensor, b: Tensor) -> float:
    """mean_n log (1/S) sum_s exp(-E[tau] (y - f_s)^2 / 2 + E[log tau] / 2 - log(2 pi) / 2), summed over outputs.

    Args:
        y: (n, K). f: (S, n, K). a, b: shape and rate of q(tau), (K,).
    """
    squares = (y - f).square() * a / b
    log_prob = 0.5 * (a.digamma() - b.log() - math.log(2 * math.pi) - squares)  # mg.26
    return loglik_mixture(log_prob.sum(-1))


def loglik_student(y: Tensor, f: Tensor, a: Tensor, b: Tensor) -> float:
    """mean_n log (1/S) sum_s StudentT(y_n; 2a, f_s, sqrt(b/a)), summed over outputs; arguments as above."""
    return loglik_mixture(StudentT(2 * a, f, (b / a).sqrt()).log_prob(y).sum(-1))  # mg.26


def loglik_gaussian(y: Tensor, f: Tensor, a: Tensor, b: Tensor) -> float:
    """mean_n log N(y_n; mean_s f_s, var_s f_s + b/a), population variance; arguments as above."""
    scale = (f.var(0, correction=0) + b / a).sqrt()
    return float(Normal(f.mean(0), scale).log_prob(y).sum(-1).mean())  # mg.26


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean over splits and its standard error (ddof 1); None with fewer than two splits."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(tensor.mean()), None
    return float(tensor.mean()), float(tensor.std() / math.sqrt(len(values)))

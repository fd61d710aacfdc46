"""Predictive scores. A log-likelihood is in nats per datum and in the units of y; its name says which one it is.

S draws give S predictions for each datum. Four numbers go by the name of "test log-likelihood"; they differ, so every
table says which it shows (Louizos & Welling 2016; matrix_gaussian mg.26):

    loglik_mixture    log of the mean density over draws of all latents, noise precision included
    loglik_student    the same with the noise precision integrated exactly under q(tau) = Gamma(a, b)
    loglik_expected   the precision replaced by its expectations E tau, E log tau (the authors' code); never above it
    loglik_gaussian   one Gaussian with the mixture's mean and variance

Calibration is judged on predictive draws: `crps`, `coverage`, `pit`, and reliability curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, StudentT

PARZEN_WIDTHS = tuple(10 ** (k / 9 - 1) for k in range(10))


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


def crps(y: Tensor, sample: Tensor) -> float:
    """Continuous ranked probability score, E|Y - y| - E|Y - Y'| / 2, mean over data and outputs, in the units of y.

    The fair estimator: the second expectation is over pairs of different draws, so few draws do not bias it.

    Args:
        y: (n, ...). sample: predictive draws (S, n, ...), S >= 2.

    Reference: Gneiting, Raftery (2007); Ferro (2014).
    """
    S = len(sample)
    if S < 2:
        raise ValueError("the CRPS needs two predictive draws or more")
    rank = torch.arange(1, S + 1, dtype=sample.dtype, device=sample.device)
    weights = (2 * rank - S - 1).reshape(-1, *[1] * (sample.dim() - 1))
    spread = (weights * sample.sort(0).values).sum(0) * 2 / (S * (S - 1))  # E|Y - Y'|
    return float(((sample - y).abs().mean(0) - spread / 2).mean())


def coverage(y: Tensor, sample: Tensor, *, level: float = 0.9) -> float:
    """Fraction of data inside the central predictive interval of probability `level`, by ranks among the draws.

    Args:
        y: (n, ...). sample: predictive draws (S, n, ...).
    """
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not {level}")
    return float(((pit(y, sample) - 0.5).abs() <= level / 2).double().mean())


def pit(y: Tensor, sample: Tensor) -> Tensor:
    """Probability integral transform of each datum, the rank of y among S draws on (0, 1): uniform if calibrated.

    Args:
        y: (n, ...). sample: predictive draws (S, n, ...).

    Returns:
        (n, ...), (draws below + half of those equal + 1/2) / (S + 1).
    """
    below = (sample < y).double().sum(0) + 0.5 * (sample == y).double().sum(0)
    return (below + 0.5) / (len(sample) + 1)


class Reliability(NamedTuple):
    """A reliability curve: what was promised, what came true, and of how many data; calibrated is the diagonal."""

    promised: Tensor
    observed: Tensor
    data: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: the mean absolute difference, weighted by the data."""
        known = self.data > 0
        weight = self.data[known].double() / self.data.sum()
        return float((weight * (self.promised[known] - self.observed[known]).abs()).sum())


def reliability(y: Tensor, sample: Tensor, *, levels: int = 19) -> Reliability:
    """Reliability of regression: coverage of central predictive intervals of growing probability.

    Args:
        y: (n, ...). sample: predictive draws (S, n, ...). levels: how many probabilities, evenly inside (0, 1).
    """
    promised = torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)
    distance = 2 * (pit(y, sample).cpu() - 0.5).abs().flatten()
    observed = (distance <= promised[:, None]).double().mean(-1)
    return Reliability(promised, observed, torch.full((levels,), distance.numel()))


def reliability_of_classes(y: Tensor, probs: Tensor, *, bins: int = 10) -> Reliability:
    """Reliability of classification: accuracy of the most probable class against its probability, in equal bins.

    Args:
        y: (n,). probs: predictive probabilities (n, classes). bins: of [0, 1].

    Returns:
        Mean probability, accuracy and count of each bin; NaN where a bin is empty.

    Reference: Guo, Pleiss, Sun, Weinberger (2017).
    """
    confidence, chosen = probs.double().max(-1)
    index = (confidence * bins).long().clamp_max(bins - 1)
    count = torch.bincount(index, minlength=bins)
    right = (chosen == y).double()
    promised, observed = (torch.bincount(index, value, minlength=bins) / count for value in (confidence, right))
    return Reliability(promised, observed, count)


class Parzen(NamedTuple):
    """A Parzen score: mean over the data in nats, its standard error over them, and the width that was chosen."""

    mean: float
    error: float
    sd: float


def parzen_log_density(x: Tensor, samples: Tensor, sd: float) -> Tensor:
    """log (1/S) sum_k N(x; s_k, sd^2 I), nats, (n,). x: (n, D); samples: (S, D)."""
    squares = torch.cdist(x, samples).square()  # (n, S)
    D = x.shape[-1]
    log_kernels = -squares / (2 * sd**2)
    return log_kernels.logsumexp(-1) - math.log(len(samples)) - D / 2 * math.log(2 * math.pi * sd**2)  # mix.18


def parzen(x: Tensor, samples: Tensor, valid: Tensor, *, widths: Sequence[float] = PARZEN_WIDTHS) -> Parzen:
    """The Parzen-window score of data under samples of a model, as it was used around 2012.

    It is known to misrank models: read it beside an exact likelihood, never alone (Theis, van den Oord, Bethge 2016).

    Args:
        x: (n, D). samples: of the model, (S, D). valid: data on which the width is chosen, (m, D).
        widths: of the windows, by default ten from 0.1 to 1 in equal ratios.
    """
    sd = max(widths, key=lambda width: float(parzen_log_density(valid, samples, width).mean()))
    mean, error = mean_and_error(parzen_log_density(x, samples, sd).double().tolist())
    return Parzen(mean, error or 0.0, sd)


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean over splits and its standard error (ddof 1); None with fewer than two splits."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(tensor.mean()), None
    return float(tensor.mean()), float(tensor.std() / math.sqrt(len(values)))

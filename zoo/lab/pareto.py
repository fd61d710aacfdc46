"""Pareto k-hat, the tail index of importance weights: how far q is from the posterior.

The largest weights w = p(x, theta) / q(theta), theta ~ q, follow a generalised Pareto law, whose shape k counts the
moments of w: the mean is finite below 1, the variance below 1/2. R-hat of such draws says nothing, since they are
independent whatever q is.

References: Vehtari, Simpson, Gelman, Yao, Gabry 2024, Pareto Smoothed Importance Sampling (JMLR 25:72);
Yao, Vehtari, Simpson, Gelman 2018, Yes, but Did It Work? Evaluating Variational Inference (ICML).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import arviz as az
import numpy as np
from torch import Tensor

FEWEST = 100  # draws below which the tail has no twenty weights


class DiagnosisError(ValueError):
    """A number that would mean nothing here; the text says why, and what to look at instead."""


def threshold(draws: int) -> float:
    """The k-hat below which S weights can be trusted, min(1 - 1 / log10 S, .7) (Vehtari et al. 2024).

    Above .7 the number of draws needed grows out of reach; fewer than 2200 draws need a lower k-hat still.
    """
    return min(1 - 1 / math.log10(draws), 0.7)


def tail_index(log_weights: Tensor, *, resolution: float = 0.0) -> np.ndarray:
    """Pareto k-hat of the largest weights, by `arviz.psislw`.

    Args:
        log_weights: (S, ...), S draws.
        resolution: rounding error of the log weights. Weights that differ by no more are all equal and have no tail.

    Returns:
        (...) k-hat; minus infinity where all weights are equal; plus infinity where four draws or fewer carry all.

    Raises:
        DiagnosisError: fewer than 100 draws, or a log weight that is not finite.
    """
    if len(log_weights) < FEWEST:
        raise DiagnosisError(f"k-hat needs at least {FEWEST} draws, not {len(log_weights)}")
    bad = int((~log_weights.isfinite()).sum())
    if bad:
        raise DiagnosisError(f"{bad} of {log_weights.numel()} importance weights are not finite: no k-hat")
    values = log_weights.detach().double().movedim(0, -1).cpu().numpy()
    equal = values.max(-1) - values.min(-1) <= resolution
    found = np.full(equal.shape, -math.inf)
    if not equal.all():
        found[~equal] = az.psislw(values[~equal])[1]
    return found


@dataclass(frozen=True)
class KHat:
    """Joint k-hat of a guide.

    Attributes:
        value: k-hat; minus infinity if all weights are equal, as they are under the exact posterior.
        draws: S.
        elements: how many numbers the latents are.
    """

    value: float
    draws: int
    elements: int

    @property
    def threshold(self) -> float:
        """See `threshold`."""
        return threshold(self.draws)

    @property
    def error(self) -> float:
        """Asymptotic standard error (1 + k) / sqrt(tail) of the fitted shape; NaN below k = -1/2.

        Too small where the largest weights are not yet Pareto: k-hat then moves with the number of draws, too.
        """
        tail = math.ceil(min(0.2 * self.draws, 3 * math.sqrt(self.draws)))
        return (1 + self.value) / math.sqrt(tail) if -0.5 < self.value < math.inf else math.nan

    @property
    def usable(self) -> bool:
        """Whether importance weights of this guide can be trusted."""
        return self.value < self.threshold

    @property
    def sentence(self) -> str:
        """The number in words."""
        if self.value == -math.inf:
            return "Pareto k-hat: all importance weights are equal up to rounding, so q is the exact posterior."
        shown = f"Pareto k-hat {self.value:.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")
        if self.usable:
            return f"{shown}, below {self.threshold:.2f}: importance weights can correct what this guide gets wrong."
        mean = "have no finite mean" if self.value >= 1 else "are unreliable"
        return (
            f"{shown}, not below {self.threshold:.2f}: importance weights over the {self.elements} latent numbers "
            f"{mean}, so q as a whole is not close to the posterior. Predictions may still be good (the weights of a "
            "network, whose hidden units can be exchanged, hardly ever pass): look at predictive scores and at "
            "agreement over restarts."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite is None."""
        numbers = {"value": self.value, "error": self.error, "threshold": self.threshold}
        return {**{k: finite(v) for k, v in numbers.items()}, "draws": self.draws, "elements": self.elements}


@dataclass(frozen=True)
class DatumKHats:
    """k-hat of every datum under an amortised guide.

    Attributes:
        values: (n,) k-hat of each datum, in the order of the batch.
        draws: S.
    """

    values: np.ndarray
    draws: int

    @property
    def threshold(self) -> float:
        """See `threshold`."""
        return threshold(self.draws)

    @property
    def share(self) -> float:
        """Share of the data whose k-hat is not below the threshold."""
        return float((self.values >= self.threshold).mean())

    def worst(self, count: int = 5) -> list[int]:
        """Rows of the batch with the largest k-hat, worst first."""
        return [int(row) for row in np.argsort(-self.values)[:count]]

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        worst = ", ".join(f"{row} ({self.values[row]:.2f})" for row in self.worst(3))
        told = (
            "the encoder's q(z | x) can be corrected by importance weights for all of them"
            if not self.share
            else "there the encoder's q(z | x) misses the posterior of z"
        )
        return (
            f"Pareto k-hat per datum: {100 * self.share:.0f} % of {len(self.values)} data are not below "
            f"{self.threshold:.2f}: {told}. Worst rows: {worst}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = [finite(value) for value in self.values.tolist()]
        numbers = {"share": self.share, "threshold": self.threshold, "draws": self.draws, "worst": self.worst()}
        return {**numbers, "values": values}


def finite(value: float) -> float | None:
    """None for what JSON cannot say."""
    return value if math.isfinite(value) else None

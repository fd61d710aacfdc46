"""How far draws of q are from draws of a reference posterior, and the smallest distance that could have been seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import arviz as az
import numpy as np
from torch import Tensor

from zoo.lab.pareto import DiagnosisError

Draws = az.InferenceData | Mapping[str, Tensor | np.ndarray]


@dataclass(frozen=True)
class Marginal:
    """One number of the posterior. Errors are Monte Carlo standard errors of both samples together.

    Attributes:
        shift: (mean of q - mean of reference) / standard deviation of reference.
        ratio: standard deviation of q / standard deviation of reference.
    """

    name: str
    shift: float
    shift_error: float
    ratio: float
    ratio_error: float


@dataclass(frozen=True)
class Distance:
    """How far q is from a reference.

    Attributes:
        marginals: of every number that both have.
        correlation_max, correlation_rms: largest and root mean squared difference of the correlations; None for a
            single number and for a point mass.
        correlation_error: rms of the Monte Carlo standard errors of these differences, (1 - rho^2) / sqrt(ESS).
    """

    marginals: tuple[Marginal, ...]
    correlation_max: float | None
    correlation_rms: float | None
    correlation_error: float | None

    @property
    def shift(self) -> float:
        """The largest absolute shift, in standard deviations of the reference."""
        return max(abs(m.shift) for m in self.marginals)

    @property
    def ratios(self) -> tuple[float, float]:
        """The smallest and the largest ratio of standard deviations."""
        return min(m.ratio for m in self.marginals), max(m.ratio for m in self.marginals)

    @property
    def visible(self) -> dict[str, float | None]:
        """Smallest |shift|, |ratio - 1| and |correlation error| that chance does not explain (5 %, all together)."""
        many = len(self.marginals)
        pairs = many * (many - 1) // 2
        return {
            "shift": _surprise(many) * max(m.shift_error for m in self.marginals),
            "ratio": _surprise(many) * max(m.ratio_error for m in self.marginals),
            "correlation": None if self.correlation_error is None else _surprise(pairs) * self.correlation_error,
        }

    @property
    def sentences(self) -> list[str]:
        """Each number in words."""
        seen, (least, most) = self.visible, self.ratios
        correlations = (
            []
            if self.correlation_max is None
            else [
                f"Correlations are off by up to {self.correlation_max:.3f} (chance: up to {seen['correlation']:.3f})."
            ]
        )
        return [
            f"Means are off by up to {self.shift:.3f} posterior standard deviations (chance: up to "
            f"{seen['shift']:.3f}).",
            f"Standard deviations are {least:.3f} to {most:.3f} times those of the reference (chance: 1 ± "
            f"{seen['ratio']:.3f}).",
            *correlations,
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "marginals": [asdict(m) for m in self.marginals], "visible": self.visible}


def distance(draws: Draws, reference: Draws) -> Distance:
    """Compare the moments of two samples, number by number; meaningless for weights that can be exchanged.

    Args:
        draws: of q, {name: (chain, draw, ...)} or InferenceData with a posterior; independent draws are one chain.
        reference: of the posterior, with the same names; names that only one of the two has are left out.

    Raises:
        DiagnosisError: no name in common, different shapes, draws that are not finite, or a number that does not vary.
    """
    q, p = _numbers(draws), _numbers(reference)
    names = [name for name in q if name in p]
    if not names:
        raise DiagnosisError(f"nothing to compare: the draws have {', '.join(q)}; the reference has {', '.join(p)}")
    broken = [name for name in names if not (np.isfinite(q[name]).all() and np.isfinite(p[name]).all())]
    if broken:
        raise DiagnosisError(f"{broken[0]!r} has draws that are not finite: look at the fit, which has diverged")
    fixed = [name for name in names if not np.ptp(p[name]) > 0]
    if fixed:
        raise DiagnosisError(f"{fixed[0]!r} does not vary in the reference: no distance in standard deviations")
    return Distance(
        tuple(_marginal(name, q[name], p[name]) for name in names),
        *_correlations([q[name] for name in names], [p[name] for name in names]),
    )


def _marginal(name: str, q: np.ndarray, p: np.ndarray) -> Marginal:
    """Arrays of shape (chain, draw)."""
    sd = float(p.std())
    sd_error = math.hypot(_error(q, "sd"), float(q.std()) / sd * _error(p, "sd")) / sd
    shift_error = math.hypot(_error(q, "mean"), _error(p, "mean")) / sd
    return Marginal(name, float((q.mean() - p.mean()) / sd), shift_error, float(q.std() / sd), sd_error)


def _error(values: np.ndarray, method: str) -> float:
    return float(az.mcse(values, method=method)) if np.ptp(values) > 0 else 0.0


def _correlations(q: Sequence[np.ndarray], p: Sequence[np.ndarray]) -> tuple[float | None, float | None, float | None]:
    """Largest and rms difference of the correlations, and the rms of their standard errors."""
    if len(q) < 2 or not all(np.ptp(values) > 0 for values in q):
        return None, None, None
    i, j = np.triu_indices(len(q), 1)
    rho = [np.corrcoef([values.ravel() for values in side])[i, j] for side in (q, p)]
    sizes = [np.array([az.ess(values) for values in side]) for side in (q, p)]
    variances = sum((1 - r**2) ** 2 / np.minimum(n[i], n[j]) for r, n in zip(rho, sizes, strict=True))
    difference = rho[0] - rho[1]
    return float(np.abs(difference).max()), _rms(difference), float(np.sqrt(np.mean(variances)))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _numbers(draws: Draws) -> dict[str, np.ndarray]:
    """{number: (chain, draw)}; elements of a site are named from 1, as in Stan: beta[1], beta[2]."""
    values = draws["posterior"].data_vars if isinstance(draws, az.InferenceData) else draws
    return {label: array for name, value in values.items() for label, array in _elements(str(name), np.asarray(value))}


def _elements(name: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if value.ndim < 2:
        raise DiagnosisError(f"{name!r} wants shape (chain, draw, ...), not {value.shape}")
    for index in np.ndindex(value.shape[2:]):
        label = f"{name}[{','.join(str(i + 1) for i in index)}]" if index else name
        yield label, value[:, :, *index].astype(float)


def _surprise(count: int) -> float:
    """How many standard errors the largest of `count` differences exceeds one time in twenty."""
    return NormalDist().inv_cdf(1 - 0.025 / count)

"""What many chains say of themselves: effective sample sizes, R-hat, classes visited; a stuck chain is a failure.

ArviZ gives a constant indicator the effective sample size of independent draws and no R-hat. Here it is looked for
first: a class that is never entered, or never left, has an effective sample size of 0 and an infinite R-hat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import arviz as az
import numpy as np
import torch
from torch import Tensor

from zoo.lab import visits
from zoo.lab.markov import ceiling
from zoo.lab.pareto import finite

WINDOWS = (10, 25, 100)
RHAT, ESS_PER_CHAIN = 1.01, 100.0  # what a chain should reach before it is believed


@dataclass(frozen=True)
class Statistic:
    """One statistic of all chains.

    Attributes:
        ess: effective sample size of its mean over all chains (ArviZ `method="mean"`); 0 if it never moved.
        rhat: rank-normalised split R-hat; infinite if it never moved.
        stuck: "" or what is wrong: "never moved", "moved in no chain".
    """

    name: str
    ess: float
    rhat: float
    stuck: str = ""


def statistics(values: Mapping[str, Tensor | np.ndarray]) -> list[Statistic]:
    """ESS and R-hat of every statistic, one entry for each feature.

    Args:
        values: {name: (chain, draw) or (chain, draw, feature)}, at least 4 draws of 2 chains.
    """
    found = []
    for name, value in values.items():
        array = np.asarray(torch.as_tensor(value).double())
        if array.ndim == 2:
            found.append(statistic(name, array))
        else:
            found += [statistic(f"{name}[{i}]", array[..., i]) for i in range(array.shape[-1])]
    return found


def statistic(name: str, value: np.ndarray) -> Statistic:
    """ESS and R-hat of one statistic (chain, draw); what never moves fails.

    Raises:
        ValueError: fewer than 2 chains or 4 draws.
    """
    if value.ndim != 2 or value.shape[0] < 2 or value.shape[1] < 4:
        raise ValueError(f"{name}: chains are judged together, 2 or more of 4 draws or more, not {value.shape}")
    if np.ptp(value) == 0:
        return Statistic(name, 0.0, math.inf, "never moved")
    if (np.ptp(value, axis=1) == 0).all():
        return Statistic(name, 0.0, math.inf, "moved in no chain")
    return Statistic(name, float(az.ess(value, method="mean")), float(az.rhat(value)))


@dataclass(frozen=True)
class Mixing:
    """How chains mix, by the labels of their draws and by other statistics.

    Attributes:
        chains, draws: M and T.
        seconds: of the walk.
        indicators: one for each class. others: free energy, pixel sum, ...
        visited: {T: (mean number of distinct classes in T draws, its standard error over chains)}.
        ceilings: {T: of independent draws from the chains' own law of classes and of none}.
        switch_rate, iid_switch_rate: of successive labels, and of independent draws.
        transitions: (classes, classes). relaxation: of it, in draws.
        shares: the chains' class law. target: that of the data. rejected: share of draws of no class.
        nearest: mean Hamming distance to the nearest real datum; None where it was not measured.
    """

    chains: int
    draws: int
    seconds: float
    indicators: list[Statistic]
    others: list[Statistic]
    visited: dict[int, tuple[float, float]]
    ceilings: dict[int, float]
    switch_rate: float
    iid_switch_rate: float
    transitions: Tensor
    relaxation: float
    shares: Tensor
    target: Tensor
    rejected: float
    nearest: float | None = None
    classes: list[str] = field(default_factory=list)

    @property
    def stuck(self) -> list[str]:
        """The statistics that failed, with the reason."""
        return [f"{s.name} {s.stuck}" for s in [*self.indicators, *self.others] if s.stuck]

    @property
    def ess(self) -> tuple[float, float]:
        """Effective draws per draw of the class indicators: median and worst."""
        values = [s.ess / (self.chains * self.draws) for s in self.indicators]
        return float(np.median(values)), min(values)

    @property
    def rhat(self) -> float:
        """The largest R-hat of all statistics."""
        return max(s.rhat for s in [*self.indicators, *self.others])

    @property
    def class_error(self) -> float:
        """Total variation between the chains' class law and the data's."""
        return float(0.5 * (self.shares - self.target).abs().sum())

    def row(self) -> dict[str, float]:
        """The figures of a table."""
        median, worst = self.ess
        per_second = self.chains * self.draws / max(self.seconds, 1e-9)
        return {
            **{f"classes in {T}": value for T, (value, _) in self.visited.items()},
            **{f"of ceiling in {T}": self.visited[T][0] / self.ceilings[T] for T in self.visited},
            "switch rate": self.switch_rate,
            "ESS/step median": median,
            "ESS/step worst": worst,
            "ESS/s worst": worst * per_second,
            "R-hat": self.rhat,
            "relaxation": self.relaxation,
            "class error": self.class_error,
            "rejected": self.rejected,
            **({} if self.nearest is None else {"nearest": self.nearest}),
        }

    @property
    def sentences(self) -> list[str]:
        """The figures in words, failures first."""
        median, worst = self.ess
        told = []
        if self.stuck:
            told.append(f"FAILED: {'; '.join(self.stuck)}. Whatever else is said, these chains did not mix.")
        seen = ", ".join(f"{v:.2f} ± {e:.2f} in {T}" for T, (v, e) in self.visited.items())
        limits = ", ".join(f"{c:.2f}" for c in self.ceilings.values())
        told += [
            f"{self.chains} chains of {self.draws} draws. Distinct classes: {seen} draws; independent draws from the "
            f"same class law would see {limits}.",
            f"The class changes on {self.switch_rate:.1%} of the steps ({self.iid_switch_rate:.1%} if independent); "
            f"the class transition matrix relaxes in {self.relaxation:.1f} draws.",
            f"Effective draws per draw of the class indicators: median {median:.3f}, worst {worst:.3f}; "
            f"largest R-hat {self.rhat:.3f}{self._verdict(worst)}.",
            f"Class law of the chains against the data's: total variation {self.class_error:.3f}; {self.rejected:.1%} "
            "of the draws belong to no class.",
        ]
        if self.nearest is not None:
            told.append(f"The nearest real datum differs in {self.nearest:.2f} units on average.")
        return told

    def _verdict(self, worst: float) -> str:
        if self.rhat <= RHAT and worst * self.draws >= ESS_PER_CHAIN:
            return ""
        return f" (wanted: R-hat up to {RHAT}, {ESS_PER_CHAIN:.0f} effective draws per chain)"

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite is None."""
        return {
            "chains": self.chains,
            "draws": self.draws,
            **{name: finite(value) for name, value in self.row().items()},
            "stuck": self.stuck,
        }


def mixing(
    labels: Tensor,
    target: Tensor,
    *,
    others: Mapping[str, Tensor],
    seconds: float,
    classes: list[str] | None = None,
    windows: tuple[int, ...] = WINDOWS,
    nearest: Tensor | None = None,
) -> Mixing:
    """Judge chains by the labels of their draws.

    Args:
        labels: (chain, draw), -1 for no class.
        target: the right law of the classes, (classes).
        others: further statistics, (chain, draw) or (chain, draw, feature).
        seconds: that the walk took.
        windows: T of the class visits; those longer than the chains are left out.
        nearest: distance of every draw to the nearest real datum, (chain, draw).
    """
    n = len(target)
    M, T = labels.shape
    names = classes or [str(k) for k in range(n)]
    e = visits.one_hot(labels, n)
    indicators = [statistic(f"class {names[k]}", e[..., k].numpy()) for k in range(n)]
    counts = {w: visits.visited(labels, n, w) for w in windows if w <= T}
    p, C = visits.shares(labels, n), visits.transitions(labels, n)
    return Mixing(
        chains=M,
        draws=T,
        seconds=seconds,
        indicators=indicators,
        others=statistics(others),
        visited={w: (float(c.mean()), float(c.std() / math.sqrt(M))) for w, c in counts.items()},
        ceilings={w: ceiling(e.mean((0, 1)), w) for w in counts},
        switch_rate=visits.switch_rate(labels),
        iid_switch_rate=float(1 - p.square().sum()),
        transitions=C,
        relaxation=visits.relaxation_time(C),
        shares=p,
        target=target.double(),
        rejected=float((labels == visits.NONE).double().mean()),
        nearest=None if nearest is None else float(nearest.double().mean()),
        classes=names,
    )

"""What can be said of one trained guide: its bound, the gap to the evidence, and k-hat; `diagnose` says all of it.

Several fits are compared in `restarts`, draws with a reference posterior in `distances`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.lab.comparison import why_no_bound
from zoo.lab.distances import Distance, distance
from zoo.lab.khat import joint, per_datum, refuse_other_law
from zoo.lab.pareto import DatumKHats, DiagnosisError, KHat, finite
from zoo.lab.restarts import Agreement, agreement, restarts
from zoo.lab.training import Fit

__all__ = [
    "Agreement",
    "Bound",
    "DatumKHats",
    "Diagnosis",
    "DiagnosisError",
    "Distance",
    "KHat",
    "agreement",
    "bound",
    "diagnose",
    "distance",
    "joint",
    "per_datum",
    "restarts",
]


@dataclass(frozen=True)
class Bound:
    """The evidence bound in nats for the data set of N, its Monte Carlo standard error, and the exact log evidence."""

    value: float
    error: float
    N: int
    evidence: float | None = None

    @property
    def gap(self) -> float | None:
        """Exact log evidence minus bound, KL(q || posterior) in nats; None where the evidence is not known."""
        return None if self.evidence is None else self.evidence - self.value

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        told = (
            f"Bound {self.value:.2f} ± {self.error:.2f} nats for the {self.N} data, {self.value / self.N:.4f} per datum"
        )
        if self.evidence is None:
            return f"{told}; the exact evidence is not known here, so neither is the gap."
        gap, rounding = self.evidence - self.value, 1e-5 * max(1.0, abs(self.evidence))
        if gap < -4 * self.error - rounding:
            verdict = "a bound above the evidence, which cannot be: model and evidence are not of the same data"
        else:
            verdict = (
                "not told from 0 by Monte Carlo" if gap < 2 * self.error + rounding else "this is KL(q || posterior)"
            )
        return f"{told}; the exact log evidence is {self.evidence:.2f}, a gap of {gap:.2f} nats: {verdict}."

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite is None."""
        return {
            "value": finite(self.value),
            "error": finite(self.error),
            "per_datum": finite(self.value / self.N),
            "N": self.N,
            "evidence": self.evidence,
            "gap": None if self.gap is None else finite(self.gap),
        }


def bound(fit: Fit, *, evidence: float | None = None, particles: int = 100) -> Bound:
    """The bound on the training data with its Monte Carlo error.

    Args:
        evidence: the exact log evidence in nats for the data set, where it is known (a paper's `evidence`).

    Raises:
        DiagnosisError: the guide is a point, whose "bound" is a log joint, draws relaxed codes, or charges another law
            than it draws from.
    """
    refuse_other_law(fit, "bound")
    reason = why_no_bound(fit)
    if reason:
        raise DiagnosisError(f"no bound: {reason}")
    return Bound(*fit.elbo(particles=particles), fit.N, evidence)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found, and why it did not find the rest.

    Attributes:
        steps, converged: of the training. unjudged: its phases whose loss is no likelihood.
        found: any of `bound` (`Bound`), `khat` (`KHat`) and `khat_per_datum` (`DatumKHats`).
        refused: {the others: the reason}.
    """

    steps: int
    converged: bool
    found: dict[str, Any]
    refused: dict[str, str]
    unjudged: Sequence[str] = ()

    @property
    def sentences(self) -> list[str]:
        """One plain sentence for each number, and for each refusal."""
        training = (
            f"Training: the loss had settled over the second half of {self.steps} steps."
            if self.converged
            else f"Training: after {self.steps} steps the loss was still moving, or the run was too short to tell; "
            "what follows may say more of the training than of the family."
        )
        if self.unjudged:
            training += f" {', '.join(self.unjudged)} cannot be judged: the loss is no likelihood."
        refusals = [f"{reason[0].upper()}{reason[1:]}." for reason in self.refused.values()]
        return [training, *(number.sentence for number in self.found.values()), *refusals]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        numbers = {name: number.to_dict() for name, number in self.found.items()}
        training = {"steps": self.steps, "converged": self.converged}
        return {"training": training, **numbers, "refused": self.refused, "sentences": self.sentences}


def diagnose(fit: Fit, *, evidence: float | None = None, draws: int = 4000, particles: int = 100) -> Diagnosis:
    """All that one fit can say of itself: bound and gap, joint k-hat, k-hat per datum; refusals are told.

    Args:
        evidence: the exact log evidence in nats for the data set, where it is known.
        draws: of the k-hats. particles: draws of the bound.
    """
    measures: dict[str, Callable[[], Any]] = {
        "bound": lambda: bound(fit, evidence=evidence, particles=particles),
        "khat": lambda: joint(fit, draws=draws),
        "khat_per_datum": lambda: per_datum(fit, draws=draws),
    }
    found, refused = {}, {}
    for name, measure in measures.items():
        try:
            found[name] = measure()
        except DiagnosisError as refusal:
            refused[name] = str(refusal)
    return Diagnosis(fit.steps, fit.converged, found, refused, fit.unjudged)

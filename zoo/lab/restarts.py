"""Agreement of fits that differ in their seed only: what R-hat is for chains, said of fits.

Draws of a guide are independent however wrong it is, so no statistic of the draws of one fit says whether q is right.
What several fits can say is whether training found the same thing: differences between fits, against the spread
within one. Fits that agree may all be wrong alike; fits that disagree cannot all be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import arviz as az
import torch
from torch import Tensor

from zoo.lab.comparison import is_bound
from zoo.lab.pareto import DiagnosisError, finite
from zoo.lab.predictive import Draws, Output, draw
from zoo.lab.stages import Batch
from zoo.lab.training import Fit, seed


@dataclass(frozen=True)
class Agreement:
    """How far several fits of one model agree.

    Attributes:
        bounds: (value, Monte Carlo error) of each fit, nats for the data set; empty for point masses.
        mean_spread: rms over data of the standard deviation between fits of the predictive mean, in predictive
            standard deviations.
        mean_noise: what `mean_spread` would be if all fits were the same, from the number of draws.
        sd_spread: rms over data of the standard deviation between fits of the predictive standard deviation, as a
            share of it.
        sd_noise: the same for `sd_spread`.
        function_ratio: the largest `restart_ratio` over data of the function values that the model predicts.
        scalars: {site: restart_ratio} of the scalars asked for.
    """

    bounds: list[tuple[float, float]]
    mean_spread: float
    mean_noise: float
    sd_spread: float
    sd_noise: float
    function_ratio: float
    scalars: dict[str, float]

    @property
    def bound_spread(self) -> float:
        """Standard deviation of the bounds between fits, nats for the data set; NaN without bounds."""
        return float(torch.tensor([value for value, _ in self.bounds]).std()) if self.bounds else math.nan

    @property
    def bound_noise(self) -> float:
        """What `bound_spread` would be from Monte Carlo error alone."""
        errors = torch.tensor([error for _, error in self.bounds])
        return float(errors.square().mean().sqrt()) if self.bounds else math.nan

    @property
    def sentences(self) -> list[str]:
        """Each number in words."""
        bounds = [
            f"Bounds of {len(self.bounds)} restarts differ by {self.bound_spread:.2f} nats (standard deviation; "
            f"{self.bound_noise:.2f} would be Monte Carlo error alone)."
        ] * bool(self.bounds)
        return [
            *bounds,
            f"Their predictive means differ by {self.mean_spread:.3f} predictive standard deviations "
            f"({self.mean_noise:.3f} would be Monte Carlo error alone).",
            f"Their predictive standard deviations differ by {100 * self.sd_spread:.1f} % "
            f"({100 * self.sd_noise:.1f} % would be Monte Carlo error alone).",
            f"Between-fit against within-fit variance of the predicted functions: a ratio of {self.function_ratio:.2f} "
            "at the worst datum (1 is full agreement, which does not say that the fits are right).",
            *(f"The same for {name}: {ratio:.2f}." for name, ratio in self.scalars.items()),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        numbers = {key: value for key, value in asdict(self).items() if key not in ("bounds", "scalars")}
        return {
            "bounds": [{"value": finite(value), "error": finite(error)} for value, error in self.bounds],
            "bound_spread": finite(self.bound_spread),
            "bound_noise": finite(self.bound_noise),
            **{key: finite(value) for key, value in numbers.items()},
            "scalars": {name: finite(ratio) for name, ratio in self.scalars.items()},
        }


def restarts(make_fit: Callable[[], Fit], seeds: Iterable[int]) -> list[Fit]:
    """Fit once for each seed; `make_fit` builds model and guide anew, or a restart would go on from the last."""
    fits = []
    for value in seeds:
        seed(value)
        fits.append(make_fit())
    return fits


def agreement(
    fits: Sequence[Fit], batch: Batch, *, identified: Sequence[str] = (), draws: int = 1000, particles: int = 100
) -> Agreement:
    """How far fits of one model agree on what they predict, on their bounds, and on scalars that are identified.

    Single weights of a network are not compared: hidden units can be exchanged, so they differ between fits that are
    the same.

    Args:
        batch: data to predict.
        identified: global sites that mean the same in every fit, such as a noise precision.

    Raises:
        DiagnosisError: fewer than two fits, the same model or guide twice, or an unknown site.
    """
    if len(fits) < 2 or len({id(part) for fit in fits for part in (fit.model, fit.guide)}) < 2 * len(fits):
        raise DiagnosisError("agreement needs two fits or more, each with a model and a guide of its own")
    drawn = [draw(fit.model, fit.guide, batch, draws) for fit in fits]
    unknown = sorted(set(identified) - set(drawn[0].latents))
    if unknown:
        raise DiagnosisError(f"the model has no latent site {unknown[0]!r}; there are: {', '.join(drawn[0].latents)}")
    functions = torch.stack([_flat(one, lambda out: out.mean) for one in drawn])  # (fits, S, numbers)
    means, sds = functions.mean(1), torch.stack([_predictive_sd(one) for one in drawn])  # (fits, numbers)
    scale = sds.mean(0).clamp(min=torch.finfo(sds.dtype).tiny)
    return Agreement(
        bounds=[fit.elbo(particles=particles) for fit in fits if is_bound(fit)],
        mean_spread=_rms(means.std(0) / scale),
        mean_noise=_rms(functions.std(1) / scale) / math.sqrt(draws),
        sd_spread=_rms(sds.std(0) / scale),
        sd_noise=1 / math.sqrt(2 * draws),
        function_ratio=restart_ratio(functions),
        scalars={name: restart_ratio(torch.stack([one.latents[name] for one in drawn])) for name in identified},
    )


def restart_ratio(draws: Tensor) -> float:
    """The formula of R-hat with fits in the place of chains: sqrt((B / W + S - 1) / S), the largest over numbers.

    B / S is the variance between the fits' means and W the mean variance within a fit, so it is about
    sqrt(1 + between / within). It measures agreement between restarts. It is no sign of convergence to the posterior:
    the draws of one fit are independent by construction, so nothing in it can see what all fits get wrong.

    Args:
        draws: (fits, S, ...).
    """
    values = draws.detach().double().cpu().flatten(2) if draws.dim() > 2 else draws.detach().double().cpu()[..., None]
    spread = values.std((0, 1)) > 0  # a number that never moves agrees with itself
    if not spread.any():
        return 1.0
    found = az.rhat(az.convert_to_dataset({"f": values[..., spread].numpy()}), method="identity")
    return float(found["f"].max())


def _predictive_sd(drawn: Draws) -> Tensor:
    """(numbers,): of a class indicator from its probability, otherwise of the predictive draws."""

    def sd(out: Output) -> Tensor:
        p = out.mean.mean(0, keepdim=True)
        classes = out.mean.dim() > out.sample.dim()
        return (p * (1 - p)).sqrt() if classes else out.sample.to(p).std(0, keepdim=True)

    return _flat(drawn, sd)[0]


def _flat(drawn: Draws, what: Callable[[Output], Tensor]) -> Tensor:
    """(S, numbers) over all observed sites."""
    return torch.cat(
        [what(out).flatten(1).double().cpu() for out in drawn.outputs.values() if out.value is not None], 1
    )


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())

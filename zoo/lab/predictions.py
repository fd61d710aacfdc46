"""What a trained model says of new rows: mean, spread and quantiles of y, class probabilities, or a log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.lab.estimators import importance_bound
from zoo.lab.predictive import draw


class PredictionError(ValueError):
    """A prediction that cannot be made; the text says why."""


@dataclass(frozen=True)
class Prediction:
    """The predictive law of each datum, by S draws of all latents.

    Attributes:
        mean: (n, ...) mean of the site's law, averaged over the draws, in the units of the site; of a categorical
            site (n, classes), the probabilities.
        sample: (S, n, ...) one draw of the site for each draw of the latents.
        classes: names of the classes; None for numbers, or if the classes have no names.
    """

    mean: Tensor
    sample: Tensor
    classes: Sequence[str] | None = None

    @property
    def categorical(self) -> bool:
        """Whether the mean is a vector of probabilities for a single label."""
        return self.mean.dim() == self.sample.dim()

    @property
    def sd(self) -> Tensor:
        """Predictive standard deviation (n, ...), noise included."""
        return self.sample.std(0)

    def quantile(self, q: float) -> Tensor:
        """Quantile of the draws, (n, ...)."""
        return torch.as_tensor(np.quantile(self.sample.numpy(), q, axis=0))  # torch.quantile takes few elements only

    @property
    def frame(self) -> pd.DataFrame:
        """One row per datum: `class` and a probability for each class, or mean, sd, q05 and q95 (of each output)."""
        if self.categorical:
            names = [str(name) for name in self.classes or range(self.mean.shape[-1])]
            best = [names[index] for index in self.mean.argmax(-1).tolist()]
            return pd.DataFrame({"class": best, **_columns([f"P({name})" for name in names], self.mean)})
        parts = {"mean": self.mean, "sd": self.sd, "q05": self.quantile(0.05), "q95": self.quantile(0.95)}
        flat = {name: value.reshape(len(value), -1) for name, value in parts.items()}
        outputs = flat["mean"].shape[-1]
        ends = [""] if outputs == 1 else [str(k) for k in range(1, outputs + 1)]
        columns = [_columns([name + end for end in ends], value) for name, value in flat.items()]
        return pd.DataFrame({name: values for part in columns for name, values in part.items()})


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of each datum, of a model of densities.

    Attributes:
        values: nats, (n,). exact: whether they are no importance-weighted estimates, too low in expectation.
    """

    values: Tensor
    exact: bool

    @property
    def frame(self) -> pd.DataFrame:
        """One row per datum: `loglik`."""
        return pd.DataFrame({"loglik": self.values.tolist()})


def log_likelihood(model: Any, guide: Any, batch: Mapping[str, Any], *, draws: int = 1000) -> LogLikelihood:
    """The log-likelihood of each datum by the model's `loglik`, or importance-weighted over draws where it has none."""
    value = model.loglik(**batch)
    if value is not None:
        return LogLikelihood(value.detach().cpu(), True)
    return LogLikelihood(importance_bound(model, guide, batch, particles=draws).cpu(), False)


def predict(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: Mapping[str, Any],
    *,
    site: str = "y",
    draws: int = 1000,
) -> Prediction:
    """What the model says of a site given everything else in the batch; the site's own key is not looked at.

    Raises:
        PredictionError: the model does not sample that site, or does so only as a latent of the guide.
    """
    if draws < 2:
        raise PredictionError(f"{draws} draws have no spread; take 2 or more")
    with torch.no_grad():
        found = draw(model, guide, {key: value for key, value in batch.items() if key != site}, draws).outputs
    if site not in found:
        raise PredictionError(f"the model predicts no site {site!r}; there are: {', '.join(found) or 'none'}")
    return Prediction(found[site].mean.mean(0).cpu(), found[site].sample.cpu())


def _columns(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    return dict(zip(names, values.T.tolist(), strict=True))

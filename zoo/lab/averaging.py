"""Averages of parameters over the steps of a run, in place of their last values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from zoo.lab.training import Fit


def weight(decay: float, steps: int) -> float:
    """The weight of the newest value in a bias-corrected exponential average, `steps` values being in it already.

    avg_t = (1 - decay) / (1 - decay^t) sum_s decay^(t-s) p_s, so the first weight is 1 and the last ones 1 - decay.
    """
    return (1 - decay) / (1 - decay ** (steps + 1))


class Average:
    """A callback of `fit`: the exponential moving average of all parameters of model and guide.

    Example:
        >>> average = Average(0.999)
        >>> fit = lab.fit(model, guide, batches, bound, epochs=100, callbacks=[average])  # doctest: +SKIP
        >>> average.apply(fit)  # doctest: +SKIP

    Args:
        decay: in (0, 1); the average forgets in 1 / (1 - decay) steps.

    Reference: Polyak, Juditsky (1992); with bias correction as in the code of Louizos and Welling (2016).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"the decay of an average lies between 0 and 1, not {decay}")
        self.decay = decay
        self.averaged: AveragedModel | None = None
        self._saved: Mapping[str, Any] = {}

    def __call__(self, fit: Fit) -> None:
        """Take in the parameters after one optimiser step."""
        self._of(fit).update_parameters(fit.bound(fit.model, fit.guide))

    def apply(self, fit: Fit) -> None:
        """Put the average in the place of the parameters of the fit."""
        if self.averaged is None and not self._saved:
            raise ValueError("nothing to average: give this callback to fit first")
        fit.bound(fit.model, fit.guide).load_state_dict(self._of(fit).module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {} if self.averaged is None else self.averaged.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.averaged, self._saved = None, state_dict

    def _of(self, fit: Fit) -> AveragedModel:
        if self.averaged is None:
            self.averaged = AveragedModel(fit.bound(fit.model, fit.guide), avg_fn=self._mix)
            if self._saved:
                self.averaged.load_state_dict(self._saved)
        return self.averaged

    def _mix(self, average: Tensor, new: Tensor, steps: Any) -> Tensor:
        return torch.lerp(average, new, weight(self.decay, int(steps)))

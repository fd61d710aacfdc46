"""The only place where draws become ArviZ InferenceData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
import numpy as np
import torch
from torch import Tensor

from zoo.lab.data import Table
from zoo.lab.predictive import Draws, draw
from zoo.lab.training import Fit


def to_arviz(fit: Fit, table: Table | Mapping[str, Any], *, draws: int = 1000) -> az.InferenceData:
    """Independent draws of a trained guide as InferenceData: one chain, since R-hat of such draws says nothing.

    Weights are drawn as such (local reparametrisation is switched off), so `lp` and `log_q` are joint.

    Args:
        fit: the trained pair.
        table: the data whose predictions and log-likelihoods are wanted.
        draws: number of draws.

    Returns:
        Groups posterior, posterior_predictive, log_likelihood, observed_data, constant_data and sample_stats with
        `lp` = log p(latents, these data) and `log_q` = log q(latents), nats.
    """
    batch = table.all() if isinstance(table, Table) else table
    drawn = draw(fit.model, fit.guide, batch, draws)
    return from_draws([drawn], batch, log_q=_stack([drawn.log_q]))


def from_draws(chains: Sequence[Draws], batch: Mapping[str, Any], **sample_stats: np.ndarray) -> az.InferenceData:
    """InferenceData of one `Draws` per chain; further sample statistics have shape (chain, draw)."""
    first = chains[0]
    observed = {name: out for name, out in first.outputs.items() if out.value is not None}
    stats = {"lp": _stack([c.lp for c in chains]), **sample_stats}
    constant = {k: _numpy(v) for k, v in batch.items() if isinstance(v, Tensor) and k not in observed}
    dims = {name: _dims(name, out.sample.dim() - 1) for name, out in first.outputs.items()}
    dims |= {name: _dims(name, value.ndim) for name, value in constant.items()}
    return az.from_dict(
        posterior={name: _stack([c.latents[name] for c in chains]) for name in first.latents},
        posterior_predictive={name: _stack([c.outputs[name].sample for c in chains]) for name in first.outputs},
        log_likelihood={name: _stack([c.outputs[name].log_prob for c in chains]) for name in observed} or None,
        observed_data={name: _numpy(out.value) for name, out in observed.items()} or None,
        constant_data=constant or None,
        sample_stats=stats,
        dims=dims,
        save_warmup=False,
    )


def from_chains(values: Mapping[str, Tensor], **sample_stats: Tensor) -> az.InferenceData:
    """InferenceData of chains: {name: (chain, draw) or (chain, draw, feature)} becomes the posterior group.

    Dimensions are chain, draw and `NAME_feature`; sample statistics have shape (chain, draw).
    """
    dims = {name: [f"{name}_feature"] for name, value in values.items() if value.dim() > 2}
    return az.from_dict(
        posterior={name: _numpy(value) for name, value in values.items()},
        sample_stats={name: _numpy(value) for name, value in sample_stats.items()} or None,
        dims=dims,
        save_warmup=False,
    )


def _dims(name: str, count: int) -> list[str]:
    return ["datum", *[f"{name}_dim_{i}" for i in range(1, count)]][:count]


def _stack(parts: Sequence[Any]) -> np.ndarray:
    return np.stack([_numpy(part) for part in parts])


def _numpy(value: Any) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().numpy()

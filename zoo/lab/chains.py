"""Markov chains as references: `nuts` runs Pyro's NUTS on the text of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import arviz as az
import torch
from pyro.infer import MCMC, NUTS

from zoo.lab.arviz_bridge import from_draws
from zoo.lab.predictive import condition


def nuts(
    model: Callable[..., Any],
    batch: Mapping[str, Any],
    *,
    chains: int = 4,
    draws: int = 500,
    warmup: int | None = None,
    seed: int = 0,
    **options: Any,
) -> az.InferenceData:
    """The posterior of a model by the No-U-Turn Sampler, chain after chain.

    Every chain is seeded by (seed, chain), so the draws do not depend on the number of cores, and the global random
    state is left as it was.

    Args:
        model: a Pyro model without local latents of varying batch length; called as `model(**batch)`.
        batch: the data.
        draws: per chain. warmup: per chain, the default is as many.
        **options: handed to `pyro.infer.NUTS`.

    Returns:
        InferenceData with posterior, posterior_predictive, log_likelihood, observed_data, constant_data, sample_stats
        (`lp`, `diverging`), dimensions (chain, draw, ...).

    Raises:
        ValueError: fewer than 4 draws.
    """
    if draws < 4:
        raise ValueError(f"NUTS needs at least 4 draws per chain to be diagnosed, not {draws}")
    warmup = draws if warmup is None else warmup
    runs = []
    with torch.random.fork_rng(devices=[]):
        for chain in range(chains):
            torch.manual_seed(1000 * seed + chain)
            kernel = NUTS(model, **options)
            sampler = MCMC(kernel, draws, warmup_steps=warmup, num_chains=1, disable_progbar=True)
            sampler.run(**batch)
            runs.append((sampler.get_samples(), sampler.diagnostics()["divergences"]["chain 0"]))
        parts = [condition(model, samples, batch) for samples, _ in runs]
    diverging = torch.zeros(chains, draws, dtype=torch.bool)
    for chain, (_, divergences) in enumerate(runs):
        diverging[chain, divergences] = True
    return from_draws(parts, batch, diverging=diverging.numpy())

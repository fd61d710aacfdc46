"""The figures of a comparison, each with a text for those who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro import poutine

from zoo.lab import figures
from zoo.lab.predictive import Draws, density, has_classes, observed
from zoo.lab.tables import Table
from zoo.lab.training import Fit

STRIP = 16  # pictures in a row


def pictures(
    losses: Mapping[str, Mapping[str, Sequence[float]]],
    runs: Mapping[str, Sequence[Fit]],
    first: Mapping[str, Draws],
    test: Table,
) -> list[tuple[str, Figure]]:
    """The figures of a comparison on its first split, each after its alternative text."""
    drawn_figures = []
    if losses:
        phases = list(dict.fromkeys(phase for curves in losses.values() for phase in curves))
        about = "the bound" if phases == ["training"] else f"the objective of each phase ({', '.join(phases)})"
        alt = f"Learning curves: {about} in nats per datum against optimiser steps for {', '.join(losses)}."
        drawn_figures.append((alt, figures.learning_curves(losses)))
    if not first:  # density models, scored without draws
        return drawn_figures + _dreams({name: r for name, r in runs.items() if density(r[0].model)}, test)
    outs = {name: observed(drawn) for name, drawn in first.items()}
    out = next(iter(outs.values()))
    value = out.value
    assert value is not None
    if any(drawn.local is not None for drawn in first.values()):
        return drawn_figures + _correlation_picture(list(losses), runs, first)
    if not has_classes(out):
        y = value.reshape(len(value), -1)[:, 0].cpu().numpy()
        bands = {
            name: out.sample.reshape(*out.sample.shape[:2], -1)[..., 0].cpu().numpy() for name, out in outs.items()
        }
        alt = f"Ninety per cent predictive bands against the test data of the first split for {', '.join(bands)}."
        drawn_figures.append((alt, figures.predictive_bands(y, bands, unit=test.units.get("y", ""))))
    else:
        chosen = {name: out.mean.mean(0).gather(-1, value[:, None])[:, 0].cpu().numpy() for name, out in outs.items()}
        alt = f"Histograms of the predictive probability of the true class for {', '.join(chosen)}."
        drawn_figures.append((alt, figures.true_class_probability(chosen)))
    return drawn_figures + _correlation_picture(list(losses), runs, first)


def _dreams(runs: Mapping[str, Sequence[Fit]], test: Table) -> list[tuple[str, Figure]]:
    """Draws from each model beside test data, where these are square pictures."""
    if not runs:
        return []
    rows = {"test data": test["x"][:STRIP]}
    for name, mine in runs.items():
        fit = mine[0]
        with torch.no_grad(), poutine.block():
            dreamt: Any = poutine.trace(poutine.uncondition(fit.model)).get_trace(x=test["x"][:STRIP].to(fit.device))
        rows[name] = dreamt.nodes["x"]["value"].cpu()
    drawn = figures.square_strips(rows)
    alt = f"{STRIP} test pictures of {test.name}, and as many drawn from the model trained with {', '.join(runs)}."
    return [] if drawn is None else [(alt, drawn)]


def _correlation_picture(
    spread: Sequence[str], runs: Mapping[str, Sequence[Fit]], first: Mapping[str, Draws]
) -> list[tuple[str, Figure]]:
    """One site of 4 to 60 elements under two guides: the first, and the one with most parameters."""
    if len(spread) < 2:
        return []
    pair = [spread[0], max(spread[1:], key=lambda name: runs[name][0].parameters)]
    sizes = {site: value[0].numel() for site, value in first[pair[0]].latents.items() if site in first[pair[1]].latents}
    sites = [site for site, size in sizes.items() if 4 <= size <= 60]
    if not sites:
        return []
    site = max(sites, key=lambda site: sizes[site])
    values = {name: first[name].latents[site].flatten(1).cpu().numpy() for name in pair}
    alt = f"Posterior correlation matrices of site {site} under {pair[0]} and {pair[1]} side by side."
    return [(alt, figures.correlations(values, site))]

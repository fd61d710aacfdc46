"""Figures of a comparison, drawn without a window. Colours are Okabe and Ito's, told apart by the colour-blind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")


def learning_curves(losses: Mapping[str, Mapping[str, Sequence[float]]], evidence: float | None = None) -> Figure:
    """The bound (nats per datum) against optimiser steps, averaged over fiftieths of the run; a panel for each phase.

    Args:
        losses: {guide: {phase: losses}}. evidence: the exact log evidence, drawn as a line.
    """
    phases = list(dict.fromkeys(phase for curves in losses.values() for phase in curves))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    panels = figure.subplots(1, max(len(phases), 1), squeeze=False)[0]
    for axes, phase in zip(panels, phases, strict=False):
        _curves(axes, {name: curves[phase] for name, curves in losses.items() if phase in curves}, evidence)
        if phases != ["training"]:
            axes.set_title(phase, fontsize="small")
    figure.supxlabel("optimiser step", fontsize="medium")
    panels[0].set_ylabel("bound, nats per datum" if phases == ["training"] else "objective, nats per datum")
    panels[0].legend(fontsize="small")
    return _plain(figure)


def _curves(axes: Axes, losses: Mapping[str, Sequence[float]], evidence: float | None) -> None:
    lows, highs = [], []
    styles = zip(cycle(PALETTE), cycle(LINES), strict=False)
    for (name, values), (colour, line) in zip(losses.items(), styles, strict=False):
        window = max(1, len(values) // 50)
        curve = -np.asarray(values[: len(values) // window * window]).reshape(-1, window).mean(1)
        steps = window * (np.arange(len(curve)) + 0.5)
        axes.plot(steps, curve, color=colour, linestyle=line, label=name)
        lows.append(np.nanquantile(curve[len(curve) // 5 :], 0.02))
        highs.append(np.nanmax(curve))
    if evidence is not None:
        axes.axhline(evidence, color="black", linewidth=1, label="exact log evidence")
        highs.append(evidence)
    if lows:
        margin = 0.08 * (max(highs) - min(lows) + 1e-3)
        axes.set_ylim(min(lows) - margin, max(highs) + margin)


def predictive_bands(y: np.ndarray, samples: Mapping[str, np.ndarray], *, unit: str = "") -> Figure:
    """Test data against the 90 % predictive band of each guide, data ordered by the first guide's mean.

    Args:
        y: (n,). samples: {guide: (S, n)} draws of the posterior predictive.
    """
    order = np.argsort(next(iter(samples.values())).mean(0))
    order = order[np.linspace(0, len(order) - 1, min(len(order), 80)).astype(int)]
    figure, panels = _panels(len(samples))
    for axes, (name, draws), colour in zip(panels, samples.items(), cycle(PALETTE), strict=False):
        low, high = np.quantile(draws[:, order], [0.05, 0.95], axis=0)
        rank = np.arange(len(order))
        inside = float(np.mean((y[order] >= low) & (y[order] <= high)))
        axes.fill_between(rank, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(rank, draws[:, order].mean(0), color=colour)
        axes.plot(rank, y[order], "o", color="black", markersize=2.5)
        axes.set_title(f"{name}: {inside:.0%} of the points inside", fontsize="small")
    figure.supxlabel("test data, by predicted mean", fontsize="small")
    figure.supylabel(f"y {f'({unit})' if unit else ''}", fontsize="small")
    return _plain(figure)


def true_class_probability(probability: Mapping[str, np.ndarray]) -> Figure:
    """Histogram of the predictive probability of the true class, one panel for each guide; {guide: (n,)}."""
    figure, panels = _panels(len(probability))
    for axes, (name, values), colour in zip(panels, probability.items(), cycle(PALETTE), strict=False):
        axes.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=colour)
        axes.set_title(name, fontsize="small")
    figure.supxlabel("predictive probability of the true class", fontsize="small")
    figure.supylabel("test data", fontsize="small")
    return _plain(figure)


def correlations(draws: Mapping[str, np.ndarray], site: str) -> Figure:
    """Posterior correlation matrices of one site under two guides side by side; {guide: (S, elements)}."""
    figure = Figure(figsize=(3.6 * len(draws) + 0.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(draws), squeeze=False)[0]
    for axes, (name, values) in zip(panels, draws.items(), strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = np.nan_to_num(np.corrcoef(values.T))
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="PuOr")
        axes.set_title(name, fontsize="small")
        axes.set(xlabel=f"element of {site}", ylabel=f"element of {site}")
    figure.colorbar(image, ax=list(panels), label="correlation", shrink=0.8)
    return figure


def strips(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Rows of small pictures, one row for each name. pictures: {name: (S, side, side)}, 0 is white."""
    count = max(len(values) for values in pictures.values())
    figure = Figure(figsize=(7.2, 0.55 * len(pictures) + 0.2), layout="constrained")
    panels = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, pictures.items(), strict=True):
        padded = np.pad(values, ((0, count - len(values)), (1, 1), (1, 1)), constant_values=np.nan)
        axes.imshow(np.concatenate(list(padded), 1), cmap="gray_r", vmin=values.min(), vmax=values.max())
        axes.set_xticks([]), axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def square_strips(rows: Mapping[str, Tensor]) -> Figure | None:
    """`strips` of flat pictures, {name: (S, side * side)}; None where they are not square."""
    side = math.isqrt(next(iter(rows.values())).shape[-1])
    if side < 3 or side**2 != next(iter(rows.values())).shape[-1]:
        return None
    return strips({name: value.reshape(-1, side, side).cpu().numpy() for name, value in rows.items()})


def visits(T: Sequence[int], seen: Mapping[str, Sequence[float]]) -> Figure:
    """Distinct classes against the number of draws T, {name: one for each T}; the last is drawn as the ceiling."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    *own, last = seen
    for name, colour, line in zip(own, cycle(PALETTE), cycle(LINES), strict=False):
        axes.plot(T, seen[name], color=colour, linestyle=line, marker="o", markersize=3, label=name)
    axes.plot(T, seen[last], color="black", linewidth=1, label=last)
    axes.set(xscale="log", xlabel="draws T", ylabel="distinct classes in T draws")
    axes.legend(fontsize="small")
    return _plain(figure)


def ranks(values: Mapping[str, Tensor], *, bins: int = 20) -> Figure:
    """Rank plots, {name: (chain, draw)}: how often a chain's draws have each rank among all; flat if it mixes.

    Ties, as in a pixel sum, are broken at random.
    """
    figure, panels = _panels(len(values))
    random = np.random.default_rng(0)
    for axes, (name, value) in zip(panels, values.items(), strict=False):
        flat = value.cpu().numpy().reshape(-1)
        order = np.empty(flat.size)
        order[np.lexsort((random.random(flat.size), flat))] = np.arange(flat.size) + 0.5
        edges = np.linspace(0, order.size, bins + 1)
        for chain in np.split(order, len(value)):
            heights = np.histogram(chain, edges)[0] / (chain.size / bins)
            axes.stairs(heights, edges / order.size, color=PALETTE[0], alpha=0.35)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(name, fontsize="small")
    figure.supxlabel("rank among the draws of all chains", fontsize="small")
    figure.supylabel("share, relative to a uniform one", fontsize="small")
    return _plain(figure)


def autocorrelations(values: Mapping[str, Tensor], *, lags: int = 100) -> Figure:
    """Autocorrelation of statistics against the lag, mean over chains; {name: (chain, draw)}."""
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, value), colour, line in zip(values.items(), cycle(PALETTE), cycle(LINES), strict=False):
        chains = value.double().cpu().numpy()
        centred = chains - chains.mean()  # of all chains: one that is stuck far from the others is no white noise
        n = min(lags, chains.shape[1] // 2)
        rho = [float((centred[:, : chains.shape[1] - k] * centred[:, k:]).mean()) for k in range(n)]
        axes.plot(np.asarray(rho) / max(rho[0], 1e-300), color=colour, linestyle=line, label=name)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="lag, draws", ylabel="autocorrelation", ylim=(-0.2, 1.02))
    axes.legend(fontsize="small")
    return _plain(figure)


def transition_matrix(C: Tensor, names: Sequence[str]) -> Figure:
    """Shares of steps from each class (rows) to each other, (classes, classes)."""
    figure = Figure(figsize=(4.4, 3.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(C.cpu().numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="class after a step", ylabel="class before")
    figure.colorbar(image, ax=axes, label="share of steps", shrink=0.8)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.0 * columns, 2.3 * lines + 0.3), layout="constrained")
    axes = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    return figure, axes[:count]


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure

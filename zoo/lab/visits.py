"""Classes visited by chains: measures of mixing that need only the label of every draw.

Labels are (chain, draw) integers; -1 is a draw that belongs to no class, which is never counted as a visit. Their exact
twins on enumerated chains are in `zoo.lab.markov`. (Equation ids of `zoo.mixing`.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NONE = -1  # the label of a draw that belongs to no class


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Indicators (chain, draw, classes) in double precision; a draw of no class has none."""
    return (labels[..., None] == torch.arange(classes, device=labels.device)).double()


def shares(labels: Tensor, classes: int) -> Tensor:
    """The share of every class among the draws that belong to one, (classes)."""
    found = one_hot(labels, classes).sum((0, 1))
    return found / found.sum().clamp_min(1)


def visited(labels: Tensor, classes: int, T: int) -> Tensor:
    """Mean number of distinct classes in disjoint windows of T draws, of every chain, (chain,).

    Raises:
        ValueError: chains shorter than one window.
    """
    windows = labels.shape[1] // max(T, 1)
    if T < 1 or not windows:
        raise ValueError(f"windows of {T} draws need chains of as many; these have {labels.shape[1]}")
    cut = one_hot(labels[:, : windows * T], classes).unflatten(1, (windows, T))
    return cut.amax(2).sum(-1).mean(1)  # mix.14


def switch_rate(labels: Tensor) -> float:
    """Share of steps between two draws of a class whose classes differ."""
    before, after = labels[:, :-1], labels[:, 1:]
    both = (before != NONE) & (after != NONE)
    return float((before != after)[both].double().mean()) if both.any() else math.nan  # mix.16


def transitions(labels: Tensor, classes: int) -> Tensor:
    """C_kl, the share of steps from class k that lead to class l, (classes, classes); NaN where no step starts."""
    e = one_hot(labels, classes)
    counts = torch.einsum("mtk,mtl->kl", e[:, :-1], e[:, 1:])
    return counts / counts.sum(-1, keepdim=True)  # mix.16


def relaxation_time(C: Tensor) -> float:
    """1 / (1 - |lambda_2|) of a class transition matrix, in draws; infinite if a class is never entered or left.

    For a reversible chain and labels that are a function of the state it is at most that of the chain itself.
    """
    away = C - C.diag().diag()
    if not torch.isfinite(C).all() or not away.sum(0).all() or not away.sum(1).all():
        return math.inf
    moduli = torch.linalg.eigvals(C).abs().sort(descending=True).values
    return float(1 / (1 - moduli[1])) if moduli[1] < 1 - 1e-12 else math.inf  # mix.16


def total_variation(labels: Tensor, p: Tensor) -> Tensor:
    """TV_t = 1/2 sum_k |share of class k among the chains at draw t - p_k|, (draw,).

    "None" counts as a class of its own, whose probability is what the others leave of 1.

    Args:
        p: the right law of the classes, (classes).
    """
    share = one_hot(labels, len(p)).mean(0)  # (draw, classes)
    none = (share.sum(-1) - p.sum()).abs()
    return 0.5 * ((share - p).abs().sum(-1) + none)  # mix.17


def noise_floor(p: Tensor, chains: int) -> float:
    """What `total_variation` is in the mean of M independent chains that have converged, about.

    Example:
        >>> round(noise_floor(torch.full((10,), 0.1), 200), 3)
        0.085
    """
    return float(0.5 * (2 * p * (1 - p) / (math.pi * chains)).sqrt().sum())  # mix.17

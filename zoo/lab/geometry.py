"""What lies between and around data in each representation of a model: interpolation, noise, linear separability.

Pictures decoded from a representation are scored under a Parzen window of other real data. (Equation ids of
`zoo.mixing`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from zoo.lab.noise import Noise
from zoo.lab.scores import PARZEN_WIDTHS, parzen_log_density


class Levels(NamedTuple):
    """The representations of a model, by means: level 0 is x itself.

    Attributes:
        encode: (x (n, D), level) -> (n, n_level). decode: (h, level) -> (n, D). depth: the highest level.
    """

    encode: Callable[[Tensor, int], Tensor]
    decode: Callable[[Tensor, int], Tensor]
    depth: int


def window(centres: Tensor, valid: Tensor) -> float:
    """The width of a Parzen window on `centres` (S, D) that scores `valid` (m, D) best."""
    return max(PARZEN_WIDTHS, key=lambda sd: float(parzen_log_density(valid, centres, sd).mean()))


def interpolate(levels: Levels, level: int, a: Tensor, b: Tensor, t: Sequence[float]) -> Tensor:
    """Pictures decoded from (1 - t) h_a + t h_b at one level. a, b: (n, D); returns (len(t), n, D)."""
    h_a, h_b = levels.encode(a, level), levels.encode(b, level)
    return torch.stack([levels.decode((1 - s) * h_a + s * h_b, level) for s in t])  # mix.19


def score(pictures: Tensor, centres: Tensor, sd: float) -> Tensor:
    """log density of pictures (..., D) under the Parzen window on other real data (S, D), nats, (...)."""
    flat = pictures.reshape(-1, pictures.shape[-1])
    return parzen_log_density(flat, centres, sd).reshape(pictures.shape[:-1])


def neighbours(levels: Levels, level: int, x: Tensor, others: Tensor, k: int = 1) -> Tensor:
    """The k-th nearest of `others` (S, D) to every x (n, D) in the space of one level, (n, D)."""
    distance = torch.cdist(levels.encode(x, level), levels.encode(others, level))
    return others[distance.topk(k, largest=False).indices[:, k - 1]]


def perturb(levels: Levels, level: int, x: Tensor, s: float, noise: Noise) -> Tensor:
    """Pictures decoded from h + s std(h) eps, std of each unit over the data x (n, D); (n, D)."""
    h = levels.encode(x, level)
    return levels.decode(h + s * h.std(0) * noise.normal(h.shape[1]), level)  # mix.20


def matched(levels: Levels, level: int, x: Tensor, change: float, noise_seed: int) -> float:
    """The s at which `perturb` changes pictures by `change`, root mean square over pixels against s = 0; by bisection.

    Infinite where no s up to 1000 does.
    """
    clean = levels.decode(levels.encode(x, level), level)

    def moved(s: float) -> float:
        noise = Noise(len(x), seed=noise_seed, dtype=x.dtype)
        return float((perturb(levels, level, x, s, noise) - clean).square().mean().sqrt())

    low, high = 0.0, 1.0
    while moved(high) < change:
        low, high = high, 2 * high
        if high > 1000:
            return math.inf
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if moved(middle) < change else (low, middle)
    return (low + high) / 2


def linear_error(
    train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, seed: int = 0
) -> float:
    """Test error of a linear support vector machine, its C chosen on the validation data; pairs of h (n, F), y (n)."""

    def fitted(C: float) -> LinearSVC:
        return LinearSVC(C=C, random_state=seed, max_iter=20_000).fit(train[0].numpy(), train[1].numpy())

    def error(machine: LinearSVC, part: tuple[Tensor, Tensor]) -> float:
        return 1 - float(machine.score(part[0].numpy(), part[1].numpy()))

    machines = [fitted(C) for C in (0.01, 0.1, 1.0, 10.0)]
    return error(min(machines, key=lambda machine: error(machine, valid)), test)  # mix.21

"""Steps of chains as exact matrices: noise that takes every outcome there is, each with its probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from guides.codes import index, states
from zoo.lab.rbm import RBM


def machine(visible: int = 4, hidden: int = 3, *, spread: float = 1.0, seed: int = 0) -> RBM:
    found, generator = RBM(visible, hidden), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=spread, generator=generator)
    return found


def rbm_8x6() -> RBM:
    """The machine of the dossier, whose modes are balanced and far from one another."""
    found, W = RBM(8, 6), torch.from_numpy(2 * np.random.default_rng(0).normal(size=(8, 6)))
    with torch.no_grad():
        for parameter, value in zip(found.parameters(), (W, -W.sum(1) / 2, -W.sum(0) / 2), strict=True):
            parameter.copy_(value)
    return found


def law(found: RBM) -> Tensor:
    """P(v) of every state, (2^visible)."""
    return found.log_prob(states(found.visible)).detach().exp()


def random_kernel(S: int) -> tuple[Tensor, Tensor]:
    """A kernel without any symmetry, and the law that it leaves as it is."""
    K = torch.rand(S, S).pow(3).add(0.01)
    K = K / K.sum(-1, keepdim=True)
    return K, K.matrix_power(4096)[0]


class Outcomes:
    """Noise in the place of `zoo.lab.noise.Noise`: row r of the batch takes the r-th of all outcomes.

    A uniform number is not drawn but compared: `u < p` has two outcomes, of probabilities p and 1 - p. A number that is
    compared twice would not be a new one, which is an error.

    Attributes:
        weight: the probability of what each row has met so far. total: the number of outcomes so far.
    """

    def __init__(self, branch: Tensor) -> None:
        self.branch, self.weight, self.total = branch, torch.ones(len(branch)), 1

    def __len__(self) -> int:
        return len(self.branch)

    def choose(self, count: int) -> Tensor:
        """Which of `count` outcomes each row takes, (rows,)."""
        chosen, self.branch = self.branch % count, self.branch // count
        self.total *= count
        return chosen

    def bernoulli(self, probs: Tensor) -> Tensor:
        flat = probs.reshape(len(self), -1)
        bits = states(flat.shape[1])[self.choose(2 ** flat.shape[1])]
        self.weight = self.weight * torch.where(bits.bool(), flat, 1 - flat).prod(-1)
        return bits.reshape(probs.shape).to(probs)

    def category(self, log_p: Tensor) -> Tensor:
        probs = log_p.softmax(-1).expand(len(self), -1)
        chosen = self.choose(probs.shape[-1])
        self.weight = self.weight * probs.gather(1, chosen[:, None]).squeeze(1)
        return chosen

    def uniform(self, *shape: int) -> Unseen:
        return Unseen(self, torch.arange(math.prod(shape)).reshape(1, *shape), set())


class Unseen:
    """Uniform numbers of which nothing is known yet. ids: (1, *shape)."""

    def __init__(self, noise: Outcomes, ids: Tensor, used: set[int], *, logarithm: bool = False) -> None:
        self.noise, self.ids, self.used, self.logarithm = noise, ids, used, logarithm

    def _take(self) -> int:
        ids = set(self.ids.flatten().tolist())
        assert not ids & self.used, "one number for two decisions"
        self.used |= ids
        return len(ids)

    def __getitem__(self, key: Any) -> Unseen:
        return Unseen(self.noise, self.ids[key], self.used, logarithm=self.logarithm)

    def log(self) -> Unseen:
        return Unseen(self.noise, self.ids, self.used, logarithm=True)

    def __lt__(self, level: Tensor) -> Tensor:
        assert level.shape[1:] == self.ids.shape[1:] and len(level) == len(self.noise)
        self._take()
        return self.noise.bernoulli((level.exp() if self.logarithm else level).clamp(0, 1)).bool()

    def __mul__(self, count: int) -> Below:
        return Below(self, count)


class Below:
    """Uniform numbers times n, of which only the whole part is asked for."""

    def __init__(self, numbers: Unseen, count: int) -> None:
        self.numbers, self.count = numbers, count

    def long(self) -> Tensor:
        noise, many = self.numbers.noise, self.numbers._take()
        digits = torch.stack([noise.choose(self.count) for _ in range(many)], 1)
        noise.weight = noise.weight / self.count**many
        return digits.reshape(len(noise), *self.numbers.ids.shape[1:])


def matrix(step: Callable[[Tensor, Any], Tensor], among: Tensor) -> Tensor:
    """The transition matrix of a step on the bits `among` (S, ...), all of them in binary order; (S, S)."""
    S, dry = len(among), Outcomes(torch.zeros(1, dtype=torch.long))
    step(among[:1], dry)
    first = torch.arange(S).repeat_interleave(dry.total)
    noise = Outcomes(torch.arange(dry.total).repeat(S))
    then = index(step(among[first], noise).flatten(1))
    assert noise.total == dry.total and not noise.branch.any()
    return torch.zeros(S * S).index_add(0, first * S + then, noise.weight).unflatten(0, (S, S))


def frequencies(where: Tensor, S: int) -> Tensor:
    """Counts of every state, (S). where: indices."""
    return torch.bincount(where.flatten(), minlength=S).double()


def p_value(counts: Tensor, p: Tensor) -> float:
    """Of a chi-square test of counts against probabilities; cells of fewer than 5 expected are put together."""
    expected = counts.sum() * p.flatten()
    rare = expected < 5
    cells = [torch.cat([c[~rare], c[rare].sum()[None]]) for c in (counts.flatten(), expected)]
    seen, wanted = (c[cells[1] > 0] for c in cells)
    return float(stats.chi2.sf(float(((seen - wanted).square() / wanted).sum()), len(wanted) - 1))


def visible_bias(cells: int, draws: int, *, level: float = 1e-4, power: float = 0.99) -> float:
    """The root mean square of P'/P - 1 that `p_value` < level would have shown with probability `power`."""
    limit = stats.chi2.isf(level, cells - 1)
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if stats.ncx2.sf(limit, cells - 1, middle) > power else (middle, high)
    return math.sqrt(high / draws)

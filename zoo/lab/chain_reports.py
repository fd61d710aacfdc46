"""Chains of one model judged together: mixing, fit and class law side by side, never one without the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import arviz as az
import torch
from matplotlib.figure import Figure
from torch import Tensor

from zoo.lab import arviz_bridge, convergence, figures, scores, visits
from zoo.lab.chains import Chains, walk
from zoo.lab.convergence import Mixing
from zoo.lab.kernels import Step
from zoo.lab.labels import Labeller, nearest
from zoo.lab.markov import ceiling
from zoo.lab.noise import Noise
from zoo.lab.scores import Parzen
from zoo.lab.tables import DataError, Split, Table

PARZEN_SAMPLES = 10_000
STRIP = 25  # draws in a strip
STARTS = 2  # a stream of noise for the first states, beside those of `chains.walk`


class Walk(NamedTuple):
    """A chain in the representation of a model.

    Attributes:
        step: (s, noise) -> s. start: (x, noise) -> s. decode: (s, noise) -> x drawn.
        means: s -> E[x | s]; where x lies two levels or more below s, the means of means.
        statistics: s -> {name: (chain,)}, what can be said of a state itself, such as its free energy.
    """

    step: Step
    start: Callable[[Tensor, Noise], Tensor]
    decode: Callable[[Tensor, Noise], Tensor]
    means: Callable[[Tensor], Tensor]
    statistics: Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class ChainReport:
    """Chains, what was seen of them, and the verdict.

    Attributes:
        chains: with draws `x` decoded (chain, draw, D), and the statistics (chain, draw).
        labels: class of every draw, (chain, draw), -1 for none.
        mixing: how they mix. parzen: the score of test data under the draws.
    """

    chains: Chains
    labels: Tensor
    mixing: Mixing
    parzen: Parzen

    units = (
        "classes in T: distinct classes in T draws; ESS per draw of a chain, and per second of all; relaxation in "
        "draws; class error: total variation; nearest: units of x that differ; Parzen in nats per test datum"
    )

    @property
    def failures(self) -> list[str]:
        """The sentences without which the figures would mislead."""
        return self.mixing.sentences[: bool(self.mixing.stuck)]

    def row(self) -> dict[str, float]:
        """The figures of a table: mixing, class law and fit together."""
        return {**self.mixing.row(), "Parzen": self.parzen.mean}

    @property
    def sentences(self) -> list[str]:
        """The figures in words."""
        return [
            *self.mixing.sentences,
            f"Parzen score of the test data under the draws {self.parzen.mean:.2f} ± {self.parzen.error:.2f} nats "
            f"(window {self.parzen.sd:.2g}); it is known to misrank, so read it beside a likelihood.",
        ]

    def inference_data(self) -> az.InferenceData:
        """For ArviZ: posterior with `x`, one-hot `label` and the statistics; dimensions (chain, draw, feature)."""
        label = visits.one_hot(self.labels, len(self.mixing.classes))
        return arviz_bridge.from_chains({**self.chains.draws, "label": label})

    def pictures(self) -> list[tuple[str, Figure]]:
        """Strips, visits and their ceiling, rank plots, autocorrelations, class transitions; each after its text."""
        found = []
        x = self.chains["x"]
        strips = {f"chain {m + 1}": x[m, :STRIP] for m in range(min(8, len(x)))}
        drawn = figures.square_strips(strips)
        if drawn is not None:
            found.append((f"The first {STRIP} draws of each of {len(strips)} chains, one row each.", drawn))
        T = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500) if t <= self.labels.shape[1]]
        n, law = len(self.mixing.classes), visits.one_hot(self.labels, len(self.mixing.classes)).mean((0, 1))
        seen = {"these chains": [float(visits.visited(self.labels, n, t).mean()) for t in T]}
        seen["independent draws"] = [ceiling(law, t) for t in T]
        found.append(
            ("Distinct classes visited against the number of draws, with the ceiling.", figures.visits(T, seen))
        )
        ranks = {name: value for name, value in self.chains.draws.items() if value.dim() == 2}
        found.append(("Rank plots of the statistics, one line for each chain.", figures.ranks(ranks)))
        found.append(("Autocorrelation of the statistics, mean over chains.", figures.autocorrelations(ranks)))
        matrix = figures.transition_matrix(self.mixing.transitions, self.mixing.classes)
        found.append(("Class transition matrix: share of steps from each class to each other.", matrix))
        return found


def starts(train: Table, labels: Tensor, chains: int, *, classes: int, only: int | None = None) -> Tensor:
    """First data for chains, one class after the other, or all from one class; (chains, D).

    Args:
        labels: class of every row. only: a class.

    Raises:
        DataError: no chains, or no datum of these classes.
    """
    x, order = train["x"], range(classes) if only is None else [only]
    members = [x[labels == k] for k in order if bool((labels == k).any())]
    if chains < 1 or not members:
        raise DataError(
            f"chains start from data: one chain or more, not {chains}" if members else "no datum to start from"
        )
    return torch.stack(
        [members[m % len(members)][m // len(members) % len(members[m % len(members)])] for m in range(chains)]
    )


def judge(
    sampler: Walk,
    split: Split,
    *,
    chains: int = 24,
    steps: int = 600,
    seed: int = 0,
    labeller: Labeller | None = None,
    only: int | None = None,
    warmup: int | None = None,
) -> ChainReport:
    """Walk from data of different classes, and say how it went.

    Args:
        chains: M. steps: draws of each. labeller: of the split's training data, if there is one already.
        warmup: steps before the first draw; a tenth of `steps` if not given.
        only: the class in which all chains start; different ones if not given.
    """
    train = split.train
    named = labeller or Labeller(train)
    own = train["y"] if named.rejects else named(train["x"])
    first = starts(train, own, chains, classes=len(named), only=only)
    state = sampler.start(first, Noise(chains, seed=seed, stream=STARTS, dtype=first.dtype))
    axes = _principal(train["x"])
    mean = train["x"].mean(0)

    def said(s: Tensor, noise: Noise) -> Tensor:
        x, g = sampler.decode(s, noise), sampler.means(s)
        parts = [x.sum(-1), g.sum(-1), (x - mean) @ axes[:, 0], (g - mean) @ axes[:, 0], (x - mean) @ axes[:, 1]]
        return torch.cat([x, torch.stack([*parts, *sampler.statistics(s).values()], -1)], -1)

    before = steps // 10 if warmup is None else warmup
    walked = walk(sampler.step, state, draws=steps, warmup=before, watch={"all": said}, seed=seed)
    D = train["x"].shape[-1]
    x, rest = walked["all"][..., :D], walked["all"][..., D:]
    names = ["pixel sum", "pixel sum | s", "PC 1", "PC 1 | s", "PC 2", *sampler.statistics(state)]
    others = {name: rest[..., i] for i, name in enumerate(names)}
    labels = named(x)
    verdict = convergence.mixing(
        labels,
        named.law,
        others=others,
        seconds=walked.seconds,
        classes=named.names,
        nearest=nearest(x, train["x"]),
    )
    seen = Chains({"x": x, **others}, walked.state, walked.noise, walked.asides, walked.steps, walked.seconds)
    return ChainReport(seen, labels, verdict, _parzen(x, split))


def _principal(x: Tensor) -> Tensor:
    """The first two principal axes, (D, 2)."""
    return torch.linalg.eigh(torch.cov(x.mT.double())).eigenvectors[:, -2:].flip(1).to(x)


def _parzen(x: Tensor, split: Split) -> Parzen:
    """The Parzen score under evenly thinned draws; without a validation part the window is chosen on half the test."""
    rows = x.reshape(-1, x.shape[-1])
    samples = rows[:: max(1, len(rows) // PARZEN_SAMPLES)]
    test = split.test["x"]
    if split.valid is not None:
        return scores.parzen(test, samples, split.valid["x"])
    half = max(1, len(test) // 2)
    return scores.parzen(test[half:] if len(test) > 1 else test, samples, test[:half])

"""Classification of digits with the authors' recipe: the cells of the MNIST claim and of its reading in small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

import guides
from zoo import lab, matrix_gaussian
from zoo.lab.averaging import Average
from zoo.lab.comparison import kl_by_site


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Train one classifier and follow its test error (deterministic pass) and the KL of its weights by epochs.

    The cell: data, guide ("MatrixNormalAuthors" or "MatrixNormal"), hidden, m, nu, epochs, batch, lr, average, seed,
    valid (share of the training rows left out), train (how many of the rest are used, 0 for all). Predictions are those
    of the averaged parameters, as in the recipe.
    """
    torch.set_default_dtype(torch.float32)
    lab.seed(cell["seed"])
    train, test = _tables(cell)
    model = matrix_gaussian.Model.for_data(train, hidden=cell["hidden"])
    guide = _guide(cell, model, train.peek())
    follow = Follow(Average(cell["average"]), test, every=math.ceil(len(train) / cell["batch"]))
    adam = partial(torch.optim.Adam, betas=(0.9, 0.999), fused=True)
    fit = lab.fit(
        model,
        guide,
        train.batches(cell["batch"], seed=cell["seed"]),
        matrix_gaussian.bound(guide),
        epochs=cell["epochs"],
        lr=cell["lr"],
        optimiser=adam,
        callbacks=[follow.average, follow],
    )
    follow.average.apply(fit)
    return {
        "error": follow.errors[-1],
        "errors": follow.errors,
        "kl": follow.kls,
        "weights": sum(value.numel() for value in deterministic(guide).values()),
        "train_error": error(model, deterministic(guide), train),
        "error_without_outputs": error(model, _without_outputs(guide), test),
        "steps": fit.steps,
    }


def _tables(cell: Mapping[str, Any]) -> tuple[lab.Table, lab.Table]:
    train, _, test = matrix_gaussian.data(cell["data"], valid=cell["valid"])
    return (train.subset(range(cell["train"])) if cell["train"] else train), test


def _guide(cell: Mapping[str, Any], model: Any, batch: Mapping[str, Any]) -> guides.Guide:
    if cell["guide"] == "MatrixNormalAuthors":
        return matrix_gaussian.published_guide(model, batch, m=cell["m"], nu=cell["nu"])
    as_published = {"scale": 1.0, "bias_scale": math.exp(-4)}  # the start, so that only pseudo-data differ
    return guides.Guide(model, batch, weights=partial(getattr(guides, cell["guide"]), **as_published))


class Follow:
    """A callback: test error and weight KL of the averaged parameters, at the end of every epoch."""

    def __init__(self, average: Average, test: lab.Table, *, every: int) -> None:
        self.average, self.test, self.every = average, test, every
        self.errors: list[float] = []
        self.kls: list[float] = []

    def __call__(self, fit: lab.Fit) -> None:
        """Look at the fit after an optimiser step."""
        if fit.steps % self.every:
            return
        assert self.average.averaged is not None
        pair: Any = self.average.averaged.module
        self.errors.append(error(pair.model, deterministic(pair.guide), self.test))
        now = lab.Fit(pair.model, pair.guide, fit.bound, [self.test.peek()])
        self.kls.append(sum(kl_by_site(now).values()))


def deterministic(guide: Any) -> dict[str, Tensor]:
    """The weights of the pass without noise: the mean, conditioned on the pseudo-data where there are any."""
    with torch.no_grad():
        laws = {name: guide.q[name](None) for name in guide.order}
        return {name: getattr(law, "conditional_mean", lambda law=law: law.mean)() for name, law in laws.items()}


def _without_outputs(guide: Any) -> dict[str, Tensor]:
    """The same with the pseudo-outputs set to A M, that is, without what they carry: the plain means."""
    with torch.no_grad():
        return {name: guide.q[name].loc.detach() for name in guide.order}


def error(model: Any, weights: Mapping[str, Tensor], table: lab.Table) -> float:
    """Error rate of the model with these weights."""
    with torch.no_grad(), poutine.block(), poutine.condition(data=dict(weights)):
        return float((model.net(table["x"]).argmax(-1) != table["y"]).double().mean())

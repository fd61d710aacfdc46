"""One guide trained on several benchmark splits at once, and scored on each: the cells of regression claims."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Gamma

import guides
from zoo import lab, matrix_gaussian
from zoo.lab import scores
from zoo.lab.comparison import is_bound, kl_by_site
from zoo.lab.predictive import draw
from zoo.lab.replicas import fit_together

FAMILIES: dict[str, Any] = {
    "MatrixNormal": guides.MatrixNormal,
    "MatrixNormalTril": guides.MatrixNormalTril,
    "MeanField": guides.MeanField,
    "Point": guides.Point,
    "MatrixNormalAuthors": guides.MatrixNormalAuthors,
}
DRAWS = 100


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Train and score; every list has one number for each split, in the units of y and in nats per datum.

    The cell: data, splits, guide, noise, hyperprior, start (initial standard deviation), bias (of the bias row, or
    null), tau ("data" or "prior"), m and nu (of pseudo-data, or null), steps, batch, lr, decay, beta2, average, valid
    (share of the training rows to score on instead of the test rows, 0 for none).
    """
    torch.set_default_dtype(torch.float32)
    parts = [_part(cell, split) for split in range(cell["splits"])]
    pairs = [_pair(cell, split, train) for split, (train, _) in enumerate(parts)]
    batches = [train.batches(cell["batch"], seed=split) for split, (train, _) in enumerate(parts)]
    lab.seed(0)
    history = fit_together(
        pairs,
        batches,
        N=len(parts[0][0]),
        epochs=math.ceil(cell["steps"] / len(batches[0])),
        lr=cell["lr"],
        decay=cell["decay"],
        average=cell["average"],
        optimiser=partial(torch.optim.Adam, betas=(0.9, cell["beta2"]), fused=True),
    )
    fits = [
        lab.Fit(pair.model, pair.guide, pair.bound, batch, len(train), history[:, split].tolist())
        for split, (pair, batch, (train, _)) in enumerate(zip(pairs, batches, parts, strict=True))
    ]
    rows = [score(fit, *part) for fit, part in zip(fits, parts, strict=True)]
    return {key: [row[key] for row in rows] for key in rows[0]} | {"is_bound": is_bound(fits[0])}


def _part(cell: dict[str, Any], split: int) -> tuple[lab.Table, lab.Table]:
    train, valid, test = matrix_gaussian.data(cell["data"], split=split, valid=cell["valid"])
    return train, valid or test


class Pair(nn.Module):
    """Model and guide under their bound, with the bound still at hand."""

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.bound = matrix_gaussian.bound(guide)
        self.loss = self.bound(model, guide)

    @property
    def model(self) -> Any:
        return self.loss.model

    @property
    def guide(self) -> Any:
        return self.loss.guide

    def forward(self, **batch: Tensor) -> Tensor:
        return self.loss(**batch)


def _pair(cell: dict[str, Any], split: int, train: lab.Table) -> Pair:
    lab.seed(split)
    model = matrix_gaussian.Model.for_data(train, noise=cell["noise"], hyperprior=cell["hyperprior"])
    options: dict[str, Any] = {"scale": cell["start"], "bias_scale": cell["bias"]}
    if cell["guide"] == "Point":
        options = {}
    elif cell["m"]:
        options |= {"m": cell["m"], "nu": cell["nu"]}
    start = model.start() if cell["tau"] == "data" else {}
    weights = partial(FAMILIES[cell["guide"]], **options)
    return Pair(model, guides.Guide(model, train.peek(), weights=weights, start=start))


def score(fit: lab.Fit, train: lab.Table, test: lab.Table) -> dict[str, Any]:
    """Scores on test rows, and what the training came to."""
    out = draw(fit.model, fit.guide, test.all(), DRAWS).outputs["y"]
    assert out.log_prob is not None
    y = test["y"]
    loglik = scores.loglik_mixture(out.log_prob)
    q: Any = fit.guide.q
    tau = getattr(q["tau"](None), "base_dist", None)
    if isinstance(tau, Gamma):
        loglik = scores.loglik_expected(y, out.mean, tau.concentration.detach(), tau.rate.detach())
    with torch.no_grad():
        objective = -torch.stack([fit.bound(fit.model, fit.guide)(**train.all()) for _ in range(100)]).mean()
    return {
        "rmse": scores.rmse(y, out.mean.mean(0)),
        "loglik": loglik,
        "crps": scores.crps(y, out.sample),
        "coverage": scores.coverage(y, out.sample, level=0.9),
        "objective": float(objective) / fit.N,
        "kl": sum(value for site, value in kl_by_site(fit).items() if site.startswith("W")),
        "rmse_of_mean": scores.rmse(y, train["y"].mean(0)),
        "settled": fit.converged,
    }

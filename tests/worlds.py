"""Small worlds. R: 8 pixels, a code of 4 bits, and the distinct rows of 12 throws of 8 fair coins."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import guides
from guides.codes import states, table
from zoo import layerwise
from zoo.lab import exact, experiments, runs
from zoo.lab.checkpoints import Checkpoints
from zoo.lab.experiments import Plan
from zoo.lab.tables import Table
from zoo.lab.training import Fit
from zoo.layerwise import Model

D, n = 8, 4
EPS = 1e-12  # of an inequality between exact numbers


class World(NamedTuple):
    """A decoder and distinct weighted data; T[m, h] = log P(x_m | h)."""

    x: Tensor
    W: Tensor
    b: Tensor
    log_w: Tensor

    @property
    def T(self) -> Tensor:
        return tables(self.x, self.W, self.b)


def tables(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    eta = states(len(W)) @ W + b
    return x @ eta.mT - softplus(eta).sum(-1)


def rows() -> Tensor:
    """Distinct rows of 12 throws of 8 fair coins."""
    return exact.distinct(torch.bernoulli(torch.full((12, D), 0.5)))[0]


def decoder() -> tuple[Tensor, Tensor]:
    return 1.5 * torch.randn(n, D), torch.randn(D)


def world(x: Tensor | None = None, *, equal: bool = False) -> World:
    """The world R of the dossier; by default with unequal weights."""
    x = rows() if x is None else x
    logits = torch.zeros(len(x)) if equal else torch.randn(len(x))
    return World(x, *decoder(), logits.log_softmax(0))


def law(spread: float = 2.0) -> Tensor:
    return (spread * torch.randn(2**n)).log_softmax(-1)


def conditional(world: World, spread: float = 2.0) -> Tensor:
    return (spread * torch.randn(len(world.x), 2**n)).log_softmax(-1)


def mean(T: Tensor, log_Q: Tensor, log_w: Tensor) -> float:
    """L_D(Q), nats per datum."""
    return float(log_w.exp() @ exact.evidence(T, log_Q))


def shaken(module: nn.Module) -> nn.Module:
    """A module with standard normal parameters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def data(rows: int = 7, features: int = 5) -> Tensor:
    return torch.bernoulli(torch.full((rows, features), 0.5))


def rows_of(x: Tensor) -> Table:
    return Table({"x": x}, name="t")


def built(hidden: tuple[int, ...] = (3,), top: str = "rbm", **options: Any) -> Model:
    """A model with parameters of order one; an aggregated top has a shaken guide."""
    options = {"N": 7, "in_features": 5, **options}
    model: Any = shaken(Model(hidden=hidden, top=top, **options))
    if top == "aggregated":
        model.prior.data.copy_(data(options["N"], options["in_features"]))
        shaken(layerwise.guide(model, {"x": model.prior.data}))
    return model


def brute(model: Model, x: Tensor) -> Tensor:
    """log P(x_n), the sum over all codes of all layers, one at a time."""
    log_top = table(model.prior())
    total = []
    for h, log_p in zip(states(model.hidden[-1]), log_top, strict=True):
        total.append(log_p + downwards(model, len(model.hidden), h, x))
    return torch.stack(total).logsumexp(0)


def downwards(model: Model, layer: int, h: Tensor, x: Tensor) -> Tensor:
    decoder: Any = model.decoders[layer - 1]
    if layer == 1:
        return decoder(h).log_prob(x)
    law, below = decoder(h), states(model.hidden[layer - 2])
    return torch.stack([law.log_prob(code) + downwards(model, layer - 1, code, x) for code in below]).logsumexp(0)


def gradients(value: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, module.parameters(), strict=True)]


def assert_same(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-11) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=atol)


FAMILIES: dict[str, Any] = {
    "Vanilla": guides.Vanilla,
    "Rich": partial(guides.Rich, hidden=(4,)),
    "Autoregressive": partial(guides.Autoregressive, hidden=(4,)),
    "PerDatum": partial(guides.PerDatum, N=7),
}


def pair(family: str = "Rich", hidden: tuple[int, ...] = (3,), **options: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """A model with data entropy 1.25, a guide, and the data."""
    model, batch = built(hidden, entropy=1.25, **options), {"x": data(), "index": torch.arange(7)}
    given = {"h1": ("index",)} if family == "PerDatum" else model.given
    guide = shaken(guides.Guide(model, batch, latents=FAMILIES[family], given=given))
    return model, guide, batch


def law_of(guide: Any, batch: dict[str, Tensor]) -> Any:
    return guide.q["h1"](guide.context("h1", batch, {}))


def every_draw(n: int, K: int, bits: int) -> Tensor:
    """All outcomes of K codes for each of n data, (outcomes, K, n) code numbers."""
    return torch.cartesian_prod(*[torch.arange(2**bits)] * (K * n)).unflatten(-1, (K, n))


class Stopped(Exception):
    """A training that was interrupted on purpose."""


def stop_runs(patch: pytest.MonkeyPatch, after: int, by: type[BaseException] = Stopped) -> None:
    """Every checkpoint is kept, and a run stops when `after` epochs are done."""
    offer = Checkpoints.offer

    def stop(self: Checkpoints, parts: object, schedule: object, done: int) -> None:
        self.every = 0.0
        offer(self, parts, schedule, done)  # type: ignore[arg-type]
        if done == after:
            raise by

    patch.setattr(Checkpoints, "offer", stop)


def stopped_and_resumed(wanted: Plan, folder: Path, after: int) -> Fit:
    """A run that stopped after some epochs, and went on from its folder."""
    cell, split = experiments.prepare(wanted)
    keep = runs.begin(folder, wanted, cell, split)
    with pytest.MonkeyPatch.context() as patch:
        stop_runs(patch, after)
        with pytest.raises(Stopped):
            cell.fit(keep=keep)
    _, cell, _, keep = runs.resume(folder)
    return cell.fit(keep=keep)

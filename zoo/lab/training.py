"""Training on one bound: `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from guides.sites import DATA, fixed_size, paired_sites, rows
from zoo.lab.checkpoints import Checkpoints
from zoo.lab.checks import PlateScale, TrainingError, check
from zoo.lab.predictions import Prediction, predict
from zoo.lab.stages import Batch, Batches, NonFiniteLoss, Stage, at_epoch, run
from zoo.lab.tables import Table

Callback = Callable[["Fit"], None]


@dataclass(frozen=True)
class Phase:
    """One phase of a training: its bound, and the parameters that move; None is all of them."""

    name: str
    bound: ELBO
    parameters: Sequence[nn.Parameter] | None = None


def seed(value: int) -> None:
    """Seed torch, numpy and random, as `pyro.set_rng_seed` does."""
    pyro.set_rng_seed(value)


@dataclass
class Fit:
    """A trained model/guide pair and how it came about.

    Attributes:
        batches: what it was trained on.
        losses: the loss at every optimiser step, in nats per datum (the bound divided by the plate's N).
        valid: mean loss on the validation batches after every epoch, in nats per datum.
        N: the size of the data plate.
        seconds: wall time of the training.
        ends: {phase: the steps after which it ends}, in their order; empty for a training on one bound.
        unjudged: the phases whose loss is no likelihood, as of contrastive divergence: it may rise while they learn.
    """

    model: nn.Module
    guide: nn.Module
    bound: ELBO
    batches: Batches
    N: int = 1
    losses: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    seconds: float = 0.0
    ends: Mapping[str, int] = field(default_factory=dict)
    unjudged: Sequence[str] = ()

    @property
    def device(self) -> torch.device:
        """Where the guide is."""
        return next((p.device for p in self.guide.parameters()), torch.device("cpu"))

    def first_batch(self) -> Batch:
        """The first training batch, where the guide is."""
        return _to(next(iter(at_epoch(self.batches, 0))), self.device)

    @property
    def parameters(self) -> int:
        """Number of variational parameters: those of the guide."""
        return sum(p.numel() for p in self.guide.parameters())

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return len(self.losses)

    @property
    def converged(self) -> bool:
        """Whether the loss had settled over the second half of the run, of every phase where there are several.

        The fall is the least-squares line's, and counts if it exceeds three standard errors and .001 nats per datum.
        The half, not the end: a rate that decays to nothing flattens the end of any run. Fewer than 100 steps cannot
        tell, and say False; nor can a training none of whose phases is judged.
        """
        return bool(self.curves) and all(map(_settled, self.curves.values()))

    @property
    def curves(self) -> dict[str, list[float]]:
        """{phase: its losses} of the phases that are judged by them; a training on one bound is one, "training"."""
        ends = self.ends or {"training": len(self.losses)}
        pieces = zip(ends, pairwise([0, *ends.values()]), strict=True)
        return {name: self.losses[begin:end] for name, (begin, end) in pieces if name not in self.unjudged}

    @property
    def evidence_bound(self) -> ELBO:
        """The bound of the model's evidence: the one trained on, unless that is a criterion and names another."""
        return getattr(self.bound, "evidence_bound", self.bound)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside parameters: how the training went so far."""
        curves = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("losses", "valid")}
        about = {"ends": dict(self.ends), "unjudged": list(self.unjudged)}
        return {**curves, "seconds": self.seconds, "N": self.N, **about}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to such a state."""
        self.losses, self.valid = (state_dict[name].tolist() for name in ("losses", "valid"))
        self.seconds, self.N = float(state_dict["seconds"]), int(state_dict["N"])
        self.ends, self.unjudged = dict(state_dict.get("ends", {})), state_dict.get("unjudged", [])

    def predict(self, table: Table | Batch, *, site: str = "y", draws: int = 1000) -> Prediction:
        """What the model says of a site, given everything else in the table; see `Prediction`.

        Raises:
            PredictionError: the model does not sample that site, or does so only as a latent of the guide.
        """
        batch = table.all() if isinstance(table, Table) else table
        return predict(self.model, self.guide, _to(batch, self.device), site=site, draws=draws)

    def elbo(self, batch: Batch | None = None, *, particles: int = 100) -> tuple[float, float]:
        """The bound in nats for the full data set, and its Monte Carlo standard error over the particles.

        On one batch if it is given, otherwise on the training data: at once if they are few, else batch by batch.
        """
        loss = self.evidence_bound(self.model, self.guide)
        _ = getattr(self.model, "annealed", None)  # a log Z kept from the training would be that of older parameters
        batches = _few([_to(b, self.device) for b in (at_epoch(self.batches, 0) if batch is None else [batch])])
        share = torch.tensor([rows(b) for b in batches], dtype=torch.float64)
        share /= share.sum()
        # not under no_grad: TraceEnum_ELBO refuses a loss that needs no gradient
        draws = -torch.stack(
            [share @ torch.stack([loss(**b).detach().double().cpu() for b in batches]) for _ in range(particles)]
        )
        return float(draws.mean()), float(draws.std() / math.sqrt(particles)) if particles > 1 else math.nan


def _settled(losses: Sequence[float]) -> bool:
    if len(losses) < 100:
        return False
    half = torch.tensor(losses[len(losses) // 2 :], dtype=torch.float64)
    time = torch.linspace(-0.5, 0.5, len(half), dtype=torch.float64)
    fall = -(time @ half) / (time @ time)
    rest = half - half.mean() + fall * time
    error = math.sqrt(float((rest @ rest) / (len(half) - 2) / (time @ time)))
    return abs(float(fall)) < max(3 * error, 1e-3)


def fit(
    model: nn.Module,
    guide: nn.Module,
    batches: Batches,
    bound: ELBO,
    *,
    epochs: int,
    lr: float = 1e-3,
    decay: float = 1.0,
    optimiser: Callable[..., torch.optim.Optimizer] | None = None,
    valid: Batches | None = None,
    callbacks: Sequence[Callback] = (),
    phases: Sequence[Phase] = (),
    device: Any = None,
    keep: Checkpoints | None = None,
) -> Fit:
    """Train guide and model on a bound by stochastic gradients.

    One optimiser runs over all parameters of `bound(model, guide)`; the loss is divided by the plate's N, so learning
    rates compare across data sets. The first batch is checked by `check`. With `phases` each of them is trained in
    turn on its own bound, for as many epochs; `bound` is then what the fit is known by.

    Args:
        batches: any re-iterable of dicts of tensors: `Table.batches`, or a plain list.
        bound: a `pyro.infer` ELBO with `differentiable_loss`.
        lr: learning rate at the start.
        decay: the rate falls to `decay * lr` along a cosine; 1 keeps it constant.
        optimiser: `(parameters, lr=) -> torch.optim.Optimizer`; the default is `adam`.
        valid: batches on which the loss is recorded after every epoch.
        callbacks: each is called with the `Fit` after every optimiser step; one with a state dict is checkpointed.
        phases: of a training that is not one bound, such as a paper's `phases(model, guide)`.
        device: where model, guide and batches are moved to.
        keep: where checkpoints are written, and where to go on from: `Checkpoints(folder)`.

    Returns:
        The `Fit`. Model and guide are trained in place.

    Raises:
        TrainingError: see `check`; `NonFiniteLoss` at the first loss that is not finite, naming the site. RunError: a
            checkpoint does not fit, or cannot be written.
    """
    model.to(device), guide.to(device)
    if iter(batches) is batches:
        raise TrainingError("these batches can be read only once: give a list of them, or a loader")
    first = _to(next(iter(at_epoch(batches, 0)), None), device)
    if not first:
        raise TrainingError("no batches to train on")
    plan = list(phases) or [Phase("training", bound)]
    with _explained(model, guide, first, 0):
        result = Fit(model, guide, bound, batches, max(check(model, guide, first, phase.bound) for phase in plan))
    follows = _length(batches) > 1 and rows(first) == result.N and fixed_size(model, first) is None
    if follows:
        _refuse_weights(model, guide, first, batches)
        result.N = sum(rows(batch) for batch in at_epoch(batches, 0))
    total = epochs * _length(batches)
    result.ends = {phase.name: total * number for number, phase in enumerate(plan, 1)} if phases else {}
    result.unjudged = [phase.name for phase in plan if not getattr(phase.bound, "likelihood", True)]
    began = time.perf_counter()

    def after_step(value: float) -> None:
        result.losses.append(value)
        for callback in callbacks:
            callback(result)

    def stage(phase: Phase) -> Stage:
        loss = phase.bound(model, guide)
        moving = [p for p in (phase.parameters or loss.parameters()) if p.requires_grad]
        if not moving:
            raise TrainingError("neither model nor guide has a parameter to train")

        def value_of(batch: Batch) -> Tensor:
            with _explained(model, guide, batch, result.steps):
                value = loss(**batch) / (rows(batch) if follows else result.N)
            if not torch.isfinite(value):
                raise NonFiniteLoss(_explain(model, guide, batch, result.steps) or _no_culprit(result.steps))
            return value

        def after_epoch() -> None:
            nonlocal began
            if valid is not None:
                in_order = (_to(batch, device) for batch in at_epoch(valid, len(result.valid)))
                values = [(float(loss(**batch).detach()), rows(batch)) for batch in in_order]
                total = sum(v if follows else v * n / result.N for v, n in values)
                result.valid.append(total / sum(n for _, n in values))
            result.seconds, began = result.seconds + time.perf_counter() - began, time.perf_counter()

        optim = (optimiser or adam)(moving, lr=lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optim, max(total, 1), eta_min=decay * lr)
        scheduler = cosine if decay != 1 else None
        return Stage(
            phase.name, lambda batch: value_of(_to(batch, device)), batches, epochs, optim, scheduler, after_step,
            after_epoch,
        )  # fmt: skip

    parts = {"parameters": bound(model, guide), "fit": result, **_with_state(callbacks)}
    run([stage(phase) for phase in plan], state=parts, keep=keep)
    return result


def _with_state(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """The callbacks that a checkpoint remembers."""
    stateful = [callback for callback in callbacks if hasattr(callback, "state_dict")]
    return {f"callback {number}": callback for number, callback in enumerate(stateful, 1)}


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Fused Adam whose second moment forgets within twenty steps (beta2 = .95) instead of a thousand.

    A bound starts orders of magnitude steeper than it ends, and a long memory of that keeps later steps tiny: with
    beta2 = .999 the shape of q(tau) stood at 15 after 2000 steps where 205 is best (diabetes, no hidden layer).
    """
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.95), fused=True)


@contextmanager
def _explained(model: nn.Module, guide: nn.Module, batch: Batch, step: int) -> Iterator[None]:
    """Pyro's validation meets NaN before the loss does; then name the site, too."""
    try:
        yield
    except TrainingError:
        raise
    except ValueError as error:
        reason = _explain(model, guide, batch, step)
        if reason is None:
            raise
        raise NonFiniteLoss(reason) from error


def _no_culprit(step: int) -> str:
    return f"loss not finite at step {step + 1}; every site was finite on a fresh draw, so try a smaller lr"


def _explain(model: nn.Module, guide: nn.Module, batch: Batch, step: int) -> str | None:
    """Which site's log-probability is not finite."""
    with pyro.validation_enabled(False):
        of_model, of_guide = paired_sites(model, guide, batch)
    for where, sites in (("guide", of_guide), ("model", of_model)):
        for name, site in sites.items():
            if not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                return (
                    f"loss not finite at step {step + 1}: the log-probability of site {name!r} in the {where} is not "
                    "finite; parameters are those before the step (try a smaller lr, or look at the data)"
                )
    return None


def _refuse_weights(model: nn.Module, guide: nn.Module, first: Batch, batches: Batches) -> None:
    """Where the plate follows the batch, the KL of a global site would count once in every batch."""
    sites, _ = paired_sites(model, guide, first)
    weights = [
        name
        for name, site in sites.items()
        if not site["is_observed"] and all(frame.name != DATA for frame in site["cond_indep_stack"])
    ]
    if weights:
        raise PlateScale(
            f"the plate 'data' follows the batch, and there are {_length(batches)} batches: the KL of {weights} would "
            "count once in each; give the model's plate the size N of the data set"
        )


def _few(batches: list[Any]) -> list[Any]:
    """Up to twenty thousand rows as one batch, whose bound has less noise than the mean over small ones."""
    alike = all(
        isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows(batch)
        for batch in batches
        for value in batch.values()
    )
    if not alike or sum(rows(batch) for batch in batches) > 20_000:
        return batches
    return [{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}]


def _length(batches: Batches) -> int:
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in at_epoch(batches, 0))


def _to(batch: Any, device: Any) -> Any:
    if device is None or not batch:
        return batch
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}

"""Importance weights p(x, theta) / q(theta) of a trained guide, and their Pareto k-hat, joint or for each datum.

The draws are joint draws in weight space, over all training data; nothing is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn

from guides import weight_space
from guides.sites import DATA, paired_sites, rows
from zoo.lab.pareto import DatumKHats, DiagnosisError, KHat, tail_index
from zoo.lab.predictive import ROWS_AT_ONCE, condition, density, draw
from zoo.lab.stages import Batch, at_epoch
from zoo.lab.tables import row_pieces
from zoo.lab.training import Fit


def joint(fit: Fit, *, draws: int = 4000) -> KHat:
    """k-hat of the joint importance weights p(x, theta) / q(theta) over all training data.

    The batches are gone through one after the other under the same draws, so nothing is scaled.

    Raises:
        DiagnosisError: a point mass; a family whose activations follow another law than its weights; local latents
            spread over several batches; a weight that is not finite.
    """
    batches = list(training_batches(fit))
    _refuse_joint(fit, batches)
    first = draw(fit.model, fit.guide, batches[0], draws)
    log_weights = first.lp.double() - first.log_q.double()
    for batch in batches[1:]:
        log_weights = log_weights + _likelihood(fit.model, first.latents, batch, draws)
    size = max(float(log_weights.abs().max()), float(first.log_q.abs().max()))
    rounding = 64 * torch.finfo(first.lp.dtype).eps * size
    elements = sum(value[0].numel() for value in first.latents.values())
    return KHat(float(tail_index(log_weights, resolution=rounding)), draws, elements)


def per_datum(fit: Fit, batch: Batch | None = None, *, draws: int = 1000) -> DatumKHats:
    """k-hat of p(x_n, z_n | theta) / q(z_n | x_n) for each datum, given one draw of the global latents theta.

    Args:
        batch: the data; the first training batch if not given.

    Raises:
        DiagnosisError: no local latents, one of them a point mass, or a guide that is joint over the data.
    """
    batch = fit.first_batch() if batch is None else batch
    guide = _given_globals(fit, batch)
    parts = [draw(fit.model, guide, part, draws) for part in row_pieces(batch, max(1, ROWS_AT_ONCE // draws))]
    values = []
    for part in parts:
        seen = [out.log_prob.double() for out in part.outputs.values() if out.log_prob is not None]
        assert part.local is not None
        log_weights = part.local.double() + sum(seen)
        rounding = 64 * torch.finfo(part.local.dtype).eps * float(log_weights.abs().max())
        values.append(tail_index(log_weights, resolution=rounding))
    return DatumKHats(np.concatenate(values), draws)


def training_batches(fit: Fit) -> Iterator[Batch]:
    """The batches a fit was trained on, where its guide is."""
    for batch in at_epoch(fit.batches, 0):
        yield {k: v.to(fit.device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def refuse_other_law(fit: Fit, number: str) -> None:
    """A guide or family may say `joint_density = False`: what reaches the data is not drawn from the law it charges.

    A model may say `density = False`: it scores its data given themselves.

    Raises:
        DiagnosisError: it does, so there is no such number.
    """
    if not density(fit.model):
        raise DiagnosisError(
            f"no {number}: {type(fit.model).__name__} predicts data from themselves and has no density"
        )
    names = [type(module).__name__ for module in fit.guide.modules() if not getattr(module, "joint_density", True)]
    if names:  # the guide first, the family last
        raise DiagnosisError(
            f"no {number}: the activations of {names[-1]} follow another law than its weights; look at predictive "
            "scores and at agreement over restarts"
        )


def _refuse_joint(fit: Fit, batches: list[Batch]) -> None:
    refuse_other_law(fit, "joint k-hat")
    sites = _guided(fit, batches[0])
    _refuse_points(_points(sites))
    local = [name for name, site in sites.items() if _is_local(site)]
    if local and len(batches) > 1:
        raise DiagnosisError(f"no joint k-hat: {local} are latents of each datum; look at k-hat per datum")


def _refuse_points(points: list[str]) -> None:
    if points:
        raise DiagnosisError(f"no k-hat: the guide is a point mass at {points}, and a point has no density")


def _guided(fit: Fit, batch: Batch) -> dict[str, Any]:
    """The guide's sites, which must be all latents of the model."""
    if any(isinstance(value, Mapping) for value in batch.values()):
        raise DiagnosisError("no k-hat: the model is trained on several data streams, not on one set of data")
    with weight_space():
        p, q = paired_sites(fit.model, fit.guide, batch)
    summed = [name for name, site in p.items() if name not in q and not site["is_observed"]]
    if summed:
        raise DiagnosisError(f"no k-hat: the guide does not draw {summed}, which the model sums out")
    if not q:
        raise DiagnosisError("no k-hat: the model has no latents, so there is no posterior to approximate")
    return q


def _points(sites: Mapping[str, Any]) -> list[str]:
    """Bare point masses; those of automatic guides have their density in an auxiliary site."""
    if any(site["infer"].get("is_auxiliary") for site in sites.values()):
        return []
    return [name for name, site in sites.items() if _is_delta(site["fn"])]


def _is_delta(law: Any) -> bool:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, Delta)


def _is_local(site: Mapping[str, Any]) -> bool:
    return any(frame.name == DATA for frame in site["cond_indep_stack"])


def _given_globals(fit: Fit, batch: Batch) -> Callable[..., Any]:
    """The guide with its global sites held at one draw."""
    sites = _guided(fit, batch)
    local = {name: site for name, site in sites.items() if _is_local(site)}
    if not local:
        raise DiagnosisError("no k-hat per datum: the model has no local latents; look at the joint one")
    if any(site["infer"].get("is_auxiliary") for site in sites.values()):
        raise DiagnosisError("no k-hat per datum: an automatic guide is joint over the data; look at the joint one")
    _refuse_points(_points(local))
    with torch.no_grad(), weight_space(), poutine.block():
        trace = poutine.trace(fit.guide).get_trace(**batch)
    for name in set(trace.nodes) - (set(sites) - set(local)):
        trace.remove_node(name)
    return poutine.replay(fit.guide, trace=trace)


def _likelihood(model: nn.Module, latents: Mapping[str, Tensor], batch: Batch, draws: int) -> Tensor:
    """(S,) log p(data of the batch | latents), unscaled."""
    pieces = math.ceil(draws / max(4, ROWS_AT_ONCE // rows(batch)))
    total = []
    for index in torch.arange(draws).tensor_split(pieces):
        drawn = condition(model, {name: value[index] for name, value in latents.items()}, batch)
        seen = [out.log_prob.double() for out in drawn.outputs.values() if out.log_prob is not None]
        total.append(sum(term.flatten(1).sum(1) for term in seen))
    return torch.cat([torch.as_tensor(part) for part in total])

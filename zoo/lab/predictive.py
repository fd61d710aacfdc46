"""S joint draws of guide and model, as one vectorised trace: what scores, ArviZ and figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from torch import Tensor

from guides import weight_space
from guides.codes import Binary
from guides.sites import DATA, paired_sites

ROWS_AT_ONCE = 200_000


@dataclass(frozen=True)
class Output:
    """What the model says of one site that the guide does not sample, for each of S draws.

    Attributes:
        mean: (S, n, ...) mean of the site's law; class probabilities (S, n, classes) for a categorical site.
        sample: (S, n, ...) a draw from it.
        log_prob: (S, n) log-density of the observed value in nats, None where the site is not observed.
        value: the observed value, or None.
    """

    mean: Tensor
    sample: Tensor
    log_prob: Tensor | None
    value: Tensor | None


@dataclass(frozen=True)
class Draws:
    """S coherent draws in weight space.

    Attributes:
        latents: {site: (S, ...)}.
        outputs: {site: Output}.
        lp: (S,) log p(latents, data of this batch), nats, not scaled to the data set.
        log_q: (S,) log q(latents), nats.
        local: (S, n) log p(z_n) - log q(z_n) of the local latents, nats; None where there are none. With it the mean
            over draws of p(y_n | z) p(z) / q(z) is p(y_n); without it y would have chosen its own z.
    """

    latents: dict[str, Tensor]
    outputs: dict[str, Output]
    lp: Tensor
    log_q: Tensor
    local: Tensor | None = None


def density(model: Any) -> bool:
    """Whether what a model scores is a density of its data; a pseudo-model says `density = False`."""
    return bool(getattr(model, "density", True))


def draw(model: Callable[..., Any], guide: Callable[..., Any], batch: Mapping[str, Any], draws: int) -> Draws:
    """Draw S times from the guide and run the model on each draw.

    Weights are drawn as such (`guides.weight_space`), so latents, outputs and log-probabilities of one draw belong
    together. Long batches are cut into chunks of draws; a model that cannot be vectorised is run draw by draw.
    """
    nesting = _nesting(model, batch)
    n = max((len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim()), default=1)
    chunk = max(1, ROWS_AT_ONCE // n)
    sizes = [min(chunk, draws - begun) for begun in range(0, draws, chunk)]
    try:
        return _join([_draw(model, guide, batch, size, nesting) for size in sizes])
    except (RuntimeError, ValueError):  # not every model's text can be vectorised; an error of its own comes again
        return _join([_draw(model, guide, batch, 1, nesting) for _ in range(draws)])


def condition(model: Callable[..., Any], latents: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Draws:
    """The same for given draws {site: (S, ...)} of the global latents, for instance of a Markov chain."""
    nesting = _nesting(model, batch)
    size = len(next(iter(latents.values())))
    sites, _ = paired_sites(model, lambda **batch: None, batch)

    def guide(**batch: Any) -> None:
        for name, value in latents.items():
            event = sites[name]["fn"].event_dim
            missing = nesting - (value.dim() - 1 - event)  # slots of plates the site does not stand in
            slotted = value.reshape(size, *[1] * missing, *value.shape[1:])
            pyro.sample(name, pyro.distributions.Delta(slotted, event_dim=event))

    return _draw(model, guide, batch, size, nesting)


def observed(drawn: Draws) -> Output:
    """The observed site that scores are about: the only one, or the one called "y"."""
    found = {name: out for name, out in drawn.outputs.items() if out.value is not None}
    if "y" not in found and len(found) != 1:
        raise ValueError(f"the model observes {sorted(found)}; scores need one observed site, or one called 'y'")
    return found["y"] if "y" in found else next(iter(found.values()))


def has_classes(out: Output) -> bool:
    """Whether the mean is a vector of class probabilities for a single label."""
    return out.value is not None and out.mean.dim() == out.value.dim() + 2


def _nesting(model: Callable[..., Any], batch: Mapping[str, Any]) -> int:
    sites, _ = paired_sites(model, lambda **batch: None, batch)
    return max((-frame.dim for s in sites.values() for frame in s["cond_indep_stack"] if frame.vectorized), default=0)


def _draw(model: Any, guide: Any, batch: Mapping[str, Any], size: int, nesting: int) -> Draws:
    def repeated(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(**batch: Any) -> None:
            with weight_space(), Binary(), pyro.plate("draws", size, dim=-1 - nesting) if size > 1 else nullcontext():
                program(**batch)

        return run

    p, q = paired_sites(repeated(model), repeated(guide), batch)
    latents = {name: _drop_slots(p[name], p[name]["value"], size, nesting) for name in p if name in q}
    told = {name: site for name, site in p.items() if name not in q and not isinstance(site["fn"], Unit)}  # no factors
    outputs = {name: _output(site, size, nesting) for name, site in told.items()}
    return Draws(latents, outputs, _log_prob(p, size), _log_prob(q, size), _local(p, q, size))


def _output(site: dict[str, Any], size: int, nesting: int) -> Output:
    law = site["fn"]
    shape = torch.Size([size, *law.batch_shape[-nesting:]] if nesting else [size])
    with torch.no_grad():
        law = law.expand(shape if size > 1 else shape[1:])
        mean = law.probs if isinstance(law, torch.distributions.Categorical) else law.mean
        sample, log_prob = law.sample(), law.log_prob(site["value"])
    value = site["value"] if site["is_observed"] else None
    lead = (lambda t: t.unsqueeze(0)) if size == 1 else (lambda t: t)
    return Output(lead(mean), lead(sample), lead(log_prob) if site["is_observed"] else None, value)


def _drop_slots(site: dict[str, Any], value: Tensor, size: int, nesting: int) -> Tensor:
    """(S, slots of plates, event) without the slots of plates the site does not stand in."""
    event = site["fn"].event_dim
    if size == 1:
        return value.unsqueeze(0)
    inside = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    for dim in range(-nesting, 0):
        if dim not in inside and value.dim() - event >= -dim:
            value = value.squeeze(dim - event) if value.shape[dim - event] == 1 else value
    return value


def _log_prob(sites: Mapping[str, Any], size: int) -> Tensor:
    total: Any = 0.0
    for site in sites.values():
        log_prob = site["fn"].log_prob(site["value"]).detach()
        total = total + (log_prob.reshape(size, -1).sum(-1) if log_prob.numel() >= size else log_prob.sum())
    return torch.as_tensor(total).expand(size)


def _local(p: Mapping[str, Any], q: Mapping[str, Any], size: int) -> Tensor | None:
    local = [name for name in q if name in p and any(f.name == DATA for f in p[name]["cond_indep_stack"])]
    if not local:
        return None
    terms = [s["fn"].log_prob(s["value"]).detach() for name in local for s in (p[name], q[name])]
    total = sum(sign * term for sign, term in zip([1, -1] * len(local), terms, strict=True))
    return torch.as_tensor(total) if size > 1 else torch.as_tensor(total).unsqueeze(0)


def _join(parts: list[Draws]) -> Draws:
    if len(parts) == 1:
        return parts[0]
    latents = {name: torch.cat([part.latents[name] for part in parts]) for name in parts[0].latents}
    outputs = {
        name: Output(
            torch.cat([part.outputs[name].mean for part in parts]),
            torch.cat([part.outputs[name].sample for part in parts]),
            None if out.log_prob is None else torch.cat([part.outputs[name].log_prob for part in parts]),  # type: ignore[misc]
            out.value,
        )
        for name, out in parts[0].outputs.items()
    }
    local = [part.local for part in parts if part.local is not None]
    return Draws(
        latents,
        outputs,
        torch.cat([part.lp for part in parts]),
        torch.cat([part.log_q for part in parts]),
        torch.cat(local) if local else None,
    )

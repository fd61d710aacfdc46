"""Supports of sites: which are real or positive, the bijection to each, and where q starts on it."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, biject_to, constraints


def is_real(prior: Distribution) -> bool:
    """Whether the prior lives on all of R^n, so that a normal fits it as it is."""
    return _base(prior.support) is constraints.real


def is_positive(prior: Distribution) -> bool:
    """Whether the prior lives on the positive half line, element by element."""
    base = _base(prior.support)
    bound = getattr(base, "lower_bound", None)
    if base.is_discrete or bound is None or hasattr(base, "upper_bound"):
        return False
    return bool((torch.as_tensor(bound) == 0).all())


def is_binary(prior: Distribution) -> bool:
    """Whether the prior lives on vectors of bits, event shape (n,)."""
    support = getattr(prior.support, "base_constraint", prior.support)  # a mixture wraps that of its components
    return len(prior.event_shape) == 1 and _base(support) is constraints.boolean


def start(prior: Distribution, spread: float | None = 0.0, *, bias: bool = False) -> Tensor:
    """Where the unconstrained mean of a site starts: the prior mean where it is finite, else 0; matrices jittered."""
    transform = continuous(prior)
    shape = transform.inverse_shape(_shape(prior))
    try:
        loc = transform.inv(prior.mean.detach()).expand(shape).clone()
    except NotImplementedError:
        loc = torch.zeros(shape)
    loc = torch.where(loc.isfinite(), loc, torch.zeros_like(loc))
    if len(prior.event_shape) == 2 and is_real(prior):
        d, k = prior.event_shape
        jitter = torch.randn_like(loc) * (math.sqrt(4 / (d - 1 + k)) if spread is None else spread)
        if bias:
            jitter[..., -1, :] = 0.0
        loc = loc + jitter
    return loc


def continuous(prior: Distribution) -> Any:
    """The bijection from R^n to the prior's support; a ValueError where there is none."""
    try:
        return biject_to(prior.support)
    except NotImplementedError:
        kind = type(prior).__name__
        if prior.support is not None and not prior.support.is_discrete:
            raise ValueError(f"no family for {kind}: no bijection from R^n to its support {prior.support}") from None
        raise ValueError(
            f"no family for a discrete site ({kind}, support {prior.support}): enumerate it in the model "
            f'(infer={{"enumerate": "parallel"}} with TraceEnum_ELBO) or give it a family of its own'
        ) from None


def constrain(loc: Tensor, scale: Tensor, transform: Any) -> Distribution:
    """Independent normals carried to the support of `transform`."""
    normal = dist.Normal(loc, scale).to_event(transform.domain.event_dim)
    if _is_identity(transform):
        return normal
    return dist.TransformedDistribution(normal, [transform])


def gamma_of(prior: Distribution) -> torch.distributions.Gamma | None:
    """The Gamma that a prior is, under whatever `to_event` and `expand` it wears; None for other priors."""
    base: Any = prior
    while hasattr(base, "base_dist") and not hasattr(base, "concentration"):
        base = base.base_dist
    return base if isinstance(base, torch.distributions.Gamma) else None


def gamma_start(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Shape and rate of a Gamma prior; ones for other priors."""
    gamma, one = gamma_of(prior), torch.ones(_shape(prior))
    return (one, one.clone()) if gamma is None else (gamma.concentration.detach() * one, gamma.rate.detach() * one)


def _shape(prior: Distribution) -> Size:
    return prior.batch_shape + prior.event_shape


def _base(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _is_identity(transform: Any) -> bool:
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return transform is torch.distributions.transforms.identity_transform or (
        isinstance(transform, torch.distributions.ComposeTransform) and not transform.parts
    )

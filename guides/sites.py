"""What a guide must know of a model: its sites, its data plate, its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

Site = dict[str, Any]

DATA = "data"


class GuideError(ValueError):
    """A guide that cannot be built for this model, or called on this batch; the text says how to mend it."""


def data_plate(n: int, N: int | None = None, *, dim: int | None = None, device: Any = None) -> pyro.plate:
    """Open the plate `"data"` on the n rows of a batch, scaled to the N rows of the data set.

    Without N the plate follows the batch. The rows are named, so nothing is permuted at every step, and a batch may
    hold more rows than N (prediction).
    """
    return pyro.plate(DATA, N or n, subsample=torch.arange(n, device=device), dim=dim)


def latent_sites(model: Callable[..., Any], batch: Mapping[str, Any]) -> dict[str, Site]:
    """The sites of one prototype run that a guide must supply: neither observed, nor subsampling, nor summed out."""
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(**batch)
    return {
        name: site
        for name, site in _samples(trace).items()
        if not site["is_observed"] and site["infer"].get("enumerate") != "parallel"
    }


def paired_sites(
    model: Callable[..., Any], guide: Callable[..., Any], batch: Mapping[str, Any]
) -> tuple[dict[str, Site], dict[str, Site]]:
    """The sample sites of one run of the guide and of the model replayed on it, in this order: (model, guide)."""
    with torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(**batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(**batch)
    return _samples(model_trace), _samples(guide_trace)


def fixed_size(model: Callable[..., Any], batch: Mapping[str, Any]) -> int | None:
    """N if the model's data plate is fixed, None if it follows the batch: found by a second, shorter prototype."""
    size, n = _data_size(model, batch), rows(batch)
    fewer = torch.arange(n // 2) if n > 1 else torch.zeros(2, dtype=torch.long)
    short = {
        key: value[fewer.to(value.device)] if isinstance(value, Tensor) and value.dim() and len(value) == n else value
        for key, value in batch.items()
    }
    try:
        return size if _data_size(model, short) == size else None
    except (ValueError, RuntimeError):  # a plate of full data refuses other lengths, so it is fixed
        return size


def _data_size(model: Callable[..., Any], batch: Mapping[str, Any]) -> int | None:
    sites, _ = paired_sites(model, lambda **_: None, batch)
    frames = [frame for site in sites.values() for frame in site["cond_indep_stack"] if frame.name == DATA]
    return max((frame.full_size or frame.size for frame in frames), default=None)


def _samples(trace: Any) -> dict[str, Site]:
    """The sample sites of a trace; a subsampled plate is a sample site too, but no random variable."""
    nodes = trace.nodes.items()
    return {name: site for name, site in nodes if site["type"] == "sample" and not site_is_subsample(site)}


def kl_registered(q: Distribution, p: Distribution) -> bool:
    """Whether KL(q || p) is known in closed form, exactly as Pyro's mean-field bound will ask for it."""
    try:
        kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def rows(batch: Mapping[str, Any]) -> int:
    """The number of rows of a batch: the length of its first tensor."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    raise GuideError("the batch holds no tensor with rows")

"""What `fit` refuses on the first batch, because Pyro would train it silently wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import nn

from guides.sites import DATA, kl_registered, paired_sites


class TrainingError(ValueError):
    """Something that would train silently wrong, or went wrong; the text says how to mend it."""


class UnmatchedSites(TrainingError):
    """Model and guide do not sample the same latent sites."""


class PlateScale(TrainingError):
    """A site is scaled differently in model and guide."""


class UnregisteredKL(TrainingError):
    """The mean-field bound would fall back on sampling, or score an automatic guide wrongly."""


class MeanFieldOrder(TrainingError):
    """The guide samples in another order than the model, where the mean-field bound is wrong."""


def check(model: nn.Module, guide: nn.Module, batch: Mapping[str, Any], bound: ELBO) -> int:
    """Refuse, on one batch, what Pyro would train silently wrong; returns the size N of the data plate (1 if none).

    Raises:
        UnmatchedSites: a latent site without its counterpart.
        PlateScale: a site whose plates scale it differently in model and guide.
        UnregisteredKL, MeanFieldOrder: `TraceMeanField_ELBO` on a guide for which it is not the evidence bound.
    """
    model_sites, guide_sites = paired_sites(model, guide, batch)
    latents = {name: site for name, site in model_sites.items() if not site["is_observed"]}
    guided = {name: site for name, site in guide_sites.items() if not site["is_observed"]}
    observed = {name: site for name, site in model_sites.items() if site["is_observed"]}
    _check_sites(latents, guided, observed)
    for name in latents.keys() & guided.keys():
        _check_scale(name, latents[name], guided[name])
    if not getattr(guide, "joint_density", True) and not isinstance(bound, TraceMeanField_ELBO):
        raise UnregisteredKL(
            "a family of this guide draws from another law than the density it charges, and a sampled KL would mix the "
            "two; use TraceMeanField_ELBO, which takes the KL of the density in closed form"
        )
    if isinstance(bound, TraceMeanField_ELBO):
        _check_mean_field(latents, guided)
    frames = [frame for site in model_sites.values() for frame in site["cond_indep_stack"] if frame.name == DATA]
    return max((frame.full_size or frame.size for frame in frames), default=1)


def _check_sites(latents: dict[str, Any], guided: dict[str, Any], observed: dict[str, Any]) -> None:
    missing = [n for n, site in latents.items() if n not in guided and site["infer"].get("enumerate") != "parallel"]
    if missing:
        raise UnmatchedSites(f"the guide samples no {missing}: these sites would stay at the prior; give them a family")
    auxiliary = [name for name, site in guided.items() if site["infer"].get("is_auxiliary")]
    for name in guided.keys() - latents.keys() - set(auxiliary):
        why = "which this batch observes" if name in observed else "which the model does not have"
        raise UnmatchedSites(f"the guide samples {name!r}, {why}")


def _check_scale(name: str, model_site: Any, guide_site: Any) -> None:
    p, q = (torch.as_tensor(site["scale"], dtype=torch.float64) for site in (model_site, guide_site))
    if not _close(p, q):
        raise PlateScale(
            f"site {name!r} is scaled by {_shown(p)} in the model and {_shown(q)} in the guide: "
            "their plates must declare the same size N (guides.data_plate), and a scale around one belongs around both"
        )


def _close(p: torch.Tensor, q: torch.Tensor) -> bool:
    try:
        return torch.allclose(*torch.broadcast_tensors(p, q))
    except RuntimeError:  # shapes that do not broadcast
        return False


def _shown(scale: torch.Tensor) -> str:
    return f"{scale.item():.6g}" if scale.dim() == 0 else f"a tensor of shape {tuple(scale.shape)}"


def _check_mean_field(latents: dict[str, Any], guided: dict[str, Any]) -> None:
    auxiliary = [name for name, site in guided.items() if site["infer"].get("is_auxiliary")]
    if auxiliary:
        raise UnregisteredKL(
            f"TraceMeanField_ELBO mis-scores guides with the auxiliary site {auxiliary[0]!r} (automatic guides); "
            "use Trace_ELBO"
        )
    for name, site in guided.items():
        q, p = site["fn"], latents[name]["fn"]
        if not kl_registered(q, p):
            raise UnregisteredKL(
                f"site {name!r}: no closed-form KL({_kind(q)} || {_kind(p)}), TraceMeanField_ELBO would sample it "
                "silently; use Trace_ELBO, or register one (torch.distributions.kl.register_kl)"
            )
    model_order, guide_order = [n for n in latents if n in guided], list(guided)
    if model_order != guide_order:
        raise MeanFieldOrder(
            f"the guide samples {guide_order}, the model {model_order}: there TraceMeanField_ELBO need not be the "
            "evidence bound; use Trace_ELBO, or keep the model's order"
        )


def _kind(law: Any) -> str:
    while hasattr(law, "base_dist") and not hasattr(law, "transforms"):
        law = law.base_dist
    return type(law).__name__

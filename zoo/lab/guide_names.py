"""Guides by name: what the command line and a run's manifest can ask for."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pyro.infer import autoguide
from torch import nn

import guides
from guides.sites import DATA, latent_sites

WEIGHTS = (
    guides.MatrixNormal,
    guides.MatrixNormalLowRank,
    guides.MatrixNormalTril,
    guides.MatrixNormalFITC,
    guides.MatrixNormalAuthors,
    guides.MeanField,
    guides.SiteFullRank,
    guides.Point,
)
LATENTS = (
    guides.NormalEncoder,
    guides.Vanilla,
    guides.Rich,
    guides.Autoregressive,
    guides.Concrete,
    guides.StraightThrough,
)
AUTO = (
    autoguide.AutoNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoLowRankMultivariateNormal,
    autoguide.AutoDelta,
    autoguide.AutoIAFNormal,
)


class ExperimentError(ValueError):
    """A comparison that cannot be set up; the text says how to mend it."""


def known_guides() -> list[str]:
    """The names `build_guide` knows."""
    return [family.__name__ for family in (*WEIGHTS, *LATENTS, *AUTO)]


def build_guide(name: str, model: nn.Module, batch: Mapping[str, Any], *, also: Iterable[str] = ()) -> nn.Module:
    """The guide of that name for a model: a family, a class of `pyro.infer.autoguide`, or `module:Family`.

    A weight family serves all global sites it fits; local sites get an encoder, given what the model's `given` says.

    Args:
        also: names that the paper knows besides, for the list.

    Raises:
        ExperimentError: a model without latent sites; unknown name, with the nearest one and the list of those that fit
            this model; what is no family.
    """
    start: Mapping[str, Any] = getattr(model, "start", dict)()
    if not sites_here(model, batch):
        raise ExperimentError("this model has no latent sites, so there is no guide to choose: zoo fit without --guide")
    if name.startswith("Auto") and hasattr(autoguide, name):
        return _automatic(name, model, batch, start)
    family, here = _family(name), sites_here(model, batch)
    if family is None:
        near = difflib.get_close_matches(name, [*known_guides(), *also], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ExperimentError(f"no guide {name!r}; {hint}these fit: {', '.join([*_fitting(model, batch), *also])}")
    if not _serves(family, here):
        kind, there = ("weights", "local") if family in WEIGHTS else ("local sites", "global")
        fit = ", ".join([*_fitting(model, batch), *also]) or "none"
        raise ExperimentError(
            f"{name} is a family for {kind}, and all latent sites of this model are {there}; these fit: {fit}"
        )
    given = getattr(model, "given", None)
    if ":" in name and family not in (*WEIGHTS, *LATENTS):
        return _own(name, family, model, batch, start=start, given=given, also=also)
    if family in LATENTS:
        return guides.Guide(model, batch, weights=guides.MeanField, latents=family, start=start, given=given)
    return guides.Guide(model, batch, weights=family, latents=guides.NormalEncoder, start=start, given=given)


def _own(
    name: str,
    family: Callable[..., nn.Module],
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    also: Iterable[str],
    **options: Any,
) -> nn.Module:
    """A user's own family for the weights, or for the local sites of a model that has no others."""
    if name.partition(":")[2] in also:
        raise ExperimentError(f"{name} is a guide, not a family; the paper knows it as {name.partition(':')[2]}")
    local = sites_here(model, batch) == {"local"}
    families: dict[str, Any] = {"latents": family} if local else {"weights": family, "latents": guides.NormalEncoder}
    try:
        return guides.Guide(model, batch, **families, **options)
    except (TypeError, AttributeError) as error:
        raise ExperimentError(
            f"{name} cannot be called as a family, (prior, context) -> module: {error}; a guide that needs more is "
            "built in Python"
        ) from error


def _serves(family: Any, here: set[str]) -> bool:
    return not (family in LATENTS and "local" not in here) and not (family in WEIGHTS and here == {"local"})


def sites_here(model: nn.Module, batch: Mapping[str, Any]) -> set[str]:
    """Which kinds of latent sites a model has: any of "local", inside the plate of the data, and "global"."""
    sites = latent_sites(model, batch).values()
    return {"local" if any(f.name == DATA for f in site["cond_indep_stack"]) else "global" for site in sites}


def _automatic(name: str, model: nn.Module, batch: Mapping[str, Any], start: Mapping[str, Any]) -> guides.Auto:
    guide_class = getattr(autoguide, name)
    if guide_class is autoguide.AutoLaplaceApproximation:
        raise ExperimentError(f"{name} is a point until its Hessian is taken after training; compare AutoDelta instead")
    if "local" in sites_here(model, batch):
        raise ExperimentError(f"{name} has one parameter per datum of a local site; use a weight family or an encoder")
    flow = issubclass(guide_class, autoguide.AutoNormalizingFlow)
    return guides.Auto(guide_class, model, batch, start=None if flow else start)


def _family(name: str) -> Callable[..., nn.Module] | None:
    if ":" in name:
        from zoo import own_module

        module, _, attribute = name.partition(":")
        family = getattr(own_module(module), attribute, None)
        if not callable(family):
            raise ExperimentError(f"module {module!r} has no family {attribute!r}")
        return family
    return {family.__name__: family for family in (*WEIGHTS, *LATENTS)}.get(name)


def _fitting(model: nn.Module, batch: Mapping[str, Any]) -> Iterator[str]:
    here = sites_here(model, batch)
    for name in known_guides():
        if not _serves(_family(name), here):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build_guide(name, model, batch)
        except Exception:  # whatever the reason: it does not fit
            continue
        yield name

"""Pyro's automatic guides under the same contract: `Auto`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormalizingFlow, init_to_median, init_to_value
from torch import Tensor, nn

from guides.sites import DATA, GuideError, latent_sites, rows


class Auto(nn.Module):
    """Any class of `pyro.infer.autoguide` as a guide of this library: local parameters, ready to load a state dict.

    Pyro keeps the parameters of unnamed guides in one global store, where two guides share them silently; here each
    guide owns its parameters. The guide is called once on the prototype batch, so all parameters exist at once.

    Joint over global sites. A model with local latents is served only on batches of the prototype's length, since an
    automatic guide has one parameter per datum. The bound is `Trace_ELBO`: the sites of these guides are point masses
    whose densities live in an auxiliary site, which the mean-field bound would score wrongly.

    Automatic guides start at the median of a few prior draws, which a vague prior puts far away: give `start`.

    Args:
        guide_class: for instance `pyro.infer.autoguide.AutoMultivariateNormal`.
        model: any Pyro model called as `model(**batch)`.
        batch: a prototype batch.
        start: {site: value} where the guide starts; the other sites start as ever.
        **options: handed on to the class.

    Raises:
        GuideError: called on another number of rows than the prototype's while the model has local latents.
    """

    mean_field = False

    def __init__(
        self,
        guide_class: type[AutoGuide],
        model: Callable[..., Any],
        batch: Mapping[str, Any],
        *,
        start: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        sites = latent_sites(model, batch)
        frames = {name: site["cond_indep_stack"] for name, site in sites.items()}
        self.local = [name for name in sites if any(frame.name == DATA for frame in frames[name])]
        self.rows = rows(batch) if self.local else None
        if start and issubclass(guide_class, AutoNormalizingFlow):
            raise GuideError(f"{guide_class.__name__} has no place to start at; leave out start=")
        if start:
            options.setdefault("init_loc_fn", partial(init_to_value, values=dict(start), fallback=init_to_median))
        with pyro.settings.context(module_local_params=True), torch.no_grad(), poutine.block():
            self.auto = guide_class(model, **options)
            self.auto(**batch)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Sample all latent sites jointly; returns {site: value}."""
        if self.rows is not None and rows(batch) != self.rows:
            raise GuideError(
                f"{type(self.auto).__name__} has one parameter per datum of {self.local} and was built on {self.rows} "
                f"rows, not {rows(batch)}: train it on full batches, or use guides.Guide with an encoder"
            )
        with pyro.settings.context(module_local_params=True):
            return self.auto(**batch)

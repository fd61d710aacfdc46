"""The composed guide: one family per latent site of any Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from guides.sites import DATA, GuideError, Site, data_plate, fixed_size, kl_registered, latent_sites, rows
from guides.weights import default_family, fits

Family = Callable[..., nn.Module]
Families = Family | Mapping[str, Family] | None


class Guide(nn.Module):
    """An ordinary Pyro guide composed of one family per latent site.

    A family is any callable `(prior, context) -> nn.Module` whose `forward(context)` returns q(site | context).
    Sites inside the plate `"data"` are local (`latents`; one latent per datum, context from `given`); all others are
    global (`weights`; context None) and keep the plates they have in the model. Global sites are sampled first, in
    the model's order; local ones in the model's order too, unless `given` asks for another.

    The data plate has the model's size: N where the model fixes it, the length of the batch where it follows it.

    Args:
        model: any Pyro model called as `model(**batch)`.
        batch: a prototype batch; sites whose value it supplies are observed.
        weights, latents: a family for all sites of the kind, or a mapping {site: family}. A weight family given for
            all leaves a site whose support or event shape it does not fit to the default of that support.
        given: {local site: names of batch tensors or local sites its family sees}; the default is `("x",)`.
        observed: {site: batch key that observes it}; the default is the key of the site's own name.
        start: {global site: value} where q starts instead of at the prior mean.
        allow_prior: sample sites without a family from the model's prior (conditional on the others) instead of
            raising.

    Attributes:
        mean_field: whether `TraceMeanField_ELBO` is exact here: sites in the model's order, every KL registered.
        joint_density: whether draws follow the density that is charged; not under `MatrixNormalAuthors`.

    Raises:
        GuideError: a site without a family, a family that does not fit, a context that does not exist.

    Example:
        >>> import pyro.distributions as dist
        >>> from guides import linear
        >>> def model(x):
        ...     return linear("W", x, dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        >>> from guides.weights import MeanField
        >>> guide = Guide(model, {"x": torch.ones(5, 3)}, weights=MeanField)
        >>> guide(x=torch.ones(5, 3))["W"].shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        batch: Mapping[str, Any],
        *,
        weights: Families = None,
        latents: Families = None,
        given: Mapping[str, Sequence[str]] | None = None,
        observed: Mapping[str, str] | None = None,
        start: Mapping[str, Tensor] | None = None,
        allow_prior: bool = False,
    ) -> None:
        super().__init__()
        sites = latent_sites(model, batch)
        self.plates = {name: _plates(name, site) for name, site in sites.items()}
        self.local = [name for name in sites if any(frame.name == DATA for frame in self.plates[name])]
        self.event_dim = {name: site["fn"].event_dim for name, site in sites.items()}
        self.given = {name: tuple((given or {}).get(name, ("x",))) for name in self.local}
        self.observed = {name: (observed or {}).get(name, name) for name in sites}
        self._refuse_unknown(sites, weights=weights, latents=latents, given=given, observed=observed, start=start)
        chosen = {name: _choose(name, site, latents if name in self.local else weights) for name, site in sites.items()}
        self.prior_sites = [name for name, family in chosen.items() if family is None]
        if self.prior_sites and not allow_prior:
            raise GuideError(_no_family(self.prior_sites, self.local))
        # in a tuple, since the model's parameters are not the guide's
        self._model: tuple[Callable[..., Any], ...] = (model,) if self.prior_sites else ()
        self.N = fixed_size(model, batch) if self.local else None
        self.order = [name for name in sites if name not in self.local and chosen[name]] + self._order_local(chosen)
        self.q = nn.ModuleDict()
        self._build(sites, chosen, batch)
        for name, value in (start or {}).items():
            module: Any = self.q[_key(name)]
            module.start_at(value)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Sample every guided site that the batch does not observe; returns {site: value}."""
        values: dict[str, Tensor] = {}
        plates: dict[str, Any] = {}  # opened once and entered again: Pyro allows a name only once per trace
        for name in self.order:
            if batch.get(self.observed[name]) is not None:
                values[name] = batch[self.observed[name]]
                continue
            q = self.q[_key(name)](self.context(name, batch, values))
            with self._open(name, batch, plates):
                # no law beside prior sites: they are drawn given this very weight
                infer: Any = {} if self.prior_sites else {"law": q}
                values[name] = pyro.sample(name, q, infer=infer)
            family: Any = self.q[_key(name)]
            if hasattr(family, "penalty"):
                pyro.factor(f"{name}_penalty", family.penalty(), has_rsample=True)
        if self.prior_sites:
            self._sample_prior(batch, values)
        return values

    def context(self, name: str, batch: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor | None:
        """What the family of a local site sees: its `given` side by side, (..., n, features); None for a global."""
        if name not in self.local:
            return None
        parts = [self._part(name, key, batch, values) for key in self.given[name]]
        if len(parts) == 1:
            return parts[0]
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)

    def _part(self, name: str, key: str, batch: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor:
        value = values[key] if key in values else batch.get(key)
        if value is None:
            raise GuideError(
                f"site {name!r} is given {key!r}, which is neither in this batch nor a local site; "
                f"say given={{{name!r}: (...)}} with names from {sorted([*batch, *self.local])}"
            )
        scalar = self.event_dim[key] == 0 if key in values else value.dim() == 1
        value = value.unsqueeze(-1) if scalar else value
        return value if value.is_floating_point() else value.to(torch.get_default_dtype())

    def _open(self, name: str, batch: Mapping[str, Any], plates: dict[str, Any]) -> ExitStack:
        stack = ExitStack()
        for frame in self.plates[name]:
            if frame.name not in plates:
                plates[frame.name] = self._plate(frame, batch)
            stack.enter_context(plates[frame.name])
        return stack

    def _plate(self, frame: Any, batch: Mapping[str, Any]) -> Any:
        if frame.name != DATA:
            return pyro.plate(frame.name, frame.size, dim=frame.dim)
        device = next(v.device for v in batch.values() if isinstance(v, Tensor))
        return data_plate(rows(batch), self.N, dim=frame.dim, device=device)

    def _sample_prior(self, batch: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
        prior = set(self.prior_sites)
        with (
            poutine.block(expose_fn=lambda msg: msg["name"] in prior and not msg["is_observed"]),
            poutine.condition(data=dict(values)),
        ):
            self._model[0](**batch)

    def _refuse_unknown(self, sites: Mapping[str, Site], **arguments: Any) -> None:
        """A misspelt site must not be ignored."""
        for argument, names in arguments.items():
            unknown = sorted(set(names) - set(sites)) if isinstance(names, Mapping) else []
            if unknown:
                raise GuideError(f"{argument}= names {unknown}, but the latent sites of the model are {sorted(sites)}")

    def _order_local(self, chosen: Mapping[str, Family | None]) -> list[str]:
        """The model's order, except that what a site is given comes before it."""
        order: list[str] = []

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                raise GuideError(f"given= is circular: {' <- '.join([*path, name])}")
            if name in order:
                return
            for parent in self.given[name]:
                if parent in self.local:
                    visit(parent, (*path, name))
            order.append(name)

        for name in self.local:
            if chosen[name] is not None:
                visit(name, ())
        return [name for name in order if chosen[name] is not None]

    def _build(self, sites: Mapping[str, Site], chosen: Mapping[str, Family | None], batch: Mapping[str, Any]) -> None:
        """Build each family on the context that the families before it produce, and try each once."""
        values: dict[str, Tensor] = {}
        registered = True
        for name in self.order:
            family, prior = chosen[name], sites[name]["fn"]
            assert family is not None
            context = self.context(name, batch, values)
            try:
                module = family(prior, context).to(_like(sites[name]["value"]))
                self.q[_key(name)] = module
                with torch.no_grad():
                    q = module(context)
                    values[name] = q.sample()
            except (ValueError, NotImplementedError) as error:
                raise GuideError(f"site {name!r}: {error}") from error
            if q.event_shape != prior.event_shape:
                raise GuideError(
                    f"site {name!r}: its family gives event shape {tuple(q.event_shape)}, "
                    f"the model has {tuple(prior.event_shape)}"
                )
            registered = registered and kl_registered(q, prior)
        in_order = self.order == [name for name in sites if name in self.order]
        self.mean_field = registered and in_order and not self.prior_sites
        self.joint_density = all(getattr(family, "joint_density", True) for family in self.q.values())


def _choose(name: str, site: Site, families: Families) -> Family | None:
    """The family named for the site, or the one given for all where it fits."""
    if families is None or isinstance(families, Mapping):
        return families.get(name) if families else None
    local = any(frame.name == DATA for frame in site["cond_indep_stack"])
    return families if local or fits(families, site["fn"]) else default_family(site["fn"])


def _like(value: Tensor) -> Tensor:
    """A tensor of the dtype and device that the parameters for this value should have."""
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def _plates(name: str, site: Site) -> list[Any]:
    """The vectorised plates of a site; only the data plate may be subsampled."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    for frame in frames:
        if frame.name != DATA and frame.full_size not in (None, frame.size):
            raise GuideError(
                f"site {name!r} lies in the subsampled plate {frame.name!r}; name that plate {DATA!r} "
                f"(guides.data_plate) so that its latents are local"
            )
    return sorted(frames, key=lambda frame: frame.dim)


def _no_family(sites: Sequence[str], local: Sequence[str]) -> str:
    weights = [name for name in sites if name not in local]
    latents = [name for name in sites if name in local]
    mend = [f"weights=... for {weights}"] * bool(weights) + [f"latents=... for {latents}"] * bool(latents)
    return f"no family for the latent sites {list(sites)}: give {' and '.join(mend)}, or allow_prior=True"


def _key(name: str) -> str:
    """A site's name as a module name: torch allows no dots there, and no names of its own methods."""
    name = name.replace(".", "/")
    return f"{name}/" if hasattr(nn.ModuleDict(), name) else name

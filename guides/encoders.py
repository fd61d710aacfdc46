"""Families for local sites: what a datum tells about its own latent.

`NormalEncoder` is for real latents. For binary codes h in {0, 1}^n with context c:

    Vanilla            q(h | c) factorises, logits linear in c: the encoder of a plain auto-encoder
    Rich               the same with a layer of sigmoid units before the logits
    Autoregressive     as `Rich`, and each bit sees those before it: does not factorise
    Concrete           as `Rich`, with relaxed draws that can be differentiated
    StraightThrough    as `Rich`, with binary draws that are differentiated as if they were relaxed
    PerDatum           a free table over all codes for each datum
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides import codes
from guides.supports import constrain, continuous, is_binary


class NormalEncoder(nn.Module):
    """Amortised independent normals, q(z | c) = N(loc(c), scale(c)^2), through `biject_to` off the real line.

    A multilayer perceptron with tanh units reads the context c (..., n, features) and gives both. Its last layer
    starts small, so that q starts near N(0, 1) in unconstrained space whatever the context.

    Args:
        prior: the site's prior; its event may have any shape.
        context: a prototype of what the site is given, (n, features).
        hidden: widths of the hidden layers.
    """

    def __init__(self, prior: Distribution, context: Tensor | None, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if context is None:
            raise ValueError("an encoder needs a local site: one inside the plate 'data'")
        self.transform = continuous(prior)
        self.event_shape = self.transform.inverse_shape(prior.event_shape)
        widths = [context.shape[-1], *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.Tanh()]
        last = nn.Linear(widths[-1], 2 * self.event_shape.numel())
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.net = nn.Sequential(*layers, last)

    def forward(self, context: Tensor) -> Distribution:
        """Return q(z | context), batch shape `context.shape[:-1]`."""
        loc, log_scale = self.net(context).chunk(2, -1)
        shape = (*context.shape[:-1], *self.event_shape)
        return constrain(loc.reshape(shape), log_scale.exp().reshape(shape), self.transform)


class Rich(nn.Module):
    """Factorial q(h | c) = prod_j Bernoulli(h_j; sigma(l_j(c))), l a perceptron with sigmoid units.

    Richer than a linear generative layer at no cost in the generative model (Arnold & Ollivier 2012, "AERI").

    Args:
        prior: the site's prior, on binary codes of event shape (n,).
        context: a prototype of what the site is given, (rows, features).
        hidden: widths of the hidden layers.
        scale: standard deviation of the initial weights; None starts sigmoid units at four times Glorot's, where they
            are alive (Glorot & Bengio 2010).
    """

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None,
        *,
        hidden: Sequence[int] = (100,),
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if context is None or not is_binary(prior):
            where = (
                "a global site" if context is None else f"{type(prior).__name__} of shape {tuple(prior.event_shape)}"
            )
            raise ValueError(f"{type(self).__name__} is for binary codes (n,) in the plate 'data', not for {where}")
        layers: list[nn.Module] = []
        for before, after in pairwise([context.shape[-1], *hidden]):
            layers += [nn.Linear(before, after), nn.Sigmoid()]
        last = hidden[-1] if hidden else context.shape[-1]
        self.net = nn.Sequential(*layers, nn.Linear(last, prior.event_shape[0]))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                start = (
                    partial(nn.init.xavier_normal_, gain=4.0) if scale is None else partial(nn.init.normal_, std=scale)
                )
                start(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, context: Tensor) -> Distribution:
        """Return q(h | c), batch shape `context.shape[:-1]`."""
        return dist.Bernoulli(logits=self.net(context)).to_event(1)


class Vanilla(Rich):
    """Factorial q(h | c) with logits linear in c: the encoder of a plain auto-encoder. Arguments as in `Rich`."""

    def __init__(self, prior: Distribution, context: Tensor | None, *, scale: float | None = None) -> None:
        super().__init__(prior, context, hidden=(), scale=scale)


class Autoregressive(Rich):
    """q(h | c) = prod_j Bernoulli(h_j; sigma(l_j(c) + sum_{i<j} A_ji h_i)), l as in `Rich`: rich, not factorial."""

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None,
        *,
        hidden: Sequence[int] = (100,),
        scale: float | None = None,
    ) -> None:
        super().__init__(prior, context, hidden=hidden, scale=scale)
        self.lower = nn.Parameter(torch.zeros(prior.event_shape[0], prior.event_shape[0]))

    def forward(self, context: Tensor) -> Distribution:
        return codes.AutoregressiveBits(self.net(context), self.lower)


class Concrete(Rich):
    """Relaxed bits with the logits of `Rich`: their gradient is biased, with little variance.

    Args:
        temperature: of the relaxation; the smaller, the less biased and the noisier. Others as in `Rich`.
    """

    law = codes.ConcreteBits

    def __init__(
        self, prior: Distribution, context: Tensor | None, *, temperature: float = 0.5, **options: Any
    ) -> None:
        super().__init__(prior, context, **options)
        self.temperature = temperature

    def forward(self, context: Tensor) -> Distribution:
        return self.law(self.net(context), self.temperature)


class StraightThrough(Concrete):
    """Binary draws with the logits of `Rich`, differentiated as if they were relaxed. Arguments as in `Concrete`."""

    law = codes.StraightThroughBits


class PerDatum(nn.Module):
    """A free table over all 2^n codes for each of N data: q without amortisation.

    The context is the row number of each datum: `Guide(..., given={"h1": ("index",)})` and the batch key `index`.

    Args:
        prior: the site's prior, on binary codes of event shape (n,).
        N: number of data.
        scale: standard deviation of the initial logits.
    """

    def __init__(self, prior: Distribution, context: Tensor | None, *, N: int, scale: float = 0.1) -> None:
        super().__init__()
        if context is None or context.shape[-1] != 1 or not is_binary(prior):
            raise ValueError("PerDatum is for binary codes in the plate 'data', given the row numbers: ('index',)")
        self.logits = nn.Parameter(scale * torch.randn(N, 2 ** prior.event_shape[0]))

    def forward(self, context: Tensor) -> Distribution:
        """Return q(h_n) for each row number n, batch shape `context.shape[:-1]`."""
        return codes.Tabular(self.logits[context[..., 0].long()])

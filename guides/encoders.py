"""Families for local sites: what a datum tells about its own latent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides.supports import constrain, continuous


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

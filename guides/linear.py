"""Local reparametrisation for any model: `linear` reads the guide's law of a weight, `weight_space` hides it."""

from __future__ import annotations

from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor


class weight_space(Messenger):
    """Inside this context (or decorator) every weight is sampled as such: local reparametrisation is off.

    Needed wherever weights and data of one draw must belong together: function draws, importance weights, k-hat.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"].pop("law", None)


class _Law(Messenger):
    """Remembers the law that replay handed from the guide's site to the one sample statement inside."""

    law: Any = None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.law = (msg["infer"] or {}).get("law")


def linear(name: str, x: Tensor, prior: Any) -> Tensor:
    """Sample the weight site `name` and return x @ W, by local reparametrisation where the guide's law allows it.

    If the law q(W) of the guide offers `.activation(x)`, each row of x @ W is drawn from its own marginal law, which
    leaves every bound that is a sum over rows unchanged in expectation (matrix_gaussian, mg.12). Otherwise, under
    `weight_space`, in the prior and under MCMC, x is multiplied with the weight.

    Args:
        name: the site of the weight.
        x: inputs, (..., n, d).
        prior: p(W), event shape (d, k).

    Returns:
        Pre-activations, (..., n, k).
    """
    with _Law() as seen:
        weight = pyro.sample(name, prior)
    if hasattr(seen.law, "activation"):
        # particles: the law must be expanded like the weight, or all particles would share one noise
        return seen.law.expand(weight.shape[:-2]).activation(x).rsample()  # mg.12
    return x @ (weight.squeeze(-3) if weight.dim() > 2 else weight)  # drop the slot of plate "data"

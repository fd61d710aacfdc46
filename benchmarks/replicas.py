"""Many fits of one model at once: `torch.func.vmap` over a stack of (model, guide) pairs whose data have equal shapes.

The text of model and guide is unchanged. What of Pyro and torch cannot be vectorised is exchanged while the context
`vectorisable` is open: in-place normal draws, `.item()` inside the bounds, and validation that looks at values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.infer import trace_elbo, trace_mean_field_elbo
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from zoo.lab.training import adam


@contextmanager
def vectorisable() -> Iterator[None]:
    """What vmap needs of torch's and Pyro's insides."""

    def randn(shape: Any, dtype: Any, device: Any) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def detach(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    with (
        patch("torch.distributions.normal._standard_normal", randn),
        patch.object(trace_elbo, "torch_item", detach),
        patch.object(trace_mean_field_elbo, "torch_item", detach),
        patch.object(trace_elbo, "warn_if_nan", lambda *_: None),
        patch.object(trace_mean_field_elbo, "warn_if_nan", lambda *_: None),
        pyro.validation_enabled(False),
    ):
        yield


def fit(
    losses: Sequence[nn.Module],
    batches: Sequence[Any],
    *,
    N: int,
    epochs: int,
    lr: float,
    decay: float,
    report: Callable[[int, Tensor], None] = lambda epoch, loss: None,
) -> Tensor:
    """Train every `bound(model, guide)` of a list on its own batches, in place, with one Adam over the stack.

    Args:
        losses: modules alike in everything but values; moved to the same result as one fit each would have.
        batches: a re-iterable for each, with equal lengths and shapes.
        N: size of the data plate, the same for all.

    Returns:
        The loss of every replica at every step, nats per datum, (steps, replicas).
    """
    parameters, buffers = stack_module_state(list(losses))
    optimiser = adam(parameters.values(), lr)
    steps = epochs * len(batches[0])
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=decay * lr)

    def one(parameters: Any, buffers: Any, batch: dict[str, Tensor]) -> Tensor:
        return functional_call(losses[0], (parameters, buffers), kwargs=batch)

    every = vmap(one, randomness="different")
    history = []
    with vectorisable():
        for epoch in range(epochs):
            for rows in zip(*batches, strict=True):
                batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
                optimiser.zero_grad()
                loss = every(parameters, buffers, batch) / N
                loss.sum().backward()  # replicas share nothing, so each gets its own gradient
                optimiser.step()
                cosine.step()
                history.append(loss.detach())
            report(epoch, history[-1])
    for index, module in enumerate(losses):
        module.load_state_dict({name: value[index].detach() for name, value in (parameters | buffers).items()})
    return torch.stack(history)

"""Many fits of one model at once: `torch.func.vmap` over a stack of (model, guide) pairs whose data have equal shapes.

The text of model and guide is unchanged. What of Pyro and torch cannot be vectorised is exchanged while the context
`vectorisable` is open: in-place normal draws, `.item()` inside the bounds, and validation that looks at values.
Twenty splits cost little more than one this way, since Pyro's handlers run once per step for all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.infer import trace_elbo, trace_mean_field_elbo
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from zoo.lab.averaging import weight
from zoo.lab.training import TrainingError, adam


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
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*batching rule for aten::clamp_")  # of Gamma: slower, not wrong
        yield


def fit_together(
    losses: Sequence[nn.Module],
    batches: Sequence[Any],
    *,
    N: int,
    epochs: int,
    lr: float,
    decay: float = 1.0,
    average: float = 0.0,
    optimiser: Callable[..., torch.optim.Optimizer] = adam,
    report: Callable[[int, Tensor], None] = lambda epoch, loss: None,
) -> Tensor:
    """Train every `bound(model, guide)` of a list on its own batches, in place, with one optimiser over the stack.

    Args:
        losses: modules alike in everything but values.
        batches: a re-iterable for each, with equal lengths and shapes.
        N: size of the data plate, the same for all.
        lr, decay: the rate falls from `lr` to `decay * lr` along a cosine; 1 keeps it constant.
        average: decay of the moving average that takes the place of the parameters at the end (`lab.Average`); 0 keeps
            the last ones.
        report: called after every epoch with its number and the last losses.

    Returns:
        The loss of every replica at every step, nats per datum, (steps, replicas).

    Raises:
        TrainingError: a loss or parameter that is not finite, with the replicas concerned.
    """
    parameters, buffers = stack_module_state(list(losses))
    optim = optimiser(parameters.values(), lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optim, max(epochs * len(batches[0]), 1), eta_min=decay * lr)
    averaged = {name: value.detach().clone() for name, value in parameters.items()}

    def one(parameters: Any, buffers: Any, batch: dict[str, Tensor]) -> Tensor:
        return functional_call(losses[0], (parameters, buffers), kwargs=batch)

    every = vmap(one, randomness="different")
    history: list[Tensor] = []
    with vectorisable():
        for epoch in range(epochs):
            for rows in zip(*batches, strict=True):
                batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
                optim.zero_grad()
                loss = every(parameters, buffers, batch) / N
                loss.sum().backward()  # replicas share nothing, so each gets its own gradient
                optim.step()
                cosine.step()
                if average:
                    share = weight(average, len(history))
                    torch._foreach_lerp_(list(averaged.values()), [p.detach() for p in parameters.values()], share)
                history.append(loss.detach())
            _refuse_non_finite(history[-1], epoch)
            report(epoch, history[-1])
    _refuse_non_finite(
        torch.stack([p.detach().reshape(len(losses), -1).sum(1) for p in parameters.values()]).sum(0), epochs - 1
    )
    for index, module in enumerate(losses):
        final = (averaged if average else parameters) | buffers
        module.load_state_dict({name: value[index].detach() for name, value in final.items()})
    return torch.stack(history)


def _refuse_non_finite(loss: Tensor, epoch: int) -> None:
    broken = (~loss.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise TrainingError(
            f"the loss or a parameter of replicas {broken} is not finite in epoch {epoch + 1}; try a smaller lr"
        )

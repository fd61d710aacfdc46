"""Gradient estimators for binary codes against the exact gradient: bias, variance and time, one problem for each cell.

A model of `zoo.layerwise` whose codes can be enumerated is two tables, log p(x_n, h) and log q(h | x_n), and what an
estimator should find in the mean is the gradient of a function of them. Many draws cost little, because every datum is
estimated by itself: the rows of a batch are repeated, and a call gives the mean of as many independent estimates.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

import guides
from guides.codes import states, table
from zoo import lab, layerwise
from zoo.lab import estimators
from zoo.lab.training import adam

# of |gradient|: no standard error is taken for smaller. Saturated units move in events too rare to be seen, and torch's
# softplus is exact to 2e-9 only
FLOOR = 1e-6

Row = dict[str, Any]
Parameters = Sequence[nn.Parameter]


class Bias(NamedTuple):
    """What many estimates of a gradient say against what they should be in the mean.

    z is a difference in standard errors; P components, C calls (100 or more, so that z is normal).

    Attributes:
        largest: the largest |z| of a component.
        chance: the probability of one as large among P independent components without bias; correlated ones have less.
        joint: z of the second half of the calls, along the direction in which the first half differs.
        norm: |bias| / |gradient|, less what noise alone gives; 0 where noise gives more.
        visible: the norm of the smallest bias that could have been seen: 4 standard errors, relative to |gradient|.
        variance: trace of the covariance of one estimate, relative to |gradient|^2.
    """

    largest: float
    chance: float
    joint: float
    norm: float
    visible: float
    variance: float


def compare(found: Tensor, truth: Tensor, *, replicas: int = 1) -> Bias:
    """Hold estimates against the truth.

    Args:
        found: means of `replicas` independent estimates each, (C, P).
        truth: exact, (P,), or unbiased estimates of it, (C', P).
    """
    several = truth.dim() == 2
    exact = truth.mean(0) if several else truth
    known = truth.var(0) / len(truth) if several else torch.zeros_like(exact)
    square, size = found.var(0) / len(found) + known, exact.norm()
    difference = found.mean(0) - exact
    z = (difference / square.sqrt().clamp_min(FLOOR * size)).abs().max()
    excess = (difference.square().sum() - square.sum()).clamp_min(0).sqrt()
    return Bias(
        largest=float(z),
        chance=-math.expm1(len(exact) * math.log1p(-min(math.erfc(float(z) / math.sqrt(2)), 1 - 1e-15))),
        joint=_joint(found, truth if several else truth[None]),
        norm=float(excess / size),
        visible=float(4 * square.sum().sqrt() / size),
        variance=float(replicas * found.var(0).sum() / size.square()),
    )


def _joint(found: Tensor, truth: Tensor) -> float:
    """Both are halved where they are noisy, or the direction would know the noise that it is tried on."""
    (first, second), (known, unknown) = found.chunk(2), truth.chunk(2) if len(truth) > 1 else (truth, truth)
    direction = nn.functional.normalize(first.mean(0) - known.mean(0), dim=0)
    here, there = second @ direction, unknown @ direction
    square = here.var() / len(here) + (there.var() / len(there) if len(there) > 1 else 0)
    floor = FLOOR * truth.mean(0).norm()
    return float((here.mean() - there.mean()) / square.sqrt().clamp_min(floor))


def gradient(value: Tensor, parameters: Parameters) -> Tensor:
    """The gradient of a scalar, flattened; 0 where it does not depend on a parameter. (P,)"""
    found = torch.autograd.grad(value, list(parameters), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def draws(
    bound: ELBO, model: nn.Module, guide: nn.Module, x: Tensor, parameters: Parameters, *, calls: int, replicas: int = 1
) -> Tensor:
    """Gradients of the loss, (calls, P), in nats for the data set; each is the mean of `replicas` independent ones.

    The rows of x are repeated, and the plate of a model of fixed N scales their sum to a mean. Bounds that mix the
    rows of a batch cannot be measured like this.

    Args:
        x: (n, D).
    """
    loss, many = bound(model, guide), x.repeat(replicas, 1)
    return torch.stack([gradient(loss(x=many), parameters) for _ in range(calls)])


def tables(model: Any, guide: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_n, h) and log q(h | x_n) of every code of all layers together, nats, (N, 2^(n_1 + ... + n_L))."""
    log_p, log_q = model.decoders[0].table(x), table(guide.q["h1"](x))
    for k, below in enumerate(model.hidden[:-1], 2):
        codes = states(below, like=log_p)
        log_p = log_p.unsqueeze(-1) + model.decoders[k - 1].table(codes)
        log_q = log_q.unsqueeze(-1) + table(guide.q[f"h{k}"](codes))
    return (log_p + table(model.prior())).flatten(1), log_q.flatten(1)


def elbo(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_n E_q[log p(x_n, h) - log q(h | x_n)], nats. log_p, log_q: (N, C)."""
    return (log_q.exp() * (log_p - log_q)).sum()


class Expected(NamedTuple):
    """Scalars whose gradients are unbiased, and nearly exact, for what K draws give in the mean; their values are not.

    Attributes:
        importance: sum_n E log mean_k exp(omega_k).
        wake: both wake phases of reweighted wake-sleep, theta and phi.
    """

    importance: Tensor
    wake: Tensor


def expected(log_p: Tensor, log_q: Tensor, particles: int, *, times: int) -> Expected:
    """The mean over K draws with one of them enumerated and the K - 1 others drawn, `times` over.

    Args:
        log_p, log_q: (N, C). particles: K >= 2.
    """
    w, q = (log_p - log_q).detach(), log_q.detach().exp()
    others = torch.multinomial(q, times * (particles - 1), replacement=True)
    rest = w.gather(1, others).unflatten(1, (times, -1)).logsumexp(-1)  # (N, times)
    total = torch.logaddexp(w.unsqueeze(1), rest.unsqueeze(2))  # (N, times, C)
    bound = total.mean(1) - math.log(particles)
    weight = q * (w.unsqueeze(1) - total).exp().mean(1)  # (N, C)
    score, path = (log_q.exp() * bound).sum(), (weight * (log_p - log_q)).sum()
    return Expected(particles * (score + path), particles * (weight * (log_p + log_q)).sum())


class Way(NamedTuple):
    """How a gradient is estimated.

    Attributes:
        bound: K -> ELBO.
        target: what it should find in the mean: "elbo", or a field of `Expected`; None where that cannot be had.
        evaluations: of f = log p - log q for each datum and call, over K.
        family: of the codes; None is `Rich`.
    """

    bound: Callable[[int], ELBO]
    target: str | None = "elbo"
    evaluations: float = 1.0
    family: Any = None


def _single(bound: Callable[[], ELBO]) -> Callable[[int], ELBO]:
    return lambda particles: bound()


def _relaxed(family: Any, temperature: float) -> Way:
    return Way(estimators.LeaveOneOut, family=partial(family, temperature=temperature))


WAYS: dict[str, Way] = {
    "LeaveOneOut": Way(estimators.LeaveOneOut),
    "LearnedBaseline": Way(estimators.LearnedBaseline),
    "ARM": Way(_single(estimators.ARM), evaluations=0.25),
    "VIMCO": Way(estimators.VIMCO, "importance"),
    "ReweightedWake": Way(estimators.ReweightedWake, "wake"),
    "Sleep": Way(_single(estimators.Sleep), None, evaluations=0.125),
    "Concrete 1.0": _relaxed(guides.Concrete, 1.0),
    "Concrete 0.5": _relaxed(guides.Concrete, 0.5),
    "Concrete 0.1": _relaxed(guides.Concrete, 0.1),
    "StraightThrough 1.0": _relaxed(guides.StraightThrough, 1.0),
    "StraightThrough 0.5": _relaxed(guides.StraightThrough, 0.5),
}
PARTICLES = 8  # and four calls of ARM, eight dreams of Sleep: as many evaluations


class Problem(NamedTuple):
    """A model and a guide at some point of their training, and the data x (N, D)."""

    model: Any
    guide: Any
    x: Tensor


def problem(cell: Row) -> Problem:
    """Build the pair of a cell and train it with `LeaveOneOut`; then its baseline learns at the parameters found.

    Args:
        cell: data, hidden, steps, baseline_steps, seed.
    """
    train = layerwise.data(cell["data"]).train.to(dtype=torch.get_default_dtype())
    lab.seed(cell["seed"])
    model = layerwise.Model.for_data(train, hidden=cell["hidden"])
    guide = layerwise.guide(model, train.peek())
    guide.baseline = estimators.Baseline(train["x"].shape[-1])
    if cell["steps"]:
        bound = estimators.LeaveOneOut(PARTICLES)
        lab.fit(model, guide, [train.all()], bound, epochs=cell["steps"], lr=1e-2, decay=0.1)
    _learn(guide.baseline, estimators.LearnedBaseline(PARTICLES)(model, guide), train["x"], cell["baseline_steps"])
    return Problem(model, guide, train["x"])


def _learn(baseline: nn.Module, loss: nn.Module, x: Tensor, steps: int) -> None:
    optimiser = adam(baseline.parameters(), lr=1e-2)
    parameters = list(baseline.parameters())
    for _ in range(steps):
        for parameter, slope in zip(parameters, torch.autograd.grad(loss(x=x), parameters), strict=True):
            parameter.grad = slope
        optimiser.step()


def truth(at: Problem, target: str, parameters: Parameters, *, times: int = 50, calls: int = 80) -> Tensor:
    """The gradient of the loss that an estimator should find: exact, (P,), or nearly so, (calls, P)."""
    log_p, log_q = tables(at.model, at.guide, at.x)
    if target == "elbo":
        return -gradient(elbo(log_p, log_q), parameters)
    found = [getattr(expected(log_p, log_q, PARTICLES, times=times), target) for _ in range(calls)]
    return -torch.stack([gradient(value, parameters) for value in found])


def measured(at: Problem, cell: Row) -> Row:
    """Bias and variance of one estimator, of the encoder's gradient and of the model's, and its time for each call.

    Args:
        cell: estimator, a name of `WAYS`; calls and replicas of `draws`; rounds of the clock. An estimate takes
            `PARTICLES` evaluations of f for each datum.

    Returns:
        encoder_* and model_* with the fields of `Bias` (`Sleep`: the encoder's variance only), and milliseconds.
    """
    way = WAYS[cell["estimator"]]
    guide: Any = at.guide
    if way.family is not None:
        guide = layerwise.guide(at.model, {"x": at.x[:2]}, latents=way.family)
        guide.q.load_state_dict(at.guide.q.state_dict())
    bound, copies = way.bound(PARTICLES), round(1 / way.evaluations)
    own = list(guide.q.parameters())
    parameters = [*own, *at.model.parameters()]
    took = milliseconds(bound, at.model, guide, at.x, parameters, copies=copies, rounds=cell["rounds"])
    found = draws(bound, at.model, guide, at.x, parameters, calls=cell["calls"], replicas=copies * cell["replicas"])
    exact = truth(at, way.target, [*at.guide.q.parameters(), *at.model.parameters()]) if way.target else None
    split = sum(p.numel() for p in own)
    if exact is None:
        return {"milliseconds": took, "encoder_variance": _variance(found[:, :split], cell["replicas"])}
    result: Row = {"milliseconds": took}
    for name, part in {"encoder": slice(None, split), "model": slice(split, None)}.items():
        about = compare(found[:, part], exact[..., part], replicas=cell["replicas"])
        result |= {f"{name}_{key}": value for key, value in about._asdict().items()}
    return result


def _variance(found: Tensor, replicas: int) -> float:
    """Trace of the covariance over the squared norm of the mean, where nothing else is known of it."""
    trace = found.var(0).sum()
    square = (found.mean(0).square().sum() - trace / len(found)).clamp_min(0)
    return float(replicas * trace / square)


def milliseconds(
    bound: ELBO, model: nn.Module, guide: nn.Module, x: Tensor, parameters: Parameters, *, copies: int, rounds: int
) -> float:
    """Median CPU time of one estimate on all data, forwards and backwards, in milliseconds."""
    took = []
    for _ in range(rounds):
        began = time.process_time()
        draws(bound, model, guide, x, parameters, calls=1, replicas=copies)
        took.append(time.process_time() - began)
    return 1e3 * statistics.median(took)


def measure(cell: Row) -> Row:
    """`problem` and `measured` of a cell, in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return measured(problem(cell), cell)
    finally:
        torch.set_default_dtype(before)

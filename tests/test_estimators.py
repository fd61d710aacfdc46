"""Gradient estimators for binary codes, in a world where every code can be enumerated.

An estimator passes if no component of its mean gradient lies four standard errors from the exact one, and the whole
does not either, along the direction in which an independent half of the draws differs. `seen` is the smallest bias that
would have failed: 4 standard errors of all components together, relative to the norm of the exact gradient.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep
from torch import Tensor, nn
from torch.distributions import Distribution

import guides
from guides import Guide, codes, data_plate
from zoo import lab, layerwise
from zoo.claims import gradients
from zoo.claims.gradients import elbo, gradient, tables
from zoo.lab import estimators, exact, predictive
from zoo.lab.estimators import (
    ARM,
    VIMCO,
    Baseline,
    EstimatorError,
    LearnedBaseline,
    LeaveOneOut,
    ReweightedWake,
    Sleep,
    WakeSleep,
    importance_bound,
    importance_score,
    wake_sleep,
)

D, N = 8, 6
RICH = partial(guides.Rich, hidden=(6,), scale=1.0)
TAME = partial(guides.Rich, hidden=(6,), scale=0.1)  # nearer to the posterior
FAMILIES: dict[str, Any] = {
    "Vanilla": partial(guides.Vanilla, scale=1.0),
    "Rich": RICH,
    "Autoregressive": partial(guides.Autoregressive, hidden=(6,), scale=1.0),
}
WORLDS = [([4], name, "rbm") for name in FAMILIES] + [([4], "Rich", "bits"), ([4, 3], "Rich", "rbm")]
IDS = ["-".join([family, top, *map(str, hidden)]) for hidden, family, top in WORLDS]
TUPLES = [(*world, 2) for world in WORLDS] + [([4], "Rich", "rbm", 3)]
TUPLE_IDS = [*IDS, "Rich-rbm-4-three draws"]


class World(NamedTuple):
    """A model, a guide with its baseline, and binary data (N, D)."""

    model: Any
    guide: Any
    x: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.guide.parameters(), *self.model.parameters()]

    def tables(self) -> tuple[Tensor, Tensor]:
        return tables(self.model, self.guide, self.x)


def world(
    hidden: list[int] | None = None, family: Any = "Rich", top: str = "rbm", *, n: int = N, D: int = D, seed: int = 0
) -> World:
    """Every parameter away from 0, so that no gradient vanishes by symmetry."""
    lab.seed(seed)
    x = (torch.rand(n, D) < 0.5).double()
    model = layerwise.Model(D, hidden or [4], n, top=top, scale=1.0)
    guide = layerwise.guide(model, {"x": x}, latents=FAMILIES[family] if isinstance(family, str) else family)
    with torch.no_grad():
        for p in [*model.parameters(), *guide.parameters()]:
            p.add_(0.3 * torch.randn(p.shape))
    return World(model, guide, x)


def tuples(log_q: Tensor, particles: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every K-tuple of codes for each datum in turn: the codes' numbers (C^K, K), and log q of the tuples (C^K,)."""
    every = torch.cartesian_prod(*[torch.arange(log_q.shape[1])] * particles).reshape(-1, particles)
    for row in log_q:
        yield every, row[every].sum(-1)


def importance(log_p: Tensor, log_q: Tensor, particles: int) -> Tensor:
    """sum_n E log mean_k exp(omega_k), exactly."""
    found = [
        (log_weight.exp() * (w[every].logsumexp(-1) - math.log(particles))).sum()
        for w, (every, log_weight) in zip(log_p - log_q, tuples(log_q, particles), strict=True)
    ]
    return torch.stack(found).sum()


def wake(log_p: Tensor, log_q: Tensor, particles: int) -> Tensor:
    """A scalar whose gradient is the exact mean of both wake phases: the weights and the law of the codes are fixed."""
    found = [
        (log_weight.exp()[:, None] * w[every].softmax(-1)).detach() * (p + q)[every]
        for w, p, q, (every, log_weight) in zip(log_p - log_q, log_p, log_q, tuples(log_q, particles), strict=True)
    ]
    return torch.stack(found).sum()


def estimate(bound: Any, here: World, *, calls: int = 150, replicas: int = 150) -> Tensor:
    """Mean gradients, (calls, P)."""
    return gradients.draws(bound, here.model, here.guide, here.x, here.parameters, calls=calls, replicas=replicas)


def unbiased(bound: Any, here: World, target: Tensor, *, seen: float, **size: int) -> None:
    """No bias as large as `seen`, relative to the norm of the gradient of the target, a bound to be maximised."""
    found = gradients.compare(estimate(bound, here, **size), -gradient(target, here.parameters))
    assert found.largest < 4 and found.joint < 4 and found.chance > 1e-3, found
    assert found.visible < seen, found


def values(bound: Any, here: World, *, calls: int = 100, replicas: int = 200) -> tuple[float, float]:
    """Minus the mean loss, and its standard error."""
    loss, many = bound(here.model, here.guide), here.x.repeat(replicas, 1)
    with torch.no_grad():
        drawn = -torch.stack([loss(x=many) for _ in range(calls)])
    return float(drawn.mean()), float(drawn.std() / math.sqrt(calls))


# The truth itself


@pytest.mark.parametrize(("hidden", "family", "top"), WORLDS, ids=IDS)
def test_the_tables_are_those_of_model_and_guide(hidden: list[int], family: str, top: str) -> None:
    """log p and log q of every code by Pyro's own traces, one code at a time."""
    here = world(hidden, family, top)
    log_p, log_q = here.tables()
    assert torch.allclose(log_q.logsumexp(-1), torch.zeros(N))
    assert torch.allclose(log_p.logsumexp(-1), here.model.log_evidence(here.x))
    for number, code in enumerate(codes.states(sum(hidden))):
        latents = {f"h{k}": part.expand(N, -1) for k, part in enumerate(code.split(hidden), 1)}
        for program, table in ((here.model, log_p), (here.guide, log_q)):
            trace = pyro.poutine.trace(pyro.poutine.condition(program, data=latents)).get_trace(x=here.x)
            torch.testing.assert_close(trace.log_prob_sum(), table[:, number].sum())


def test_one_enumerated_draw_among_drawn_ones_has_the_mean_of_all_tuples() -> None:
    """The truth of `benchmarks/estimators.py`, where tuples are too many: seen would be a bias of 2 %."""
    here = world()
    log_p, log_q = here.tables()
    for particles in (2, 3):
        every = [gradients.expected(log_p, log_q, particles, times=80) for _ in range(200)]
        for field, target in (("importance", importance), ("wake", wake)):
            found = torch.stack([gradient(getattr(e, field), here.parameters) for e in every])
            bias = gradients.compare(found, gradient(target(log_p, log_q, particles), here.parameters))
            assert bias.largest < 4 and bias.joint < 4 and bias.visible < 0.02, bias


def test_a_bias_is_seen() -> None:
    """A hundredth of the gradient's norm, in one direction or in one component; without it there is none."""
    noise, truth = torch.randn(200, 50), torch.randn(50)
    truth /= truth.norm()
    for size, direction in ((0.1, truth), (0.3, torch.eye(50)[7])):
        biased = gradients.compare(truth + size * direction + 0.1 * noise, truth)
        assert biased.joint > 4 and abs(biased.norm - size) < 4 * 0.1 / math.sqrt(200)
    assert gradients.compare(truth + 0.3 * torch.eye(50)[7] + 0.1 * noise, truth).largest > 4
    none = gradients.compare(truth + 0.1 * noise, truth, replicas=3)
    assert none.largest < 4 and none.joint < 4 and none.chance > 0.01
    assert none.visible == pytest.approx(4 * 0.1 * math.sqrt(50 / 200), rel=0.1)
    assert none.variance == pytest.approx(3 * 50 * 0.01, rel=0.1)


def test_a_component_without_noise_is_held_to_a_millionth() -> None:
    truth = torch.tensor([1.0, 2.0])
    noise = torch.stack([torch.randn(100), torch.zeros(100)], 1)
    assert gradients.compare(truth + noise, truth).largest < 4
    assert gradients.compare(truth + noise + 1e-8, truth).largest < 4
    assert gradients.compare(truth + noise + 1e-4, truth).largest > 40


# The formulas


def slopes(value: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.sum(), of, materialize_grads=True))


def drawn(particles: int, n: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(particles, n, requires_grad=True), torch.randn(particles, n, requires_grad=True)


@pytest.mark.equation("lw.23")
def test_leave_one_out_is_its_formula() -> None:
    for particles in (2, 5):
        f, log_q = drawn(particles)
        value = estimators.leave_one_out(f, log_q)
        torch.testing.assert_close(value, f.mean(0))
        at_f, at_q = slopes(value, f, log_q)
        torch.testing.assert_close(at_f, torch.full_like(f, 1 / particles))
        for k in range(particles):
            others = torch.stack([f[j] for j in range(particles) if j != k]).mean(0)
            torch.testing.assert_close(at_q[k], (f[k] - others) / particles)


def test_the_learned_baseline_is_its_formula() -> None:
    (f, log_q), b = drawn(4), torch.randn(3, requires_grad=True)
    value = estimators.with_baseline(f, log_q, b)
    torch.testing.assert_close(value, f.mean(0))
    at_f, at_q, at_b = slopes(value, f, log_q, b)
    torch.testing.assert_close(at_f, torch.full_like(f, 1 / 4))
    torch.testing.assert_close(at_q, (f - b) / 4)
    torch.testing.assert_close(at_b, 2 * (f - b).mean(0))  # uphill: minus the slope of the mean of (f - b)^2


@pytest.mark.equation("lw.25")
def test_vimco_is_its_formula() -> None:
    for particles in (2, 5):
        log_w, log_q = drawn(particles)
        value = estimators.vimco(log_w, log_q)
        torch.testing.assert_close(value, log_w.exp().mean(0).log())
        at_w, at_q = slopes(value, log_w, log_q)
        torch.testing.assert_close(at_w, log_w.softmax(0))
        for k in range(particles):
            others = torch.stack([log_w[j] for j in range(particles) if j != k])
            without = torch.cat([others, others.mean(0)[None]]).exp().mean(0).log()
            torch.testing.assert_close(at_q[k], value - without)


@pytest.mark.equation("lw.24")
def test_arm_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With given u: the slope at the logits, and that of log q itself at both codes, 0 in the mean."""
    here = world(family="Vanilla")
    u = torch.rand(N, 4)
    monkeypatch.setattr(torch, "rand_like", lambda like: u)
    log_p, log_q = here.tables()
    (net,) = here.guide.q["h1"].net
    s = net(here.x).sigmoid()
    first, second = (u > 1 - s).double(), (u < s).double()
    one, two = ((log_p - log_q)[range(N), codes.index(h)] for h in (first, second))
    slope = (one - two)[:, None] * (u - 0.5) - ((first + second) / 2 - s)
    loss = ARM()(here.model, here.guide)(x=here.x)
    torch.testing.assert_close(loss, -(one + two).sum() / 2)
    torch.testing.assert_close(gradient(loss, [net.bias]), -slope.sum(0))
    torch.testing.assert_close(gradient(loss, [net.weight]), -(slope.mT @ here.x).flatten())


@pytest.mark.equation("lw.26")
def test_reweighted_wake_is_its_formula() -> None:
    log_p, log_q = drawn(5)
    value = estimators.reweighted(log_p, log_q)
    weights = (log_p - log_q).exp() / (log_p - log_q).exp().sum(0)
    torch.testing.assert_close(value, (log_p - log_q).exp().mean(0).log())
    for slope in slopes(value, log_p, log_q):
        torch.testing.assert_close(slope, weights)
        torch.testing.assert_close(slope.sum(0), torch.ones(3))  # of each datum by itself


# In the mean


@pytest.mark.equation("lw.23")
@pytest.mark.parametrize(("hidden", "family", "top", "particles"), TUPLES, ids=TUPLE_IDS)
def test_leave_one_out_is_unbiased(hidden: list[int], family: str, top: str, particles: int) -> None:
    here = world(hidden, family, top)
    unbiased(LeaveOneOut(particles), here, elbo(*here.tables()), seen=0.05)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_learned_baseline_is_unbiased_and_descends_its_squared_error(family: str, particles: int) -> None:
    """All parameters, those of the baseline too: their target is -sum_n E_q (f - b(x_n))^2 with f and q held."""
    here = world(family=family)
    here.guide.baseline = Baseline(D, hidden=5)
    log_p, log_q = here.tables()
    q, f = log_q.exp().detach(), (log_p - log_q).detach()
    error = (q * (f - here.guide.baseline(here.x)[:, None]).square()).sum()
    unbiased(LearnedBaseline(particles), here, elbo(log_p, log_q) - error, seen=0.02)


def test_the_codes_gradient_under_a_learned_baseline_is_unbiased() -> None:
    """Without the baseline's own, large gradient, which would hide that of the codes."""
    here = world()
    here.guide.baseline = Baseline(D, hidden=5)
    here.guide.baseline.requires_grad_(False)
    own = World(here.model, here.guide.q, here.x).parameters
    found = gradients.draws(LearnedBaseline(4), here.model, here.guide, here.x, own, calls=200, replicas=400)
    bias = gradients.compare(found, -gradient(elbo(*here.tables()), own))
    assert bias.largest < 4 and bias.joint < 4 and bias.visible < 0.05, bias


@pytest.mark.equation("lw.24")
@pytest.mark.parametrize("top", ["rbm", "bits", "tabular"])
@pytest.mark.parametrize("family", ["Vanilla", "Rich"])
def test_arm_is_unbiased(family: str, top: str) -> None:
    here = world(family=family, top=top)
    unbiased(ARM(), here, elbo(*here.tables()), seen=0.06)


@pytest.mark.equation("lw.25")
@pytest.mark.parametrize(("hidden", "family", "top", "particles"), TUPLES, ids=TUPLE_IDS)
def test_vimco_is_unbiased_for_the_importance_weighted_bound(
    hidden: list[int], family: str, top: str, particles: int
) -> None:
    here = world(hidden, family, top)
    unbiased(VIMCO(particles), here, importance(*here.tables(), particles), seen=0.06)


@pytest.mark.equation("lw.26")
@pytest.mark.parametrize(("hidden", "family", "top", "particles"), TUPLES, ids=TUPLE_IDS)
def test_reweighted_wake_has_the_mean_of_all_tuples(hidden: list[int], family: str, top: str, particles: int) -> None:
    here = world(hidden, family, top)
    unbiased(ReweightedWake(particles), here, wake(*here.tables(), particles), seen=0.05)


@pytest.mark.slow
@pytest.mark.equation("lw.26")
def test_reweighted_wake_tends_to_the_posterior_weighted_gradient() -> None:
    """With r the posterior and g = grad log p + grad log q, by the delta method the bias is of order 1/K:

    E = E_r g - (1/K) sum_h r(h)^2 / q(h) (g(h) - E_r g) + O(1/K^2). At K = 250 the second term is .25 % of the
    gradient's norm, and a bias of .4 % would be seen.
    """
    here = world(family=TAME)
    log_p, log_q = here.tables()
    r = log_p.softmax(-1).detach()
    excess = r.square() / log_q.exp().detach()
    order = r * excess.sum(-1, keepdim=True) - excess
    both, K = log_p + log_q, 250
    limit = gradient((r * both).sum(), here.parameters)
    first = gradient((order * both).sum(), here.parameters)
    exactly = [gradient(wake(log_p, log_q, k), here.parameters) for k in (1, 2, 3)]
    distances = [float((found - limit).norm()) for found in [*exactly, limit + first / K]]
    assert distances == sorted(distances, reverse=True)
    found = estimate(ReweightedWake(K), here, calls=150, replicas=40)
    bias = gradients.compare(found, -(limit + first / K))
    assert bias.largest < 4 and bias.joint < 4 and bias.visible < 0.004, bias
    assert first.norm() / K < 0.003 * limit.norm()


@pytest.mark.equation("lw.26")
@pytest.mark.parametrize(("hidden", "family"), [([4], "Rich"), ([4], "Autoregressive"), ([4, 3], "Rich")])
def test_sleep_has_the_mean_of_all_dreams(hidden: list[int], family: str) -> None:
    """N E_p log q(h | x) over all 2^8 x and all h; the model itself has no gradient."""
    here = world(hidden, family)
    log_p, log_q = tables(here.model, here.guide, codes.states(D))
    assert float(log_p.exp().sum().detach()) == pytest.approx(1)
    unbiased(Sleep(), here, N * (log_p.exp().detach() * log_q).sum(), seen=0.06)
    assert not gradient(Sleep()(here.model, here.guide)(x=here.x), list(here.model.parameters())).any()


# Relaxed draws


def relaxed(family: Any, temperature: float) -> World:
    return world(family=partial(family, hidden=(6,), scale=1.0, temperature=temperature))


def relaxed_bias(family: Any, temperature: float, **size: int) -> gradients.Bias:
    here = relaxed(family, temperature)
    return gradients.compare(estimate(LeaveOneOut(1), here, **size), -gradient(elbo(*here.tables()), here.parameters))


@pytest.mark.parametrize("family", [guides.Concrete, guides.StraightThrough])
def test_the_bias_of_relaxed_gradients_is_real_and_seen(family: Any) -> None:
    found = relaxed_bias(family, 2.0, calls=100)
    assert found.largest > 10 and found.joint > 10 and found.chance < 1e-10 and found.norm > 2 * found.visible


def test_the_bias_of_concrete_shrinks_with_the_temperature_and_the_variance_grows() -> None:
    """Each bias is more than twice the next, and more than could just be seen."""
    found = [relaxed_bias(guides.Concrete, temperature, replicas=400) for temperature in (2.0, 0.7, 0.2)]
    first, second, third = found
    assert first.norm > 2 * second.norm > 4 * third.norm, found
    assert all(bias.norm > bias.visible for bias in found), found
    assert first.variance < second.variance < third.variance, found


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_straight_through_values_are_unbiased_and_concrete_ones_are_not(temperature: float) -> None:
    truth = float(elbo(*relaxed(guides.StraightThrough, temperature).tables()).detach())
    mean, error = values(LeaveOneOut(1), relaxed(guides.StraightThrough, temperature))
    assert abs(mean - truth) < 4 * error < 0.01 * abs(truth)
    mean, error = values(LeaveOneOut(1), relaxed(guides.Concrete, temperature))
    assert abs(mean - truth) > 10 * error


# Values and bounds of the evidence


@pytest.mark.equation("lw.23", "lw.24", "lw.25", "lw.26")
@pytest.mark.parametrize(
    ("bound", "target"),
    [
        (LeaveOneOut(2), elbo),
        (LearnedBaseline(1), elbo),
        (ARM(), elbo),
        (VIMCO(2), partial(importance, particles=2)),
        (ReweightedWake(3), partial(importance, particles=3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_those_of_the_bounds(bound: Any, target: Callable[..., Tensor]) -> None:
    """Seen would be an error of half a hundredth."""
    here = world()
    here.guide.baseline = Baseline(D)
    truth = float(target(*here.tables()).detach())
    mean, error = values(bound, here)
    assert abs(mean - truth) < 4 * error < 0.005 * abs(truth)


@pytest.mark.equation("lw.25")
def test_the_importance_weighted_bound_rises_to_the_evidence() -> None:
    """Exactly up to K = 3, by draws beyond; at K = 2000 what is missing is below .02 nats per datum."""
    here = world([6], TAME, n=12)
    log_p, log_q = here.tables()
    evidence = float(here.model.log_evidence(here.x).sum().detach())
    exactly = [float(importance(log_p, log_q, K).detach()) for K in (1, 2, 3)]
    assert exactly[0] == pytest.approx(float(elbo(log_p, log_q).detach()))
    steps = [*exactly]
    for K, repeats in ((3, 2000), (50, 400), (2000, 20)):
        many = here.x.repeat(repeats, 1)
        bounds = importance_bound(here.model, here.guide, {"x": many}, particles=K).reshape(repeats, -1).sum(1)
        error = float(bounds.std() / math.sqrt(repeats))
        assert float(bounds.mean()) < evidence + 4 * error and error < 0.2
        if K == 3:
            assert abs(float(bounds.mean()) - exactly[2]) < 4 * error
        else:
            steps.append(float(bounds.mean()))
    assert steps == sorted(steps) and steps[-2] - steps[2] > 0.5
    assert evidence - steps[-1] < 0.02 * len(here.x)


def test_chunks_are_joined_to_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws laid out beforehand give the same whatever the size of a chunk, the last and shorter one included."""
    log_p, log_q = torch.randn(25, 4), torch.randn(25, 4)
    truth = exact.log_mean(log_p - log_q)
    for chunk, sizes in ((100, [25]), (25, [25]), (10, [10, 10, 5]), (1, [1] * 25)):
        asked: list[int] = []

        def draw(model: Any, guide: Any, batch: Any, size: int, asked: list[int] = asked) -> Any:
            rows = slice(sum(asked), sum(asked) + size)
            asked.append(size)
            return estimators.Draws(log_p[rows], log_q[rows], 1.0, {}, {}, False)

        monkeypatch.setattr(estimators, "draw", draw)
        found = importance_bound(None, None, {"x": torch.zeros(4, 1)}, particles=25, chunk=chunk)
        torch.testing.assert_close(found, truth)
        assert asked == sizes


def test_the_error_of_an_importance_score_is_that_of_repeats() -> None:
    """Forty repeats: their spread estimates the error to about 11 %, and the printed errors to less."""
    here = world()
    runs = [importance_score(here.model, here.guide, {"x": here.x}, particles=200) for _ in range(40)]
    values, errors = torch.tensor(runs).T
    assert float(values.std() / errors.mean()) == pytest.approx(1, abs=0.4)
    bound = importance_bound(here.model, here.guide, {"x": here.x}, particles=200)
    assert float(values.mean()) == pytest.approx(float(bound.mean()), abs=5 * float(errors.mean()))


def test_the_importance_bound_leaves_no_graph() -> None:
    here = world()
    assert not importance_bound(here.model, here.guide, {"x": here.x}, particles=3).requires_grad


# The baseline learns


def test_the_baseline_learns_the_mean_of_f_given_x() -> None:
    """Its squared error falls to the variance of f given x, the least there is: b(x_n) = E[f | x_n], both exact."""
    here = world()
    here.guide.baseline = Baseline(D, hidden=20)
    log_p, log_q = (t.detach() for t in here.tables())
    q, f = log_q.exp(), log_p - log_q
    mean = (q * f).sum(-1)
    least = (q * (f - mean[:, None]).square()).sum()
    loss, many = LearnedBaseline(8)(here.model, here.guide), here.x.repeat(25, 1)
    parameters = list(here.guide.baseline.parameters())
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        for p, slope in zip(parameters, torch.autograd.grad(loss(x=many), parameters), strict=True):
            p.grad = slope
        optimiser.step()
        schedule.step()
    learnt = here.guide.baseline(here.x).detach()
    error = (q * (f - learnt[:, None]).square()).sum()
    torch.testing.assert_close(learnt, mean, atol=0.1, rtol=0)
    assert 1 <= float(error / least) < 1.005
    assert float((q * f.square()).sum() / least) > 10  # without a baseline


# One datum by itself


def whole(log_table: Tensor) -> Tensor:
    """The table of all data as one: a code for each of them. (N, C) -> (1, C^N)."""
    found = log_table[0]
    for row in log_table[1:]:
        found = (found[:, None] + row).flatten()
    return found[None]


@pytest.mark.equation("lw.26")
def test_weights_of_the_whole_batch_together_are_something_else() -> None:
    """`pyro.infer.ReweightedWakeSleep` normalises over the batch: its mean is that of the batch as one datum."""
    here = world([2], n=4)
    log_p, log_q = here.tables()
    parameters = here.parameters
    together = whole(log_p), whole(log_q)
    each = -gradient(wake(log_p, log_q, 2), parameters)
    joint = -gradient(wake(*together, 2), parameters)
    unbiased(ReweightedWake(2), here, wake(log_p, log_q, 2), seen=0.05)
    theirs = ReweightedWakeSleep(num_particles=2, insomnia=1.0, max_plate_nesting=1, vectorize_particles=True)
    pyros = []
    for _ in range(1500):
        here.model.zero_grad(), here.guide.zero_grad()
        theirs.loss_and_grads(here.model, here.guide, x=here.x)
        pyros.append(torch.cat([p.grad.flatten() for p in parameters]))
    found = gradients.compare(torch.stack(pyros), joint)
    assert found.largest < 4 and found.joint < 4, found
    other = gradients.compare(torch.stack(pyros), each)
    assert other.joint > 10 and other.norm > 2 * other.visible, other


BOUNDS: dict[str, Any] = {
    "LeaveOneOut": LeaveOneOut(2),
    "LearnedBaseline": LearnedBaseline(2),
    "VIMCO": VIMCO(2),
    "ReweightedWake": ReweightedWake(2),
    "Sleep": Sleep(),
    "ARM": ARM(),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_minibatch_is_scaled_to_the_data_set(name: str) -> None:
    """Value and gradient of 4 rows out of 12 are three times those of the same 4 rows alone, noise for noise."""
    found = []
    for size in (12, 4):
        here = world()
        here.guide.baseline = Baseline(D)
        here.model.N = here.guide.N = size
        lab.seed(1)
        loss = BOUNDS[name](here.model, here.guide)(x=here.x[:4])
        found.append(torch.cat([loss.detach()[None], gradient(loss, here.parameters)]))
    torch.testing.assert_close(found[0], 3 * found[1])
    assert found[0].abs().max() > 0.1


@pytest.mark.parametrize("name", BOUNDS)
def test_a_minibatch_is_unbiased_over_batches(name: str) -> None:
    """The mean over all batches of one row is the loss on all rows: an N and a scale that fit each other."""
    here = world(n=3)
    here.guide.baseline = Baseline(D)
    means = []
    for batches in ([here.x], list(here.x.split(1))):
        parts = [values(BOUNDS[name], World(here.model, here.guide, part), replicas=200) for part in batches]
        means.append((sum(m for m, _ in parts) / len(parts), math.hypot(*[e for _, e in parts]) / len(parts)))
    (whole, e1), (split, e2) = means
    assert abs(whole - split) < 4 * math.hypot(e1, e2) < 0.01 * abs(whole)


# What does not fit is refused


class Shared(nn.Module):
    """One bit for all data, and one for each."""

    def forward(self, x: Tensor) -> None:
        shared = pyro.sample("shared", dist.Bernoulli(0.5))
        with data_plate(len(x)):
            h = pyro.sample("h", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample(
                "x", dist.Bernoulli(logits=h.sum(-1, keepdim=True) + shared[..., None, None]).to_event(1), obs=x
            )


class SharedGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> None:
        pyro.sample("shared", dist.Bernoulli(logits=self.a))
        with data_plate(len(x)):
            pyro.sample("h", dist.Bernoulli(logits=self.b).to_event(1))


@pytest.mark.parametrize("name", BOUNDS)
def test_a_latent_outside_the_data_plate_is_refused(name: str) -> None:
    with pytest.raises(EstimatorError, match=r"\['shared'\] lie outside the plate 'data'.*use Trace_ELBO"):
        BOUNDS[name](Shared(), SharedGuide())(x=torch.ones(3, 1))


@pytest.mark.parametrize("bound", [LeaveOneOut, VIMCO])
def test_one_draw_has_no_others(bound: Any) -> None:
    here = world()
    with pytest.raises(EstimatorError, match="needs two draws or more: particles=2"):
        bound(1)(here.model, here.guide)(x=here.x)


@pytest.mark.parametrize("bound", [LeaveOneOut, VIMCO])
def test_one_draw_is_enough_where_it_can_be_differentiated(bound: Any) -> None:
    here = relaxed(guides.Concrete, 0.5)
    assert gradient(bound(1)(here.model, here.guide)(x=here.x), list(here.guide.parameters())).any()


def test_scores_under_a_relaxed_guide_are_of_its_bits() -> None:
    """The ELBO (K = 1) of the Bernoulli law with the same logits, exactly known; relaxed draws are far from it."""
    here = relaxed(guides.Concrete, 2.0)
    truth = float(elbo(*here.tables()).detach()) / len(here.x)
    batch = {"x": here.x.repeat(2000, 1)}
    mean, _ = estimators.importance_score(here.model, here.guide, batch, particles=2)
    one = estimators.importance_bound(here.model, here.guide, batch, particles=1).view(2000, -1).mean(1)
    spread = float(one.std()) / math.sqrt(len(one))
    assert abs(float(one.mean()) - truth) < 4 * spread < 0.1 and mean > truth
    with torch.no_grad():
        loose = estimators.draw(here.model, here.guide, batch, 1)
    assert abs(float((loose.log_p - loose.log_q).mean()) - truth) > 10 * spread
    assert set(predictive.draw(here.model, here.guide, {"x": here.x}, 50).latents["h1"].flatten().tolist()) == {
        0.0,
        1.0,
    }


RELAXED = partial(guides.StraightThrough, hidden=(6,), scale=1.0)


@pytest.mark.parametrize(
    ("bound", "family"),
    [
        (LeaveOneOut(4), {"h1": RELAXED, "h2": RICH}),
        (VIMCO(4), {"h1": RICH, "h2": RELAXED}),
        (ReweightedWake(4), RELAXED),
        (LearnedBaseline(4), RELAXED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_latent_is_differentiated_twice(bound: Any, family: Any) -> None:
    """Through the draw and by the score function: biases of .5 (`LeaveOneOut`) to 4.4 gradients were measured."""
    here = world([4, 3], family)
    here.guide.baseline = Baseline(D)
    with pytest.raises(EstimatorError, match="differentiated through their draws and by the score function too"):
        bound(here.model, here.guide)(x=here.x)


@pytest.mark.equation("lw.24")
@pytest.mark.parametrize(
    ("hidden", "family"),
    [([4], "Autoregressive"), ([4, 3], "Rich"), ([4], partial(guides.Concrete, hidden=(6,)))],
    ids=["Autoregressive", "two layers", "Concrete"],
)
def test_arm_refuses_what_is_not_one_site_of_independent_bits(hidden: list[int], family: Any) -> None:
    here = world(hidden, family)
    with pytest.raises(EstimatorError, match="one site of independent bits; use LeaveOneOut"):
        ARM()(here.model, here.guide)(x=here.x)


def test_a_learned_baseline_must_be_there() -> None:
    here = world()
    with pytest.raises(EstimatorError, match=r"guide\.baseline = Baseline\(features\)"):
        LearnedBaseline()(here.model, here.guide)(x=here.x)


class Unnamed(nn.Module):
    """A factorial guide without any family of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(D, 4)

    def law(self, x: Tensor) -> Distribution:
        return dist.Bernoulli(logits=self.logits(x)).to_event(1)

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), N):
            pyro.sample("h1", self.law(x))


@pytest.mark.parametrize("bound", [LeaveOneOut(2), ARM()], ids=lambda b: type(b).__name__)
def test_any_pyro_guide_will_do(bound: Any) -> None:
    here = world()
    plain = World(here.model, Unnamed(), here.x)
    target = elbo(tables(here.model, here.guide, here.x)[0], codes.table(plain.guide.law(here.x)))
    unbiased(bound, plain, target, seen=0.06)


# The measurements of `benchmarks/estimators.py`


def test_measure_says_what_the_ledger_keeps() -> None:
    cell = {"data": "bars_and_stripes_3x3", "hidden": [3], "steps": 20, "baseline_steps": 5, "seed": 0}
    here = gradients.problem(cell)
    size = {"calls": 100, "replicas": 4, "rounds": 1}
    for name in ("LeaveOneOut", "ARM", "VIMCO", "Sleep", "Concrete 1.0"):
        way = gradients.WAYS[name]
        found = gradients.measured(here, {**cell, **size, "estimator": name})
        assert found["milliseconds"] > 0 and found["encoder_variance"] > 0
        if way.target is not None and way.family is None:
            assert found["encoder_largest"] < 4.5 and found["encoder_joint"] < 4, (name, found)
            assert found["model_largest"] < 4.5 and found["model_joint"] < 4, (name, found)


def test_as_many_evaluations_for_every_estimator() -> None:
    assert {way.evaluations * gradients.PARTICLES for way in gradients.WAYS.values()} == {8, 2, 1}


def test_the_guide_of_a_relaxed_problem_has_the_same_logits() -> None:
    here = gradients.problem(
        {"data": "bars_and_stripes_3x3", "hidden": [3], "steps": 0, "baseline_steps": 0, "seed": 0}
    )
    relaxed = layerwise.guide(here.model, {"x": here.x}, latents=guides.Concrete)
    relaxed.q.load_state_dict(here.guide.q.state_dict())
    for one, two in zip(tables(here.model, here.guide, here.x), tables(here.model, relaxed, here.x), strict=True):
        torch.testing.assert_close(one, two)
    assert isinstance(here.guide, Guide)


@pytest.mark.slow
@pytest.mark.equation("lw.26")
def test_wake_sleep_reaches_the_evidence_that_exact_training_reaches() -> None:
    """A stage of three updates on bars and stripes, against the optimum of the exact evidence from the same start."""
    x = layerwise.data("bars_and_stripes_3x3").train["x"].double()
    found = {}
    for method in ("wake-sleep", "exact"):
        lab.seed(0)
        model = layerwise.Model(9, [4], len(x), top="tabular", scale=1.0)
        guide = layerwise.guide(model, {"x": x})
        if method == "wake-sleep":
            lab.run([wake_sleep(model, guide, [{"x": x}], epochs=4000, lr=0.01, particles=20)])
        else:
            lab.fit(model, guide, [{"x": x}], layerwise.Evidence(), epochs=4000, lr=0.01)
        found[method] = float(model.log_evidence(x).mean().detach())
    assert found["exact"] < -math.log(14) + 1e-9, "no law of 14 patterns does better"
    assert found["wake-sleep"] == pytest.approx(found["exact"], abs=0.3)


def test_one_loss_of_wake_and_sleep_has_both_gradients_and_the_value_of_the_first() -> None:
    here = world()
    x = {"x": here.x}
    every = [*here.model.parameters(), *here.guide.parameters()]

    def slopes(*losses: Any) -> tuple[Tensor, list[Tensor]]:
        pyro.set_rng_seed(3)
        found = [loss(here.model, here.guide)(**x) for loss in losses]
        got = torch.autograd.grad(sum(found), every, allow_unused=True)
        return found[-1], [torch.zeros_like(p) if g is None else g for g, p in zip(got, every, strict=True)]

    value, both = slopes(Sleep(), ReweightedWake(3))
    together, one = slopes(WakeSleep(3))
    torch.testing.assert_close(together, value)
    for a, b in zip(one, both, strict=True):
        torch.testing.assert_close(a, b)


def test_wake_sleep_is_its_two_losses_one_after_the_other() -> None:
    here = world()
    x = {"x": here.x}
    before = [p.detach().clone() for p in (*here.model.parameters(), *here.guide.parameters())]
    stage = wake_sleep(here.model, here.guide, [x], epochs=1, lr=0.01, particles=3)
    assert stage.optimiser is None, "it makes its own updates"
    pyro.set_rng_seed(5)
    value = stage.step(x)
    moved = [p.detach().clone() for p in (*here.model.parameters(), *here.guide.parameters())]
    for parameter, old in zip((*here.model.parameters(), *here.guide.parameters()), before, strict=True):
        parameter.data.copy_(old)
        parameter.grad = None
    pyro.set_rng_seed(5)
    loss = ReweightedWake(3)(here.model, here.guide)
    every = [*here.model.parameters(), *here.guide.parameters()]
    awake, asleep = torch.optim.Adam(every, lr=0.01), torch.optim.Adam(here.guide.parameters(), lr=0.01)
    first = loss(**x)
    first.backward()
    awake.step()
    asleep.zero_grad()
    Sleep()(here.model, here.guide)(**x).backward()
    asleep.step()
    for parameter, there in zip(every, moved, strict=True):
        torch.testing.assert_close(parameter.detach(), there, rtol=0, atol=0)
    assert float(value) == pytest.approx(float(first.detach()) / (here.model.N or len(here.x)))


@pytest.mark.parametrize("stop", [1, 3])
def test_wake_sleep_resumed_is_bit_for_bit_wake_sleep_never_stopped(stop: int, tmp_path: Path) -> None:
    """Its optimisers are part of the checkpoint."""

    def train(epochs: int, keep: lab.Checkpoints | None) -> World:
        here = world()
        stage = wake_sleep(here.model, here.guide, [{"x": here.x}] * 2, epochs=epochs, lr=0.05, particles=3)
        lab.run([stage], state={"model": here.model, "guide": here.guide}, keep=keep)
        return here

    class Stopping(lab.Checkpoints):
        def offer(self, parts: Any, schedule: Any, done: int) -> None:
            super().offer(parts, schedule, done)
            if done == stop:
                raise KeyboardInterrupt

    whole = train(4, None)
    with pytest.raises(KeyboardInterrupt):
        train(4, Stopping(tmp_path, every=0.0))
    rest = train(4, lab.Checkpoints.resume(tmp_path))
    for one, two in zip(whole.parameters, rest.parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)

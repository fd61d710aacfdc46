"""The criteria of a layer and of the top, and their gradients, against enumeration."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from worlds import EPS, FAMILIES, assert_same, built, data, every_draw, gradients, law_of, pair, shaken

import guides
from guides.codes import states, table
from zoo import layerwise
from zoo.lab import exact
from zoo.layerwise import Criterion, Model, Reconstruction, SampledCriterion, Seen, minibatch_aggregated

N, D, H = 7, 5, 1.25


def criterion(T: Tensor, log_q: Tensor, size: int) -> Tensor:
    """log sum_h P(x_n|h) (q_n(h) / N + (N - 1) / N mean of the others' q), one datum at a time."""
    values = []
    for n in range(len(T)):
        others = [log_q[m].exp() for m in range(len(T)) if m != n]
        q_D = log_q[n].exp() / size + (size - 1) / size * sum(others) / len(others)
        values.append((T[n].exp() @ q_D).log())
    return torch.stack(values)


def by_hand(name: str, model: Any, q: Any, x: Tensor) -> Tensor:
    """The criterion of each datum, (n,)."""
    decoder, log_q = model.decoders[0], table(q)
    T = torch.stack([decoder(h).log_prob(x) for h in states(decoder.above)], -1)
    if name == "Criterion":
        return criterion(T, log_q, model.N)
    if name == "Codes":
        return torch.stack([(q_n.exp() @ T_n.exp()).log() for q_n, T_n in zip(log_q, T, strict=True)]) - H
    if name == "Reconstruction":
        return torch.stack([q_n.exp() @ T_n for q_n, T_n in zip(log_q, T, strict=True)]) - H
    return decoder(log_q.exp() @ states(decoder.above)).log_prob(x) - H  # MeanField


@pytest.mark.equation("lw.1", "lw.3", "lw.13", "lw.16", "lw.20")
@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("rows", [N, 3])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["Criterion", "Codes", "Reconstruction", "MeanField"])
def test_a_criterion_is_the_sum_over_all_codes(name: str, family: str, rows: int, pixels: str) -> None:
    """Values and gradients in decoder and encoder, in nats for the data set, on a minibatch too."""
    model, guide, batch = pair(family, pixels=pixels)
    some = {key: value[:rows] for key, value in batch.items()}
    loss = layerwise.CRITERIA[name]()(model, guide)(**some)
    truth = -N / rows * by_hand(name, model, law_of(guide, some), some["x"]).sum()
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-10)
    for part in (model, guide):
        assert_same(gradients(loss, part), gradients(truth, part), 1e-10)


@pytest.mark.equation("lw.13", "lw.12")
@pytest.mark.parametrize("name", ["Criterion", "Codes", "Reconstruction", "MeanField"])
def test_the_criterion_of_an_upper_layer_takes_codes_for_data(name: str) -> None:
    """Nothing flows into the layer below, and its data entropy is not charged."""
    model, guide, batch = pair(hidden=(3, 2))
    codes = data(N, 3)
    loss: Any = layerwise.CRITERIA[name](2).differentiable_loss(model, poutine.condition(guide, {"h1": codes}), **batch)
    upper = Model(3, (2,), N)
    upper.decoders = nn.ModuleList([model.decoders[1]])
    value = by_hand(name, upper, guide.q["h2"](codes), codes).sum() + (0 if name == "Criterion" else N * H)
    torch.testing.assert_close(loss, -value, rtol=0, atol=1e-11)
    for part in (model.decoders[1], guide.q["h2"]):
        assert_same(gradients(loss, part), gradients(-value, part))
    for part in (model.decoders[0], model.prior, guide.q["h1"]):
        assert not any(g.any() for g in gradients(loss, part))


@pytest.mark.equation("lw.5", "lw.3")
def test_a_richer_q_is_no_worse_than_a_linear_one_and_no_better_than_the_blm() -> None:
    """Sigmoid units are linear near 0, so that rich encoders come as close to any linear one as one likes."""
    x = exact.distinct(data(12))[0]
    model, batch = built((4,), N=len(x)), {"x": x}
    linear: Any = layerwise.guide(model, batch, latents=guides.Vanilla)
    rich: Any = layerwise.guide(model, batch, latents=partial(guides.Rich, hidden=(D,)))
    lowest = learned(model, linear, batch)
    before, after, last = rich.q["h1"].net[0], rich.q["h1"].net[2], linear.q["h1"].net[0]
    with torch.no_grad():
        before.weight.copy_(1e-4 * torch.eye(D))
        before.bias.zero_()
        after.weight.copy_(4e4 * last.weight)
        after.bias.copy_(last.bias - after.weight.sum(1) / 2)
        assert float(Criterion()(model, rich)(**batch)) == pytest.approx(lowest, abs=1e-5)
    lower = min(learned(model, shaken(rich), batch) for _ in range(3))
    assert lower <= lowest + 1e-3
    assert -lower / len(x) <= layerwise.promise(model, x) + 1e-6


def learned(model: Any, guide: Any, batch: dict[str, Tensor]) -> float:
    """The criterion after 800 steps of the guide."""
    adam = torch.optim.Adam(guide.parameters(), 0.05)
    for _ in range(800):
        adam.zero_grad()
        Criterion()(model, guide)(**batch).backward()
        adam.step()
    return float(Criterion()(model, guide)(**batch).detach())


# The minibatch.


@pytest.mark.equation("lw.20")
@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_mean_over_all_minibatches_is_the_aggregated_posterior(size: int) -> None:
    log_q = torch.randn(6, 8).log_softmax(-1)
    q_D = log_q.exp().mean(0)
    found: dict[int, list[Tensor]] = {n: [] for n in range(6)}
    naive: dict[int, list[Tensor]] = {n: [] for n in range(6)}
    for members in combinations(range(6), size):
        part = minibatch_aggregated(log_q[list(members)], 6).exp()
        torch.testing.assert_close(part.sum(-1), torch.ones(size))
        for n, q in zip(members, part, strict=True):
            found[n].append(q)
            naive[n].append(log_q[list(members)].exp().mean(0))
    for n in range(6):
        torch.testing.assert_close(torch.stack(found[n]).mean(0), q_D, rtol=0, atol=1e-15)
        off = float((torch.stack(naive[n]).mean(0) - q_D).abs().max())
        assert off > 1e-3 or size == 6


@pytest.mark.equation("lw.20")
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_criterion_of_minibatches_is_never_above_that_of_the_data_in_the_mean(size: int) -> None:
    """The batch's own mean is: here codes name their data, as a trained encoder's do."""
    model, guide, batch = pair()
    with torch.no_grad():
        whole = float(Criterion()(model, guide)(**batch))
        parts = [{k: v[list(members)] for k, v in batch.items()} for members in combinations(range(N), size)]
        losses = torch.stack([Criterion()(model, guide)(**part) for part in parts])
        assert float(losses.mean()) >= whole - EPS
        assert size < N or float(losses.mean()) == pytest.approx(whole, abs=1e-11)
        x = states(3)[:N]
        T = torch.where(torch.eye(N).bool(), 0.0, -20.0)
        q = torch.where(torch.eye(N).bool(), 0.0, -math.inf)  # code n for datum n
        naive = torch.stack([(T[list(m)] + q[list(m)].logsumexp(0) - math.log(size)).logsumexp(-1).mean() for m in
                             combinations(range(len(x)), size)])  # fmt: skip
        full = (T + q.logsumexp(0) - math.log(N)).logsumexp(-1).mean()
        assert float(naive.mean() - full) == pytest.approx(math.log(N / size), abs=1e-6)


# Gradients of the criterion.


@pytest.mark.equation("lw.21")
@pytest.mark.parametrize("family", ["Vanilla", "Rich", "Autoregressive"])
def test_both_formulas_of_the_criterion_s_gradient(family: str) -> None:
    """theta: E_x E_r grad log P_I.  phi: E_x E_r sum_n rho_n(h) grad log q(h|x_n); r and rho held fixed."""
    model, guide, batch = pair(family)
    loss = Criterion()(model, guide)(**batch)
    T, log_q = model.decoders[0].table(batch["x"]), table(law_of(guide, batch))
    q_D = log_q.exp().mean(0)
    r = (T + q_D.log()).softmax(-1).detach()  # (N, 2^n)
    rho = (log_q.exp() / N / q_D).detach()
    theta = gradients(-N * (r * T).sum(-1).mean(), model.decoders[0])
    phi = gradients(-N * (r.mean(0) * (rho * log_q).sum(0)).sum(), guide)
    assert_same(gradients(loss, model.decoders[0]), theta, 1e-12)
    assert_same(gradients(loss, guide), phi, 1e-12)
    assert not any(g.any() for g in gradients(loss, model.prior))


@pytest.mark.equation("lw.21", "lw.4")
def test_the_envelope_gradient_is_the_slope_of_the_best_latent_marginal() -> None:
    """Central differences of U_D, EM down to a certificate of 1e-10."""
    x = exact.distinct(data(12))[0]
    model: Any = built((3,), N=len(x))
    decoder, log_w = model.decoders[0], torch.full((len(x),), -math.log(len(x)))

    def U() -> float:
        best = exact.blm(decoder.table(x), log_w, tol=1e-10, steps=200_000)
        assert best.certificate < 1e-10
        return best.bound

    loss = layerwise.BLM(tol=1e-10, steps=200_000)(model, layerwise.guide(model, {"x": x}))(x=x)
    assert float(loss.detach()) == pytest.approx(-len(x) * U(), abs=1e-8)
    found = gradients(loss, decoder)
    for parameter, slope in zip(decoder.parameters(), found, strict=True):
        flat = parameter.detach().view(-1)
        for i in range(0, len(flat), 4):
            values = []
            for sign in (1, -1):
                flat[i] += sign * 1e-4
                values.append(U())
                flat[i] -= sign * 1e-4
            expected = -len(x) * (values[0] - values[1]) / 2e-4
            assert float(slope.view(-1)[i]) == pytest.approx(expected, abs=1e-6)


# Draws in the place of sums: the mean over every possible draw.


class Scripted:
    """A law whose draws are prescribed."""

    has_rsample = False

    def __init__(self, q: Any, draws: Tensor) -> None:
        self.q, self.draws = q, draws

    def sample(self, shape: torch.Size) -> Tensor:
        assert shape == self.draws.shape[:1]
        return self.draws

    def log_prob(self, h: Tensor) -> Tensor:
        return self.q.log_prob(h)


def seen(model: Any, guide: Any, batch: dict[str, Tensor]) -> Seen:
    return layerwise.look(model, guide, 1, batch)


def mean_of(bound: Any, what: Seen, outcomes: Tensor) -> tuple[Tensor, Tensor]:
    """The expected surrogate (its gradient is the estimator's mean), and the probabilities with their graph."""
    log_q, codes = table(what.q), states(what.bits)
    p = log_q[torch.arange(outcomes.shape[-1]), outcomes].sum((-1, -2)).exp()
    values = [bound.values(what._replace(q=Scripted(what.q, codes[draw]))).sum() for draw in outcomes]
    return (p.detach() * torch.stack(values)).sum(), p


@pytest.mark.equation("lw.20")
@pytest.mark.parametrize(
    ("family", "rows", "sharpness"),
    [("Rich", 2, 1), ("Rich", 2, 16), ("Autoregressive", 2, 1), ("Autoregressive", 2, 16), ("Rich", 3, 16)],
)
def test_the_sampled_criterion_is_a_lower_bound_with_an_unbiased_gradient(
    family: str, rows: int, sharpness: int
) -> None:
    """No z-test: the mean over all 16^rows outcomes of two codes for each datum; a bias of 1e-9 would be seen.

    Under the sharp decoder one code has all the mass of a datum, to hundreds of nats.
    """
    model: Any = built((2,), N=3, in_features=20)
    with torch.no_grad():
        model.decoders[0].W.mul_(sharpness)
    batch = {"x": data(3, 20)}
    guide: Any = shaken(layerwise.guide(model, batch, latents=FAMILIES[family]))
    some = {"x": batch["x"][:rows]}
    what, outcomes = seen(model, guide, some), every_draw(rows, 2, 2)
    surrogate, p = mean_of(SampledCriterion(particles=2), what, outcomes)
    T = model.decoders[0].table(some["x"])  # (n, 4)
    share = torch.full((rows, rows), (1 - 1 / 3) / (rows - 1)).fill_diagonal_(1 / 3)
    terms = T[:, outcomes] + (share[:, None, None, :] / 2).log()  # (n, outcomes, K, m)
    truth = (p * terms.logsumexp((-1, -2)).sum(0)).sum()
    torch.testing.assert_close(surrogate, truth, rtol=1e-12, atol=0)
    for part in (model.decoders[0], guide):
        assert_same(gradients(surrogate, part), gradients(truth, part), 1e-9)
    loss = Criterion()(model, guide)(**some)
    assert float((-rows / 3 * loss - truth).detach()) > 1e-3


@pytest.mark.equation("lw.13")
@pytest.mark.parametrize("family", ["Rich", "Autoregressive"])
def test_the_drawn_reconstruction_has_the_enumerated_gradient_in_the_mean(family: str) -> None:
    model = built((2,), entropy=H)
    batch = {"x": data()[:2]}
    guide: Any = shaken(layerwise.guide(model, batch, latents=FAMILIES[family]))
    what = seen(model, guide, batch)
    surrogate, _ = mean_of(Reconstruction(bits=0, particles=2), what, every_draw(2, 2, 2))
    truth = by_hand("Reconstruction", model, what.q, batch["x"]).sum()
    torch.testing.assert_close(surrogate, truth, rtol=0, atol=1e-11)
    for part in (model.decoders[0], guide):
        assert_same(gradients(surrogate, part), gradients(truth, part), 1e-10)


@pytest.mark.parametrize("name", ["Concrete", "StraightThrough"])
def test_draws_that_can_be_differentiated_are(name: str) -> None:
    model = built()
    batch = {"x": data()}
    guide: Any = shaken(layerwise.guide(model, batch, latents=getattr(guides, name)))
    what = seen(model, guide, batch)
    pyro.set_rng_seed(5)
    values = Reconstruction(particles=4).values(what)
    pyro.set_rng_seed(5)
    expected = model.decoders[0](what.q.rsample(torch.Size([4]))).log_prob(batch["x"]).mean(0)
    torch.testing.assert_close(values, expected)
    assert_same(gradients(values.sum(), guide), gradients(expected.sum(), guide))
    assert all(g.any() for g in gradients(values.sum(), guide))

"""The restricted Boltzmann machine against the sum over all pairs of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

import guides
from guides.codes import Codes, index, states, table
from zoo.lab import accounts, exact, rbm
from zoo.lab.rbm import RBM

SIZES = [(5, 3), (3, 5), (4, 4), (1, 1)]
EPS = 1e-12


def machine(visible: int = 5, hidden: int = 3, *, spread: float = 1.5, particles: int = 100) -> RBM:
    found = RBM(visible, hidden, particles=particles)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=spread)
    return found


def joint(found: RBM) -> Tensor:
    """-E(v, h) of every pair of states by the definition, (2^visible, 2^hidden)."""
    v, h = states(found.visible), states(found.hidden)
    return torch.stack([torch.stack([a @ found.W @ b + a @ found.b + b @ found.c for b in h]) for a in v])


def some_data(found: RBM, rows: int = 6) -> Tensor:
    return torch.bernoulli(torch.full((rows, found.visible), 0.5))


def gradients(value: Tensor, found: RBM) -> list[Tensor]:
    return list(torch.autograd.grad(value, [found.W, found.b, found.c], retain_graph=True))


def assert_same(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-12) -> None:
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=atol)


def kernel(found: RBM) -> Tensor:
    """One sweep of block Gibbs as a matrix, P(v' | v) = sum_h P(v' | h) P(h | v), (2^visible, 2^visible)."""
    log_p = joint(found).detach()
    given_v, given_h = log_p.softmax(1), log_p.softmax(0)
    return given_v @ given_h.mT


# Exact marginals.


@pytest.mark.equation("lw.17", "mix.1")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_log_z_three_ways(size: tuple[int, int]) -> None:
    found = machine(*size)
    pairs = joint(found).logsumexp((0, 1))
    visibles = (-found.free_energy(states(found.visible))).logsumexp(0)
    hiddens = found.hidden_score(states(found.hidden)).logsumexp(0)
    for value in (found.log_z(), visibles, hiddens):
        torch.testing.assert_close(value, pairs, rtol=0, atol=1e-12)


@pytest.mark.equation("lw.17", "mix.1")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_marginals_and_conditionals_are_those_of_the_joint_law(size: tuple[int, int]) -> None:
    found = machine(*size)
    v, h, log_p = states(found.visible), states(found.hidden), joint(found)
    log_p = log_p - log_p.logsumexp((0, 1))
    torch.testing.assert_close(found.log_prob(v), log_p.logsumexp(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.hidden_score(h) - found.log_z(), log_p.logsumexp(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.hidden_logits(v).sigmoid(), log_p.softmax(1) @ h)
    torch.testing.assert_close(found.visible_logits(h).sigmoid(), log_p.softmax(0).mT @ v)


@pytest.mark.equation("lw.17")
def test_shapes_of_a_batch() -> None:
    found = machine()
    v = torch.bernoulli(torch.full((2, 7, 5), 0.5))
    assert found.free_energy(v).shape == found.log_prob(v).shape == (2, 7)
    assert found.hidden_logits(v).shape == (2, 7, 3) and found.gibbs(v, 2).shape == v.shape
    torch.testing.assert_close(found.free_energy(v)[1, 4], found.free_energy(v[1, 4]))
    assert (found.visible, found.hidden, found.enumerable) == (5, 3, True)
    assert not RBM(21, 21).enumerable and RBM(200, 20).enumerable and RBM(20, 200).enumerable


# Learning.


@pytest.mark.equation("lw.18", "mix.2")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gradient_of_the_likelihood_is_data_less_model(size: tuple[int, int]) -> None:
    """<v sigma(c + v'W)>_data - <...>_model, likewise b (v) and c (sigma), by the sum over all states."""
    found = machine(*size)
    data = some_data(found)
    p = joint(found).detach().flatten().softmax(0).unflatten(0, (2**found.visible, -1)).sum(1)

    def averages(v: Tensor, weight: Tensor) -> list[Tensor]:
        s = found.hidden_logits(v).sigmoid().detach()
        return [torch.einsum("n,ni,nj->ij", weight, v, s), weight @ v, weight @ s]

    positive = averages(data, torch.full((len(data),), 1 / len(data)))
    negative = averages(states(found.visible), p)
    expected = [one - two for one, two in zip(positive, negative, strict=True)]
    assert_same(gradients(found.log_prob(data).mean(), found), expected, 1e-14)


@pytest.mark.equation("lw.18", "mix.2")
def test_the_contrast_with_the_machine_s_own_states_is_the_gradient_of_the_likelihood() -> None:
    """Each state as often as its probability says: dyadic probabilities, of a machine without couplings."""
    found = machine(3, 2)
    with torch.no_grad():
        found.W.zero_()
        found.b.copy_(torch.tensor([0.0, math.log(3), -math.log(3)]))
    counts = (32 * table(found()).detach().exp()).round().long()
    assert counts.sum() == 32
    model, data = states(3).repeat_interleave(counts, 0), some_data(found)
    assert_same(gradients(found.contrast(data, model), found), gradients(-found.log_prob(data).mean(), found))


def test_the_draws_of_the_model_carry_no_gradient() -> None:
    found = machine()
    model = some_data(found).requires_grad_()
    found.contrast(some_data(found), model).backward()
    assert model.grad is None


def expected_contrast(found: RBM, data: Tensor, after: Tensor) -> Tensor:
    """mean F(data) - E F(v), v by the law `after` of the model's draws; (2^visible)."""
    return found.free_energy(data).mean() - after @ found.free_energy(states(found.visible))


def repeated(surrogate: Callable[[], Tensor], found: RBM, repeats: int) -> list[Tensor]:
    draws = [gradients(surrogate(), found) for _ in range(repeats)]
    return [torch.stack(parts) for parts in zip(*draws, strict=True)]


@pytest.mark.equation("lw.18", "mix.2")
@pytest.mark.parametrize("k", [1, 3])
def test_contrastive_divergence_has_the_gradient_of_the_enumerated_chain_in_the_mean(k: int) -> None:
    """200 calls of 498 chains. A standard error is .002 at most: a bias of .01 in any element would be seen."""
    found = machine(spread=2.5)
    data = some_data(found)
    start = torch.bincount(index(data), minlength=32).double() / len(data)
    expected = gradients(expected_contrast(found, data, start @ kernel(found).matrix_power(k)), found)
    likelihood = gradients(-found.log_prob(data).mean(), found)
    many = data.repeat_interleave(83, 0)
    seen = repeated(lambda: found.cd(many, k=k), found, 200)
    for draws, truth in zip(seen, expected, strict=True):
        error = draws.std(0) / math.sqrt(len(draws))
        assert float(error.max()) < 0.002
        assert ((draws.mean(0) - truth).abs() < 4 * error).all()
    assert max(float((one - two).abs().max()) for one, two in zip(expected, likelihood, strict=True)) > 0.02


@pytest.mark.equation("lw.18", "mix.2")
def test_contrastive_divergence_becomes_maximum_likelihood_as_the_sweeps_grow() -> None:
    found = machine(spread=1.0)
    data = some_data(found)
    start = torch.bincount(index(data), minlength=32).double() / len(data)
    exact_gradient = gradients(-found.log_prob(data).mean(), found)
    errors = []
    for k in (1, 10, 100):
        ours = gradients(expected_contrast(found, data, start @ kernel(found).matrix_power(k)), found)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(ours, exact_gradient, strict=True)))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-3 and errors[-1] < 1e-12


@pytest.mark.equation("lw.18")
def test_the_machine_s_law_is_what_a_sweep_leaves_as_it_is() -> None:
    found = machine()
    p = table(found()).detach().exp()
    torch.testing.assert_close(p @ kernel(found), p, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sweeps", [1, 2])
def test_gibbs_moves_by_the_kernel(sweeps: int) -> None:
    """40,000 chains: the standard error of a frequency is at most .0025; a bias of .01 would be seen."""
    found, chains = machine(), 40_000
    start = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    p = kernel(found).matrix_power(sweeps)[index(start)]
    frequencies = torch.bincount(index(found.gibbs(start.expand(chains, -1), sweeps)), minlength=32) / chains
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / chains).sqrt() + 1e-4).all()


@pytest.mark.equation("lw.18", "mix.2")
def test_persistent_chains_reach_the_gradient_of_the_likelihood() -> None:
    """300 calls of 2,000 particles. Errors by batches of 15 calls, .0011 at most: a bias of .006 would be seen."""
    found = machine(spread=1.0, particles=2000)
    data = some_data(found)
    expected = gradients(-found.log_prob(data).mean(), found)
    for _ in range(20):
        found.pcd(data, k=20)
    seen = repeated(lambda: found.pcd(data, k=5), found, 300)
    for draws, truth in zip(seen, expected, strict=True):
        means = draws.unflatten(0, (-1, 15)).mean(1)
        error = means.std(0) / math.sqrt(len(means))
        assert float(error.max()) < 0.0011
        assert ((means.mean(0) - truth).abs() < 4 * error).all()


def test_persistent_chains_go_on_where_they_were() -> None:
    found, data = machine(), some_data(machine())
    assert not found.particles.any()
    pyro.set_rng_seed(1)
    found.pcd(data, k=2)
    pyro.set_rng_seed(1)
    once = found.gibbs(torch.zeros(100, 5), 2)
    assert torch.equal(found.particles, once)
    again = found.pcd(data, k=3)
    torch.testing.assert_close(again, found.contrast(data, found.particles))
    assert "particles" in found.state_dict()


# Annealed importance sampling.


@pytest.mark.equation("lw.18", "mix.5")
@pytest.mark.parametrize("base", ["own", "uniform"])
def test_annealing_finds_log_z_and_its_error_is_honest(base: str) -> None:
    """60 runs. Each lies within 3 of its own errors; z has a spread of 1 to within 30 % (three errors of 60 runs)."""
    found = machine(8, 6, spread=1.0)
    start, truth = None if base == "own" else torch.zeros(8), float(found.log_z().detach())
    runs = [found.anneal(chains=200, steps=100, base=start) for _ in range(60)]
    z = torch.tensor([(run.log_z - truth) / run.error for run in runs])
    assert abs(z[0]) < 3 and float((z.abs() < 3).double().mean()) > 0.95
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3
    errors = torch.tensor([run.error for run in runs])
    assert float(errors.max()) < 0.2 and runs[0].log_weights.shape == (200,)
    weights = torch.cat([run.log_weights for run in runs])  # the mean weight is Z without bias
    relative = (weights - truth).exp()
    assert abs(float(relative.mean()) - 1) < 4 * float(relative.std()) / math.sqrt(len(weights))


@pytest.mark.equation("lw.18", "mix.5")
def test_annealing_between_equal_machines_is_exact() -> None:
    """Without couplings and hidden biases the base is the machine itself: every weight is Z."""
    found = machine(6, 4)
    with torch.no_grad():
        found.W.zero_()
        found.c.zero_()
    run = found.anneal(chains=10, steps=5)
    torch.testing.assert_close(run.log_weights, found.log_z().detach().expand(10), rtol=0, atol=1e-12)
    assert run.error < 1e-12


def test_one_step_of_annealing_is_importance_sampling() -> None:
    found = machine(6, 4)
    b0 = torch.randn(6)
    pyro.set_rng_seed(2)
    run = found.anneal(chains=7, steps=1, base=b0)
    pyro.set_rng_seed(2)
    v = torch.bernoulli(b0.sigmoid().expand(7, -1))
    log_q = torch.distributions.Bernoulli(logits=b0).log_prob(v).sum(-1)
    torch.testing.assert_close(run.log_weights, (-found.free_energy(v) - log_q).detach(), rtol=0, atol=1e-12)


# Beyond enumeration.


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> RBM:
    """A small machine in a world where only layers of two units can be enumerated; the truth stays within reach."""
    found = machine(6, 5, spread=0.7, particles=50)
    monkeypatch.setattr(rbm, "BITS", 2)
    return found


def test_beyond_enumeration_log_z_is_annealed_when_it_is_asked_for(large: RBM) -> None:
    truth = float(joint(large).detach().logsumexp((0, 1)))
    with torch.no_grad():
        first = float(large.log_z())
        assert first == pytest.approx(truth, abs=0.5) and float(large.log_z()) == first, "kept while nothing changes"
        large.b.add_(1.0)
        moved = float(joint(large).detach().logsumexp((0, 1)))
        assert moved > truth + 1 and float(large.log_z()) == pytest.approx(moved, abs=0.5), "anew after an update"
        large.b.sub_(1.0)
    assert float(large.log_z().detach()) == pytest.approx(moved, abs=0.5), "kept while it trains"


def test_a_machine_of_more_than_twenty_units_on_both_sides_cannot_be_enumerated() -> None:
    assert RBM(30, 20).enumerable and not RBM(21, 30).enumerable
    found = RBM(21, 30)
    found.log_prob(torch.zeros(21))
    assert found.estimate.isfinite(), "annealed"


@pytest.mark.equation("lw.18")
def test_beyond_enumeration_log_z_has_the_value_of_annealing_and_the_gradient_of_the_particles(large: RBM) -> None:
    truth = float(joint(large).detach().logsumexp((0, 1)))
    run = large.anneal(chains=400, steps=200)
    assert abs(run.log_z - truth) < 3 * run.error < 0.2
    assert float(large.log_z().detach()) == pytest.approx(run.log_z, abs=1e-12)
    large.particles.copy_(large.gibbs(large.particles, 10))
    ours = gradients(large.log_z(), large)
    assert_same(ours, gradients(-large.free_energy(large.particles).mean(), large))
    data = some_data(large)
    assert_same(gradients(-large.log_prob(data).mean(), large), gradients(large.contrast(data, large.particles), large))
    assert "estimate" in large.state_dict()


def test_beyond_enumeration_the_particles_move_while_the_machine_is_trained(large: RBM) -> None:
    large.anneal(chains=10, steps=5)
    before = large.particles.clone()
    with torch.no_grad():
        large.log_z()
    assert torch.equal(large.particles, before), "a score moves nothing"
    large.log_z()
    assert not torch.equal(large.particles, before)


def test_beyond_enumeration_draws_come_from_long_chains(large: RBM, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 chains of 50 sweeps: the standard error of a mean is .008 at most; a bias of .04 would be seen."""
    monkeypatch.setattr(rbm, "SWEEPS", 50)
    p = joint(large).detach().flatten().softmax(0).unflatten(0, (64, 32)).sum(1)
    found = large.sample(4000)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - p @ states(6)).abs() < 4 * error).all()
    assert ((large().mean - p @ states(6)).abs() < 0.08).all()  # of 1,000 chains: five errors


# The law in Pyro.


@pytest.mark.parametrize("size", [(5, 3), (3, 5)], ids=str)
@pytest.mark.parametrize("bits", [20, 4])
def test_draws_follow_the_table(size: tuple[int, int], bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 draws, by the visible or by the hidden layer: errors of .0025 at most; a bias of .01 would be seen."""
    found, draws = machine(*size, spread=1.0), 40_000
    p = table(found()).detach().exp()
    monkeypatch.setattr(rbm, "BITS", bits)
    h = found.sample(draws)
    assert h.shape == (draws, size[0])
    frequencies = torch.bincount(index(h), minlength=len(p)) / draws
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / draws).sqrt() + 1e-9).all()


def test_the_law_is_one_of_codes() -> None:
    found = machine()
    law = found()
    assert isinstance(law, Codes) and (law.batch_shape, law.event_shape) == ((), (5,))
    torch.testing.assert_close(table(law).logsumexp(0), torch.tensor(0.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.log_prob(states(5)), table(law), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.mean, table(law).exp() @ states(5), rtol=0, atol=1e-12)
    wide = law.expand([2, 7])
    assert wide.sample(torch.Size([3])).shape == (3, 2, 7, 5) and wide.mean.shape == (2, 7, 5)
    assert table(wide).shape == (2, 7, 32) and wide.log_prob(torch.zeros(5)).shape == (2, 7)
    assert law.enumerate_support().shape == (32, 5) and wide.enumerate_support(False).shape == (32, 1, 1, 5)


def test_the_law_is_a_prior_in_pyro() -> None:
    """TraceEnum_ELBO without a guide is the evidence, with its gradient in W, b and c: log Z is in the graph."""
    found, x = machine(4, 3), torch.randn(6, 2)
    A = torch.randn(4, 2)

    def model(x: Tensor) -> None:
        with guides.data_plate(len(x)):
            h = pyro.sample("h1", found())
            pyro.sample("x", pyro.distributions.Normal(h @ A, 1.0).to_event(1), obs=x)

    T = torch.distributions.Normal(states(4) @ A, 1.0).log_prob(x[:, None]).sum(-1)
    truth = -exact.evidence(T, table(found())).sum()
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    loss = bound.differentiable_loss(config_enumerate(model), lambda x: None, x)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=0)
    assert_same(gradients(loss, found), gradients(truth, found), 1e-11)
    drawn = poutine.trace(model).get_trace(x).nodes["h1"]["value"]
    assert drawn.shape == (6, 4)


def test_an_rbm_is_learned_by_its_own_likelihood_in_pyro() -> None:
    """No latents: -Trace_ELBO is the log-likelihood, scaled to the data set by the plate."""
    found = machine(4, 3)
    data = some_data(found)

    class Observed(nn.Module):
        def forward(self, x: Tensor) -> None:
            with guides.data_plate(len(x), 60):
                pyro.sample("x", found(), obs=x)

    loss = Trace_ELBO().differentiable_loss(Observed(), lambda x: None, data)
    torch.testing.assert_close(loss, -10 * found.log_prob(data).sum())
    assert_same(gradients(loss, found), gradients(-10 * found.log_prob(data).sum(), found))


# A stacked machine.


@pytest.mark.equation("lw.19", "lw.9", "lw.17")
def test_a_stacked_rbm_is_one_step_of_incorporation_and_pessimistic() -> None:
    """2,000 machines: log-likelihood + KL(q_D || P_RBM(h)) <= L_D(q_D) <= U_D; the greedy bound is an equality."""
    for _ in range(2000):
        found = machine(6, 3, spread=float(torch.rand(())) * 2)
        with torch.no_grad():
            x, log_w = exact.distinct(some_data(found, 9))
            h = states(3)
            T = torch.distributions.Bernoulli(logits=found.visible_logits(h)).log_prob(x[:, None]).sum(-1)
            logits = found.hidden_logits(x)
            q = torch.distributions.Bernoulli(logits=logits.unsqueeze(1)).log_prob(h).sum(-1)  # (N, 2^3)
            P = found.hidden_score(h) - found.log_z()
            q_D = exact.aggregated(q, log_w)
            torch.testing.assert_close(q_D, exact.incorporate(T, P, log_w), rtol=0, atol=1e-11)
            books = accounts.account(T, q, P, log_w, steps=5)
            likelihood = float(log_w.exp() @ found.log_prob(x))
        assert likelihood + books.kl <= books.criterion + EPS <= books.blm + books.certificate + 2 * EPS
        assert books.deep == pytest.approx(likelihood, abs=1e-11) and books.elbo == pytest.approx(likelihood, abs=1e-11)


@pytest.mark.equation("lw.19")
def test_the_greedy_bound_holds_for_any_q_and_top() -> None:
    found = machine(6, 3)
    x, log_w = exact.distinct(some_data(found, 9))
    T = torch.distributions.Bernoulli(logits=found.visible_logits(states(3))).log_prob(x[:, None]).sum(-1).detach()
    for _, spread in product(range(100), (0.5, 2.0, 5.0)):
        q, P_J = ((spread * torch.randn(shape)).log_softmax(-1) for shape in ((len(x), 8), (8,)))
        books = accounts.account(T, q, P_J, log_w, steps=0)
        assert books.elbo <= books.deep + EPS

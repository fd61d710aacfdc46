"""Enumerated chains: every formula against a second derivation, by sums over paths, powers of K, or simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from enumerated import law, machine, random_kernel, rbm_8x6
from torch import Tensor

from guides.codes import states
from zoo.lab import markov
from zoo.lab.rbm import RBM

SIZES = [(4, 3), (3, 5), (6, 4), (1, 1), (2, 1)]


def visible_chain(found: RBM) -> tuple[Tensor, Tensor]:
    A, B = markov.halves(found)
    return A @ B, law(found)


def correlations(K: Tensor, pi: Tensor, f: Tensor, lags: int) -> Tensor:
    """Autocorrelations of f at lags 1, 2, ..., by powers of K, (lags)."""
    f = f - pi @ f
    found, ahead = [], f
    for _ in range(lags):
        ahead = K @ ahead
        found.append(pi @ (f * ahead))
    return torch.stack(found) / (pi @ f.square())


def slowest(K: Tensor, pi: Tensor) -> tuple[float, Tensor]:
    """lambda_2 of a reversible chain and its eigenfunction."""
    root = pi.sqrt()
    symmetric = root[:, None] * K / root
    values, vectors = torch.linalg.eigh((symmetric + symmetric.mT) / 2)
    return float(values[-2]), vectors[:, -2] / root


def hard(S: int, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(classes, (S,)), classes).double()


def soft(S: int, classes: int) -> Tensor:
    return torch.randn(S, classes).mul(2).softmax(-1)


def walks(K: Tensor, start: Tensor, T: int, runs: int, seed: int = 0) -> Tensor:
    """States of simulated chains by NumPy, (runs, T)."""
    random, edges = np.random.default_rng(seed), K.cumsum(1).numpy()
    s = random.choice(len(start), runs, p=(start / start.sum()).numpy())
    found = [s]
    for _ in range(T - 1):
        s = (random.random(runs)[:, None] >= edges[s]).sum(1).clip(max=len(start) - 1)
        found.append(s)
    return torch.from_numpy(np.stack(found, 1))


def labelled(paths: Tensor, e: Tensor, seed: int = 1) -> Tensor:
    """A class for every state by its probabilities."""
    u = torch.from_numpy(np.random.default_rng(seed).random((*paths.shape, 1)))
    return (u >= e.cumsum(1)[paths]).sum(-1).clamp_max(e.shape[1] - 1)


def cycle(S: int) -> Tensor:
    return torch.eye(S).roll(1, 1)


# Kernels.


@pytest.mark.equation("mix.9", "mix.1")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_halves_are_the_conditionals_of_the_joint_law(size: tuple[int, int]) -> None:
    found = machine(*size, spread=1.5)
    with torch.no_grad():
        v, h = states(found.visible), states(found.hidden)
        log_p = torch.stack([torch.stack([a @ found.W @ b + a @ found.b + b @ found.c for b in h]) for a in v])
    A, B = markov.halves(found)
    torch.testing.assert_close(A, log_p.softmax(1), rtol=0, atol=1e-14)
    torch.testing.assert_close(B, log_p.softmax(0).mT, rtol=0, atol=1e-14)


@pytest.mark.equation("mix.9")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_block_gibbs_is_stationary_reversible_and_positive_on_both_layers(size: tuple[int, int]) -> None:
    found = machine(*size, spread=2.0)
    A, B = markov.halves(found)
    pi_h = (found.hidden_score(states(found.hidden)) - found.log_z()).detach().exp()
    for K, pi in ((A @ B, law(found)), (B @ A, pi_h)):
        torch.testing.assert_close(K.sum(1), torch.ones(len(K)), rtol=0, atol=1e-14)
        assert markov.stationarity_error(K, pi) < 1e-15 and markov.balance_error(K, pi) < 1e-15
        values = markov.eigenvalues(K, pi)
        assert float(values[0]) == pytest.approx(1, abs=1e-13) and float(values[-1]) > -1e-13
        for _ in range(20):
            f = torch.randn(len(pi))
            assert float(correlations(K, pi, f, 8).min()) > -1e-13
    same, other = (markov.eigenvalues(K, pi) for K, pi in ((A @ B, law(found)), (B @ A, pi_h)))
    n = min(len(same), len(other))
    torch.testing.assert_close(same[:n], other[:n], rtol=0, atol=1e-13)


@pytest.mark.equation("mix.9", "mix.12", "mix.16")
def test_the_machine_of_the_dossier() -> None:
    found = rbm_8x6()
    K, pi = visible_chain(found)
    assert markov.stationarity_error(K, pi) < 5e-16 and markov.balance_error(K, pi) < 1e-16
    values, (second, f) = markov.eigenvalues(K, pi), slowest(K, pi)
    assert float(values[-1]) > -1e-14
    assert float(values[1]) == pytest.approx(0.842, abs=5e-4) and second == pytest.approx(float(values[1]), abs=1e-13)
    assert markov.relaxation_time(K, pi) == pytest.approx(6.33, abs=5e-3)
    v = states(8)
    some = torch.stack([v.sum(1), found.free_energy(v).detach(), v[:, 0], f, f.sign()], 1)
    tau = markov.iact(K, pi, some)
    torch.testing.assert_close(tau, torch.tensor([3.62, 1.44, 2.45, 11.66, 10.61]), rtol=0, atol=5e-3)
    torch.testing.assert_close(80_000 / tau, torch.tensor([22123.0, 55410, 32677, 6860, 7538]), rtol=0, atol=0.5)


@pytest.mark.equation("mix.9", "mix.10")
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_sweep_is_the_product_of_its_conditionals_stationary_and_not_reversible(n: int) -> None:
    log_p, codes = 2 * torch.randn(2**n), states(n)
    expected = torch.ones(2**n, 2**n)
    for s, x in enumerate(codes):
        for t, y in enumerate(codes):
            for site in range(n):  # what stands left of the site is new, what stands right of it is old
                now = torch.cat([y[:site], x[site:]])
                on, off = now.clone(), now.clone()
                on[site], off[site] = 1, 0
                numbers = [int("".join(str(int(b)) for b in code), 2) for code in (on, off)]
                p = torch.sigmoid(log_p[numbers[0]] - log_p[numbers[1]])
                expected[s, t] *= p if y[site] else 1 - p
    K, pi = markov.sweep(log_p), log_p.softmax(0)
    torch.testing.assert_close(K, expected, rtol=0, atol=1e-15)
    assert markov.stationarity_error(K, pi) < 1e-15
    assert markov.balance_error(K, pi) < 1e-15 if n == 1 else markov.balance_error(K, pi) > 1e-3


def test_errors_of_stationarity_and_of_balance_are_those_of_the_definition() -> None:
    K, pi = random_kernel(5)
    assert markov.stationarity_error(K, pi) < 1e-15
    other = torch.rand(5).softmax(0)
    drift = [sum(float(other[s] * K[s, t]) for s in range(5)) - float(other[t]) for t in range(5)]
    assert markov.stationarity_error(K, other) == pytest.approx(max(map(abs, drift)), abs=1e-16)
    flow = [abs(float(pi[s] * K[s, t] - pi[t] * K[t, s])) for s in range(5) for t in range(5)]
    assert markov.balance_error(K, pi) == pytest.approx(max(flow), abs=1e-16) and max(flow) > 1e-3


def test_eigenvalues_of_a_reversible_chain_have_their_sign_and_of_another_their_modulus() -> None:
    swap = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    half = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(markov.eigenvalues(swap, half), torch.tensor([1.0, -0.8]))
    assert markov.relaxation_time(swap, half) == pytest.approx(5, abs=1e-12), "by the modulus"
    lazy = 0.5 * cycle(5) + 0.5 * torch.eye(5)
    expected = torch.tensor([abs(0.5 + 0.5 * np.exp(2j * math.pi * k / 5)) for k in range(5)])
    values = markov.eigenvalues(lazy, torch.full((5,), 0.2))
    torch.testing.assert_close(values, expected.sort(descending=True).values)
    assert markov.relaxation_time(lazy, torch.full((5,), 0.2)) == pytest.approx(1 / (1 - float(values[1])), abs=1e-12)


def test_a_state_without_mass_does_no_harm() -> None:
    K = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
    assert markov.eigenvalues(K, torch.tensor([0.5, 0.5, 0.0]))[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.equation("mix.11")
def test_metropolis_makes_any_proposal_reversible_and_keeps_what_needs_no_correction() -> None:
    for _ in range(20):
        propose, _ = random_kernel(6)
        log_target = 2 * torch.randn(6)
        pi, K = log_target.softmax(0), markov.metropolised(propose, log_target)
        torch.testing.assert_close(K.sum(1), torch.ones(6), rtol=0, atol=1e-15)
        assert float(K.min()) >= 0 and markov.balance_error(K, pi) < 1e-16
        for s, t in itertools.permutations(range(6), 2):
            ratio = float(pi[t] * propose[t, s] / (pi[s] * propose[s, t]))
            assert float(K[s, t]) == pytest.approx(float(propose[s, t]) * min(1, ratio), abs=1e-15)
        assert markov.stationarity_error(propose, pi) > 1e-3, "without the correction"
    gibbs, pi = visible_chain(machine())
    torch.testing.assert_close(markov.metropolised(gibbs, pi.log()), gibbs, rtol=0, atol=1e-14)


def test_metropolis_never_makes_a_step_that_is_not_proposed_or_leads_nowhere() -> None:
    log_target = torch.tensor([0.0, 1.0, -torch.inf, 0.5])
    K = markov.metropolised(
        torch.tensor([[0, 0.5, 0.5, 0], [0.5, 0, 0.5, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]]), log_target
    )
    assert K.isfinite().all() and K[0, 2] == K[1, 2] == K[0, 3] == 0 and K[2, 0] == K[3, 3] == 1
    assert markov.balance_error(K, log_target.softmax(0)) < 1e-16


@pytest.mark.equation("mix.11")
def test_pseudo_gibbs_with_a_wrong_posterior_drifts_and_the_corrected_one_does_not() -> None:
    """4 bits z, 3 bits x: the pair of steps on (z, x), the second one metropolised for every x."""
    p_z, decode, q = torch.randn(16).softmax(0), torch.randn(16, 8).softmax(1), torch.randn(8, 16).softmax(1)
    joint = p_z[:, None] * decode
    right = torch.stack([markov.metropolised(q[x].expand(16, -1), joint[:, x].log()) for x in range(8)])
    for x in range(8):  # by hand
        for z, to in itertools.permutations(range(16), 2):
            ratio = joint[to, x] * q[x, z] / (joint[z, x] * q[x, to])
            assert float(right[x, z, to]) == pytest.approx(float(q[x, to] * ratio.clamp_max(1)), abs=1e-15)
    corrected = torch.einsum("zx,xzy->zy", decode, right)
    assert markov.stationarity_error(corrected, p_z) < 1e-16
    pair = torch.einsum("zx,xzy->yx", joint, right)  # the law of (z', x) after both steps, from p(z, x)
    torch.testing.assert_close(pair, joint, rtol=0, atol=1e-16)
    wrong = decode @ q
    assert markov.stationarity_error(wrong, p_z) > 0.01
    limit = wrong.matrix_power(4096)[0]
    assert float((limit - p_z).abs().sum() / 2) > 0.1, "where the uncorrected chain ends"
    posterior = joint.mT / joint.sum(0)[:, None]
    assert markov.stationarity_error(decode @ posterior, p_z) < 1e-16


# Autocorrelation times.


@pytest.mark.equation("mix.12")
@pytest.mark.parametrize("kind", ["gibbs", "sweep", "without symmetry"])
def test_the_autocorrelation_time_is_the_sum_over_all_lags(kind: str) -> None:
    if kind == "without symmetry":
        K, pi = random_kernel(12)
    elif kind == "gibbs":
        K, pi = visible_chain(machine(spread=1.5))
    else:
        log_p = torch.randn(16)
        K, pi = markov.sweep(log_p), log_p.softmax(0)
    f = torch.randn(len(pi), 5)
    tau = markov.iact(K, pi, f)
    assert tau.shape == (5,)
    for k in range(5):
        total = 1 + 2 * float(correlations(K, pi, f[:, k], 3000).sum())
        assert float(tau[k]) == pytest.approx(total, rel=1e-12)
        assert float(markov.iact(K, pi, f[:, k])) == pytest.approx(total, rel=1e-12)
        assert markov.iact(K, pi, f[:, k]).shape == ()
    torch.testing.assert_close(markov.iact(K, pi, 3 * f + 100), tau, rtol=1e-9, atol=0)


@pytest.mark.equation("mix.12")
def test_the_autocorrelation_time_of_an_eigenfunction_is_known() -> None:
    K, pi = visible_chain(machine(6, 4, spread=1.5))
    second, f = slowest(K, pi)
    assert float(markov.iact(K, pi, f)) == pytest.approx((1 + second) / (1 - second), rel=1e-10)
    swap = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    half, sign = torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0])
    assert float(markov.iact(swap, half, sign)) == pytest.approx(1 / 9, abs=1e-15), "better than independent draws"
    iid = pi.expand(len(pi), -1)
    assert float(markov.iact(iid, pi, torch.randn(len(pi)))) == pytest.approx(1, abs=1e-12)


@pytest.mark.equation("mix.12")
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1.0, -123.456, 1e-9])
def test_a_constant_has_no_autocorrelation_time(value: float) -> None:
    K, pi = visible_chain(machine())
    f = torch.stack([torch.full((16,), value), states(4)[:, 0]], 1)
    tau = markov.iact(K, pi, f)
    assert tau[0].isnan() and tau[1].isfinite() and markov.iact(K, pi, f[:, 0]).isnan()


@pytest.mark.equation("mix.13")
def test_a_decoded_statistic_against_the_joint_chain() -> None:
    """Hidden chain of an RBM 5x4, a decoder of 3 bits: (h, x) -> (h', x') as one chain on 128 states."""
    worst, ratios = 0.0, []
    for seed in range(10):
        found = machine(5, 4, spread=1.5, seed=seed)
        A, B = markov.halves(found)
        K, pi = B @ A, (found.hidden_score(states(4)) - found.log_z()).detach().exp()
        decode = torch.randn(16, 8).mul(2).softmax(1)
        joint = (K[:, None, :, None] * decode[None, None]).expand(16, 8, 16, 8).reshape(128, 128)
        pi_joint = (pi[:, None] * decode).flatten()
        assert markov.stationarity_error(joint, pi_joint) < 1e-15
        f = torch.randn(8)
        g, share = markov.explained(pi, decode, f)
        p_x = pi @ decode
        torch.testing.assert_close(g, torch.stack([decode[h] @ f for h in range(16)]), rtol=0, atol=1e-14)
        law_of_g = float(pi @ (g - pi @ g).square() / (p_x @ (f - p_x @ f).square()))
        assert float(share) == pytest.approx(law_of_g, rel=1e-12) and 0 < float(share) < 1
        tau_h = markov.iact(K, pi, g)
        ours = float(markov.decoded_iact(tau_h, share))
        theirs = float(markov.iact(joint, pi_joint, f.repeat(16)))
        worst, ratios = max(worst, abs(ours - theirs)), [*ratios, ours / float(tau_h)]
    assert worst < 1e-12 and max(ratios) < 1, "noise in the decoder alone makes tau smaller"


# Classes.


@pytest.mark.equation("mix.14")
@pytest.mark.parametrize("labels", [hard, soft])
@pytest.mark.parametrize("T", [1, 2, 4])
def test_misses_are_the_sum_over_all_paths(labels: object, T: int) -> None:
    K, pi = random_kernel(5)
    e, start = labels(5, 3), torch.rand(5).softmax(0)  # type: ignore[operator]
    for law_of_first in (pi, start):
        total = torch.zeros(3)
        for path in itertools.product(range(5), repeat=T):
            p = law_of_first[path[0]] * math.prod(float(K[s, t]) for s, t in itertools.pairwise(path))
            total += p * torch.stack([1 - e[s] for s in path]).prod(0)
        torch.testing.assert_close(markov.misses(K, law_of_first, e, T), total, rtol=0, atol=1e-15)
        assert markov.visits(K, law_of_first, e, T) == pytest.approx(3 - float(total.sum()), abs=1e-14)


@pytest.mark.equation("mix.14")
@pytest.mark.parametrize("labels", [hard, soft])
def test_simulated_visits_are_the_exact_ones(labels: object) -> None:
    """RBM 6x4, 20,000 windows of 10 draws: a standard error is .007 at most; a bias of .03 classes would be seen."""
    K, pi = visible_chain(machine(6, 4, spread=1.5))
    e, one = labels(64, 5), torch.eye(64)[17]  # type: ignore[operator]
    for start in (pi, one):
        drawn = labelled(walks(K, start, 10, 20_000), e)
        seen = (drawn[..., None] == torch.arange(5)).any(1).sum(1).double()
        error = float(seen.std() / len(seen) ** 0.5)
        assert error < 0.008 and abs(float(seen.mean()) - markov.visits(K, start, e, 10)) < 3.5 * error


@pytest.mark.equation("mix.15")
def test_no_stationary_block_gibbs_visits_more_classes_than_independent_draws() -> None:
    """40 machines 6x4 of all sharpnesses, hard and soft labels, windows of 2, 5, 10, 25: 320 cases, none above."""
    gaps = []
    for seed in range(40):
        K, pi = visible_chain(machine(6, 4, spread=0.3 + 2 * seed / 40, seed=seed))
        for e, T in itertools.product((hard(64, 5), soft(64, 5)), (2, 5, 10, 25)):
            gaps.append(markov.ceiling(pi @ e, T) - markov.visits(K, pi, e, T))
    assert len(gaps) == 320 and min(gaps) > -1e-12 and max(gaps) > 0.4


@pytest.mark.equation("mix.15")
def test_the_ceiling_is_reached_by_independent_draws_and_broken_by_other_chains() -> None:
    pi, e = torch.rand(12).softmax(0), soft(12, 4)
    for T in (1, 2, 7):
        exact = sum(1 - (1 - float(p)) ** T for p in pi @ e)
        assert markov.ceiling(pi @ e, T) == pytest.approx(exact, abs=1e-14)
        assert markov.visits(pi.expand(12, -1), pi, e, T) == pytest.approx(exact, abs=1e-13)
    fifth = torch.full((5,), 0.2)
    assert markov.visits(cycle(5), fifth, torch.eye(5), 5) == pytest.approx(5, abs=1e-14)
    assert markov.ceiling(fifth, 5) == pytest.approx(3.36, abs=5e-3)
    swap = torch.tensor([[0.1, 0.9], [0.9, 0.1]])  # reversible, with an eigenvalue of -.8
    half = torch.tensor([0.5, 0.5])
    assert markov.visits(swap, half, torch.eye(2), 2) == pytest.approx(1.9, abs=1e-14)
    assert markov.ceiling(half, 2) == 1.5
    for T, expected in ((10, 6.51), (25, 9.28), (100, 10.00)):
        assert markov.ceiling(torch.full((10,), 0.1), T) == pytest.approx(expected, abs=5e-3)


@pytest.mark.equation("mix.16")
@pytest.mark.parametrize("labels", [hard, soft])
def test_switches_and_class_transitions_are_sums_over_pairs_of_states(labels: object) -> None:
    K, pi = random_kernel(7)
    e = labels(7, 3)  # type: ignore[operator]
    joint = torch.zeros(3, 3)
    for s, t in itertools.product(range(7), repeat=2):
        joint += pi[s] * K[s, t] * e[s][:, None] * e[t]
    assert markov.switch_rate(K, pi, e) == pytest.approx(1 - float(joint.trace()), abs=1e-14)
    torch.testing.assert_close(markov.class_transitions(K, pi, e), joint / joint.sum(1, keepdim=True))
    p, iid = pi @ e, pi.expand(7, -1)
    assert markov.switch_rate(iid, pi, e) == pytest.approx(1 - float(p.square().sum()), abs=1e-14)
    torch.testing.assert_close(markov.class_transitions(iid, pi, e), p.expand(3, -1))


@pytest.mark.equation("mix.16")
def test_ten_equal_classes_switch_on_nine_steps_of_ten_and_an_empty_class_has_no_transitions() -> None:
    tenth = torch.full((10,), 0.1)
    assert markov.switch_rate(tenth.expand(10, -1), tenth, torch.eye(10)) == pytest.approx(0.9, abs=1e-14)
    K, pi = random_kernel(4)
    e = torch.cat([hard(4, 2), torch.zeros(4, 1)], 1)
    C = markov.class_transitions(K, pi, e)
    assert C[2].isnan().all() and (C[:2, 2] == 0).all()


@pytest.mark.equation("mix.16")
def test_classes_relax_no_slower_than_the_chain() -> None:
    """lambda_2(C) <= lambda_2(K) for labels that are a function of the state: 50 machines of 50."""
    gaps = []
    for seed in range(50):
        K, pi = visible_chain(machine(6, 4, spread=0.5 + 1.5 * seed / 50, seed=seed))
        C = markov.class_transitions(K, pi, hard(64, 4))
        assert not C.isnan().any()
        second = float(torch.linalg.eigvals(C).abs().sort(descending=True).values[1])
        gaps.append(float(markov.eigenvalues(K, pi)[1]) - second)
    assert min(gaps) > -1e-13


@pytest.mark.equation("mix.16")
def test_the_mean_first_passage_is_the_sum_of_the_probabilities_not_to_have_arrived() -> None:
    K, _ = random_kernel(9)
    inside = torch.tensor([False, True, False, False, True, False, False, False, False])
    found = markov.first_passage(K, inside)
    outside, alive = (~inside).double(), torch.zeros(9)
    ahead = outside.clone()
    for _ in range(5000):
        alive += ahead
        ahead = outside * (K @ ahead)
    torch.testing.assert_close(found, alive, rtol=1e-12, atol=0)
    assert (found[inside] == 0).all() and (found[~inside] >= 1).all()
    assert markov.first_passage(cycle(5), torch.arange(5) == 0).tolist() == pytest.approx([0, 4, 3, 2, 1], abs=1e-13)
    assert not markov.first_passage(K, torch.ones(9, dtype=torch.bool)).any()


@pytest.mark.equation("mix.17")
@pytest.mark.parametrize("labels", [hard, soft])
def test_the_distance_to_the_class_law_falls_to_zero(labels: object) -> None:
    K, pi = visible_chain(machine(6, 4, spread=1.0))
    e, start = labels(64, 5), torch.eye(64)[3]  # type: ignore[operator]
    p = pi @ e
    found = markov.total_variation(K, start, e, p, 400)
    for t in (0, 1, 2, 7):
        expected = 0.5 * float((start @ K.matrix_power(t) @ e - p).abs().sum())
        assert float(found[t]) == pytest.approx(expected, abs=1e-14)
    assert found.shape == (400,) and float(found[0]) > 0.2 and float(found[-1]) < 1e-12
    states_apart = markov.total_variation(K, start, torch.eye(64), pi, 50)
    assert (states_apart.diff() <= 1e-15).all() and (found[:50] <= states_apart + 1e-15).all()
    assert float(markov.total_variation(K, pi, e, p, 5).max()) < 1e-15

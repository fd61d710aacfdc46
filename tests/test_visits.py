"""Classes visited by chains: by hand on short labels, and against the exact twins on enumerated chains."""

from __future__ import annotations

import math

import pytest
import torch
from enumerated import law, machine
from scipy import stats
from torch import Tensor

from guides.codes import index, states
from zoo.lab import kernels, markov, visits
from zoo.lab.chains import walk
from zoo.lab.noise import Noise

LABELS = torch.tensor([[0, 0, 1, 2, -1, 2, 1], [1, 1, 1, 1, 1, 1, -1]])


def iid(p: Tensor, chains: int, draws: int, seed: int = 0) -> Tensor:
    noise = Noise(chains, seed=seed)
    return torch.stack([noise.category(p.log()) for _ in range(draws)], 1)


def test_indicators_have_no_class_for_what_belongs_to_none() -> None:
    e = visits.one_hot(LABELS, 3)
    assert e.shape == (2, 7, 3) and e.dtype == torch.float64
    assert e[0, 3].tolist() == [0, 0, 1] and e[0, 4].tolist() == [0, 0, 0]
    assert torch.equal(e.sum(-1), (LABELS >= 0).double())
    assert visits.shares(LABELS, 3).tolist() == pytest.approx([2 / 12, 8 / 12, 2 / 12])
    assert visits.shares(LABELS, 4)[3] == 0 and not visits.shares(torch.full((2, 3), -1), 2).any()


@pytest.mark.equation("mix.14")
def test_visits_are_counted_in_disjoint_windows_and_none_is_no_visit() -> None:
    assert visits.visited(LABELS, 3, 7).tolist() == [3, 1]
    assert visits.visited(LABELS, 3, 3).tolist() == [(2 + 1) / 2, 1]  # 0 0 1 | 2 - 2, and the rest is left out
    assert visits.visited(LABELS, 3, 2).tolist() == [(1 + 2 + 1) / 3, 1]
    assert visits.visited(LABELS, 3, 1).tolist() == [6 / 7, 6 / 7]
    with pytest.raises(ValueError, match="windows of 8 draws need chains of as many; these have 7"):
        visits.visited(LABELS, 3, 8)
    for T in (0, -1):
        with pytest.raises(ValueError, match=f"windows of {T} draws need"):
            visits.visited(LABELS, 3, T)


@pytest.mark.equation("mix.16")
def test_switches_are_those_between_two_draws_of_a_class() -> None:
    assert visits.switch_rate(LABELS) == 3 / 9  # 00 01 12 21 of the first, 11 five times of the second
    assert math.isnan(visits.switch_rate(torch.tensor([[0, -1, 1, -1]])))
    assert visits.switch_rate(torch.tensor([[0, 1, 0]])) == 1 and visits.switch_rate(torch.tensor([[2, 2]])) == 0


@pytest.mark.equation("mix.16")
def test_transitions_are_shares_of_the_steps_from_a_class() -> None:
    C = visits.transitions(LABELS, 4)
    expected = [[1 / 2, 1 / 2, 0, 0], [0, 5 / 6, 1 / 6, 0], [0, 1, 0, 0]]
    torch.testing.assert_close(C[:3], torch.tensor(expected))
    assert C[3].isnan().all()
    ends = visits.transitions(torch.tensor([[0, 0, 1]]), 2)
    assert ends[1].isnan().all(), "the last draw goes nowhere"


@pytest.mark.equation("mix.16")
def test_the_relaxation_of_classes() -> None:
    C = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert visits.relaxation_time(C) == pytest.approx(1 / 0.3)
    assert visits.relaxation_time(torch.tensor([[0.1, 0.9], [0.9, 0.1]])) == pytest.approx(5), "by the modulus"
    assert visits.relaxation_time(torch.full((4, 4), 0.25)) == pytest.approx(1)
    nan = math.nan
    for never in (
        [[1.0, 0.0], [0.0, 1.0]],  # left by none
        [[0.5, 0.5], [nan, nan]],
        [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]],  # the first is never entered
        [[0.6, 0.2, 0.2], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]],  # the last is never left
        [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]],  # two halves
        [[1.0]],
    ):
        assert visits.relaxation_time(torch.tensor(never)) == math.inf


@pytest.mark.equation("mix.17")
def test_the_distance_at_every_draw_is_that_of_the_shares_among_chains() -> None:
    labels = torch.tensor([[0, 1], [0, 2], [0, 1], [0, -1]])
    found = visits.total_variation(labels, torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5 * (0.5 + 0.25 + 0.0 + 0.25)]))
    junk = visits.total_variation(torch.full((3, 2), -1), torch.tensor([0.5, 0.5]))
    assert junk.tolist() == [1, 1], "chains of no class are as far from the law as can be"


@pytest.mark.equation("mix.17")
@pytest.mark.parametrize("shares", [[0.1] * 10, [0.6, 0.2, 0.1, 0.06, 0.04]], ids=["equal", "not"])
@pytest.mark.parametrize("chains", [50, 200])
def test_independent_chains_are_at_the_noise_floor(shares: list[float], chains: int) -> None:
    """The floor against the mean of |binomial - mean|; 4,000 draws: a bias of 4 %, four errors, would be seen."""
    number, p = torch.arange(chains + 1), torch.tensor(shares)
    exact = 0.0
    for share in shares:
        weight = torch.from_numpy(stats.binom.pmf(number.numpy(), chains, share))
        exact += 0.5 * float(weight @ (number / chains - share).abs())
    floor = visits.noise_floor(p, chains)
    assert floor == pytest.approx(exact, rel=0.02 if chains == 200 else 0.05)
    found = visits.total_variation(iid(p, chains, 4000), p)
    error = float(found.std()) / len(found) ** 0.5
    assert error < 0.01 * exact and abs(float(found.mean()) - exact) < 4 * error
    if len(p) == 10 and chains == 200:
        assert floor == pytest.approx(0.085, abs=5e-4)


@pytest.mark.equation("mix.15", "mix.16")
def test_independent_draws_switch_and_visit_as_they_must() -> None:
    """200 chains of 1,000 draws: biases of .004 in the switch rate and of .04 classes would be seen."""
    for p in (torch.full((10,), 0.1), torch.tensor([0.5, 0.3, 0.15, 0.05])):
        labels = iid(p, 200, 1000)
        assert visits.switch_rate(labels) == pytest.approx(1 - float(p.square().sum()), abs=0.004)
        torch.testing.assert_close(visits.shares(labels, len(p)), p, rtol=0, atol=0.004)
        for T in (1, 10, 25):
            each = visits.visited(labels, len(p), T)
            error = float(each.std()) / len(each) ** 0.5
            assert abs(float(each.mean()) - markov.ceiling(p, T)) <= 4 * error + 1e-12 and error < 0.01
        assert visits.relaxation_time(visits.transitions(labels, len(p))) == pytest.approx(1, abs=0.1)


@pytest.mark.equation("mix.14", "mix.16", "mix.17")
def test_walks_tend_to_their_exact_twins() -> None:
    """Block Gibbs of an RBM 6x4, four classes of states, 1,000 chains of 400 draws from one state.

    Standard errors over chains: .0011 for the switch rate, .005 for visits in 10 draws; TV_t of 1,000 chains has a
    floor of .02. Four of them would be seen.
    """
    found, chains, draws = machine(6, 4, spread=1.3), 1000, 400
    A, B = markov.halves(found)
    K, pi = A @ B, law(found)
    which = torch.arange(64) * 7 % 4
    e = torch.nn.functional.one_hot(which, 4).double()
    start = torch.eye(64)[20]
    first = states(6)[20].expand(chains, -1)
    watch = {"label": lambda v, noise: which[index(v)]}
    labels = walk(kernels.block_gibbs(found), first, draws=draws, watch=watch)["label"]
    exact = markov.total_variation(K, start @ K, e, pi @ e, draws)  # the first draw is one step from the start
    floor = visits.noise_floor(pi @ e, chains)
    apart = visits.total_variation(labels, pi @ e)
    assert float(exact[0]) > 4 * floor and floor < 0.025 and ((apart - exact).abs() < 4 * floor).all()
    assert float(apart[100:].mean()) == pytest.approx(floor, rel=0.1)
    late = labels[:, 100:]
    error = float((late[:, 1:] != late[:, :-1]).double().mean(1).std()) / chains**0.5
    assert error < 0.0011 and abs(visits.switch_rate(late) - markov.switch_rate(K, pi, e)) < 4 * error
    C = markov.class_transitions(K, pi, e)
    torch.testing.assert_close(visits.transitions(late, 4), C, rtol=0, atol=0.01)
    assert visits.relaxation_time(visits.transitions(late, 4)) == pytest.approx(visits.relaxation_time(C), rel=0.02)
    assert visits.relaxation_time(C) <= markov.relaxation_time(K, pi)
    for T in (2, 10):
        each = visits.visited(late, 4, T)
        error = float(each.std()) / chains**0.5
        assert error < 0.005 and abs(float(each.mean()) - markov.visits(K, pi, e, T)) < 4 * error

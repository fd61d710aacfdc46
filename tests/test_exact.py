"""Exact truth by enumeration: the theorems on the best latent marginal, as inequalities without an exception."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from worlds import EPS, conditional, law, mean, n, rows, tables, world

from guides.codes import index, states
from zoo.lab import exact


@pytest.mark.equation("lw.1", "lw.3", "lw.9", "lw.11")
def test_tables_are_the_sums_they_stand_for() -> None:
    """One datum, one code at a time, in probabilities."""
    R, Q = world(), law()
    T, w, N, q = R.T, R.log_w.exp(), len(R.x), conditional(R)
    P = [[float(T[m, h].exp()) for h in range(2**n)] for m in range(N)]
    P_Q = [sum(P[m][h] * float(Q[h].exp()) for h in range(2**n)) for m in range(N)]
    r = [[P[m][h] * float(Q[h].exp()) / P_Q[m] for h in range(2**n)] for m in range(N)]
    G = [sum(float(w[m]) * P[m][h] / P_Q[m] for m in range(N)) for h in range(2**n)]
    cond = [sum(float(w[m]) * r[m][h] for m in range(N)) for h in range(2**n)]
    q_D = [sum(float(w[m]) * float(q[m, h].exp()) for m in range(N)) for h in range(2**n)]
    for found, expected in [
        (exact.evidence(T, Q).exp(), P_Q),
        (exact.posterior(T, Q).exp(), r),
        (exact.log_gain(T, Q, R.log_w).exp(), G),
        (exact.incorporate(T, Q, R.log_w).exp(), cond),
        (exact.aggregated(q, R.log_w).exp(), q_D),
    ]:
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-12, atol=0)


@pytest.mark.equation("lw.11")
def test_the_gain_is_the_derivative_of_the_evidence_in_the_law() -> None:
    R = world()
    Q = law().exp().requires_grad_()
    (R.log_w.exp() @ exact.evidence(R.T, Q.log())).backward()
    torch.testing.assert_close(exact.log_gain(R.T, Q.detach().log(), R.log_w).exp(), Q.grad, rtol=1e-12, atol=0)


def test_repeated_data_are_collapsed_into_weights() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    distinct, log_w = exact.distinct(x)
    assert distinct.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    torch.testing.assert_close(log_w.exp(), torch.tensor([0.25, 0.75]))
    assert exact.entropy(log_w) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs=1e-15)
    assert exact.entropy(exact.distinct(rows())[1]) == pytest.approx(math.log(len(rows())), abs=1e-12)


@pytest.mark.equation("lw.1")
@pytest.mark.parametrize("cells", [1, 40, 10_000])
def test_a_likelihood_in_pieces_is_the_whole(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    R, Q = world(), law().requires_grad_()
    monkeypatch.setattr(exact, "CELLS", cells)
    held: list[int] = []

    def table(x: Tensor, codes: Tensor) -> Tensor:
        held.append(len(codes))
        return tables(x, R.W, R.b)[:, index(codes)]

    found, whole = exact.log_likelihood(table, R.x, Q), exact.evidence(R.T, Q)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-13)
    assert max(held) == min(2**n, max(1, cells // len(R.x))) and sum(held) == 2**n
    slopes = [torch.autograd.grad(value.sum(), Q)[0] for value in (found, whole)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-13)


def test_kl_and_log_mean() -> None:
    p, q = law(), law()
    assert float(exact.kl(p, q)) == pytest.approx(sum(float(a.exp() * (a - b)) for a, b in zip(p, q, strict=True)))
    atom = torch.tensor([0.0, -math.inf])
    assert float(exact.kl(atom, torch.tensor([0.25, 0.75]).log())) == pytest.approx(math.log(4))
    assert float(exact.kl(torch.tensor([0.5, 0.5]).log(), atom)) == math.inf
    values = torch.randn(5, 3)
    torch.testing.assert_close(exact.log_mean(values), values.exp().mean(0).log())
    torch.testing.assert_close(exact.log_mean(values, 1), values.exp().mean(1).log())


@pytest.mark.equation("lw.4")
def test_the_blm_of_two_useful_codes_is_known() -> None:
    """max over s of (1/2) log(.1 + .8 s) + (1/2) log(.6 - .3 s) is at s = 15/16; two more codes are of no use."""
    T = torch.tensor([[0.9, 1e-6, 1e-6, 0.1], [0.3, 1e-6, 1e-6, 0.6]]).log()
    best = exact.blm(T, torch.tensor([0.5, 0.5]).log(), tol=1e-12)
    expected = 0.5 * math.log(0.1 + 0.8 * 15 / 16) + 0.5 * math.log(0.6 - 0.3 * 15 / 16)
    assert best.bound == pytest.approx(expected, abs=1e-12) and 0 <= best.certificate < 1e-12
    torch.testing.assert_close(best.log_prior.exp(), torch.tensor([15, 0, 0, 1]) / 16, rtol=0, atol=1e-5)


@pytest.mark.equation("lw.4", "lw.9")
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 300])
def test_em_in_probabilities_is_data_incorporation_repeated(steps: int) -> None:
    R = world()
    Q = torch.full((2**n,), -n * math.log(2))
    for _ in range(steps):
        Q = exact.incorporate(R.T, Q, R.log_w)
    found = exact.blm(R.T, R.log_w, tol=-1, steps=steps)
    torch.testing.assert_close(found.log_prior.exp(), Q.exp(), rtol=0, atol=1e-13)
    assert found.bound == pytest.approx(mean(R.T, Q, R.log_w), abs=1e-12)
    assert found.certificate == pytest.approx(float(exact.log_gain(R.T, Q, R.log_w).max()), abs=1e-12)


@pytest.mark.equation("lw.4")
def test_the_evidence_of_each_datum_at_the_blm_is_unique() -> None:
    """From other starts EM may end at another law, never at other evidences."""
    R = world()
    best = exact.blm(R.T, R.log_w, tol=1e-9)
    for _ in range(5):
        Q = law()
        for _ in range(5000):
            Q = exact.incorporate(R.T, Q, R.log_w)
        torch.testing.assert_close(exact.evidence(R.T, Q), exact.evidence(R.T, best.log_prior), rtol=0, atol=1e-6)
        assert mean(R.T, Q, R.log_w) <= best.bound + best.certificate + EPS


@pytest.mark.equation("lw.4", "lw.7")
@pytest.mark.parametrize("equal", [True, False])
def test_no_top_beats_the_blm_and_a_poor_top_costs_at_most_its_kl(equal: bool) -> None:
    for _ in range(8):
        R = world(equal=equal)
        best = exact.blm(R.T, R.log_w)
        assert best.bound + best.certificate <= -exact.entropy(R.log_w) + 1e-6
        for _ in range(20):
            P_J = law(torch.rand(()).item() * 4)
            loss = best.bound - mean(R.T, P_J, R.log_w)
            assert -best.certificate - EPS <= loss <= float(exact.kl(best.log_prior, P_J)) + 1e-5


@pytest.mark.equation("lw.8")
@pytest.mark.parametrize("equal", [True, False])
def test_the_price_of_a_poor_top_for_any_q_and_the_naive_price_that_is_false(equal: bool) -> None:
    x, corrected, naive = rows(), 0, 0
    for _ in range(4000):
        R = world(x, equal=equal)
        q_D = exact.aggregated(conditional(R), R.log_w)
        P_J = (q_D + 0.7 * torch.randn(2**n)).log_softmax(-1)
        loss = mean(R.T, q_D, R.log_w) - mean(R.T, P_J, R.log_w)
        corrected += loss > float(exact.price(R.T, q_D, P_J, R.log_w)) + EPS
        naive += loss > float(exact.kl(q_D, P_J))
    assert corrected == 0 and naive > 100


@pytest.mark.equation("lw.8", "lw.7")
def test_at_the_blm_the_price_is_the_kl() -> None:
    R = world()
    best = exact.blm(R.T, R.log_w, tol=1e-9)
    P_J = law()
    price, kl = exact.price(R.T, best.log_prior, P_J, R.log_w), exact.kl(best.log_prior, P_J)
    torch.testing.assert_close(price, kl, rtol=0, atol=1e-5)


@pytest.mark.equation("lw.9", "lw.10", "lw.11")
def test_what_each_step_of_em_gains() -> None:
    """50 decoders, 60 steps each. With Q* one step from the last law, (b) holds exactly, wherever EM was stopped."""
    for k in range(50):
        R = world(equal=k % 2 == 0)
        T, w = R.T, R.log_w
        best = exact.blm(T, w, tol=-1, steps=3000)
        U, star = best.bound, exact.incorporate(T, best.log_prior, w)
        assert best.certificate >= -EPS
        Q = torch.full((2**n,), -n * math.log(2))
        for t in range(60):
            cond, L = exact.incorporate(T, Q, w), mean(T, Q, w)
            assert float(cond.logsumexp(0)) == pytest.approx(0, abs=1e-12)
            assert mean(T, cond, w) - L >= float(exact.kl(cond, Q)) - EPS >= -2 * EPS  # (a)
            fall = float(exact.kl(star, Q) - exact.kl(star, cond))
            gap = U - L
            assert fall >= gap - EPS and fall >= -EPS  # (b)
            assert gap <= n * math.log(2) / (t + 1) + EPS  # (c)
            assert gap <= float(exact.log_gain(T, Q, w).max()) + EPS  # lw.11
            Q = cond


@pytest.mark.equation("lw.11")
def test_only_at_the_blm_no_code_has_a_gain() -> None:
    R = world()
    best = exact.blm(R.T, R.log_w, tol=1e-8)
    gain = exact.log_gain(R.T, best.log_prior, R.log_w)
    assert float(gain.max()) == best.certificate < 1e-8
    support = best.log_prior.exp() > 1e-3
    torch.testing.assert_close(gain[support], torch.zeros(int(support.sum())), rtol=0, atol=1e-6)
    others = [float(exact.log_gain(R.T, law(), R.log_w).max()) for _ in range(50)]
    assert min(others) > 1e-3


def test_the_certificate_tells_how_far_a_short_run_fell_short() -> None:
    R = world()
    best = exact.blm(R.T, R.log_w, tol=1e-9)
    short = [exact.blm(R.T, R.log_w, steps=steps) for steps in (1, 5, 25, 125)]
    for one, two in itertools.pairwise(short):
        assert one.bound <= two.bound <= best.bound + EPS
    assert all(run.bound + run.certificate >= best.bound - EPS for run in short)
    assert exact.blm(R.T, R.log_w, tol=1e-2).certificate < 1e-2


def test_single_precision_is_worked_out_in_double() -> None:
    R = world()
    one, two = exact.blm(R.T, R.log_w), exact.blm(R.T.float(), R.log_w.float())
    assert two.log_prior.dtype == torch.float64 and two.bound == pytest.approx(one.bound, abs=1e-5)


@pytest.mark.equation("lw.5")
def test_a_free_q_reaches_the_blm() -> None:
    R = world(equal=True)
    T, w = R.T, R.log_w
    best = exact.blm(T, w)
    logits = torch.zeros(len(T), 2**n).normal_(std=0.1).requires_grad_()
    adam = torch.optim.Adam([logits], 0.1)
    for _ in range(2000):
        adam.zero_grad()
        (-w.exp() @ exact.evidence(T, exact.aggregated(logits.log_softmax(-1), w))).backward()
        adam.step()
    reached = mean(T, exact.aggregated(logits.detach().log_softmax(-1), w), w)
    assert -1e-4 < reached - best.bound < best.certificate


@pytest.mark.equation("lw.5", "lw.9")
def test_every_law_is_a_q_and_the_posterior_under_the_blm_reaches_it() -> None:
    R = world()
    T, w, Q = R.T, R.log_w, law()
    torch.testing.assert_close(exact.aggregated(Q.expand(len(T), -1), w), Q, rtol=0, atol=1e-13)
    best = exact.blm(T, w)
    q_D = exact.aggregated(exact.posterior(T, best.log_prior), w)
    torch.testing.assert_close(q_D, exact.incorporate(T, best.log_prior, w), rtol=0, atol=1e-11)
    assert best.bound - EPS <= mean(T, q_D, w) <= best.bound + best.certificate + EPS


@pytest.mark.equation("lw.6")
def test_layer_by_layer_no_decoder_and_top_do_better() -> None:
    """Six decoders and 300 tops are all there is in this world of theta."""
    x = rows()
    worlds = [world(x, equal=True) for _ in range(6)]
    bests = [exact.blm(R.T, R.log_w) for R in worlds]
    chosen = max(range(6), key=lambda k: bests[k].bound)
    U, q_D = bests[chosen].bound, bests[chosen].log_prior
    tops = [law(s) for s in torch.linspace(0.1, 4, 299).tolist()] + [q_D]
    scores = torch.tensor([[mean(R.T, P_J, R.log_w) for P_J in tops] for R in worlds])
    slack = max(best.certificate for best in bests) + EPS
    assert float(scores.max()) <= U + slack
    assert float(scores[chosen, -1]) == pytest.approx(U, abs=1e-12)  # (i)
    for P_J, score in zip(tops, scores[chosen], strict=True):
        assert U - float(score) <= float(exact.kl(q_D, P_J)) + 1e-5  # (ii)


@pytest.mark.equation("lw.12")
def test_the_best_free_top_is_the_aggregated_posterior() -> None:
    """argmin KL(q_D || P_J) = argmax E log P_J(h), by gradient: E_q log P_J is concave in the logits of P_J."""
    R = world()
    q_D = exact.aggregated(conditional(R), R.log_w)
    logits = torch.zeros(2**n, requires_grad=True)
    solver = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=0, tolerance_change=0)

    def loss() -> Tensor:
        solver.zero_grad()
        value = -(q_D.exp() @ logits.log_softmax(0))
        value.backward()
        return value

    solver.step(loss)
    P_J = logits.detach().log_softmax(0)
    torch.testing.assert_close(P_J.exp(), q_D.exp(), rtol=0, atol=1e-7)
    assert mean(R.T, P_J, R.log_w) == pytest.approx(mean(R.T, q_D, R.log_w), abs=1e-7)
    entropy = -float(q_D.exp() @ q_D)
    for _ in range(100):
        other = law()
        likelihood = float(q_D.exp() @ other)
        assert float(exact.kl(q_D, other)) == pytest.approx(-entropy - likelihood, abs=1e-12) and likelihood < -entropy


@pytest.mark.equation("lw.5")
def test_a_factorial_q_may_fall_short_of_the_blm() -> None:
    """The only BLM is 15/16 on code 00 and 1/16 on 11; two factorial laws of weight 1/2 cannot mix to that."""
    T = torch.tensor([[0.9, 1e-6, 1e-6, 0.1], [0.3, 1e-6, 1e-6, 0.6]]).log()
    log_w = torch.tensor([0.5, 0.5]).log()
    best = exact.blm(T, log_w, tol=1e-12)
    p = torch.cartesian_prod(*[torch.linspace(0, 1, 33)] * 4).unflatten(-1, (2, 2))  # every pair of factorial laws
    q = torch.where(states(2).bool(), p.unsqueeze(-2), 1 - p.unsqueeze(-2)).prod(-1)  # (cases, 2, 4)
    factorial = ((q.mean(1) @ T.exp().mT).log() @ log_w.exp()).max()
    assert 1e-3 < best.bound - float(factorial) < 0.1
    free = mean(T, exact.aggregated(best.log_prior.expand(2, -1), log_w), log_w)
    assert free == pytest.approx(best.bound, abs=1e-12)

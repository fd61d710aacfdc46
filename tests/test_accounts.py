"""The books of a bottom layer: the chain of bounds of an auto-encoder, without an exception."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.functional import softplus
from worlds import EPS, conditional, law, mean, n, tables, world

from guides.codes import Tabular, states
from zoo.lab import accounts, exact


@pytest.mark.equation("lw.13", "lw.14", "lw.4")
@pytest.mark.parametrize("equal", [True, False])
def test_the_chain_from_the_ceiling_to_the_auto_encoder(equal: bool) -> None:
    """500 random q; U_D is above the bound by at most its certificate, whatever the number of EM steps."""
    for k in range(500):
        R = world(equal=equal)
        q, P_J = conditional(R, (k % 5 + 1) * 1.5), law()
        found = accounts.account(R.T, q, P_J, R.log_w, steps=30)
        U = found.blm + found.certificate
        assert found.reconstruction <= found.elbo_aggregated + EPS <= found.criterion + 2 * EPS <= U + 3 * EPS
        assert found.reconstruction <= found.codes + EPS <= found.criterion + 2 * EPS
        assert found.blm <= found.ceiling + EPS and found.deep <= U + EPS
        assert found.elbo <= min(found.deep, found.elbo_aggregated) + EPS
        assert -EPS <= found.information <= exact.entropy(R.log_w) + EPS
        assert found.criterion - found.deep <= found.price + EPS


@pytest.mark.equation("lw.13", "lw.14", "lw.8")
def test_every_number_of_an_account_is_the_sum_it_stands_for() -> None:
    R = world()
    q, P_J, w, N = conditional(R), law(), R.log_w.exp(), len(R.x)
    found = accounts.account(R.T, q, P_J, R.log_w, mean_field=torch.arange(float(N)))
    H = -sum(float(p * p.log()) for p in w)
    q_D = sum(w[m] * q[m].exp() for m in range(N))
    expectation = sum(w[m] * (q[m].exp() @ R.T[m]) for m in range(N))
    information = sum(w[m] * (q[m].exp() @ (q[m] - q_D.log())) for m in range(N))
    log_p = R.T + P_J - q  # the integrand of the ELBO with P_J
    expected = {
        "ceiling": -H,
        "criterion": sum(w[m] * (R.T[m].exp() @ q_D).log() for m in range(N)),
        "elbo_aggregated": sum(w[m] * (q[m].exp() @ (R.T[m] + q_D.log() - q[m])) for m in range(N)),
        "codes": sum(w[m] * (R.T[m].exp() @ q[m].exp()).log() for m in range(N)) - H,
        "reconstruction": expectation - H,
        "deep": sum(w[m] * (R.T[m].exp() @ P_J.exp()).log() for m in range(N)),
        "elbo": sum(w[m] * (q[m].exp() @ log_p[m]) for m in range(N)),
        "information": information,
        "kl": q_D @ (q_D.log() - P_J),
        "price": exact.price(R.T, q_D.log(), P_J, R.log_w),
        "mean_field": w @ torch.arange(float(N)) - H,
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(float(value), abs=1e-12), name
    best = exact.blm(R.T, R.log_w, steps=2000)
    assert (found.blm, found.certificate) == (best.bound, best.certificate)
    assert found.to_dict() == {**found.__dict__} and accounts.account(R.T, q, P_J, R.log_w).mean_field is None


@pytest.mark.equation("lw.14")
def test_when_each_inequality_of_the_chain_is_an_equality() -> None:
    """Codes that name their datum, I_q = H(P_D): the first; the posterior under its own q_D: the second."""
    R = world()
    atoms = torch.full((len(R.x), 2**n), -math.inf)
    atoms[range(len(R.x)), range(len(R.x))] = 0.0
    found = accounts.account(R.T, atoms, law(), R.log_w)
    assert found.information == pytest.approx(exact.entropy(R.log_w), abs=1e-12)
    assert found.reconstruction == pytest.approx(found.elbo_aggregated, abs=1e-12)
    best = exact.blm(R.T, R.log_w, tol=1e-9)
    found = accounts.account(R.T, exact.posterior(R.T, best.log_prior), best.log_prior, R.log_w)
    assert found.elbo_aggregated == pytest.approx(found.criterion, abs=1e-7)
    assert found.criterion == pytest.approx(best.bound, abs=1e-7)


@pytest.mark.equation("lw.15", "lw.13")
def test_an_auto_encoder_is_an_elbo_whose_q_cancels() -> None:
    """Model: draw a datum, encode, decode. The integrand of its ELBO for every datum and code, and its mean."""
    R = world()
    N, q, eta = len(R.x), conditional(R), states(n) @ R.W + R.b

    def model(m: int) -> None:
        row = pyro.sample("n", dist.Categorical(logits=R.log_w))
        h = pyro.sample("h", Tabular(q[row]))
        code = (h * 2.0 ** torch.arange(n - 1, -1, -1)).sum().long()
        pyro.sample("x", dist.Bernoulli(logits=eta[code]).to_event(1), obs=R.x[m])

    def guide(m: int) -> None:
        pyro.sample("n", dist.Delta(torch.tensor(m), event_dim=0))
        pyro.sample("h", Tabular(q[m]))

    integrand = torch.zeros(N, 2**n)
    for m, (i, h) in itertools.product(range(N), enumerate(states(n))):
        trace = poutine.trace(poutine.condition(guide, data={"h": h})).get_trace(m)
        replayed = poutine.trace(poutine.condition(model, data={"n": torch.tensor(m), "h": h})).get_trace(m)
        integrand[m, i] = replayed.log_prob_sum() - trace.log_prob_sum()
    torch.testing.assert_close(integrand, R.log_w[:, None] + R.T, rtol=0, atol=1e-12)
    found = float((R.log_w.exp()[:, None] * q.exp() * integrand).sum())
    assert found == pytest.approx(accounts.account(R.T, q, law(), R.log_w).reconstruction, abs=1e-12)


@pytest.mark.equation("lw.16")
def test_the_loss_of_a_classical_auto_encoder_is_never_below_the_expectation() -> None:
    for _ in range(500):
        R = world()
        logits = 2 * torch.randn(len(R.x), n)
        q = logits @ states(n).mT - softplus(logits).sum(-1, keepdim=True)
        eta = logits.sigmoid() @ R.W + R.b
        mean_field = (R.x * eta - softplus(eta)).sum(-1)
        assert (mean_field >= (q.exp() * R.T).sum(-1) - EPS).all()


@pytest.mark.equation("lw.16")
def test_the_loss_of_a_classical_auto_encoder_may_exceed_the_blm() -> None:
    """One bit that switches two pixels against each other; data where both are on or both off; E_q h = 1/2."""
    x, W, b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[16.0, -16.0]]), torch.tensor([-8.0, 8.0])
    best = exact.blm(tables(x, W, b), torch.tensor([0.5, 0.5]).log())
    mean_field = dist.Bernoulli(logits=0.5 * W[0] + b).log_prob(x).sum(-1).mean() - math.log(2)
    assert float(mean_field) == pytest.approx(-3 * math.log(2)) and best.bound + best.certificate < -8


@pytest.mark.equation("lw.19", "lw.9")
def test_q_of_the_posterior_under_any_law_is_one_step_of_incorporation() -> None:
    """Any model: evidence + KL(q_D || Q) <= L_D(q_D) <= U_D, and the ELBO at the start is the evidence."""
    for _ in range(300):
        R, Q = world(), law()
        q = exact.posterior(R.T, Q)
        q_D = exact.aggregated(q, R.log_w)
        torch.testing.assert_close(q_D, exact.incorporate(R.T, Q, R.log_w), rtol=0, atol=1e-11)
        found = accounts.account(R.T, q, Q, R.log_w, steps=20)
        assert found.deep + found.kl <= found.criterion + EPS <= found.blm + found.certificate + 2 * EPS
        assert found.elbo == pytest.approx(found.deep, abs=1e-11)


@pytest.mark.equation("lw.22")
@pytest.mark.parametrize("equal", [True, False])
def test_no_law_of_the_training_data_beats_the_blm_of_the_held_out_data(equal: bool) -> None:
    for _ in range(100):
        R, V = world(equal=equal), world(equal=equal)
        T_V, q, P_J = tables(V.x, R.W, R.b), conditional(R), law()
        found = accounts.held_out(R.T, T_V, log_q=q, log_prior=P_J, log_w=R.log_w, log_w_valid=V.log_w, steps=300)
        best = exact.blm(T_V, V.log_w, steps=300)
        assert found.blm == best.bound
        for value in (found.blm_of_train, found.criterion, found.deep):
            assert value <= best.bound + best.certificate + EPS
        assert found.blm_of_train == pytest.approx(
            mean(T_V, exact.blm(R.T, R.log_w, steps=300).log_prior, V.log_w), abs=1e-12
        )
        assert found.criterion == pytest.approx(mean(T_V, exact.aggregated(q, R.log_w), V.log_w), abs=1e-12)
        assert found.deep == pytest.approx(mean(T_V, P_J, V.log_w), abs=1e-12)

"""Pseudo-data against exact values: conditioning, FITC covariances, and an objective that is no bound."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import guides
from guides import pseudo_data, weight_space
from guides.pseudo_data import FITC, Authors, OuterNoise, ScalarNoise, noise_regulariser
from zoo import lab
from zoo.claims import anchors as r

Q = {"row_scale": r.row_scale(), "col_scale": r.col_scale()}
STRUCTURES: dict[str, dict[str, Tensor]] = {
    "diagonal": Q,
    "tril": {"row_tril": r.row_tril(), "col_tril": r.col_tril()},
    "low rank": {
        "row_diag": r.row_scale().square(),
        "row_factor": torch.cos(torch.arange(8.0, dtype=torch.float64)).reshape(4, 2),
        "col_diag": r.col_scale(),
        "col_factor": torch.ones(3, 1, dtype=torch.float64),
    },
}


def A() -> Tensor:
    """R2: pseudo-inputs (2, 4)."""
    p, i = torch.arange(2.0)[:, None], torch.arange(4.0)
    return torch.sin(1 + 2 * p + i)


def B() -> Tensor:
    """R2: pseudo-outputs (2, 3)."""
    return torch.cos(torch.arange(2.0)[:, None] + torch.arange(3.0))


def x() -> Tensor:
    """R1: inputs (5, 4)."""
    return torch.cos(torch.arange(5.0)[:, None] + 0.5 * torch.arange(4.0))


def quiet() -> tuple[Tensor, Tensor]:
    return torch.tensor(0.0), torch.tensor(0.0)


def authors(jitter: float = 1e-6, **structure: Tensor) -> Authors:
    return Authors(r.M(), inputs=A(), outputs=B(), noise=quiet(), jitter=jitter, **(structure or Q))


def dense_condition(law: Any, x: Tensor, A: Tensor, B: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (x W).flatten() given A W + jitter noise = B, as one joint Gaussian of x W and A W."""
    n, m, V = len(x), len(A), law.col.dense()
    both = torch.cat([x, A])
    joint = both @ law.row.dense() @ both.mT
    joint[n:, n:] += jitter * torch.eye(m)
    gain = torch.kron(joint[:n, n:] @ joint[n:, n:].inverse(), torch.eye(V.shape[-1]))
    mean = (x @ law.loc).flatten() + gain @ (B - A @ law.loc).flatten()
    covariance = torch.kron(joint[:n, :n], V) - gain @ torch.kron(joint[n:, :n], V)
    return mean.reshape(n, -1), covariance


@pytest.mark.equation("mg.15")
def test_printed_conditional_mean_and_variances() -> None:
    mean, s = authors().condition(x(), A(), B())
    torch.testing.assert_close(mean[0], torch.tensor([0.53203736, 0.56606384, -0.05173839]), atol=1e-7, rtol=0)
    printed = torch.tensor([0.16529072, 0.01720413, 0.27931637, 0.20924860, 0.00545332])
    torch.testing.assert_close(s, printed, atol=1e-7, rtol=0)


@pytest.mark.equation("mg.15")
@pytest.mark.parametrize("name", STRUCTURES)
def test_conditioning_is_that_of_the_dense_joint_gaussian(name: str) -> None:
    law = authors(1e-3, **STRUCTURES[name])
    mean, s = law.condition(x(), A(), B())
    truth, covariance = dense_condition(law, x(), A(), B(), 1e-3)
    torch.testing.assert_close(mean, truth)
    rows = covariance.reshape(5, 3, 5, 3).diagonal(dim1=0, dim2=2)  # (3, 3, 5)
    torch.testing.assert_close(rows, s * law.col.dense()[..., None])
    activation = law.activation(x())
    torch.testing.assert_close(activation.mean, mean)


@pytest.mark.equation("mg.16")
def test_conditioned_weights_have_the_printed_mean_and_null_directions() -> None:
    law = authors(1e-14)
    mean = law.conditional_mean()
    torch.testing.assert_close(mean[0], torch.tensor([0.65068550, 0.20460770, -0.63018153]), atol=1e-7, rtol=0)
    torch.testing.assert_close(A() @ mean, B())
    U = r.row_scale().square().diag()
    conditioned = U - U @ A().mT @ (A() @ U @ A().mT).inverse() @ A() @ U
    printed = torch.tensor([0.0, 0.0, 0.31231899, 0.48635993])
    torch.testing.assert_close(torch.linalg.eigvalsh(conditioned), printed, atol=1e-7, rtol=0)
    torch.testing.assert_close((x() @ conditioned * x()).sum(-1), law.condition(x(), A(), B())[1], atol=1e-10, rtol=0)


@pytest.mark.equation("mg.16", "mg.15")
@pytest.mark.parametrize("name", STRUCTURES)
def test_drawn_weights_are_those_that_reach_the_likelihood(name: str) -> None:
    torch.manual_seed(0)
    law = authors(1e-2, **STRUCTURES[name])
    values = (x() @ law.rsample(torch.Size([40_000]))).flatten(1)
    mean, covariance = dense_condition(law, x(), A(), B(), 1e-2)
    error = values.mean(0) - mean.flatten()
    assert (error.abs() < 5 * (covariance.diagonal() / 40_000).sqrt() + 1e-9).all()
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert ((values.T.cov() - covariance).abs() < 5 * math.sqrt(2 / 40_000) * scale + 1e-9).all()


@pytest.mark.equation("mg.17")
@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-2])
def test_fitc_leaves_the_law_of_a_row_and_couples_rows(jitter: float) -> None:
    law = FITC(r.M(), inputs=A(), jitter=jitter, **Q)
    U, S11 = law.row.dense(), law.root(A()) @ law.root(A()).mT
    G = x() @ U @ A().mT @ S11.inverse()
    _, s = law.condition(x(), A(), A() @ r.M())
    K = x() @ U @ x().mT
    Qxx = G @ (A() @ U @ x().mT)
    through = G @ S11 @ G.mT
    torch.testing.assert_close(through.diagonal() + s, K.diagonal(), atol=1e-12, rtol=0)
    torch.testing.assert_close(through + s.diag(), Qxx + (K - Qxx).diagonal().diag(), atol=1e-12, rtol=0)


@pytest.mark.equation("mg.17")
def test_rows_in_the_span_of_the_pseudo_inputs_have_no_noise_of_their_own() -> None:
    law = FITC(r.M(), inputs=A(), jitter=1e-15, **Q)
    inside = torch.tensor([[1.0, 2.0], [-0.3, 0.5]]) @ A()
    assert law.condition(inside, A(), B())[1].max() < 1e-12
    whole = FITC(r.M(), inputs=torch.eye(4), jitter=0.0, **Q)
    assert whole.condition(x(), torch.eye(4), r.M())[1].max() < 1e-12


@pytest.mark.equation("mg.17")
@pytest.mark.parametrize("name", STRUCTURES)
def test_fitc_draws_have_the_moments_of_mg_17(name: str) -> None:
    torch.manual_seed(0)
    law = FITC(r.M(), inputs=A(), jitter=1e-6, **STRUCTURES[name]).expand([40_000])
    values = law.activation(x()).rsample().flatten(1)
    K = x() @ law.row.dense() @ x().mT
    Qxx = x() @ law.row.times(A()).mT @ torch.cholesky_solve(law.row.times(A()) @ x().mT, law.root(A()))
    covariance = torch.kron(Qxx + (K - Qxx).diagonal().diag(), law.col.dense())
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert ((values.T.cov() - covariance).abs() < 5 * math.sqrt(2 / 40_000) * scale).all()
    assert ((values.mean(0) - (x() @ r.M()).flatten()).abs() < 5 * (covariance.diagonal() / 40_000).sqrt()).all()


class Fixed(nn.Module):
    """A family that is one law of R3 at the point of T16, with a mean that can be differentiated."""

    def __init__(self, law: Callable[[Tensor], Any], prior: Any = None, context: Any = None) -> None:
        super().__init__()
        self.loc, self.law = nn.Parameter(r.M()), law

    def forward(self, context: Any = None) -> Any:
        return self.law(self.loc)


def at_T16(m: int) -> Callable[[Tensor], Any]:
    """Laws at r = e^-.5, c = e^-.3; m = 0 is local reparametrisation."""
    scales = {"row_scale": torch.full((4,), math.exp(-0.5)), "col_scale": torch.full((3,), math.exp(-0.3))}
    if m == 0:
        return lambda loc: guides.distributions.MatrixNormal(loc, **scales)
    p = torch.arange(float(m))[:, None]
    inputs = torch.eye(4) if m == 4 else torch.sin(1 + 2 * p + torch.arange(4.0))
    return lambda loc: FITC(loc, inputs=inputs, **scales)


def gradient_draws(law: Callable[[Tensor], Any], draws: int) -> tuple[Tensor, Tensor]:
    model = r.KnownNoise()
    guide = guides.Guide(model, r.batch(), weights=partial(Fixed, law))
    loss = TraceMeanField_ELBO()(model, guide)
    loc = next(guide.parameters())
    values, gradients = [], []
    for _ in range(draws):
        value = loss(**r.batch())
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, loc)[0])
    return torch.stack(values), torch.stack(gradients)


@pytest.mark.equation("mg.17", "mg.10")
@pytest.mark.parametrize("m", range(5))
def test_the_bound_and_its_gradient_are_those_of_the_plain_law_for_any_pseudo_inputs(m: int) -> None:
    torch.manual_seed(0)
    values, gradients = gradient_draws(at_T16(m), 2500)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - 164.52951201) < 5 * error and error < 2.0
    truth = r.M() - r.X().T @ (r.Y() - r.X() @ r.M()) / 0.3
    assert ((gradients.mean(0) - truth).abs() < 5 * gradients.std(0) / math.sqrt(len(values))).all()


@pytest.mark.slow
@pytest.mark.equation("mg.17")
def test_fitc_buys_coherent_draws_with_a_noisier_gradient() -> None:
    torch.manual_seed(1)
    variances = [float(gradient_draws(at_T16(m), 3000)[1].var(0).sum()) for m in (0, 2, 4)]
    with weight_space():
        space = float(gradient_draws(at_T16(0), 3000)[1].var(0).sum())
    assert variances[0] < 0.5 * variances[1] < 0.5 * variances[2]
    assert variances[2] == pytest.approx(space, rel=0.25)


@pytest.mark.equation("mg.17")
def test_the_pseudo_inputs_of_fitc_have_no_expected_gradient() -> None:
    torch.manual_seed(0)
    inputs = A().requires_grad_()
    scales = {"row_scale": torch.full((4,), math.exp(-0.5)), "col_scale": torch.full((3,), math.exp(-0.3))}
    law = FITC(r.M(), inputs=inputs, **scales).expand([20_000])
    f = law.activation(r.X()).rsample()
    loglik = -0.5 * ((r.Y() - f).square() / 0.3).sum((-2, -1))
    draws = [torch.autograd.grad(part.mean(), inputs, retain_graph=True)[0] for part in loglik.split(400)]
    gradients = torch.stack(draws)
    assert (gradients.mean(0).abs() < 5 * gradients.std(0) / math.sqrt(len(gradients))).all()


@pytest.mark.equation("mg.18")
def test_the_released_objective_exceeds_the_evidence() -> None:
    torch.manual_seed(0)
    least_squares = torch.linalg.lstsq(r.X(), r.Y()).solution
    noise = (torch.tensor(0.005).sqrt(),) * 2
    ones = {"row_scale": torch.ones(4), "col_scale": torch.ones(3)}
    law = Authors(torch.zeros(4, 3), inputs=torch.eye(4), outputs=least_squares, noise=noise, **ones)
    model = r.KnownNoise()
    guide = guides.Guide(model, r.batch(), weights=lambda prior, context: Fixed(lambda loc: law))
    loss = TraceMeanField_ELBO()(model, guide)
    with torch.no_grad():
        J = -torch.stack([loss(**r.batch()) for _ in range(4000)])
    error = float(J.std()) / math.sqrt(len(J))
    assert abs(float(J.mean()) + 30.464) < 5 * math.hypot(error, 0.015)
    excess = float(J.mean()) - r.evidence(r.COMMON)
    assert excess - 5 * error > 14 and abs(excess - 14.87) < 5 * math.hypot(error, 0.015)
    still = Authors(torch.zeros(4, 3), inputs=torch.eye(4), outputs=least_squares, noise=quiet(), **ones)
    assert float(still.activation(r.X()).mean.sub(r.X() @ least_squares).abs().max()) < 1e-4


@pytest.mark.equation("mg.19")
def test_noise_regulariser_against_quadrature() -> None:
    from scipy import integrate

    def exact(alpha: float) -> float:
        def integrand(e: float) -> float:
            return math.exp(-0.5 * e * e) / math.sqrt(2 * math.pi) * math.log(abs(1 + math.sqrt(alpha) * e))

        pole = -1 / math.sqrt(alpha)
        points = sorted({-12.0, max(pole, -12.0), 12.0})
        pieces = [integrate.quad(integrand, a, b, limit=400)[0] for a, b in pairwise(points)]
        return 0.5 * math.log(alpha) - sum(pieces)

    for alpha, printed in [(1e-4, 0.00006), (0.005, 0.0033), (0.01, 0.0064), (0.1, 0.0394), (1.0, 0.0372)]:
        difference = float(noise_regulariser(torch.tensor(alpha))) - exact(alpha)
        assert difference == pytest.approx(printed, abs=6e-5) and -1e-6 < difference < 0.0404
    grid = noise_regulariser(torch.linspace(1e-4, 1, 2000))
    assert (grid.diff() > 0).all()
    low, high = noise_regulariser(torch.tensor([math.exp(-8), 0.005]))
    assert float(high - low) == pytest.approx(1.35622164, abs=1e-7)


@pytest.mark.equation("mg.18", "mg.19")
@pytest.mark.parametrize(("noise", "largest"), [(ScalarNoise, 0.01), (OuterNoise, 1e-4)])
def test_the_penalty_is_zero_at_the_bound_and_what_mg_18_says_below(noise: Any, largest: float) -> None:
    family = guides.MatrixNormalAuthors(r.standard_prior(), m=2, nu=0.01, noise=noise)
    assert family.penalty().item() == pytest.approx(0.0, abs=1e-12)
    with torch.no_grad():
        for parameter in family.noise.parameters():
            parameter.fill_(-3.0)
    alpha = math.exp(-6) if noise is ScalarNoise else math.exp(-12)
    low, high = noise_regulariser(torch.tensor([alpha, largest]))
    assert family.penalty().item() == pytest.approx(float((high - low) * (2 * 4 + 2 * 3)))


@pytest.mark.equation("mg.18")
@pytest.mark.parametrize("bound", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_penalty_raises_the_loss_by_itself(bound: Any) -> None:
    model = r.KnownNoise()
    guide = guides.Guide(model, r.batch(), weights=partial(guides.MatrixNormalAuthors, m=2))
    family: Any = guide.q["W"]
    losses = {}
    for penalty in (0.0, 3.0):
        family.penalty = lambda penalty=penalty: torch.tensor(penalty)
        torch.manual_seed(0)
        losses[penalty] = float(bound()(model, guide)(**r.batch()))
    assert losses[3.0] - losses[0.0] == pytest.approx(3.0)


@pytest.mark.equation("mg.18")
def test_noise_is_kept_in_its_range_and_can_leave_the_edge() -> None:
    model = r.KnownNoise()
    guide = guides.Guide(model, r.batch(), weights=partial(guides.MatrixNormalAuthors, m=2, nu=0.01))
    fit = lab.fit(model, guide, [r.batch()], TraceMeanField_ELBO(), epochs=200, lr=0.05)
    family: Any = fit.guide.q["W"]
    family()
    for parameter in family.noise.parameters():
        assert -4 <= float(parameter) <= 0.5 * math.log(0.01) + 1e-12
    with torch.no_grad():
        family.noise.log_A.fill_(0.0)
    family()
    family.penalty().backward()
    assert float(family.noise.log_A.grad) != 0.0


@pytest.mark.equation("mg.15")
@pytest.mark.parametrize("family", [guides.MatrixNormalFITC, guides.MatrixNormalAuthors])
def test_particles_have_pseudo_data_of_their_own_and_equal_a_loop(family: Any) -> None:
    torch.manual_seed(0)
    model = r.KnownNoise()
    guide = guides.Guide(model, r.batch(), weights=partial(family, m=2, scale=0.7))
    many = TraceMeanField_ELBO(num_particles=300, vectorize_particles=True, max_plate_nesting=1)(model, guide)
    one = TraceMeanField_ELBO()(model, guide)
    with torch.no_grad():
        single = torch.stack([one(**r.batch()) for _ in range(600)])
        vectorised = torch.stack([many(**r.batch()) for _ in range(40)])
    errors = single.std() / math.sqrt(600), vectorised.std() / math.sqrt(40)
    assert abs(single.mean() - vectorised.mean()) < 5 * math.hypot(*errors)
    assert vectorised.std() == pytest.approx(float(single.std()) / math.sqrt(300), rel=0.6)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FITC(r.M(), inputs=torch.ones(2, 3), **Q), r"pseudo-inputs of shape \(2, 3\)"),
        (lambda: guides.MatrixNormalAuthors(r.standard_prior(), nu=1e-5), "nu bounds the noise"),
        (lambda: guides.MatrixNormalAuthors(r.standard_prior(), nu=2.0), "nu bounds the noise"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_pseudo_data_of_weights_in_plates_have_their_batch_shape() -> None:
    prior = guides.distributions.MatrixNormal(torch.zeros(5, 4, 3), row_scale=torch.ones(4), col_scale=torch.ones(3))
    for family in (guides.MatrixNormalFITC, guides.MatrixNormalAuthors):
        law = family(prior, m=2)()
        assert law.rsample().shape == (5, 4, 3)
        assert pseudo_data.Conditioned.root(law, law.inputs).shape == (5, 2, 2)

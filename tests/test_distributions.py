"""The laws of a weight matrix against dense Gaussians, printed constants, simulation and one another."""

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import biject_to, kl_divergence
from torch.distributions import kl as torch_kl

from guides.distributions import FactorNormal, FullNormal, MatrixNormal

D, K = 4, 3
KINDS = ("scale", "tril", "low_rank")
PAIRS = list(product(KINDS, KINDS))
LAWS = [f"{row}-{col}" for row, col in PAIRS] + ["factor", "independent", "full"]
DRAWS = 100_000

# (rows, columns): log MN(W), its value under the wrong Kronecker order, entropy, KL to MN(0, I, I), KL to the second
# prior, x_n U x_n' for the first two rows
PRINTED = {
    ("scale", "scale"): (-14.61162320, -16.090219, 11.51260052, 5.25721372, 6.27739960, 0.67350084, 0.57041221),
    ("tril", "scale"): (-15.37266832, -15.948860, 13.27596052, 4.53692586, 6.14628937, 0.84677070, 0.99476206),
    ("tril", "tril"): (-17.90976814, -16.336755, 13.39904715, 4.49573052, 6.38192981, 0.84677070, 0.99476206),
    ("low_rank", "scale"): (-13.17214522, -15.494989, 12.67090947, 4.66801958, 5.90661457, 1.03429188, 0.79082637),
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def table(f: Callable[[Tensor, Tensor], Tensor], rows: int, columns: int) -> Tensor:
    return f(torch.arange(float(rows))[:, None], torch.arange(float(columns))[None, :]).expand(rows, columns).clone()


def lower(diagonal: Tensor, below: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    n = len(diagonal)
    return table(below, n, n).tril(-1) + diagonal.diag()


def anchor(side: str) -> dict[str, Tensor]:
    """The three structures of R1 on one side, with the dense covariance each stands for."""
    n = {"row": D, "col": K}[side]
    i = torch.arange(float(n))
    if side == "row":
        scale, tril = 0.5 + 0.1 * i, lower(0.6 + 0.1 * i, lambda p, q: 0.2 * torch.cos(p + q))
    else:
        scale, tril = 0.8 + 0.2 * i, lower(0.9 + 0.1 * i, lambda p, q: 0.3 * torch.sin(1 + p + q))
    factor = table(lambda i, f: 0.3 * torch.cos(i + 2 * f), n, 2)
    return {"scale": scale, "tril": tril, "diag": scale**2, "factor": factor}


def structure(side: str, kind: str) -> dict[str, Tensor]:
    names = {"scale": ["scale"], "tril": ["tril"], "low_rank": ["diag", "factor"]}[kind]
    return {f"{side}_{name}": anchor(side)[name] for name in names}


def dense(side: str, kind: str) -> Tensor:
    t = anchor(side)
    if kind == "scale":
        return t["scale"].square().diag()
    return t["tril"] @ t["tril"].mT if kind == "tril" else t["diag"].diag() + t["factor"] @ t["factor"].mT


def M() -> Tensor:
    return table(lambda i, j: torch.sin(1 + i + 2 * j), D, K)


def W() -> Tensor:
    return table(lambda i, j: torch.cos(i - j), D, K)


def X() -> Tensor:
    return table(lambda n, i: torch.cos(n + 0.5 * i), 5, D)


def S() -> Tensor:
    return table(lambda i, j: 0.3 + 0.1 * i + 0.05 * j, D, K)


def matrix_normal(rows: str, columns: str, loc: Tensor | None = None) -> MatrixNormal:
    return MatrixNormal(M() if loc is None else loc, **structure("row", rows), **structure("col", columns))


def standard_prior() -> MatrixNormal:
    return MatrixNormal(torch.zeros(D, K), row_scale=torch.ones(D), col_scale=torch.ones(K))


def second_prior() -> MatrixNormal:
    rows = lower(0.9 - 0.1 * torch.arange(float(D)), lambda p, q: 0.1 + 0 * p * q)
    columns = lower(1.1 + 0.1 * torch.arange(float(K)), lambda p, q: -0.2 + 0 * p * q)
    return MatrixNormal(table(lambda i, j: 0.1 * (i - j), D, K), row_tril=rows, col_tril=columns)


def full_tril() -> Tensor:
    return lower(0.5 + 0.03 * torch.arange(float(D * K)), lambda p, q: 0.1 * torch.sin(1 + p + 2 * q))


def law_and_dense(name: str, batch: tuple[int, ...] = ()) -> tuple[dist.TorchDistribution, dist.MultivariateNormal]:
    """A law over W, and the same law written independently as one dense Gaussian over W.reshape(-1)."""
    factor = 1 + 0.1 * torch.arange(math.prod(batch) * 1.0).reshape(batch)[..., None, None]
    loc = M() * factor
    if name == "factor":
        law, covariance = FactorNormal(loc, S()), S().square().flatten().diag()
    elif name == "independent":
        law, covariance = dist.Normal(loc, S()).to_event(2), S().square().flatten().diag()
    elif name == "full":
        law, covariance = FullNormal(loc, full_tril()), full_tril() @ full_tril().mT
    else:
        rows, columns = name.split("-")
        law, covariance = matrix_normal(rows, columns, loc), torch.kron(dense("row", rows), dense("col", columns))
    return law, dist.MultivariateNormal(loc.flatten(-2), covariance)


def covariance_of(law: dist.TorchDistribution) -> Tensor:
    if isinstance(law, torch.distributions.Independent):
        return law.variance.diag_embed()
    return law.covariance_matrix


@pytest.mark.equation("mg.1", "mg.2", "mg.7", "mg.8")
@pytest.mark.parametrize(("rows", "columns"), PAIRS)
def test_log_prob_is_the_dense_gaussian_in_both_layouts(rows: str, columns: str) -> None:
    u, v = dense("row", rows), dense("col", columns)
    value = matrix_normal(rows, columns).log_prob(W())
    row_major = dist.MultivariateNormal(M().reshape(-1), torch.kron(u, v)).log_prob(W().reshape(-1))
    column_major = dist.MultivariateNormal(M().T.reshape(-1), torch.kron(v, u)).log_prob(W().T.reshape(-1))
    torch.testing.assert_close(value, row_major, rtol=0, atol=1e-10)
    torch.testing.assert_close(value, column_major, rtol=0, atol=1e-10)


@pytest.mark.equation("mg.1", "mg.4", "mg.5", "mg.6", "mg.11")
@pytest.mark.parametrize(("pair", "printed"), PRINTED.items())
def test_printed_constants(pair: tuple[str, str], printed: tuple[float, ...]) -> None:
    q = matrix_normal(*pair)
    standard, second = kl_divergence(q, standard_prior()), kl_divergence(q, second_prior())
    measured = torch.stack([q.log_prob(W()), q.entropy(), standard, second, *q.row.quad(X())[:2]])
    torch.testing.assert_close(measured, torch.tensor(printed[:1] + printed[2:]), rtol=0, atol=1e-7)


@pytest.mark.equation("mg.2")
@pytest.mark.parametrize(("pair", "printed"), PRINTED.items())
def test_the_wrong_kronecker_order_gives_another_number(pair: tuple[str, str], printed: tuple[float, ...]) -> None:
    u, v = dense("row", pair[0]), dense("col", pair[1])
    wrong = dist.MultivariateNormal(M().reshape(-1), torch.kron(v, u)).log_prob(W().reshape(-1))
    assert wrong.item() == pytest.approx(printed[1], abs=1e-6)
    assert abs(wrong - matrix_normal(*pair).log_prob(W())) > 0.5


@pytest.mark.equation("mg.5a")
def test_printed_kl_from_the_factorised_law() -> None:
    q = FactorNormal(M(), S())
    assert kl_divergence(q, standard_prior()).item() == pytest.approx(7.32607640, abs=1e-7)
    assert kl_divergence(q, second_prior()).item() == pytest.approx(7.95337617, abs=1e-7)


@pytest.mark.equation("mg.5b")
def test_printed_kl_to_the_factorised_law() -> None:
    prior = FactorNormal(second_prior().mean, S())
    assert kl_divergence(matrix_normal("tril", "tril"), prior).item() == pytest.approx(18.76340631, abs=1e-7)


@pytest.mark.equation("mg.6")
def test_kl_to_the_standard_prior_is_the_short_formula() -> None:
    q, r, c = matrix_normal("scale", "scale"), anchor("row")["scale"], anchor("col")["scale"]
    logdet = 2 * (K * r.log().sum() + D * c.log().sum())
    short = 0.5 * (r.square().sum() * c.square().sum() + M().square().sum() - D * K - logdet)
    torch.testing.assert_close(kl_divergence(q, standard_prior()), short, rtol=0, atol=1e-10)


@pytest.mark.equation("mg.8")
def test_low_rank_log_determinant() -> None:
    row = matrix_normal("low_rank", "scale").row
    assert row.logdet().item() == pytest.approx(-2.79537663, abs=1e-8)
    assert torch.logdet(dense("row", "low_rank")).item() == pytest.approx(-2.79537663, abs=1e-8)


@pytest.mark.equation("mg.7", "mg.8")
@pytest.mark.parametrize(("side", "kind"), list(product(["row", "col"], KINDS)))
def test_one_side_agrees_with_its_dense_covariance(side: str, kind: str) -> None:
    covariance, n = dense(side, kind), {"row": D, "col": K}[side]
    got = getattr(matrix_normal(kind, kind), side)
    x = table(lambda i, j: torch.cos(i + 0.5 * j), 5, n)
    torch.testing.assert_close(got.dense(), covariance)
    torch.testing.assert_close(got.quad(x), (x @ covariance @ x.mT).diagonal())
    torch.testing.assert_close(got.solve(x), x @ covariance.inverse())
    torch.testing.assert_close(got.logdet(), covariance.logdet())
    torch.testing.assert_close(got.variance(), covariance.diagonal())
    torch.testing.assert_close(got.precision(), covariance.inverse().diagonal())


@pytest.mark.equation("mg.4")
@pytest.mark.parametrize("batch", [(), (2,), (3, 1)])
@pytest.mark.parametrize("name", LAWS)
def test_moments_and_density_of_every_law(name: str, batch: tuple[int, ...]) -> None:
    law, truth = law_and_dense(name, batch)
    assert (law.batch_shape, law.event_shape) == (torch.Size(batch), (D, K))
    torch.testing.assert_close(law.mean, truth.mean.unflatten(-1, (D, K)))
    torch.testing.assert_close(law.mode, law.mean)
    torch.testing.assert_close(law.variance, truth.variance.unflatten(-1, (D, K)))
    torch.testing.assert_close(law.entropy(), truth.entropy())
    for value in (W(), W() + torch.zeros(6, *batch, 1, 1)):
        torch.testing.assert_close(law.log_prob(value), truth.log_prob(value.flatten(-2)))


@pytest.mark.equation("mg.5", "mg.5a", "mg.5b", "mg.2")
@pytest.mark.parametrize(("p_name", "q_name"), list(product(LAWS, LAWS)))
def test_kl_of_every_ordered_pair(p_name: str, q_name: str) -> None:
    for p_batch, q_batch in [((), ()), ((2,), ()), ((), (2,)), ((2,), (3, 1))]:
        (p, p_dense), (q, q_dense) = law_and_dense(p_name, p_batch), law_and_dense(q_name, q_batch)
        q, q_dense = shifted(q, q_dense)
        kl, truth = kl_divergence(p, q), kl_divergence(p_dense, q_dense)
        assert kl.shape == torch.broadcast_shapes(p_batch, q_batch)
        torch.testing.assert_close(kl, truth, rtol=1e-10, atol=1e-10)
        assert (kl > 0).all()


def shifted(law: dist.TorchDistribution, truth: dist.MultivariateNormal) -> tuple:
    """The same covariances around other means, so that p and q never coincide."""
    by = 0.3 * torch.cos(torch.arange(float(D * K)))
    dense_law = dist.MultivariateNormal(truth.mean + by, truth.covariance_matrix)
    loc = law.mean + by.reshape(D, K)
    if isinstance(law, MatrixNormal):
        new = law.expand(law.batch_shape)
        new.loc = loc
        return new, dense_law
    if isinstance(law, FullNormal):
        return FullNormal(loc, law.scale_tril), dense_law
    if isinstance(law, FactorNormal):
        return FactorNormal(loc, S()), dense_law
    return dist.Normal(loc, S()).to_event(2), dense_law


@pytest.mark.equation("mg.5")
@pytest.mark.parametrize("name", LAWS)
def test_kl_to_itself_is_zero(name: str) -> None:
    law, _ = law_and_dense(name, (2,))
    torch.testing.assert_close(kl_divergence(law, law), torch.zeros(2), rtol=0, atol=1e-12)


@pytest.mark.equation("mg.1", "mg.4", "mg.5", "mg.5a", "mg.5b", "mg.11")
@pytest.mark.parametrize(("rows", "columns"), PAIRS)
def test_batched_covariances_agree_with_each_law_of_the_batch(rows: str, columns: str) -> None:
    factor, fixed = torch.tensor([1.0, 1.3, 0.7]), structure("col", columns)
    stretched = {name: value * factor.reshape(3, *[1] * value.dim()) for name, value in structure("row", rows).items()}
    law = MatrixNormal(M(), **stretched, **fixed)
    singles = [MatrixNormal(M(), **{name: value[b] for name, value in stretched.items()}, **fixed) for b in range(3)]
    others = [second_prior(), FactorNormal(M(), S()), FullNormal(M(), full_tril()), matrix_normal("tril", "low_rank")]
    checks: list[Callable[[MatrixNormal], Tensor]] = [
        lambda q: q.log_prob(W()),
        lambda q: q.entropy(),
        lambda q: q.variance,
        lambda q: q.activation(X()).mean,
        lambda q: covariance_of(q.activation(X())),
        lambda q: torch.stack([kl_divergence(q, other) for other in others], -1),
        lambda q: torch.stack([kl_divergence(other, q) for other in others], -1),
    ]
    assert law.batch_shape == law.entropy().shape == (3,)
    for check in checks:
        expected = torch.stack([check(single) for single in singles])
        torch.testing.assert_close(check(law).expand(expected.shape), expected)


def test_kl_of_other_independent_laws_is_refused() -> None:
    laplace = dist.Laplace(M(), S()).to_event(2)
    for p, q in product([matrix_normal("tril", "scale"), FullNormal(M(), full_tril())], [laplace]):
        with pytest.raises(NotImplementedError, match="Laplace"):
            kl_divergence(p, q)
        with pytest.raises(NotImplementedError, match="Laplace"):
            kl_divergence(q, p)


def test_a_nested_independent_normal_is_understood() -> None:
    nested = dist.Independent(dist.Normal(M(), S()).to_event(1), 1)
    flat = dist.Normal(M(), S()).to_event(2)
    for law in (matrix_normal("tril", "scale"), FullNormal(M(), full_tril())):
        torch.testing.assert_close(kl_divergence(law, nested), kl_divergence(law, flat))
        torch.testing.assert_close(kl_divergence(nested, law), kl_divergence(flat, law))


def test_no_pair_is_dispatched_ambiguously() -> None:
    laws = [matrix_normal("scale", "tril"), *(law_and_dense(name)[0] for name in ("factor", "independent", "full"))]
    positive = [dist.LogNormal(0.0, 1.0), dist.Gamma(1.0, 1.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p, q in [*product([*laws, dist.Delta(M(), event_dim=2)], laws), *product(positive, positive)]:
            assert torch_kl._dispatch_kl(type(p), type(q)) is not NotImplemented


@pytest.mark.equation("mg.2", "mg.3", "mg.8")
@pytest.mark.parametrize("name", ["scale-scale", "tril-tril", "low_rank-low_rank", "tril-low_rank", "full", "factor"])
def test_draws_have_the_mean_and_covariance_of_the_law(name: str) -> None:
    torch.manual_seed(0)
    law, truth = law_and_dense(name)
    draws = law.rsample((DRAWS,)).flatten(-2)
    covariance, variance = truth.covariance_matrix, truth.variance
    error = (variance[:, None] * variance + covariance.square()).div(DRAWS).sqrt()
    assert ((draws.mean(0) - truth.mean).abs() < 5 * (variance / DRAWS).sqrt()).all()
    assert ((draws.T.cov() - covariance).abs() < 5 * error).all()


@pytest.mark.equation("mg.1", "mg.3", "mg.4")
@pytest.mark.parametrize("name", LAWS)
def test_density_of_draws_averages_to_the_entropy(name: str) -> None:
    torch.manual_seed(1)
    law, _ = law_and_dense(name, (2,))
    log_prob = law.log_prob(law.rsample((20_000,)))
    assert log_prob.shape == (20_000, 2)
    assert ((log_prob.mean(0) + law.entropy()).abs() < 5 * log_prob.std(0) / math.sqrt(20_000)).all()


@pytest.mark.equation("mg.11", "mg.13")
@pytest.mark.parametrize(("rows", "columns"), PAIRS)
def test_activation_is_the_row_marginal_of_the_batch(rows: str, columns: str) -> None:
    u, v, x = dense("row", rows), dense("col", columns), X()
    q = matrix_normal(rows, columns)
    jacobian = torch.kron(x, torch.eye(K))
    batch = jacobian @ torch.kron(u, v) @ jacobian.T
    torch.testing.assert_close(batch, torch.kron(x @ u @ x.T, v))
    blocks = torch.stack([batch[n * K : (n + 1) * K, n * K : (n + 1) * K] for n in range(len(x))])
    law = q.activation(x)
    assert (law.batch_shape, law.event_shape) == ((5,), (K,))
    torch.testing.assert_close(law.mean, x @ M())
    torch.testing.assert_close(covariance_of(law), blocks)


@pytest.mark.equation("mg.11")
def test_activation_of_a_tril_column_side_is_correlated() -> None:
    covariance = covariance_of(matrix_normal("tril", "tril").activation(X()))[0]
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert correlation.item() == pytest.approx(0.26317304, abs=1e-8)


@pytest.mark.equation("mg.11")
@pytest.mark.parametrize("name", ["scale-tril", "low_rank-low_rank", "tril-scale", "factor"])
def test_activation_draws_are_the_rows_of_x_times_drawn_weights(name: str) -> None:
    torch.manual_seed(2)
    law, truth = law_and_dense(name)
    x = X()[:1]
    direct, through = law.activation(x).rsample((DRAWS,))[:, 0], (x @ law.rsample((DRAWS,)))[:, 0]
    jacobian = torch.kron(x, torch.eye(K))
    covariance = jacobian @ truth.covariance_matrix @ jacobian.T
    error = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance.square()).div(DRAWS).sqrt()
    for draws in (direct, through):
        assert ((draws.mean(0) - (x @ M())[0]).abs() < 5 * (covariance.diagonal() / DRAWS).sqrt()).all()
        assert ((draws.T.cov() - covariance).abs() < 5 * error).all()


def weights(name: str, scale: float = 1.0) -> MatrixNormal | FactorNormal:
    if name == "factor":
        return FactorNormal(M() * scale, S())
    rows, columns = name.split("-")
    return matrix_normal(rows, columns, M() * scale)


@pytest.mark.equation("mg.11")
@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("independent", "full")])
def test_activation_drops_the_slot_of_the_data_plate(name: str) -> None:
    particles = 6
    x = X() * torch.linspace(0.5, 1.5, particles)[:, None, None]
    law = weights(name).expand((particles, 1))
    for inputs in (X(), x):
        activation = law.activation(inputs)
        assert activation.batch_shape == (particles, 5)
        assert activation.rsample().shape == (particles, 5, K)
        for p in range(particles):
            single = weights(name).activation(inputs if inputs.dim() == 2 else inputs[p])
            torch.testing.assert_close(activation.mean[p], single.mean)
            torch.testing.assert_close(covariance_of(activation)[p], covariance_of(single))
    assert weights(name).expand((2,)).activation(X()).batch_shape == (2, 5)
    draws = law.activation(X()).rsample()
    assert not torch.allclose(draws[0], draws[1])


@pytest.mark.equation("mg.11")
def test_the_slot_is_dropped_from_batched_covariances_too() -> None:
    factor = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    for kind in KINDS:
        col = {k: v * factor.reshape(2, 1, *[1] * v.dim()) for k, v in structure("col", kind).items()}
        row = {k: v * factor.reshape(2, 1, *[1] * v.dim()) for k, v in structure("row", kind).items()}
        activation = MatrixNormal(M(), **row, **col).activation(X())
        assert activation.batch_shape == (2, 5)
        for p in range(2):
            single = MatrixNormal(M(), **{k: v[p, 0] for k, v in (row | col).items()}).activation(X())
            torch.testing.assert_close(covariance_of(activation)[p], covariance_of(single))


@pytest.mark.equation("mg.11")
@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("independent", "full")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_zeros_has_finite_gradients(name: str, dtype: torch.dtype) -> None:
    law = weights(name)
    x = torch.zeros(2, D, dtype=dtype, requires_grad=True)
    if name == "factor":
        leaves = [law.base_dist.loc, law.base_dist.scale]
    else:
        leaves = [law.loc, *vars(law.row).values(), *vars(law.col).values()]
    leaves = [leaf.to(dtype).detach().requires_grad_() for leaf in leaves]
    if name == "factor":
        law = FactorNormal(*leaves)
    else:
        names = [f"{side}_{key}" for side in ("row", "col") for key in vars(getattr(law, side))]
        law = MatrixNormal(leaves[0], **dict(zip(names, leaves[1:], strict=True)))
    draw = law.activation(x).rsample()
    assert draw.abs().max() < 1e-4
    gradients = torch.autograd.grad(draw.sum(), [x, *leaves], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", LAWS)
def test_expand_keeps_class_and_law(name: str) -> None:
    law, _ = law_and_dense(name)
    wide = law.expand((5, 2))
    assert type(wide) is type(law)
    assert (wide.batch_shape, wide.event_shape) == ((5, 2), (D, K))
    assert wide.mean.shape == wide.variance.shape == wide.rsample().shape == (5, 2, D, K)
    assert wide.rsample((7,)).shape == wide.sample((7,)).shape == (7, 5, 2, D, K)
    torch.testing.assert_close(wide.log_prob(W()), law.log_prob(W()).expand(5, 2))
    torch.testing.assert_close(wide.entropy(), law.entropy().expand(5, 2))
    assert kl_divergence(wide, standard_prior()).shape == kl_divergence(standard_prior(), wide).shape == (5, 2)
    assert hasattr(wide, "activation") == hasattr(law, "activation")
    assert not torch.allclose(*wide.rsample()[:2, 0])
    torch.testing.assert_close(law.expand_by((3,)).log_prob(W()), law.log_prob(W()).expand(3))


def test_expand_fills_a_given_instance() -> None:
    class Child(MatrixNormal):
        def __init__(self, loc: Tensor, extra: str) -> None:
            self.extra = extra
            super().__init__(loc, row_scale=torch.ones(D), col_scale=torch.ones(K))

        def expand(self, batch_shape: torch.Size, _instance: "Child | None" = None) -> "Child":
            new = self._get_checked_instance(Child, _instance)
            new.extra = self.extra
            return super().expand(batch_shape, new)

    wide = Child(M(), "kept").expand(torch.Size((2, 1)))
    assert isinstance(wide, Child)
    assert (wide.extra, wide.batch_shape, wide.activation(X()).batch_shape) == ("kept", (2, 1), (2, 5))
    assert kl_divergence(wide, standard_prior()).shape == (2, 1)


@pytest.mark.parametrize("name", LAWS)
def test_support_is_the_whole_real_event(name: str) -> None:
    law, _ = law_and_dense(name)
    assert law.has_rsample
    assert law.support.event_dim == 2
    torch.testing.assert_close(biject_to(law.support)(W()), W())
    assert law.support.check(W())


@pytest.mark.parametrize(("rows", "columns"), PAIRS)
def test_gradients_reach_every_parameter(rows: str, columns: str) -> None:
    arguments = {"loc": M(), **structure("row", rows), **structure("col", columns)}
    leaves = {name: value.requires_grad_() for name, value in arguments.items()}
    law = MatrixNormal(**leaves)
    others = [second_prior(), FactorNormal(W(), S()), FullNormal(W(), full_tril())]
    terms = [law.rsample().square().sum(), law.log_prob(W()), law.activation(X()).rsample().square().sum()]
    terms += [kl_divergence(law, other) for other in others] + [kl_divergence(other, law) for other in others]
    for term in terms:
        for gradient in torch.autograd.grad(term, list(leaves.values()), retain_graph=True):
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0


@pytest.mark.parametrize("event_shape", [(4,), (2, 3), (2, 1, 3)])
def test_full_normal_takes_an_event_of_any_shape(event_shape: tuple[int, ...]) -> None:
    n = math.prod(event_shape)
    tril = full_tril()[:n, :n]
    loc = torch.linspace(-1, 1, n).reshape(event_shape)
    law = FullNormal(loc, tril, event_dim=len(event_shape))
    truth = dist.MultivariateNormal(loc.flatten(), scale_tril=tril)
    value = law.rsample((3,))
    assert (law.event_shape, value.shape) == (event_shape, (3, *event_shape))
    torch.testing.assert_close(law.log_prob(value), truth.log_prob(value.flatten(1)))
    normal = dist.Normal(0.5 * loc, 1.0 + loc.square()).to_event(len(event_shape))
    flat = dist.MultivariateNormal(0.5 * loc.flatten(), scale_tril=(1.0 + loc.square()).flatten().diag())
    torch.testing.assert_close(kl_divergence(law, normal), kl_divergence(truth, flat))
    torch.testing.assert_close(kl_divergence(normal, law), kl_divergence(flat, truth))


@pytest.mark.equation("mg.1", "mg.3", "mg.5", "mg.5a", "mg.8", "mg.11")
def test_large_layers_never_form_a_dense_row_covariance() -> None:
    d = 200_000  # a dense (d, d) matrix would need 320 GB
    diagonal = MatrixNormal(torch.zeros(d, 2), row_scale=torch.full((d,), 0.5), col_scale=torch.ones(2))
    low_rank = MatrixNormal(
        torch.zeros(d, 2), row_diag=torch.ones(d), row_factor=torch.full((d, 2), 1e-3), col_scale=torch.ones(2)
    )
    factor = FactorNormal(torch.zeros(d, 2), torch.ones(d, 2))
    x = torch.ones(3, d)
    for law in (diagonal, low_rank, factor):
        assert law.log_prob(law.rsample()).isfinite()
        assert law.activation(x).rsample().shape == (3, 2)
        assert kl_divergence(law, diagonal) >= 0
    assert kl_divergence(diagonal, diagonal).abs() < 1e-6
    assert kl_divergence(diagonal, factor) > 0


@pytest.mark.parametrize("name", LAWS)
def test_draws_have_the_dtype_of_loc(name: str) -> None:
    if name == "full":
        law = FullNormal(M().float(), full_tril().float())
    elif name in ("factor", "independent"):
        law = FactorNormal(M().float(), S().float())
    else:
        rows, columns = name.split("-")
        arguments = structure("row", rows) | structure("col", columns)
        law = MatrixNormal(M().float(), **{key: value.float() for key, value in arguments.items()})
    assert law.rsample().dtype == law.log_prob(W().float()).dtype == law.entropy().dtype == torch.float32
    assert kl_divergence(law, law).dtype == torch.float32


ONES = {"row_scale": (D,), "col_scale": (K,)}
BAD = [
    ({"row_scale": (D,)}, r"exactly one col structure .* got none"),
    ({"col_scale": (K,)}, r"exactly one row structure .* got none"),
    (ONES | {"row_tril": (D, D)}, r"exactly one row structure .* got row_scale, row_tril"),
    ({"row_diag": (D,), "col_scale": (K,)}, r"exactly one row structure .* got row_diag"),
    ({"row_scale": (K,), "col_scale": (K,)}, r"row_scale of shape \(3,\) does not fit loc, which has 4 rows"),
    ({"row_scale": (), "col_scale": (K,)}, r"row_scale of shape \(\) does not fit"),
    ({"row_scale": (D,), "col_tril": (K, D)}, r"col_tril of shape \(3, 4\) does not fit loc, which has 3 cols"),
    ({"row_scale": (D,), "col_diag": (K,), "col_factor": (2, 2)}, r"col_factor of shape \(2, 2\) does not fit"),
    ({"row_scale": (2, D), "col_scale": (3, K)}, r"batch shapes \(\), \(2,\), \(3,\) do not broadcast"),
]


@pytest.mark.parametrize(("shapes", "message"), BAD)
def test_wrong_structures_and_shapes_are_named(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MatrixNormal(M(), **{name: torch.ones(shape) for name, shape in shapes.items()})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_scale": -torch.ones(D)}, "row_scale must be positive"),
        ({"row_scale": torch.zeros(D)}, "row_scale must be positive"),
        ({"row_scale": torch.full((D,), torch.nan)}, "row_scale must be positive"),
        ({"row_scale": None, "row_tril": torch.ones(D, D)}, "row_tril must be lower triangular"),
        ({"row_scale": None, "row_tril": torch.zeros(D, D)}, "row_tril must be lower .* positive diagonal"),
        ({"col_scale": None, "col_diag": torch.zeros(K), "col_factor": torch.ones(K, 1)}, "col_diag must be positive"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Tensor | None], message: str) -> None:
    arguments = {"row_scale": torch.ones(D), "col_scale": torch.ones(K)} | change
    with pytest.raises(ValueError, match=message):
        MatrixNormal(M(), **arguments, validate_args=True)
    MatrixNormal(M(), **arguments, validate_args=False)


def test_wrong_arguments_of_the_other_laws_are_named() -> None:
    with pytest.raises(ValueError, match=r"MatrixNormal: loc must have shape \(..., d, k\), got \(4,\)"):
        MatrixNormal(torch.zeros(D), row_scale=torch.ones(D), col_scale=torch.ones(K))
    with pytest.raises(ValueError, match=r"FactorNormal: loc must have shape \(..., d, k\), got \(4,\)"):
        FactorNormal(torch.zeros(D), torch.ones(D))
    with pytest.raises(ValueError, match="FactorNormal: scale must be positive"):
        FactorNormal(M(), -S(), validate_args=True)
    with pytest.raises(ValueError, match=r"must have shape \(..., 12, 12\) for the event \(4, 3\), got \(4, 4\)"):
        FullNormal(M(), torch.eye(D))
    with pytest.raises(ValueError, match="scale_tril must be lower triangular with a positive diagonal"):
        FullNormal(M(), torch.ones(D * K, D * K), validate_args=True)
    with pytest.raises(ValueError, match="has no event of 2 dimensions"):
        FullNormal(torch.zeros(D), torch.eye(D))


@pytest.mark.equation("mg.5", "mg.5a")
@pytest.mark.parametrize("name", LAWS)
def test_pyro_uses_the_exact_kl(name: str) -> None:
    law, _ = law_and_dense(name)
    prior = second_prior()

    def model() -> None:
        pyro.sample("W", prior)

    def guide() -> None:
        pyro.sample("W", law)

    truth = kl_divergence(law, prior).item()
    assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(truth, abs=1e-10)
    torch.manual_seed(3)
    particles = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    assert particles.loss(model, guide) == pytest.approx(truth, abs=0.2)


def quadrature(p: dist.TorchDistribution, q: dist.TorchDistribution) -> Tensor:
    """KL over (0, inf) by the trapezoid rule in log x."""
    log_x = torch.linspace(-60, 12, 400_001)
    x = log_x.exp()
    log_p = p.log_prob(x)
    return torch.trapezoid((log_p + log_x).exp() * (log_p - q.log_prob(x)), log_x)


@pytest.mark.parametrize("gamma", [(2.0, 3.0), (0.7, 0.5), (6.0, 6.0)])
@pytest.mark.parametrize("lognormal", [(-0.3, 0.4), (0.2, 1.0)])
def test_lognormal_and_gamma(gamma: tuple[float, float], lognormal: tuple[float, float]) -> None:
    gamma, lognormal = dist.Gamma(*gamma), dist.LogNormal(*lognormal)
    torch.testing.assert_close(kl_divergence(gamma, lognormal), quadrature(gamma, lognormal), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(kl_divergence(lognormal, gamma), quadrature(lognormal, gamma), rtol=1e-7, atol=1e-7)


def test_lognormal_and_gamma_broadcast_and_sum_over_events() -> None:
    gamma = dist.Gamma(torch.tensor([1.0, 2.0, 3.0]), 1.5)
    lognormal = dist.LogNormal(torch.zeros(2, 1), 0.5)
    assert kl_divergence(gamma, lognormal).shape == kl_divergence(lognormal, gamma).shape == (2, 3)
    event = dist.LogNormal(torch.zeros(3), 0.5)
    summed = kl_divergence(gamma.to_event(1), event.to_event(1))
    torch.testing.assert_close(summed, kl_divergence(gamma, event).sum())


@pytest.mark.equation("mg.24")
def test_the_diagonal_law_is_mean_field_with_rank_one_variances() -> None:
    q = matrix_normal("scale", "scale")
    r, c = anchor("row")["scale"], anchor("col")["scale"]
    factor = FactorNormal(M(), torch.outer(r, c))
    for kl in (kl_divergence(q, factor), kl_divergence(factor, q)):
        torch.testing.assert_close(kl, torch.zeros(()), rtol=0, atol=1e-12)
    torch.testing.assert_close(q.activation(X()).variance, factor.activation(X()).variance)

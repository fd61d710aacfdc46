"""Anchors of the variational matrix Gaussian: inputs without random numbers, and what is known exactly about them.

R1 is a pair of matrix-normal laws (d = 4, k = 3). R3 is a linear regression Y = X W + noise of known variance, with
W ~ MN(0, I, I): its posterior, its evidence and the best q of most families are known in closed form (mg.25).
Everything here is dense linear algebra over W.reshape(-1), independent of the laws under test.
"""

from __future__ import annotations

import math

import torch
from pyro import sample
from pyro.distributions import Normal
from torch import Tensor, nn

from guides import data_plate, linear
from guides.distributions import FullNormal, MatrixNormal

N, D, K = 20, 4, 3
COMMON, EACH = (0.3, 0.3, 0.3), (0.05, 0.3, 1.8)  # noise variances of the outputs


def _range(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)


def M() -> Tensor:
    """R1: the mean, (4, 3)."""
    return torch.sin(1 + _range(D)[:, None] + 2 * _range(K))


def row_scale() -> Tensor:
    return 0.5 + 0.1 * _range(D)


def col_scale() -> Tensor:
    return 0.8 + 0.2 * _range(K)


def row_tril() -> Tensor:
    below = 0.2 * torch.cos(_range(D)[:, None] + _range(D))
    return below.tril(-1) + (0.6 + 0.1 * _range(D)).diag()


def col_tril() -> Tensor:
    below = 0.3 * torch.sin(1 + _range(K)[:, None] + _range(K))
    return below.tril(-1) + (0.9 + 0.1 * _range(K)).diag()


def X() -> Tensor:
    """R3: inputs (20, 4)."""
    t = 0.37 * (_range(N)[:, None] + 1)
    g = torch.tensor([0.1, 0.4, 1.0, 2.0], dtype=torch.float64)
    return g * (t.sin() + 0.5 * (t * (_range(D) + 2)).sin())


def Y() -> Tensor:
    """R3: targets (20, 3)."""
    n, j = _range(N)[:, None], _range(K)
    return X() @ torch.cos(_range(D)[:, None] + 2 * j) + 0.5 * torch.sin(1.3 * n + 2.1 * j + 0.4 * n * j)


def batch() -> dict[str, Tensor]:
    return {"x": X(), "y": Y()}


class KnownNoise(nn.Module):
    """R3 as a Pyro model."""

    def __init__(self, variances: tuple[float, ...] = COMMON, N: int | None = None) -> None:
        super().__init__()
        self.sd, self.N = torch.tensor(variances).sqrt(), N

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        f = linear("W", x, standard_prior())
        with data_plate(x.shape[-2], self.N):
            return sample("y", Normal(f, self.sd).to_event(1), obs=y)


def standard_prior() -> MatrixNormal:
    return MatrixNormal(torch.zeros(D, K), row_scale=torch.ones(D), col_scale=torch.ones(K))


def precisions(variances: tuple[float, ...]) -> Tensor:
    """P_j = I + X'X / var_j of every column, (3, 4, 4)."""
    return torch.eye(D) + X().T @ X() / torch.tensor(variances)[:, None, None]


def posterior_mean(variances: tuple[float, ...]) -> Tensor:
    return torch.stack([P.inverse() @ X().T @ y / v for P, y, v in zip(*columns(variances), strict=True)], -1)


def columns(variances: tuple[float, ...]) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    return precisions(variances), Y().T, variances


def by_column(covariances: Tensor) -> Tensor:
    """The dense covariance of W.reshape(-1) of independent columns, from (3, 4, 4)."""
    dense = torch.zeros(D, K, D, K, dtype=covariances.dtype)
    for j in range(K):
        dense[:, j, :, j] = covariances[j]
    return dense.reshape(D * K, D * K)


def dense(law: torch.distributions.Distribution) -> Tensor:
    """The covariance of W.reshape(-1)."""
    if isinstance(law, MatrixNormal):
        return torch.kron(law.row.dense(), law.col.dense())
    if isinstance(law, FullNormal):
        return law.scale_tril @ law.scale_tril.mT
    return law.variance.flatten().diag()


def evidence(variances: tuple[float, ...]) -> float:
    """log p(Y), each column a Gaussian with covariance var I + X X'."""
    gram = X() @ X().T
    laws = [torch.distributions.MultivariateNormal(torch.zeros(N), v * torch.eye(N) + gram) for v in variances]
    return float(sum(law.log_prob(y) for law, y in zip(laws, Y().T, strict=True)))


def expected_loglik(loc: Tensor, covariance: Tensor, variances: tuple[float, ...]) -> Tensor:
    """E_q log p(Y | W) for any q with this mean (4, 3) and covariance (12, 12)."""
    v = torch.tensor(variances)
    squares = (Y() - X() @ loc).square() + activation_covariance(covariance).diagonal().reshape(N, K)
    return -0.5 * ((2 * math.pi * v).log() + squares / v).sum()


def kl(loc: Tensor, covariance: Tensor) -> Tensor:
    """KL( N(loc, covariance) || N(0, I) )."""
    return 0.5 * (covariance.trace() + loc.square().sum() - D * K - covariance.logdet())


def elbo(loc: Tensor, covariance: Tensor, variances: tuple[float, ...]) -> Tensor:
    """The exact bound of any Gaussian q over W, in nats for the 20 data."""
    return expected_loglik(loc, covariance, variances) - kl(loc, covariance)


def activation_covariance(covariance: Tensor) -> Tensor:
    """The covariance of (X W).reshape(-1), (60, 60)."""
    jacobian = torch.kron(X(), torch.eye(K))
    return jacobian @ covariance @ jacobian.T


def climb(family: nn.Module, variances: tuple[float, ...], *, steps: int = 150) -> float:
    """The highest exact bound that LBFGS reaches from where the family stands."""
    optimiser = torch.optim.LBFGS(
        family.parameters(), max_iter=steps, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def exact() -> Tensor:
        law = family(None)
        return elbo(law.mean, dense(law), variances)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -exact()
        value.backward()
        return value

    optimiser.step(loss)  # type: ignore[arg-type]
    return float(exact().detach())


def variance_of_quadratic(b: Tensor, A: Tensor, covariance: Tensor) -> Tensor:
    """Variance of b'e + e'Ae / 2 for e ~ N(0, covariance)."""
    return b @ covariance @ b + 0.5 * (A @ covariance @ A @ covariance).trace()


def mean_field_optimum(variances: tuple[float, ...]) -> Tensor:
    return by_column(torch.stack([P.diagonal().reciprocal().diag() for P in precisions(variances)]))  # mg.25


def diagonal_optimum(variances: tuple[float, ...]) -> Tensor:
    """Best matrix normal with both covariances diagonal: matrix scaling (Sinkhorn) of the precisions' diagonals."""
    pi = precisions(variances).diagonal(dim1=-2, dim2=-1).T  # (4, 3)
    u, v = torch.ones(D), torch.ones(K)
    for _ in range(500):
        u = K / (pi @ v)
        v = D / (pi.T @ u)
    return torch.outer(u, v).flatten().diag()  # mg.25


def full_rows_optimum(variances: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Best matrix normal with any U and diagonal V; returns U (4, 4) and the diagonal of V (3,)."""
    P, v = precisions(variances), torch.ones(K)
    U = torch.eye(D)
    for _ in range(2000):
        U = (v[:, None, None] * P).mean(0).inverse().contiguous()
        v = D / (P @ U).diagonal(dim1=-2, dim2=-1).sum(-1)
    return U, v  # mg.25

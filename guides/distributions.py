"""Laws of a weight matrix, and the exact Kullback-Leibler divergences between them.

| law | covariance of W (d, k) | `.activation(x)` |
|---|---|---|
| `MatrixNormal` | U over rows, V over columns, each diagonal, tril or diagonal plus low rank | yes |
| `FactorNormal` | every element on its own (mean field) | yes |
| `FullNormal` | all elements jointly | no |

Every ordered pair of the three, and of each with `Normal(...).to_event(n)`, has a registered KL; so have LogNormal and
Gamma. All are in nats, with the broadcast batch shape of the pair. The ids mg.N are those of `zoo.matrix_gaussian`.

Reference: Louizos, Welling (2016), Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors.
"""

import math
from copy import copy
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor
from torch.distributions import Distribution, Gamma, Independent, LogNormal, Normal, constraints, register_kl
from torch.types import _size

from guides.covariances import POSITIVE, REAL_MATRIX, covariance, deviation, validate, without_slot


class MatrixNormal(dist.TorchDistribution):
    """Matrix normal law of W (d, k): cov(W_ij, W_i'j') = U_ii' V_jj'.

        log p(W) = -1/2 tr[V^-1 (W-M)' U^-1 (W-M)] - 1/2 d k log 2 pi - 1/2 k log|U| - 1/2 d log|V|      (mg.1)

    Each side takes exactly one structure; the row side is U, the column side V. Scales and triangles are on the scale
    of standard deviations, `diag` and the products of `factor` are variances. (U, V) and (s U, V / s) are the same law.

    Args:
        loc: the mean M, (..., d, k).
        row_scale: standard deviations, U = diag(row_scale^2), (..., d).
        row_tril: lower Cholesky factor of U, (..., d, d).
        row_diag: with `row_factor`, U = diag(row_diag) + F F', (..., d).
        row_factor: F, (..., d, rank).
        col_scale, col_tril, col_diag, col_factor: the same for V, with k in place of d.
        validate_args: whether to check values; shapes are always checked.

    Raises:
        ValueError: no or more than one structure on a side, shapes that do not fit, scales that are not positive.

    Example:
        >>> import torch
        >>> law = MatrixNormal(torch.zeros(4, 3), row_scale=torch.ones(4), col_tril=torch.eye(3))
        >>> law.event_shape, law.activation(torch.ones(5, 4)).batch_shape
        (torch.Size([4, 3]), torch.Size([5]))

    Reference: Louizos, Welling (2016).
    """

    arg_constraints: ClassVar = {"loc": REAL_MATRIX}
    support = REAL_MATRIX
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        *,
        row_scale: Tensor | None = None,
        row_tril: Tensor | None = None,
        row_diag: Tensor | None = None,
        row_factor: Tensor | None = None,
        col_scale: Tensor | None = None,
        col_tril: Tensor | None = None,
        col_diag: Tensor | None = None,
        col_factor: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 2:
            raise ValueError(f"MatrixNormal: loc must have shape (..., d, k), got {tuple(loc.shape)}")
        d, k = event_shape = loc.shape[-2:]
        self.row = covariance("row", d, scale=row_scale, tril=row_tril, diag=row_diag, factor=row_factor)
        self.col = covariance("col", k, scale=col_scale, tril=col_tril, diag=col_diag, factor=col_factor)
        batch_shapes = [loc.shape[:-2], *self.row.batch_shapes(), *self.col.batch_shapes()]
        try:
            batch_shape = torch.broadcast_shapes(*batch_shapes)
        except RuntimeError:
            shapes = ", ".join(str(tuple(shape)) for shape in batch_shapes)
            raise ValueError(f"MatrixNormal: batch shapes {shapes} do not broadcast") from None
        self.loc = loc.expand(batch_shape + event_shape)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args:
            self.row.validate("row")
            self.col.validate("col")

    def expand(self, batch_shape: _size, _instance: "MatrixNormal | None" = None) -> Self:
        """The same law over `batch_shape`; the covariances broadcast, so only the mean is expanded."""
        new = copy(self)  # with whatever a subclass adds
        new.loc, new._batch_shape = self.loc.expand(Size(batch_shape) + self.event_shape), Size(batch_shape)
        return new

    def without_slot(self) -> Self:
        """The same law without the last batch dimension where that is the 1 of a plate, as under particles."""
        if self.batch_shape[-1:] != (1,):
            return self
        new = copy(self)
        new.loc, new._batch_shape = without_slot(self.loc, 2), self.batch_shape[:-1]
        new.row, new.col = self.row.without_slot(), self.col.without_slot()
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc  # mg.4

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """diag(U) diag(V)', (..., d, k)."""
        variance = self.row.variance().unsqueeze(-1) * self.col.variance().unsqueeze(-2)  # mg.4
        return variance.expand(self.loc.shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:  # noqa: B008
        """M + L_U E L_V' with E white noise of the dtype and device of `loc`, (*sample_shape, ..., d, k)."""
        shape = Size(sample_shape) + self.batch_shape + Size((self.row.noise, self.col.noise))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.row.colour(self.col.colour(noise).mT).mT  # mg.3

    def log_prob(self, value: Tensor) -> Tensor:
        """mg.1 in nats, over the batch."""
        if self._validate_args:
            self._validate_sample(value)
        d, k = self.event_shape
        error = value - self.loc
        distance = (self.row.solve(error.mT).mT * self.col.solve(error)).sum((-2, -1))
        logdet = k * self.row.logdet() + d * self.col.logdet()
        return -0.5 * (distance + d * k * math.log(2 * math.pi) + logdet)  # mg.1

    def entropy(self) -> Tensor:
        """1/2 { d k (1 + log 2 pi) + k log|U| + d log|V| } in nats, over the batch."""
        d, k = self.event_shape
        logdet = k * self.row.logdet() + d * self.col.logdet()
        return 0.5 * (d * k * (1 + math.log(2 * math.pi)) + logdet).expand(self.batch_shape)  # mg.4

    def activation(self, x: Tensor) -> dist.TorchDistribution:
        """The law of each row of x W: N(x M, (x U x') V); with V not diagonal its k columns are correlated (mg.11).

        Rows are independent of one another here, though those of one x W are not (mg.13): right wherever a sum over
        rows is taken, wrong for functions drawn across rows.

        Args:
            x: (..., n, d). A law of batch shape (P, 1), as under vectorised particles, drops the 1.

        Returns:
            A law with event shape (k,) and batch shape (..., n).
        """
        law = self.without_slot()
        return law.col.law(x @ law.loc, law.row.quad(x))  # mg.11


class FactorNormal(dist.Independent):
    """Mean-field law of W (d, k): independent elements W_ij ~ N(loc_ij, scale_ij^2).

    Args:
        loc: means, (..., d, k).
        scale: standard deviations, broadcastable with `loc`.
        validate_args: whether to check values.

    Raises:
        ValueError: an event that is not a matrix, scales that are not positive.

    Example:
        >>> import torch
        >>> FactorNormal(torch.zeros(4, 3), torch.ones(4, 3)).activation(torch.ones(5, 4)).batch_shape
        torch.Size([5])
    """

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 2:
            raise ValueError(f"FactorNormal: loc must have shape (..., d, k), got {tuple(loc.shape)}")
        base = dist.Normal(loc, scale, validate_args=False)
        super().__init__(base, 2, validate_args=validate_args)
        if self._validate_args:
            validate("FactorNormal: scale", base.scale, POSITIVE)

    def expand(self, batch_shape: _size, _instance: "FactorNormal | None" = None) -> "FactorNormal":
        return super().expand(batch_shape, self._get_checked_instance(FactorNormal, _instance))

    def activation(self, x: Tensor) -> dist.TorchDistribution:
        """The law of each row of x W, independent columns N(x M, x^2 @ scale^2); shapes as in `MatrixNormal`."""
        loc, scale = (without_slot(tensor, 2) for tensor in (self.base_dist.loc, self.base_dist.scale))
        return dist.Normal(x @ loc, deviation(x.square() @ scale.square())).to_event(1)


class FullNormal(dist.TorchDistribution):
    """Gaussian over all elements of an event of any shape jointly, flattened in row-major order.

    Args:
        loc: the mean, (..., *event).
        scale_tril: lower Cholesky factor of the covariance, (..., prod(event), prod(event)).
        event_dim: how many dimensions of `loc` are the event.
        validate_args: whether to check values; shapes are always checked.

    Raises:
        ValueError: shapes that do not fit, a factor that is not lower triangular with a positive diagonal.

    Example:
        >>> import torch
        >>> FullNormal(torch.zeros(2, 3), torch.eye(6)).event_shape
        torch.Size([2, 3])
    """

    arg_constraints: ClassVar = {}
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor, event_dim: int = 2, validate_args: bool | None = None) -> None:
        if not 1 <= event_dim <= loc.dim():
            raise ValueError(f"FullNormal: loc of shape {tuple(loc.shape)} has no event of {event_dim} dimensions")
        event_shape = loc.shape[-event_dim:]
        n = event_shape.numel()
        if scale_tril.shape[-2:] != (n, n):
            shapes = f"(..., {n}, {n}) for the event {tuple(event_shape)}, got {tuple(scale_tril.shape)}"
            raise ValueError(f"FullNormal: scale_tril must have shape {shapes}")
        self._flat = dist.MultivariateNormal(loc.flatten(-event_dim), scale_tril=scale_tril, validate_args=False)
        super().__init__(self._flat.batch_shape, event_shape, validate_args=validate_args)
        if self._validate_args:
            validate("FullNormal: scale_tril", scale_tril, constraints.lower_cholesky)

    def expand(self, batch_shape: _size, _instance: "FullNormal | None" = None) -> "FullNormal":
        new = self._get_checked_instance(FullNormal, _instance)
        new._flat = self._flat.expand(Size(batch_shape))
        super(FullNormal, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def scale_tril(self) -> Tensor:
        return self._flat.scale_tril

    @property
    def mean(self) -> Tensor:
        return self._flat.mean.unflatten(-1, self.event_shape)

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def variance(self) -> Tensor:
        return self._flat.variance.unflatten(-1, self.event_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:  # noqa: B008
        return self._flat.rsample(Size(sample_shape)).unflatten(-1, self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._flat.log_prob(value.flatten(-len(self.event_shape)))

    def entropy(self) -> Tensor:
        return self._flat.entropy()


def _kl_gaussian(p: Distribution, q: Distribution, trace: Tensor) -> Tensor:
    """KL of two Gaussians from tr(cov_q^-1 cov_p), the one term that depends on the pair of structures.

    E_p[-log q] is -log q at the mean of p plus half the trace; the distance of the means, the log determinants and the
    dimension of mg.5 all sit in `log_prob` and `entropy`.
    """
    return 0.5 * trace - q.log_prob(p.mean) - p.entropy()


def _normal(law: Independent) -> Normal:
    """The Normal inside; anything else is refused so that Pyro falls back to sampling."""
    base = law.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise NotImplementedError(f"no exact KL for Independent({type(base).__name__}); only for Independent(Normal)")
    return base


@register_kl(MatrixNormal, MatrixNormal)
def _kl_matrix_matrix(p: MatrixNormal, q: MatrixNormal) -> Tensor:
    return _kl_gaussian(p, q, p.row.trace_under(q.row) * p.col.trace_under(q.col))  # mg.5


@register_kl(Independent, MatrixNormal)
def _kl_independent_matrix(p: Independent, q: MatrixNormal) -> Tensor:
    precision = q.row.precision().unsqueeze(-1) * q.col.precision().unsqueeze(-2)
    return _kl_gaussian(p, q, (_normal(p).variance * precision).sum((-2, -1)))  # mg.5a


@register_kl(MatrixNormal, Independent)
@register_kl(FullNormal, Independent)
def _kl_to_independent(p: MatrixNormal | FullNormal, q: Independent) -> Tensor:
    return _kl_gaussian(p, q, sum_rightmost(p.variance / _normal(q).variance, len(p.event_shape)))  # mg.5b


@register_kl(FullNormal, MatrixNormal)
def _kl_full_matrix(p: FullNormal, q: MatrixNormal) -> Tensor:
    columns = p.scale_tril.mT.unflatten(-1, q.event_shape)  # (..., dk, d, k): each column of the factor as a matrix
    solved = q.col.solve(columns.flatten(-3, -2)).unflatten(-2, columns.shape[-3:-1])
    solved = q.row.solve(solved.mT.flatten(-3, -2))  # (..., dk k, d)
    return _kl_gaussian(p, q, (columns.mT.flatten(-3, -2) * solved).sum((-2, -1)))


@register_kl(FullNormal, FullNormal)
@register_kl(MatrixNormal, FullNormal)
@register_kl(Independent, FullNormal)
def _kl_to_full(p: FullNormal | MatrixNormal | Independent, q: FullNormal) -> Tensor:
    white = torch.linalg.solve_triangular(q.scale_tril, _root(p), upper=False)
    return _kl_gaussian(p, q, white.square().sum((-2, -1)))


def _root(law: FullNormal | MatrixNormal | Independent) -> Tensor:
    """Any R with R R' the covariance over the row-major flattening."""
    if isinstance(law, FullNormal):
        return law.scale_tril
    if isinstance(law, MatrixNormal):
        return torch.einsum("...ia,...jb->...ijab", law.row.root(), law.col.root()).flatten(-2).flatten(-3, -2)  # mg.2
    return _normal(law).scale.flatten(-len(law.event_shape)).diag_embed()


@register_kl(LogNormal, Gamma)
def _kl_lognormal_gamma(p: LogNormal, q: Gamma) -> Tensor:
    # E log x = loc and E x = exp(loc + scale^2 / 2)
    expected = (q.concentration - 1) * p.loc - q.rate * p.mean
    return q.concentration.lgamma() - q.concentration * q.rate.log() - expected - p.entropy()


@register_kl(Gamma, LogNormal)
def _kl_gamma_lognormal(p: Gamma, q: LogNormal) -> Tensor:
    # log x has mean digamma(a) - log b and variance trigamma(a)
    mean, variance = p.concentration.digamma() - p.rate.log(), p.concentration.polygamma(1)
    cross = mean + q.scale.log() + 0.5 * math.log(2 * math.pi) + (variance + (mean - q.loc).square()) / (2 * q.scale**2)
    return cross - p.entropy()

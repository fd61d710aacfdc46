"""Families for global sites. Each is a module `Family(prior, context=None)` whose `forward()` returns q(site).

Where a fit starts matters as much as its family. Unless told otherwise every family here starts at the prior mean
(plus, for matrices (d, k), the random N(0, 4 / (d - 1 + k)) that breaks the symmetry of hidden units) with standard
deviation e^-3 per element; all of this is an argument: `functools.partial(MatrixNormal, scale=1.0)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from guides import distributions
from guides.sides import Diagonal, LowRank, Tril
from guides.supports import constrain, continuous, gamma_of, gamma_start, is_positive, is_real, start

SCALE = math.exp(-3.0)


def fits(family: Callable[..., nn.Module], prior: Distribution) -> bool:
    """Whether a family given for all sites wants this one; a family without a `fits` of its own wants every site."""
    while isinstance(family, partial):
        family = family.func
    return getattr(family, "fits", lambda prior: True)(prior)


def default_family(prior: Distribution) -> Callable[..., nn.Module]:
    """The family of a site: Gamma where the prior is one, mean field (through `biject_to`) everywhere else.

    Off a Gamma prior a Gamma would start wide, and a scale for which E[1 / s^2] is infinite does not train.
    """
    return MeanField if gamma_of(prior) is None else Gamma


class MeanField(nn.Module):
    """Independent normals, q(w) = prod_i N(w_i; loc_i, scale_i^2), through `biject_to` off the real line.

    A matrix (d, k) on the real line gets `distributions.FactorNormal`, which offers local reparametrisation.

    Args:
        prior: the site's prior.
        scale: initial standard deviation (unconstrained space).
        spread: standard deviation of the random start of a matrix's means; None is sqrt(4 / (d - 1 + k)), 0 the
            prior mean itself.
        bias_scale: if given, the last row of a matrix is a bias: its means start at the prior mean and its standard
            deviations here.
    """

    fits = staticmethod(is_real)

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        scale: float = SCALE,
        spread: float | None = None,
        bias_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.transform = continuous(prior)
        self.real = is_real(prior)
        self.loc = nn.Parameter(start(prior, spread, bias=bias_scale is not None))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(scale)))
        if bias_scale is not None and len(prior.event_shape) == 2:
            self.log_scale.data[..., -1, :] = math.log(bias_scale)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return q(site)."""
        if self.real and self.transform.domain.event_dim == 2:
            return distributions.FactorNormal(self.loc, self.log_scale.exp())
        return constrain(self.loc, self.log_scale.exp(), self.transform)

    def start_at(self, value: Tensor) -> None:
        """Move q to a value of the site: the image of the unconstrained mean."""
        self.loc.data.copy_(self.transform.inv(value))


class Point(nn.Module):
    """A point mass: maximum a posteriori in the site's own space. Its "ELBO" is a log joint, not a bound."""

    def __init__(self, prior: Distribution, context: Tensor | None = None, *, spread: float | None = None) -> None:
        super().__init__()
        self.transform = continuous(prior)
        self.event_dim = len(prior.event_shape)
        self.loc = nn.Parameter(start(prior, spread))

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the point mass."""
        return dist.Delta(self.transform(self.loc), event_dim=self.event_dim)

    def start_at(self, value: Tensor) -> None:
        """Move the point to a value of the site."""
        self.loc.data.copy_(self.transform.inv(value))


class SiteFullRank(nn.Module):
    """One multivariate normal over all elements of a real site, L L^T with L lower triangular."""

    @staticmethod
    def fits(prior: Distribution) -> bool:
        """A real site of one element or more per event."""
        return is_real(prior) and len(prior.event_shape) > 0

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        scale: float = SCALE,
        spread: float | None = None,
    ) -> None:
        super().__init__()
        _require(self.fits(prior), "SiteFullRank needs a site on the real line with an event shape", prior)
        self.event_dim = len(prior.event_shape)
        self.loc = nn.Parameter(start(prior, spread))
        self.tril = Tril(prior.batch_shape, prior.event_shape.numel(), scale)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return q(site)."""
        return distributions.FullNormal(self.loc, self.tril()["tril"], event_dim=self.event_dim)

    def start_at(self, value: Tensor) -> None:
        """Move the mean to a value of the site."""
        self.loc.data.copy_(value)


class MatrixNormal(nn.Module):
    """Matrix normal q(W) = MN(loc, U, V) over a real matrix (d, k); both covariances diagonal unless told otherwise.

    With both diagonal it has d k + d + k parameters and is a sub-family of mean field (Louizos & Welling 2016;
    matrix_gaussian mg.24). Rows and columns take their structure separately:
    `partial(MatrixNormal, row=Tril, col=partial(LowRank, rank=2))`.

    Args:
        prior: the site's prior, event shape (d, k), real.
        row, col: covariance over inputs and over outputs: `Diagonal`, `Tril`, `partial(LowRank, rank=...)`.
        scale: initial standard deviation per element (carried by the rows; the columns start at 1).
        spread: as in `MeanField`.
        bias_scale: as in `MeanField`; needs diagonal rows.
    """

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        row: Callable[..., nn.Module] = Diagonal,
        col: Callable[..., nn.Module] = Diagonal,
        scale: float = SCALE,
        spread: float | None = None,
        bias_scale: float | None = None,
    ) -> None:
        super().__init__()
        _require(self.fits(prior), "a matrix normal needs a real site of event shape (d, k)", prior)
        d, k = prior.event_shape
        self.loc = nn.Parameter(start(prior, spread, bias=bias_scale is not None))
        self.row, self.col = row(prior.batch_shape, d, scale), col(prior.batch_shape, k, 1.0)
        if bias_scale is not None:
            if not isinstance(self.row, Diagonal):
                raise ValueError("bias_scale= needs diagonal rows (row=Diagonal)")
            self.row.log_scale.data[..., -1] = math.log(bias_scale)

    @staticmethod
    def fits(prior: Distribution) -> bool:
        """A real matrix."""
        return is_real(prior) and len(prior.event_shape) == 2

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return q(site)."""
        return distributions.MatrixNormal(self.loc, **self.covariances())

    def covariances(self) -> dict[str, Any]:
        """Both sides, as the arguments that `distributions.MatrixNormal` takes."""
        rows = {f"row_{key}": value for key, value in self.row().items()}
        return rows | {f"col_{key}": value for key, value in self.col().items()}

    def start_at(self, value: Tensor) -> None:
        """Move the mean to a value of the site."""
        self.loc.data.copy_(value)


class MatrixNormalTril(MatrixNormal):
    """Matrix normal with any row covariance (Cholesky) and, unless `col=Tril`, diagonal columns."""

    def __init__(self, prior: Distribution, context: Tensor | None = None, **options: Any) -> None:
        super().__init__(prior, context, **{"row": Tril, **options})


class MatrixNormalLowRank(MatrixNormal):
    """Matrix normal with rows D + F F^T of rank `rank` and columns diagonal, or of rank `col_rank` if that is > 0."""

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        rank: int = 2,
        col_rank: int = 0,
        **options: Any,
    ) -> None:
        if rank < 1 or col_rank < 0:
            raise ValueError(f"rank must be at least 1 and col_rank at least 0, not {rank} and {col_rank}")
        col = partial(LowRank, rank=col_rank) if col_rank else Diagonal
        super().__init__(prior, context, **{"row": partial(LowRank, rank=rank), "col": col, **options})


class Gamma(nn.Module):
    """Gamma(a, b), rate b, for positive sites; starts at a Gamma prior, otherwise at a = b = 1.

    Parametrised by its mean a / b and its shape a, which are orthogonal in Fisher's metric. In (a, b) the mean ties the
    two together and the shape hardly moves: with 400 data, thousands of steps end nats below the optimum.
    """

    fits = staticmethod(is_positive)

    def __init__(self, prior: Distribution, context: Tensor | None = None) -> None:
        super().__init__()
        _require(is_positive(prior), "Gamma needs a positive site", prior)
        self.event_dim = len(prior.event_shape)
        concentration, rate = gamma_start(prior)
        self.log_concentration = nn.Parameter(concentration.log())
        self.log_mean = nn.Parameter(concentration.log() - rate.log())

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return q(site)."""
        rate = (self.log_concentration - self.log_mean).exp()
        return dist.Gamma(self.log_concentration.exp(), rate).to_event(self.event_dim)

    def start_at(self, value: Tensor) -> None:
        """Move the mean to a value of the site, keeping the shape a."""
        self.log_mean.data.copy_(value.log())


class LogNormal(nn.Module):
    """exp N(loc, scale^2), for positive sites; starts with the log-moments of a Gamma prior (else of Gamma(1, 1))."""

    fits = staticmethod(is_positive)

    def __init__(self, prior: Distribution, context: Tensor | None = None) -> None:
        super().__init__()
        _require(is_positive(prior), "LogNormal needs a positive site", prior)
        self.event_dim = len(prior.event_shape)
        concentration, rate = gamma_start(prior)
        self.loc = nn.Parameter(concentration.digamma() - rate.log())
        self.log_scale = nn.Parameter(torch.polygamma(1, concentration).log() / 2)

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return q(site)."""
        return dist.LogNormal(self.loc, self.log_scale.exp()).to_event(self.event_dim)

    def start_at(self, value: Tensor) -> None:
        """Move the median to a value of the site."""
        self.loc.data.copy_(value.log())


def _require(condition: bool, need: str, prior: Distribution) -> None:
    if not condition:
        raise ValueError(f"{need}, not {type(prior).__name__} with event shape {tuple(prior.event_shape)}")

"""Covariance of one side of a matrix, used without forming it: diagonal, Cholesky, diagonal plus low rank."""

from abc import ABC, abstractmethod
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

POSITIVE = constraints.independent(constraints.positive, 1)
REAL_MATRIX = constraints.independent(constraints.real, 2)
MEANING = {
    POSITIVE: "positive",
    REAL_MATRIX: "free of NaN",
    constraints.lower_cholesky: "lower triangular with a positive diagonal",
}


def validate(name: str, value: Tensor, constraint: constraints.Constraint) -> None:
    if not constraint.check(value).all():
        raise ValueError(f"{name} must be {MEANING[constraint]}")


def without_slot(tensor: Tensor, event_dim: int) -> Tensor:
    """Drops the size-1 batch dimension that stands for the data plate, if there is one."""
    return tensor.squeeze(-1 - event_dim) if tensor.dim() > event_dim else tensor


def deviation(variance: Tensor) -> Tensor:
    """Square root with a floor at the rounding error: at 0 (a row of zeros) its gradient would be infinite."""
    return variance.clamp_min(torch.finfo(variance.dtype).eps ** 2).sqrt()


class Covariance(ABC):
    """The covariance S (n, n) of one side of a matrix, used without forming S.

    `x` has rows of length n: (..., rows, n). The tensors named in `arguments` may have batch dimensions on the left.
    """

    arguments: ClassVar[dict[str, constraints.Constraint]]

    def __init__(self, **tensors: Tensor) -> None:
        vars(self).update(tensors)

    @property
    @abstractmethod
    def noise(self) -> int:
        """How many standard normals `colour` takes per row."""

    @abstractmethod
    def colour(self, noise: Tensor) -> Tensor:
        """Rows of covariance S, (..., rows, n), from rows of white noise."""

    @abstractmethod
    def quad(self, x: Tensor) -> Tensor:
        """x S x' of each row, (..., rows)."""

    @abstractmethod
    def times(self, x: Tensor) -> Tensor:
        """x S, (..., rows, n)."""

    @abstractmethod
    def solve(self, x: Tensor) -> Tensor:
        """x S^-1, (..., rows, n)."""

    @abstractmethod
    def logdet(self) -> Tensor:
        """log |S|, (...)."""

    @abstractmethod
    def variance(self) -> Tensor:
        """The diagonal of S, (..., n)."""

    @abstractmethod
    def trace_under(self, other: "Covariance") -> Tensor:
        """tr(S0^-1 S) for the covariance S0 of `other`, (...)."""

    @abstractmethod
    def law(self, mean: Tensor, s: Tensor) -> dist.TorchDistribution:
        """Rows N(mean_n, s_n S), event (n,)."""

    def precision(self) -> Tensor:
        """The diagonal of S^-1, (..., n)."""
        return self.solve(self._identity(self.variance().shape[-1])).diagonal(dim1=-2, dim2=-1)

    def root(self) -> Tensor:
        """Any R (..., n, noise) with R R' = S, dense."""
        return self.colour(self._identity(self.noise)).mT

    def dense(self) -> Tensor:
        """S itself, (..., n, n)."""
        return self.root() @ self.root().mT

    def batch_shapes(self) -> list[Size]:
        return [getattr(self, name).shape[: -rule.event_dim] for name, rule in self.arguments.items()]

    def without_slot(self) -> "Covariance":
        rules = self.arguments.items()
        return type(self)(**{name: without_slot(getattr(self, name), rule.event_dim) for name, rule in rules})

    def validate(self, side: str) -> None:
        for name, rule in self.arguments.items():
            validate(f"MatrixNormal: {side}_{name}", getattr(self, name), rule)

    def _identity(self, n: int) -> Tensor:
        return next(iter(vars(self).values())).new_ones(n).diag_embed()


class DiagonalCovariance(Covariance):
    """S = diag(scale^2)."""

    arguments: ClassVar = {"scale": POSITIVE}
    scale: Tensor

    @property
    def noise(self) -> int:
        return self.scale.shape[-1]

    def colour(self, noise: Tensor) -> Tensor:
        return noise * self.scale.unsqueeze(-2)

    def quad(self, x: Tensor) -> Tensor:
        return (x.square() @ self.variance().unsqueeze(-1)).squeeze(-1)

    def times(self, x: Tensor) -> Tensor:
        return x * self.variance().unsqueeze(-2)

    def solve(self, x: Tensor) -> Tensor:
        return x * self.precision().unsqueeze(-2)

    def logdet(self) -> Tensor:
        return 2 * self.scale.log().sum(-1)

    def variance(self) -> Tensor:
        return self.scale.square()

    def precision(self) -> Tensor:
        return self.scale.pow(-2)

    def trace_under(self, other: Covariance) -> Tensor:
        return (self.variance() * other.precision()).sum(-1)

    def law(self, mean: Tensor, s: Tensor) -> dist.TorchDistribution:
        return dist.Normal(mean, deviation(s).unsqueeze(-1) * self.scale.unsqueeze(-2)).to_event(1)


class TrilCovariance(Covariance):
    """S = L L', L lower triangular with a positive diagonal."""

    arguments: ClassVar = {"tril": constraints.lower_cholesky}
    tril: Tensor

    @property
    def noise(self) -> int:
        return self.tril.shape[-1]

    def colour(self, noise: Tensor) -> Tensor:
        return noise @ self.tril.mT

    def quad(self, x: Tensor) -> Tensor:
        return (x @ self.tril).square().sum(-1)  # mg.7

    def times(self, x: Tensor) -> Tensor:
        return x @ self.tril @ self.tril.mT

    def solve(self, x: Tensor) -> Tensor:
        return torch.cholesky_solve(x.mT, self.tril).mT

    def logdet(self) -> Tensor:
        return 2 * self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # mg.7

    def variance(self) -> Tensor:
        return self.tril.square().sum(-1)

    def trace_under(self, other: Covariance) -> Tensor:
        return (self.tril.mT * other.solve(self.tril.mT)).sum((-2, -1))

    def law(self, mean: Tensor, s: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(mean, scale_tril=deviation(s)[..., None, None] * self.tril.unsqueeze(-3))


class LowRankCovariance(Covariance):
    """S = D + F F', D diagonal (variances), F (n, rank)."""

    arguments: ClassVar = {"diag": POSITIVE, "factor": REAL_MATRIX}
    diag: Tensor
    factor: Tensor

    @property
    def noise(self) -> int:
        return sum(self.factor.shape[-2:])

    def colour(self, noise: Tensor) -> Tensor:
        own, shared = noise.split(list(self.factor.shape[-2:]), -1)
        return own * self.diag.sqrt().unsqueeze(-2) + shared @ self.factor.mT  # mg.8

    def quad(self, x: Tensor) -> Tensor:
        own = (x.square() @ self.diag.unsqueeze(-1)).squeeze(-1)
        return own + (x @ self.factor).square().sum(-1)  # mg.8

    def times(self, x: Tensor) -> Tensor:
        return x * self.diag.unsqueeze(-2) + x @ self.factor @ self.factor.mT

    def solve(self, x: Tensor) -> Tensor:
        own = x / self.diag.unsqueeze(-2)
        shared = torch.cholesky_solve((own @ self.factor).mT, self._capacitance_tril()).mT
        return own - shared @ self.factor.mT / self.diag.unsqueeze(-2)  # mg.8

    def logdet(self) -> Tensor:
        capacitance = 2 * self._capacitance_tril().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.diag.log().sum(-1) + capacitance  # mg.8

    def variance(self) -> Tensor:
        return self.diag + self.factor.square().sum(-1)

    def trace_under(self, other: Covariance) -> Tensor:
        shared = (self.factor.mT * other.solve(self.factor.mT)).sum((-2, -1))
        return (self.diag * other.precision()).sum(-1) + shared

    def law(self, mean: Tensor, s: Tensor) -> dist.TorchDistribution:
        std = deviation(s)
        factor = std[..., None, None] * self.factor.unsqueeze(-3)
        return dist.LowRankMultivariateNormal(mean, factor, std.square().unsqueeze(-1) * self.diag.unsqueeze(-2))

    def _capacitance_tril(self) -> Tensor:
        overlap = self.factor.mT @ (self.factor / self.diag.unsqueeze(-1))
        return torch.linalg.cholesky(self._identity(self.factor.shape[-1]) + overlap)


def covariance(side: str, size: int, **given: Tensor | None) -> Covariance:
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    kinds = (DiagonalCovariance, TrilCovariance, LowRankCovariance)
    kind = next((kind for kind in kinds if kind.arguments.keys() == tensors.keys()), None)
    if kind is None:
        wanted = f"{side}_scale, or {side}_tril, or {side}_diag with {side}_factor"
        got = ", ".join(f"{side}_{name}" for name in tensors) or "none"
        raise ValueError(f"MatrixNormal takes exactly one {side} structure ({wanted}), got {got}")
    for name, rule in kind.arguments.items():
        shape = tuple(tensors[name].shape)
        sized = shape[-rule.event_dim :] if name != "factor" else shape[-2:-1]
        if len(shape) < rule.event_dim or any(length != size for length in sized):
            raise ValueError(f"MatrixNormal: {side}_{name} of shape {shape} does not fit loc, which has {size} {side}s")
    return kind(**tensors)

"""Covariance of one side of a matrix normal, as trainable parameters: diagonal, Cholesky, diagonal plus low rank."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn


class Diagonal(nn.Module):
    """One side of a matrix normal: a diagonal covariance, as standard deviations."""

    def __init__(self, batch_shape: Size, size: int, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((*batch_shape, size), math.log(scale)))

    def forward(self) -> dict[str, Tensor]:
        """Return {"scale": (..., size)}."""
        return {"scale": self.log_scale.exp()}


class Tril(nn.Module):
    """One side of a matrix normal: any covariance, as its Cholesky factor diag(scale) (I + strictly lower).

    Relative to the scale, because a factor whose other elements outgrow its diagonal cannot be inverted in float32.
    """

    def __init__(self, batch_shape: Size, size: int, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((*batch_shape, size), math.log(scale)))
        self.lower = nn.Parameter(torch.zeros(*batch_shape, size * (size - 1) // 2))

    def forward(self) -> dict[str, Tensor]:
        """Return {"tril": (..., size, size)} with a positive diagonal."""
        unit = torch.diag_embed(torch.ones_like(self.log_scale))
        below = torch.tril_indices(unit.shape[-1], unit.shape[-1], -1, device=unit.device)
        unit[..., below[0], below[1]] = self.lower
        return {"tril": self.log_scale.exp().unsqueeze(-1) * unit}


class LowRank(nn.Module):
    """One side of a matrix normal: diagonal plus low rank, D + F F^T. F starts at N(0, (scale / 10)^2)."""

    def __init__(self, batch_shape: Size, size: int, scale: float, *, rank: int) -> None:
        super().__init__()
        self.log_diag = nn.Parameter(torch.full((*batch_shape, size), 2 * math.log(scale)))
        self.factor = nn.Parameter(torch.randn(*batch_shape, size, rank) * scale / 10)

    def forward(self) -> dict[str, Tensor]:
        """Return {"diag": (..., size), "factor": (..., size, rank)}."""
        return {"diag": self.log_diag.exp(), "factor": self.factor}

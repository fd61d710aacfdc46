"""Swappable variational families for Pyro models: one family per site, one line to exchange it.

`Guide(model, batch, weights=MatrixNormal)` is an ordinary Pyro guide for anybody's model. The laws themselves, with
their closed-form Kullback-Leibler divergences, are in `guides.distributions`.
"""

from guides import codes, distributions
from guides.auto import Auto
from guides.encoders import (
    Autoregressive,
    Concrete,
    NormalEncoder,
    PerDatum,
    Rich,
    StraightThrough,
    Vanilla,
)
from guides.guide import Guide
from guides.linear import linear, weight_space
from guides.pseudo_data import MatrixNormalAuthors, MatrixNormalFITC, OuterNoise, ScalarNoise
from guides.sides import Diagonal, LowRank, Tril
from guides.sites import GuideError, data_plate
from guides.weights import (
    Gamma,
    LogNormal,
    MatrixNormal,
    MatrixNormalLowRank,
    MatrixNormalTril,
    MeanField,
    Point,
    SiteFullRank,
)

__all__ = [
    "Auto",
    "Autoregressive",
    "Concrete",
    "Diagonal",
    "Gamma",
    "Guide",
    "GuideError",
    "LogNormal",
    "LowRank",
    "MatrixNormal",
    "MatrixNormalAuthors",
    "MatrixNormalFITC",
    "MatrixNormalLowRank",
    "MatrixNormalTril",
    "MeanField",
    "NormalEncoder",
    "OuterNoise",
    "PerDatum",
    "Point",
    "Rich",
    "ScalarNoise",
    "SiteFullRank",
    "StraightThrough",
    "Tril",
    "Vanilla",
    "codes",
    "data_plate",
    "distributions",
    "linear",
    "weight_space",
]

"""Exact truth by enumeration, for models whose code h in {0, 1}^n can be enumerated.

A model is given by two tables of log-probabilities in nats: T[n, h] = log P(x_n | h), (N, 2^n), and log Q[h], (2^n).
Distinct data are weighted by w_n, log_w (N); repeated data are collapsed by `distinct`. Reference: Arnold & Ollivier
(2012), equations of `zoo.layerwise`; Lindsay (1983) for the best mixing law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from guides.codes import states

CELLS = 2**20  # entries of a table held at once by `log_likelihood`: 8 MiB in double precision


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of x (N, D), and log w_n, the logarithm of the share of each."""
    rows, count = torch.unique(x, dim=0, return_counts=True)
    return rows, (count.to(x.dtype) / len(x)).log()


def entropy(log_w: Tensor) -> float:
    """H(P_D) = -sum_n w_n log w_n in nats; log N for N distinct data of equal weight."""
    return float(-(log_w.exp() * log_w).sum())


def evidence(T: Tensor, log_prior: Tensor) -> Tensor:
    """log sum_h P(x_n | h) Q(h) of each datum, (N,). T: (N, 2^n); log_prior: (2^n)."""
    return (T + log_prior).logsumexp(-1)  # lw.1


def posterior(T: Tensor, log_prior: Tensor) -> Tensor:
    """log r(h | x_n), r proportional to P(x_n | h) Q(h), (N, 2^n)."""
    return (T + log_prior).log_softmax(-1)


def aggregated(log_q: Tensor, log_w: Tensor) -> Tensor:
    """log q_D(h) = log sum_n w_n q(h | x_n), (2^n). log_q: (N, 2^n)."""
    return (log_q + log_w[:, None]).logsumexp(0)  # lw.3


def log_gain(T: Tensor, log_prior: Tensor, log_w: Tensor) -> Tensor:
    """log G_Q(h) = log E_{P_D}[P(x | h) / P_Q(x)], the directional derivative of the evidence, (2^n)."""
    return (T - evidence(T, log_prior)[:, None] + log_w[:, None]).logsumexp(0)  # lw.11


def incorporate(T: Tensor, log_prior: Tensor, log_w: Tensor) -> Tensor:
    """Data incorporation, one EM step for the mixing law: Q_cond(h) = sum_n w_n r(h | x_n) = Q(h) G_Q(h), (2^n)."""
    return log_prior + log_gain(T, log_prior, log_w)  # lw.9


class BLM(NamedTuple):
    """The best latent marginal: its evidence U_D (nats per datum), log Q (2^n), and how far U_D can still rise."""

    bound: float
    log_prior: Tensor
    certificate: float


def blm(T: Tensor, log_w: Tensor, *, tol: float = 1e-6, steps: int = 20_000) -> BLM:
    """Maximise the evidence over all laws Q on the codes by EM, from the uniform law.

    U_D lies between the returned bound and bound + certificate, whatever the number of steps; EM stops when the
    certificate log max_h G_Q(h) is below `tol` nats. (Increments say nothing: at the boundary EM is sublinear.)

    Args:
        T: (N, 2^n). log_w: (N,).
    """
    T, log_w = T.detach().double(), log_w.detach().double()
    P, w = (T - T.amax(1, keepdim=True)).exp(), log_w.exp()  # a row's scale cancels in G
    Q = P.new_full((P.shape[1],), 1 / P.shape[1])
    for _ in range(steps):
        gain = (w / (P @ Q)) @ P  # lw.11, in probabilities: two products of matrix and vector
        if gain.max().log() < tol:
            break
        Q = Q * gain  # lw.9
    log_prior = (Q / Q.sum()).log()
    bound = log_w.exp() @ evidence(T, log_prior)  # lw.4
    return BLM(float(bound), log_prior, float(log_gain(T, log_prior, log_w).max()))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of two tables in nats; codes without mass under p count nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)


def price(T: Tensor, log_q_D: Tensor, log_prior: Tensor, log_w: Tensor) -> Tensor:
    """What a top P_J in place of q_D can cost at most, nats per datum: KL(Q_cond || P_J) - KL(Q_cond || q_D).

    Q_cond is one step `incorporate` from q_D. At the best latent marginal the second term is 0.
    """
    cond = incorporate(T, log_q_D, log_w)
    return kl(cond, log_prior) - kl(cond, log_q_D)  # lw.8


def log_likelihood(table: Callable[[Tensor, Tensor], Tensor], x: Tensor, log_prior: Tensor) -> Tensor:
    """`evidence` of many data, some codes at a time, so that about `CELLS` entries of T are held at once; (N,).

    Args:
        table: data (N, D) and codes (C, n) -> columns of T, (N, C).
    """
    size = max(1, CELLS // len(x))
    codes = states((len(log_prior) - 1).bit_length(), like=log_prior)
    total = x.new_full((len(x),), -math.inf)
    for some, weights in zip(codes.split(size), log_prior.split(size), strict=True):
        total = total.logaddexp(evidence(table(x, some), weights))
    return total


def log_mean(log_values: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp(log_values)."""
    return log_values.logsumexp(dim) - math.log(log_values.shape[dim])

"""Markov chains on a few states as matrices: what a sampler's speed is exactly, where the states can be enumerated.

A kernel K is (S, S), rows sum to 1; pi (S) is the law it leaves invariant; labels e (S, classes) are the probabilities
P(class | state), 0 or 1 where the class is a function of the state. Double precision. (Equation ids of `zoo.mixing`.)
Reference: Kemeny, Snell (1960) for the fundamental matrix; Sokal (1997) for autocorrelation times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guides.codes import states


def halves(rbm: Any) -> tuple[Tensor, Tensor]:
    """Block Gibbs of an RBM as two matrices: A[v, h] = P(h | v) and B[h, v] = P(v | h).

    The visible chain is A B, the hidden chain B A; both are reversible and positive.

    Returns:
        (2^visible, 2^hidden) and (2^hidden, 2^visible), states in the order of `guides.codes.states`.
    """
    v, h = states(rbm.visible, like=rbm.b).double(), states(rbm.hidden, like=rbm.c).double()
    with torch.no_grad():
        return bits_kernel(rbm.hidden_logits(v.to(rbm.b)), h), bits_kernel(rbm.visible_logits(h.to(rbm.b)), v)  # mix.9


def bits_kernel(logits: Tensor, codes: Tensor) -> Tensor:
    """prod_i Bernoulli(code_i; sigma(logits_i)) of every row of logits (R, n) and every code (C, n); (R, C)."""
    logits = logits.double()
    log_p = logits @ codes.mT - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)
    return log_p.exp()


def sweep(log_p: Tensor) -> Tensor:
    """A systematic sweep of single-site Gibbs on n bits, first to last: stationary for exp(log_p), not reversible.

    Args:
        log_p: (2^n), unnormalised.
    """
    S = len(log_p)
    n = (S - 1).bit_length()
    index, K = torch.arange(S), torch.eye(S, dtype=torch.float64)
    log_p = log_p.double()
    for site in range(n):
        other = index ^ (1 << (n - 1 - site))
        flip = (log_p[other] - log_p[index]).sigmoid()
        step = torch.zeros(S, S, dtype=torch.float64)
        step[index, other], step[index, index] = flip, 1 - flip
        K = K @ step
    return K


def stationarity_error(K: Tensor, pi: Tensor) -> float:
    """max |pi K - pi|."""
    return float((pi @ K - pi).abs().max())


def balance_error(K: Tensor, pi: Tensor) -> float:
    """max |pi_s K_st - pi_t K_ts|: 0 for a reversible chain."""
    flow = pi[:, None] * K
    return float((flow - flow.mT).abs().max())


def eigenvalues(K: Tensor, pi: Tensor) -> Tensor:
    """Eigenvalues in falling order: of a reversible chain themselves, of another their moduli; (S)."""
    if balance_error(K, pi) < 1e-12:
        root = pi.clamp_min(torch.finfo(pi.dtype).tiny).sqrt()
        symmetric = root[:, None] * K / root
        return torch.linalg.eigvalsh((symmetric + symmetric.mT) / 2).flip(0)
    return torch.linalg.eigvals(K).abs().sort(descending=True).values


def relaxation_time(K: Tensor, pi: Tensor) -> float:
    """1 / (1 - lambda_2) in steps, lambda_2 the second largest eigenvalue modulus."""
    values = eigenvalues(K, pi).abs().sort(descending=True).values
    return float(1 / (1 - values[1]))  # mix.16


def iact(K: Tensor, pi: Tensor, f: Tensor) -> Tensor:
    """Integrated autocorrelation time tau_f = 1 + 2 sum_k rho_k of a statistic, exactly; reversible or not.

    Args:
        f: (S) or several in columns (S, F).

    Returns:
        () or (F), NaN where f is constant. The effective sample size of n draws is n / tau_f.
    """
    f = f.double().reshape(len(f), -1)
    size = pi @ f.square()
    f = f - pi @ f
    fundamental = torch.eye(len(pi), dtype=torch.float64) - K + pi.expand(len(pi), -1)
    solved = torch.linalg.solve(fundamental, f)
    variance = pi @ f.square()
    variance = variance.where(variance > 1e-24 * size, torch.nan)  # of a constant only rounding is left
    return ((2 * (pi @ (f * solved)) - variance) / variance).squeeze()  # mix.12


def decoded_iact(tau_h: Tensor, explained: Tensor) -> Tensor:
    """tau of a statistic f of x decoded from each h, 1 + (Var g / Var f) (tau_h(g) - 1), g(h) = E[f(x) | h].

    Args:
        tau_h: tau of g. explained: Var g / Var f.
    """
    return 1 + explained * (tau_h - 1)  # mix.13


def explained(pi: Tensor, decode: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """g(h) = E[f(x) | h], and Var g / Var f, for a law pi of h (S_h) and a decoder (S_h, S_x); f: (S_x)."""
    g = decode @ f.double()
    p_x = pi @ decode
    variance = p_x @ f.double().square() - (p_x @ f.double()).square()
    return g, (pi @ g.square() - (pi @ g).square()) / variance


def misses(K: Tensor, start: Tensor, e: Tensor, T: int) -> Tensor:
    """P(class k is none of T consecutive labels) of every class, start D_a (K D_a)^(T - 1) 1, a = 1 - e_k; (classes).

    Args:
        start: law of the first state, pi or another.
    """
    a = 1 - e.double()  # (S, classes)
    ahead = torch.ones_like(a)
    for _ in range(T - 1):
        ahead = K @ (a * ahead)
    return start @ (a * ahead)  # mix.14


def visits(K: Tensor, start: Tensor, e: Tensor, T: int) -> float:
    """V_T, the expected number of distinct classes among T consecutive labels."""
    return float((1 - misses(K, start, e, T)).sum())  # mix.14


def ceiling(p: Tensor, T: int) -> float:
    """V_T of independent draws, sum_k 1 - (1 - p_k)^T; no reversible positive chain in stationarity exceeds it.

    Example:
        >>> round(ceiling(torch.full((10,), 0.1), 10), 2)
        6.51
    """
    return float((1 - (1 - p.double()) ** T).sum())  # mix.15


def switch_rate(K: Tensor, pi: Tensor, e: Tensor) -> float:
    """P(label_{t+1} != label_t) in stationarity; 1 - sum_k p_k^2 for independent draws."""
    e = e.double()
    return float(1 - ((pi[:, None] * e) * (K @ e)).sum())  # mix.16


def class_transitions(K: Tensor, pi: Tensor, e: Tensor) -> Tensor:
    """C_kl = P(label_{t+1} = l | label_t = k) in stationarity, (classes, classes); a class without mass has NaN."""
    e = e.double()
    joint = e.mT @ (pi[:, None] * (K @ e))
    return joint / joint.sum(-1, keepdim=True)  # mix.16


def first_passage(K: Tensor, inside: Tensor) -> Tensor:
    """Mean number of steps to the states `inside` (S, bool) from every state, by (I - K_outside) m = 1; (S)."""
    outside = ~inside
    steps = torch.zeros(len(K), dtype=torch.float64)
    block = K[outside][:, outside]
    steps[outside] = torch.linalg.solve(
        torch.eye(len(block), dtype=torch.float64) - block, torch.ones(len(block)).double()
    )
    return steps  # mix.16


def total_variation(K: Tensor, start: Tensor, e: Tensor, p: Tensor, T: int) -> Tensor:
    """TV_t = 1/2 sum_k |P(label_t = k) - p_k| for t = 0..T-1 from the law `start`; (T)."""
    law, found = start.double(), []
    for _ in range(T):
        found.append(0.5 * (law @ e.double() - p.double()).abs().sum())
        law = law @ K
    return torch.stack(found)  # mix.17


def metropolised(propose: Tensor, log_target: Tensor) -> Tensor:
    """The Metropolis-Hastings kernel of a proposal matrix (S, S) for the law exp(log_target), reversible for it."""
    flow = log_target[:, None] + propose.log()
    accept = (flow.mT - flow).clamp_max(0).exp().nan_to_num(0.0)
    K = propose * accept
    return K + torch.diag(1 - K.sum(-1))

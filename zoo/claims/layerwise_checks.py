"""Statements about layer-wise training that can be checked against exact values, one function for each cell."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import Bernoulli

from zoo import lab, layerwise
from zoo.lab import exact

Row = dict[str, Any]


def measure(cell: Row) -> Row:
    """Run the check that the cell names, in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    lab.seed(cell.get("seed", 0))
    try:
        return CHECKS[cell["check"]](cell)
    finally:
        torch.set_default_dtype(before)


def prices(cell: Row) -> Row:
    """The guarantee on random worlds (8 pixels, 4 bits, 12 data): violations of each inequality, beyond rounding.

    For each random decoder, code law q_D and top P_J: the best latent marginal against any top (lw.4, lw.7), the
    corrected price for any q (lw.8), and the naive price with KL(q_D || P_J), which is false.
    """
    x = torch.bernoulli(torch.full((12, 8), 0.5))
    rows, log_w = exact.distinct(x)
    counts = {"above_blm": 0, "above_kl": 0, "above_price": 0, "above_naive": 0}
    for _ in range(cell["cases"]):
        decoder = layerwise.Decoder(4, 8, scale=1.5)
        torch.nn.init.normal_(decoder.b)
        T = decoder.table(rows).detach()
        best = exact.blm(T, log_w, tol=1e-9, steps=cell["steps"])
        log_q = (2 * torch.randn(len(rows), 16)).log_softmax(-1)
        log_q_D = exact.aggregated(log_q, log_w)
        log_prior = (log_q_D + 0.7 * torch.randn(16)).log_softmax(-1)
        deep, criterion = (float(log_w.exp() @ exact.evidence(T, Q)) for Q in (log_prior, log_q_D))
        slack = best.certificate + 1e-12
        counts["above_blm"] += deep > best.bound + slack
        counts["above_kl"] += best.bound - deep > float(exact.kl(best.log_prior, log_prior)) + slack
        counts["above_price"] += criterion - deep > float(exact.price(T, log_q_D, log_prior, log_w)) + 1e-12
        counts["above_naive"] += criterion - deep > float(exact.kl(log_q_D, log_prior)) + 1e-12
    return counts


def baselines(cell: Row) -> Row:
    """Uniform pixels; independent bits fitted to train, one count added to each value, on validation and test parts."""
    parts = [layerwise.data(cell["data"], split=split) for split in range(cell["splits"])]
    uniform = -parts[0].train["x"].shape[1] * math.log(2)
    found: Row = {"uniform": uniform}
    for name in ("valid", "test"):
        found["bits" if name == "valid" else "bits_test"] = [_bits(part.train, getattr(part, name)) for part in parts]
    return found


def _bits(train: lab.Table, other: lab.Table) -> float:
    share = (train["x"].double().sum(0) + 1) / (len(train) + 2)
    return float(Bernoulli(share, validate_args=False).log_prob(other["x"].double()).sum(1).mean())


def perfect(cell: Row) -> Row:
    """A two-layer net that generates the Tea images exactly, in the limit of a gain: 10 bits below an RBM of 5."""
    model = perfect_tea(cell["gain"], cell["coupling"])
    images = torch.cat([part["x"].double() for part in layerwise.data("tea") if part is not None])
    value = model.loglik(images)
    assert value is not None
    return {"loglik": value.mean(), "optimum": -math.log(len(images))}


@torch.no_grad()
def perfect_tea(gain: float, coupling: float) -> layerwise.Model:
    """That net. Code: h[2c] says that cup c has tea, h[2c + 1] that it is full."""
    model = layerwise.Model(100, [10], top="rbm", top_hidden=5)
    decoder: Any = model.decoders[0]
    W, b = torch.zeros(10, 10, 10), torch.zeros(10, 10)  # (code, row, column), (row, column)
    for cup in range(5):
        for code, row in ((2 * cup, 2 * cup + 1), (2 * cup + 1, 2 * cup)):
            W[code, row, 5:], b[row, 5:] = 2 * gain, -gain
    W[:, :, :5] = -gain
    b[:, :5] = gain * (torch.arange(10.0)[:, None] + 0.5)
    decoder.W.copy_(W.reshape(10, 100))
    decoder.b.copy_(b.reshape(100))
    rbm: Any = model.prior
    rbm.W.zero_(), rbm.b.zero_(), rbm.c.fill_(-3 * coupling)
    rbm.b[1::2] = -coupling
    for cup in range(5):
        rbm.W[2 * cup : 2 * cup + 2, cup] = 2 * coupling
    return model


CHECKS: dict[str, Any] = {"prices": prices, "baselines": baselines, "perfect": perfect}

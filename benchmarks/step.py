"""CPU time of one training step: the library's, and the same loss written in plain eager PyTorch, interleaved.

    python benchmarks/step.py

A 13-50-1 network, diagonal matrix-normal posterior, local reparametrisation, closed-form KLs, batch 100 of 455 data,
one fused Adam, one thread. Both sides compute the same loss; the script checks that before it measures. Only the ratios
mean anything on a shared machine: the median over rounds and the range are printed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo import lab, matrix_gaussian

N, BATCH, STEPS, ROUNDS = 455, 100, 150, 9


class Eager(nn.Module):
    """The loss of mg.10 by hand: q(W) diagonal matrix normal, q(tau) Gamma, priors MN(0, I, I) and Gamma(6, 6)."""

    def __init__(self, widths: tuple[int, ...] = (13, 50, 1)) -> None:
        super().__init__()
        sizes = [(d + 1, k) for d, k in pairwise(widths)]
        self.M = nn.ParameterList([torch.randn(d, k) * math.sqrt(4 / (d - 1 + k)) for d, k in sizes])
        self.log_r = nn.ParameterList([torch.full((d,), -3.0) for d, _ in sizes])
        self.log_c = nn.ParameterList([torch.zeros(k) for _, k in sizes])
        self.log_a, self.log_b = nn.Parameter(torch.tensor([6.0]).log()), nn.Parameter(torch.tensor([6.0]).log())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the evidence bound of the full data set, nats."""
        a, b = self.log_a.exp(), self.log_b.exp()
        kl = (a - 6) * a.digamma() - a.lgamma() + math.lgamma(6) + 6 * (self.log_b - math.log(6)) + a * (6 - b) / b
        h = x
        for M, log_r, log_c in zip(self.M, self.log_r, self.log_c, strict=True):
            d, k = M.shape
            u, c = (2 * log_r).exp(), log_c.exp()
            kl = kl + 0.5 * (u.sum() * c.square().sum() + M.square().sum() - d * k)
            kl = kl - k * log_r.sum() - d * log_c.sum()
            h = torch.cat([h, h.new_ones(len(h), 1)], -1) / math.sqrt(d)
            f = h @ M + (h.square() @ u).sqrt()[:, None] * c * torch.randn(len(h), k)
            h = f.relu()
        tau = torch._standard_gamma(a) / b  # sampled, as Pyro samples it under the likelihood
        loglik = 0.5 * (tau.log() - math.log(2 * math.pi) - tau * (y - f).square())
        return kl.sum() - N / len(x) * loglik.sum()


def pyro_side() -> nn.Module:
    """The same loss through model, guide and bound."""
    model = matrix_gaussian.Model(13, [50], N)
    guide = matrix_gaussian.guide(model, {"x": torch.zeros(2, 13), "y": torch.zeros(2, 1)})
    return matrix_gaussian.bound(guide)(model, guide)


def stepper(loss: Callable[..., Tensor], module: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One optimiser step as `lab.fit` takes it."""
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        (loss(**batch) / N).backward()
        optimiser.step()

    return step


def same_start(eager: Eager, pyro: nn.Module) -> None:
    """Copy the eager side's parameters, so that both losses have the same expectation."""
    q = pyro.guide.q
    for layer, family in enumerate((q["W1"], q["W2"])):
        family.loc.data.copy_(eager.M[layer])
        family.row.log_scale.data.copy_(eager.log_r[layer])
        family.col.log_scale.data.copy_(eager.log_c[layer])
    q["tau"].log_concentration.data.copy_(eager.log_a)
    q["tau"].log_mean.data.copy_(eager.log_a - eager.log_b)


def cpu_seconds(step: Callable[[], None]) -> float:
    began = time.process_time()
    for _ in range(STEPS):
        step()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    lab.seed(0)
    batch = {"x": torch.randn(BATCH, 13), "y": torch.randn(BATCH, 1)}
    eager, pyro = Eager(), pyro_side()
    same_start(eager, pyro)
    with torch.no_grad():
        means = [torch.stack([side(**batch) for _ in range(400)]) for side in (eager, pyro)]
    difference = (means[0].mean() - means[1].mean()).abs()
    assert difference < 5 * math.sqrt(sum(float(m.var()) for m in means) / 400), "the two losses differ"
    sides = {
        "eager PyTorch": stepper(eager, eager, batch),
        "zoo": stepper(pyro, pyro, batch),
    }
    batches = [batch]
    rounds: dict[str, list[float]] = {name: [] for name in [*sides, "lab.fit"]}
    for _ in range(ROUNDS):
        for name, step in sides.items():
            rounds[name].append(cpu_seconds(step))
        began = time.process_time()
        lab.fit(pyro.model, pyro.guide, batches, pyro.elbo, epochs=STEPS)
        rounds["lab.fit"].append(time.process_time() - began)
    base = rounds["eager PyTorch"]
    for name, seconds in rounds.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, base, strict=True)]
        milliseconds = 1e3 * statistics.median(seconds) / STEPS
        print(
            f"{name:14s} {milliseconds:6.2f} ms CPU per step   ratio to eager: median {statistics.median(ratios):.2f}, "
            f"range {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()

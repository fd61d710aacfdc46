"""Sweeps per second of the top walk of a DBN 784-500-500 with 100 chains, against its matrix products alone.

Run: python benchmarks/chains.py. Rounds are interleaved; the ratio of medians is what counts, since machines differ.
"""

from __future__ import annotations

import statistics
import time

import torch

from zoo import lab, mixing
from zoo.lab import kernels

CHAINS, SWEEPS, ROUNDS = 100, 1000, 5


def main() -> None:
    """Print seconds and ratios."""
    torch.set_num_threads(1)
    lab.seed(0)
    model = mixing.Model(784, [500, 500], scale=0.1)
    rbm = model.prior
    start = torch.bernoulli(torch.full((CHAINS, 500), 0.5))
    W, b, c = rbm.W.detach(), rbm.b.detach(), rbm.c.detach()
    step = kernels.block_gibbs(rbm)

    def products() -> None:
        s = start
        for _ in range(SWEEPS):
            s = torch.addmm(b, torch.addmm(c, s, W), W.mT)

    def plain() -> None:
        s = start
        for _ in range(SWEEPS):
            h = torch.bernoulli(torch.addmm(c, s, W).sigmoid_())
            s = torch.bernoulli(torch.addmm(b, h, W.mT).sigmoid_())

    def ours() -> None:
        lab.walk(step, start, draws=1, warmup=SWEEPS - 1, watch={})

    def decoded() -> None:
        lab.walk(step, start, draws=SWEEPS, watch={"ink": lambda s, noise: model.decode(s, noise).sum(-1)})

    ways = {"matrix products alone": products, "torch.bernoulli": plain, "walk": ours, "walk, decoded": decoded}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            began = time.process_time()
            with torch.no_grad():
                run()
            times[name].append(time.process_time() - began)
    base = statistics.median(times["matrix products alone"])
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:22} {SWEEPS / middle:7.0f} sweeps per CPU second, {middle / base:.2f} x matrix products")


if __name__ == "__main__":
    main()

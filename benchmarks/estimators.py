"""Gradient estimators for binary codes on Tea: bias, variance and time at equal numbers of evaluations.

    python benchmarks/estimators.py

A model 100 - 10 bits - RBM(10, 10) on the 81 training images of Tea, encoder with 100 sigmoid units, at its start and
after 300 steps of `LeaveOneOut`; the baseline of `LearnedBaseline` learns for 500 steps at either point. Every estimate
takes eight evaluations of log p(x, h) - log q(h | x) for each image: K = 8, four calls of ARM, eight dreams of Sleep
(which has no such evaluations). For the encoder's gradient and for the model's (decoder and prior) the script prints

    target      what it should be in the mean: the gradient of the ELBO, exact; that of the importance-weighted bound of
                K = 8, or the wake phases of K = 8, with one of the codes enumerated and the others drawn. That of Sleep
                needs all 2^100 images: no bias can be told here, see `tests/test_estimators.py`
    max |z|     of a component, and the probability of one as large by chance; joint z, of half the draws along the
                direction in which the other half differs
    bias        its norm relative to the gradient's, and the smallest one that could have been seen (4 standard errors)
    variance    trace of the covariance of one estimate, relative to the squared norm of the gradient
    ms          median CPU time of one estimate on all images, forwards and backwards, on one thread in double precision
"""

from __future__ import annotations

import time
from typing import Any

import torch

from zoo.claims import gradients

CELL: dict[str, Any] = {"data": "tea", "hidden": [10], "baseline_steps": 500, "seed": 0}
SIZE: dict[str, Any] = {"calls": 160, "replicas": 16, "rounds": 30}
HEADER = (
    f"{'':20s} {'target':>10s} {'':>8s} {'max |z|':>8s} {'chance':>7s} {'joint z':>8s} "
    f"{'bias':>8s} {'seen':>8s} {'variance':>9s} {'ms':>6s}"
)


def line(name: str, found: dict[str, Any], part: str) -> str:
    """One estimator, one part of its gradient."""
    target = gradients.WAYS[name].target or "-"
    about = {key.removeprefix(f"{part}_"): value for key, value in found.items() if key.startswith(part)}
    took = f"{found['milliseconds']:6.1f}" if part == "encoder" else ""
    start = f"{name if part == 'encoder' else '':20s} {target:>10s} {part:>8s}"
    if "norm" not in about:
        return f"{start} {'-':>8s} {'-':>7s} {'-':>8s} {'-':>8s} {'-':>8s} {about['variance']:9.4f} {took}"
    return (
        f"{start} {about['largest']:8.1f} {about['chance']:7.3f} {about['joint']:8.1f} {about['norm']:8.1%} "
        f"{about['visible']:8.1%} {about['variance']:9.4f} {took}"
    )


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    began = time.perf_counter()
    for steps in (0, 300):
        cell = {**CELL, "steps": steps}
        at = gradients.problem(cell)
        log_p, log_q = (t.detach() for t in gradients.tables(at.model, at.guide, at.x))
        bound, evidence = gradients.elbo(log_p, log_q) / len(at.x), log_p.logsumexp(-1).mean()
        print(f"after {steps} steps: ELBO {bound:.2f}, log evidence {evidence:.2f} nats per datum, exact")
        print(HEADER)
        for name in gradients.WAYS:
            found = gradients.measured(at, {**cell, **SIZE, "estimator": name})
            for part in ("encoder", "model"):
                if f"{part}_variance" in found:
                    print(line(name, found, part), flush=True)
        print()
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

"""Yacht on the 20 canonical splits: diagonal matrix normal against mean field, all splits of a guide side by side.

    ZOO_DATA=... python benchmarks/yacht.py --out yacht.jsonl

One line of JSON per (guide, split), written when a guide is done; started again, it goes on with the guides that are
missing. Model: 6-50-1, noise precision Gamma(6, 6) in raw units, no hyperpriors unless --hyperprior. 12,000 steps of
Adam, batch 139, rate 1e-2 falling along a cosine to a hundredth. Scores with 100 draws, in the units of y.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any


import torch

import guides
from zoo import lab, matrix_gaussian
from zoo.lab import replicas, scores
from zoo.lab.predictive import draw

FAMILIES = {
    "MatrixNormal": guides.MatrixNormal,
    "MeanField": guides.MeanField,
    "MatrixNormal, start 1": partial(guides.MatrixNormal, scale=1.0),
    "MeanField, start 1": partial(guides.MeanField, scale=1.0),
}
KEYS = ("rmse", "loglik_expected", "loglik_student", "loglik_mixture", "elbo")


def cells(name: str, splits: int, epochs: int, hyperprior: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Train one guide on all splits and score it on each."""
    parts = [matrix_gaussian.data("yacht", split=split) for split in range(splits)]
    losses = []
    for split, (train, _, _) in enumerate(parts):
        lab.seed(split)
        model = matrix_gaussian.Model.for_data(train, hyperprior=hyperprior)
        guide = matrix_gaussian.guide(model, train.peek(), weights=FAMILIES[name])
        losses.append(matrix_gaussian.bound(guide)(model, guide))
    lab.seed(0)
    batches = [train.batches(139, seed=split) for split, (train, _, _) in enumerate(parts)]
    began = time.process_time()
    replicas.fit_together(losses, batches, N=len(parts[0].train), epochs=epochs, lr=1e-2, decay=1e-2)
    seconds = (time.process_time() - began) / splits
    rows = [score(loss, train, test) for loss, (train, _, test) in zip(losses, parts, strict=True)]
    shared = {"guide": name, "steps": epochs * len(batches[0]), "cpu_seconds": seconds}
    return [{**shared, "split": split, **row} for split, row in enumerate(rows)]


def score(loss: Any, train: lab.Table, test: lab.Table) -> dict[str, float]:
    """Test scores of one trained pair, and its bound on the training data in nats per datum."""
    out = draw(loss.model, loss.guide, test.all(), 100).outputs["y"]
    tau = loss.guide.q["tau"](None).base_dist
    y, a, b = test["y"], tau.concentration.detach(), tau.rate.detach()
    with torch.no_grad():
        elbo = -torch.stack([loss(**train.all()) for _ in range(200)]).mean() / len(train)
    return {
        "rmse": scores.rmse(y, out.mean.mean(0)),
        "loglik_expected": scores.loglik_expected(y, out.mean, a, b),
        "loglik_student": scores.loglik_student(y, out.mean, a, b),
        "loglik_mixture": scores.loglik_mixture(out.log_prob),
        "elbo": float(elbo),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("yacht.jsonl"))
    parser.add_argument("--epochs", type=int, default=6000, help="two steps each")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--guides", default="MatrixNormal;MeanField", help="separated by ;")
    parser.add_argument("--hyperprior", action="store_true", help="t ~ Gamma(1, 0.5), as published")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for name in options.guides.split(";"):
        if name not in {row["guide"] for row in rows}:
            rows += cells(name, options.splits, options.epochs, (1.0, 0.5) if options.hyperprior else None)
            options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in dict.fromkeys(row["guide"] for row in rows):
        mine = [row for row in rows if row["guide"] == name]
        for key in KEYS:
            mean, error = scores.mean_and_error([row[key] for row in mine])
            print(f"{name:24s} {key:16s} {mean:8.3f} ± {error or float('nan'):.3f}  ({len(mine)} splits)")


if __name__ == "__main__":
    main()

"""Yacht on the 20 canonical splits: diagonal matrix normal against mean field, cell by cell, resumable.

    ZOO_DATA=... python benchmarks/yacht.py --out yacht.jsonl

One line of JSON per finished (guide, split); started again, it goes on where it stopped. Model: 6-50-1, noise precision
Gamma(6, 6) in raw units, no hyperpriors unless --hyperprior. 12,000 steps of Adam, batch 139, rate 1e-2 falling along a
cosine to a hundredth. Scores with 100 draws, in the units of y.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

import guides
from zoo import lab, matrix_gaussian
from zoo.lab import scores
from zoo.lab.predictive import draw

FAMILIES = {
    "MatrixNormal": guides.MatrixNormal,
    "MeanField": guides.MeanField,
    "MatrixNormal, start 1": partial(guides.MatrixNormal, scale=1.0),
    "MeanField, start 1": partial(guides.MeanField, scale=1.0),
}


def cell(guide_name: str, split: int, epochs: int, hyperprior: tuple[float, float] | None) -> dict[str, object]:
    """Train one guide on one split and score it."""
    train, _, test = matrix_gaussian.data("yacht", split=split)
    lab.seed(split)
    model = matrix_gaussian.Model.for_data(train, hyperprior=hyperprior)
    guide = matrix_gaussian.guide(model, train.peek(), weights=FAMILIES[guide_name])
    batches = train.batches(139, seed=split)
    fit = lab.fit(model, guide, batches, matrix_gaussian.bound(guide), epochs=epochs, lr=1e-2, decay=1e-2)
    out = draw(model, guide, test.all(), 100).outputs["y"]
    tau = guide.q["tau"](None).base_dist
    y, a, b = test["y"], tau.concentration.detach(), tau.rate.detach()
    return {
        "guide": guide_name,
        "split": split,
        "steps": fit.steps,
        "rmse": scores.rmse(y, out.mean.mean(0)),
        "loglik_expected": scores.loglik_expected(y, out.mean, a, b),
        "loglik_student": scores.loglik_student(y, out.mean, a, b),
        "loglik_mixture": scores.loglik_mixture(out.log_prob),
        "elbo": fit.elbo(train.all(), particles=200)[0] / len(train),
        "converged": fit.converged,
        "seconds": fit.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("yacht.jsonl"))
    parser.add_argument("--epochs", type=int, default=6000, help="two steps each")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--guides", default="MatrixNormal;MeanField", help="separated by ;")
    parser.add_argument("--hyperprior", action="store_true", help="t ~ Gamma(1, 0.5), as published")
    options = parser.parse_args()
    hyperprior = (1.0, 0.5) if options.hyperprior else None
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["guide"], row["split"]) for row in map(json.loads, lines)}
    for split in range(options.splits):
        for name in options.guides.split(";"):
            if (name, split) not in done:
                with options.out.open("a") as file:
                    file.write(json.dumps(cell(name, split, options.epochs, hyperprior)) + "\n")
    rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    for name in dict.fromkeys(row["guide"] for row in rows):
        mine = [row for row in rows if row["guide"] == name]
        for key in ("rmse", "loglik_expected", "loglik_student", "loglik_mixture", "elbo"):
            mean, error = scores.mean_and_error([row[key] for row in mine])
            print(f"{name:24s} {key:16s} {mean:8.3f} ± {error or float('nan'):.3f}  ({len(mine)} splits)")


if __name__ == "__main__":
    main()

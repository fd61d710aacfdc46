"""Guides against posteriordb's reference draws.

    ZOO_DATA=... python benchmarks/posteriordb.py [posterior ...] [--guides MeanField,...] [--steps 3000] [--json]

Per guide: largest shift of a mean (in posterior standard deviations), smallest and largest ratio of standard
deviations, largest error of a correlation, Pareto k-hat, gap of the bound to the exact evidence (nats for the data
set). In parentheses: what chance alone exceeds five times in a hundred.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from zoo.lab.references import GUIDES, POSTERIORS, reference_table


def line(row: dict[str, Any], seconds: float) -> str:
    """One row of the table."""
    seen = row["distance"]["visible"]
    shift = max(abs(m["shift"]) for m in row["distance"]["marginals"])
    ratios = [m["ratio"] for m in row["distance"]["marginals"]]
    pairs = [("correlation", row["distance"]["correlation_max"], seen["correlation"])]
    cells = [
        f"{row['guide']:30s}",
        f"shift {shift:.3f} ({seen['shift']:.3f})",
        f"sd {min(ratios):.3f}..{max(ratios):.3f} ({seen['ratio']:.3f})",
        *(f"{name} {error:.3f} ({least:.3f})" if error is not None else f"{name} -" for name, error, least in pairs),
        f"k-hat {row['khat']['value']:.2f} ± {row['khat']['error']:.2f}" if row["khat"] else "k-hat refused",
        f"gap {row['bound']['gap']:.3f} ± {row['bound']['error']:.3f}" if row["bound"] else "no bound",
        f"{seconds:.0f} s" + ("" if row["converged"] else ", still moving"),
    ]
    return "  ".join(cells)


def main() -> None:
    """Print one table for each posterior."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("posteriors", nargs="*", default=list(POSTERIORS))
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    for name in options.posteriors:
        print(name, flush=True)
        for guide in options.guides.split(","):
            began = time.perf_counter()
            (row,) = reference_table(name, [guide], steps=options.steps, seed=options.seed)
            print(json.dumps(row) if options.json else line(row, time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()

"""The conjugate anchor: how far each guide's trained bound is from the best bound of its family, in nats.

    python benchmarks/anchor.py

The regression, the exact bounds and the training recipes are those of `tests/test_matrix_gaussian.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_matrix_gaussian import OPTIMA, PLAIN, RECIPES, VARIANCES, optimum, train

from zoo import lab


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    for name in OPTIMA:
        for case in VARIANCES:
            lab.seed(0)
            best = optimum(name, case)
            reached = train(name, case, **RECIPES.get(name, PLAIN))
            print(f"{name:24s} {case:8s} best {best:.8f}   trained minus best {reached - best:+.4f} nats", flush=True)


if __name__ == "__main__":
    main()

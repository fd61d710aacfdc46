"""What is claimed of chains in deep representations, measured: simulated on digits, and exactly where it can be."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.claims import mixing_cells as simulated
from zoo.claims import mixing_exact as exact
from zoo.claims import mixing_judges as judges
from zoo.lab.ledger import Experiment, Judge

Row = dict[str, Any]

SEEDS = {"full": 10, "smoke": 2}
SIZES: dict[str, Row] = {
    "full": {"width": 64, "epochs": 120, "lr": 0.01, "rows": 5000, "chains": 40, "steps": 1000},
    "smoke": {"width": 16, "epochs": 5, "lr": 0.01, "rows": 400, "chains": 10, "steps": 50},
}
MNIST: Row = {"width": 256, "epochs": 20, "lr": 0.003, "rows": 10_000, "chains": 40, "steps": 500}


def dbn_cells(budget: str) -> list[Row]:
    """Deep belief networks of depth 1, 2 and 3 on digits 8 x 8; at the full budget one of each on MNIST."""
    digits = _digits(budget, "dbn", (1, 2, 3))
    mnist = [{"measure": "dbn", "data": "mnist", "seed": 0, "depth": depth, **MNIST} for depth in (1, 2)]
    return digits + (mnist if budget == "full" else [])


def cae_cells(budget: str) -> list[Row]:
    """Contractive auto-encoders of depth 1 and 2 on digits 8 x 8."""
    return _digits(budget, "cae", (1, 2))


def level_cells(budget: str) -> list[Row]:
    """Representations of a DBN of depth 3 and of auto-encoders of depth 2."""
    return [
        {"measure": "levels", "kind": kind, "data": "digits", "seed": seed, "depth": depth, **SIZES[budget]}
        for seed in range(SEEDS[budget])
        for kind, depth in (("DBN", 3), ("CAE", 2))
    ]


def _digits(budget: str, measure: str, depths: tuple[int, ...]) -> list[Row]:
    return [
        {"measure": measure, "data": "digits", "seed": seed, "depth": depth, **SIZES[budget]}
        for seed in range(SEEDS[budget])
        for depth in depths
    ]


def forgetting_cells(budget: str) -> list[Row]:
    """Enumerated chains on digits 4 x 4."""
    size = {"width": 10, "epochs": 60} if budget == "full" else {"width": 5, "epochs": 3}
    return [
        {"measure": "forgetting", "data": "digits_4x4", "seed": seed, "depth": depth, "lr": 0.01, **size}
        for seed in range(SEEDS[budget])
        for depth in (1, 2)
    ]


def target_cells(budget: str) -> list[Row]:
    """Models of different sharpness: the scale of all parameters."""
    seeds, steps = (8, 800) if budget == "full" else (2, 50)
    return [
        {"measure": "same target", "seed": seed, "sharpness": sharpness, "steps": steps}
        for seed in range(seeds)
        for sharpness in (0.5, 1.0, 1.5)
    ]


def parzen_cells(budget: str) -> list[Row]:
    """Sets of ten models."""
    sets, samples = (5, 10_000) if budget == "full" else (1, 500)
    return [{"measure": "parzen", "seed": seed, "samples": samples} for seed in range(sets)]


EXPERIMENTS = {
    "dbn": Experiment(dbn_cells, simulated.measure, slow=True),
    "cae": Experiment(cae_cells, simulated.measure, slow=True),
    "levels": Experiment(level_cells, simulated.measure, slow=True),
    "forgetting": Experiment(forgetting_cells, exact.measure),
    "same target": Experiment(target_cells, exact.measure),
    "ceilings": Experiment(lambda budget: [{"measure": "ceilings", "seed": 0, "cases": 80}], exact.measure),
    "parzen": Experiment(parzen_cells, exact.measure),
}

JUDGES = {
    "C1": Judge(judges.visits_more, "dbn"),
    "C2": Judge(judges.visits_more, "cae"),
    "C3": Judge(judges.scores_better, "dbn", "cae"),
    "C4": Judge(
        partial(
            judges.better_at_the_top, sign=1,
            what="Parzen score of decoded midpoints, and their fall from the decoded ends, nats",
            keys=["midpoint, classes", "midpoint, class", "midpoint, neighbours"],
            controls=["fall, classes", "fall, class", "fall, neighbours"],
        ),
        "levels",
    ),
    "C5": Judge(
        partial(
            judges.better_at_the_top, sign=1,
            what="Parzen score under noise (mean over amounts; at equal change of pictures), and its fall, nats",
            keys=["noise area", "matched noise"], controls=["noise fall", "matched fall"],
        ),
        "levels",
    ),
    "C6": Judge(
        partial(judges.better_at_the_top, keys=["linear error"], sign=-1, what="Test error of a linear classifier"),
        "levels",
    ),
    "C7": Judge(judges.forgets_faster, "forgetting", "dbn"),
    "C8": Judge(judges.same_target, "same target"),
    "C9": Judge(judges.shuffled_fails, "dbn"),
    "C10": Judge(judges.under_the_ceiling, "ceilings"),
    "C11": Judge(judges.parzen_misranks, "parzen"),
}  # fmt: skip

TABLES = {"depth": judges.depth_table}

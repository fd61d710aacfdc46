"""What is claimed of layer-wise training, measured: exact checks, and a random search with equal budgets."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.claims import layerwise_checks as checks
from zoo.claims import layerwise_judges as judges
from zoo.claims import layerwise_methods as methods
from zoo.lab.ledger import Experiment, Judge

Row = dict[str, Any]

STEPS = {"full": (1000, 3000), "smoke": (100,)}  # of every phase


def net(data: str, method: str, seed: int, *, budget: str, batch: int, **place: Any) -> Row:
    """A cell of the search; equal seeds are equal configurations, whatever the method."""
    drawn = methods.configuration(seed, steps=STEPS[budget])
    return {"data": data, "split": 0, "repeat": 0, "method": method, "batch": batch, **drawn, **place}


def tea_cells(budget: str) -> list[Row]:
    """Tea in thirds: 7 configurations of every method on each of 6 splits."""
    splits, nets = (6, 7) if budget == "full" else (2, 2)
    return [
        net("tea", method, 100 * split + i, budget=budget, batch=81, split=split)
        for split in range(splits)
        for i in range(nets)
        for method in methods.METHODS
    ]


def nltcs_cells(budget: str) -> list[Row]:
    """NLTCS on its one split: the search repeated five times, 4 configurations of every method each time.

    None at the smoke budget, which needs no file.
    """
    repeats, nets = (5, 4) if budget == "full" else (0, 0)
    return [
        net("nltcs", method, 10_000 + 100 * repeat + i, budget=budget, batch=128, repeat=repeat)
        for repeat in range(repeats)
        for i in range(nets)
        for method in methods.METHODS
    ]


def price_cells(budget: str) -> list[Row]:
    """Random worlds for the guarantee."""
    return [{"check": "prices", "cases": 4000 if budget == "full" else 400, "steps": 20_000}]


def floor_cells(budget: str) -> list[Row]:
    """Independent bits on the data of the search; NLTCS, which is a file, at the full budget only."""
    cells = [{"check": "baselines", "data": "tea", "splits": 6}, {"check": "baselines", "data": "nltcs", "splits": 1}]
    return cells if budget == "full" else cells[:1]


EXPERIMENTS = {
    "prices": Experiment(price_cells, checks.measure),
    "baselines": Experiment(lambda budget: [{"check": "baselines", "data": "tea", "splits": 20}], checks.measure),
    "crop": Experiment(lambda budget: [{"check": "baselines", "data": "mnist_crop", "splits": 3}], checks.measure),
    "floors": Experiment(floor_cells, checks.measure),
    "perfect": Experiment(
        lambda budget: [{"check": "perfect", "gain": g, "coupling": B} for g, B in ((20.0, 10.0), (40.0, 20.0))],
        checks.measure,
    ),
    "tea": Experiment(tea_cells, methods.measure, slow=True, version=2),
    "nltcs": Experiment(nltcs_cells, methods.measure, slow=True, version=2),
}


JUDGES = {
    "C1": Judge(judges.guarantee, "prices", "tea", "nltcs"),
    "C2": Judge(judges.lower_bounds, "tea", "nltcs"),
    "C3": Judge(judges.ranking, "tea", "nltcs", "floors"),
    "C4": Judge(
        partial(judges.beats, pairs=[("AERI", "AE")], more=[("AERI, bound", "AE, bound")]),
        "tea",
        "nltcs",
    ),
    "C5": Judge(judges.layers_selected, "tea", "nltcs"),
    "C6": Judge(judges.tea_baselines, "baselines", "perfect"),
    "C7": Judge(judges.crop_baselines, "crop"),
    "C8": Judge(judges.depth_pays, "tea"),
    "C9": Judge(judges.pessimistic, "tea", "nltcs"),
    "C10": Judge(judges.overfits, "tea", "nltcs"),
    "C11": Judge(judges.far_better, "tea", "baselines"),
}

TABLES = {"search": judges.search_table}

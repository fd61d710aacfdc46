"""Data sets by name or file, split as the benchmark splits them: `train, valid, test = load("yacht", split=3)`.

Known names are in `catalogue()`: sets embedded in scikit-learn, and the UCI regression benchmark found through the
environment variable `ZOO_DATA`. A path to a CSV, TSV or parquet file is a user's own set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd

from zoo.lab import frames, sources
from zoo.lab.frames import Transform, read
from zoo.lab.sources import catalogue
from zoo.lab.tables import Batch, Batches, DataError, Split, Table

__all__ = ["Batch", "Batches", "DataError", "Split", "Table", "Transform", "catalogue", "load", "read", "splits"]


def splits(n_rows: int, rounds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The 90/10 splits of the UCI regression benchmark, index for index.

    One generator with a fixed seed is drawn on in sequence, so split k needs the k before it.

    Args:
        n_rows: rows of the data set; the splits depend on nothing else.
        rounds: how many splits to yield, 20 in the benchmark (protein 5).

    Yields:
        (train, test) row indices, shapes (round(0.9 n),) and the rest.

    Reference: Hernandez-Lobato and Adams 2015; Gal and Ghahramani 2016.
    """
    random = np.random.RandomState(1)
    for _ in range(rounds):
        order = random.choice(n_rows, n_rows, replace=False)
        cut = round(0.9 * n_rows)
        yield order[:cut], order[cut:]


def load(
    name: str | os.PathLike[str],
    *,
    split: int = 0,
    target: str | None = None,
    valid: float = 0.0,
    features: Sequence[str] | None = None,
) -> Split:
    """One split of a data set as tables of `x` (n, D) and `y`.

    `x` has torch's default dtype: numeric columns minus the training mean, over the training standard deviation
    (ddof 0; 1 for a constant column); categorical columns as 0/1 per level seen in training; pixels (digits) in [0, 1].
    A numeric target is a regression, `y` (n, 1) raw in its own unit, even if it is an integer with few values; a text,
    boolean or categorical one is a classification, `y` int64 (n,) into the sorted `classes` of all rows.

    Args:
        name: a name of the catalogue, an alias, a folder on `ZOO_DATA` with the benchmark's layout, or a file.
        split: which split, from 0; every set has 20 but protein, which has 5.
        target: the target column of a file.
        valid: share of the training rows to cut off for selection. The benchmark has no such part: with one, refit
            on all training rows before scoring, or say that fewer were used.
        features: use these columns only, in this order; all but the target if not given.

    Raises:
        DataError: the data cannot be used as asked; the message names the thing and the mend.

    Example:
        >>> train, valid, test = load("diabetes", split=0)
        >>> train["x"].shape, test["y"].shape, valid
        (torch.Size([398, 10]), torch.Size([44, 1]), None)
    """
    raw = sources.fetch(os.fspath(name), target)
    if not 0 <= split < raw.splits:
        raise DataError(f"{raw.name}: split {split} is out of range; it has splits 0 to {raw.splits - 1}")
    frame = frames.select(raw.frame, raw.target, features, name=raw.name)
    frames.check(frame, name=raw.name)
    rows = _parts(len(frame), split, valid)
    whole = _whole(raw, frame, rows["train"])
    parts = {part: _part(whole, part, index, split) for part, index in rows.items()}
    return Split(parts["train"], parts.get("valid"), parts["test"])


def _parts(n_rows: int, split: int, valid: float) -> dict[str, np.ndarray]:
    train, test = next(islice(splits(n_rows, split + 1), split, None))
    if valid == 0:
        return {"train": train, "test": test}
    cut = len(train) - round(valid * len(train))  # the order is random already
    if not 0 < cut < len(train):
        raise DataError(f"valid={valid} leaves no rows to train on or to validate on; give a share between 0 and 1")
    return {"train": train[:cut], "valid": train[cut:], "test": test}


def _whole(raw: sources.Raw, frame: pd.DataFrame, train: np.ndarray) -> Table:
    x, y = frame.iloc[:, :-1], frame.iloc[:, -1]
    if y.iloc[train].nunique() < 2:
        raise DataError(
            f"{raw.name}: the target {y.name!r} is constant ({y.iloc[train[0]]}) on the training rows: "
            "nothing to learn; choose another target"
        )
    columns = [str(column) for column in x]
    transform = Transform.rescale(columns, raw.divisor) if raw.divisor else Transform.fit(x.iloc[train])
    answer, classes = frames.target_tensor(y)
    units = {"x": "pixel intensity, 0 to 1" if raw.divisor else "training standard deviations; categories 0/1"}
    return Table(
        {"x": transform.apply(x), "y": answer},
        name=raw.name,
        units={**units, "y": "class index" if classes else raw.unit},
        provenance=raw.provenance,
        columns=transform.names,
        classes=classes,
        transform=transform,
    )


def _part(whole: Table, part: str, index: np.ndarray, split: int) -> Table:
    provenance = f"{whole.provenance}; split {split}, {part}, {len(index)} rows"
    return replace(whole.subset(index), provenance=provenance)

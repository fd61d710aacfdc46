"""Data sets by name or file, split as their protocols split them: `train, valid, test = load("yacht", split=3)`.

Known names are in `catalogue()`: sets embedded in scikit-learn, generated ones, the UCI regression benchmark, pictures
and published tables. Files are looked for in the folders of the environment variable `ZOO_DATA`, then among the
downloads (`ZOO_CACHE`, or the user's cache directory). A path to a CSV, TSV or parquet file is a user's own set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from zoo.lab import sources
from zoo.lab.frames import Transform
from zoo.lab.partitions import splits
from zoo.lab.raw import Source, Targets
from zoo.lab.readers import read
from zoo.lab.sources import catalogue, obtain
from zoo.lab.tables import Batch, Batches, DataError, Split, Table

SPLITS = 5  # of a comparison, where the set has as many

__all__ = [
    "Batch",
    "Batches",
    "DataError",
    "Split",
    "Table",
    "Transform",
    "catalogue",
    "load",
    "load_x",
    "obtain",
    "read",
    "rounds",
    "splits",
]


def load(
    name: str | os.PathLike[str],
    *,
    split: int = 0,
    target: Targets = None,
    valid: float = 0.0,
    features: Sequence[str] | None = None,
    download: bool = False,
) -> Split:
    """One split of a data set as tables of `x` (n, D) and `y`.

    `x` has torch's default dtype: numeric columns minus the training mean, over the training standard deviation
    (ddof 0; 1 for a constant column); categorical columns as 0/1 per level seen in training; pixels in [0, 1]; binary
    variables 0 or 1. A numeric target is a regression, `y` (n, K) raw in its own unit, K targets, even if it is an
    integer with few values; a text, boolean or categorical one is a classification, `y` int64 (n,) into the sorted
    `classes` of all rows. Sets of the kinds "density" and "generated" have no `y`, "compositions" no `x`.

    Splits: the benchmark's 90/10 splits of the rows. Where rows are copies (tecator, collagen, chemcam) or of one
    person (olivetti), of the groups. mnist has its own test part, and `valid=1/6` cuts off the last 10,000 training
    images; nltcs has its own three parts; tea has random thirds, seeded by `split`; bars and stripes are not split.

    Args:
        name: a name of the catalogue, an alias, a folder on `ZOO_DATA` with the benchmark's layout, or a file.
        split: which split, from 0; most sets have 20, protein 5, mnist, nltcs and bars and stripes 1.
        target: the target column of a file, or several numeric ones; for tecator one or two of its three targets; for
            olivetti "person".
        valid: share of the training rows to cut off for selection. The benchmark has no such part: with one, refit
            on all training rows before scoring, or say that fewer were used.
        features: use these columns only, in this order; all but the target if not given.
        download: fetch a set that is not on this machine into the cache, checked by SHA256.

    Raises:
        DataError: the data cannot be used as asked; the message names the thing and the mend.

    Example:
        >>> train, valid, test = load("diabetes", split=0)
        >>> train["x"].shape, test["y"].shape, valid
        (torch.Size([398, 10]), torch.Size([44, 1]), None)
        >>> load("tea", split=3).valid
        Table('tea', N=81, x=(81, 100))
    """
    return _split(sources.fetch(os.fspath(name), download=download).chosen(target, features), split, valid)


def load_x(
    name: str | os.PathLike[str],
    *,
    split: int = 0,
    target: Targets = None,
    valid: float = 0.0,
    features: Sequence[str] | None = None,
    download: bool = False,
) -> Split:
    """One split of `x` alone, for a model of its density; arguments and splits as in `load`.

    Columns of a table that all lie in [0, 1] stay as they are, else all are standardised, and the provenance says so. A
    file of the user's own needs no target: every column is x. With one that column is left out, and that is said too.

    Raises:
        DataError: see `load`.
    """
    return _split(sources.fetch(os.fspath(name), download=download).alone(target, features), split, valid)


def _split(found: Source, split: int, valid: float) -> Split:
    if not 0 <= split < found.parts.rounds:
        there = f"splits 0 to {found.parts.rounds - 1}" if found.parts.rounds > 1 else "one split, 0"
        raise DataError(f"{found.name}: split {split} is out of range; it has {there}")
    tables = found.tables(found.parts.rows(split, valid), split)
    return Split(tables["train"], tables.get("valid"), tables["test"])


def rounds(name: str | os.PathLike[str], *, target: Targets = None) -> int:
    """How many splits a set has.

    Raises:
        DataError: see `load`.
    """
    found = sources.fetch(os.fspath(name), download=False)
    return (found if target is None else found.chosen(target, None)).parts.rounds

"""How the rows of a data set become training, validation and test rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from zoo.lab.tables import DataError

Rows = dict[str, np.ndarray]


class Partition(Protocol):
    """A protocol of splitting: `rounds` splits, and the row indices of the parts "train", "valid" and "test"."""

    @property
    def rounds(self) -> int: ...

    def rows(self, split: int, valid: float) -> Rows: ...


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


@dataclass(frozen=True, eq=False)
class Grouped:
    """The benchmark's 90/10 splits of groups of rows: a group is never on both sides.

    With every row a group of its own (`Grouped.single(n)`) these are the benchmark's splits of the rows.

    Attributes:
        groups: the group of each row, integers 0 to G-1, shape (n,).
        rounds: how many splits there are.
    """

    groups: np.ndarray
    rounds: int = 20

    @classmethod
    def single(cls, n_rows: int, rounds: int = 20) -> Grouped:
        """Every row is a group of its own."""
        return cls(np.arange(n_rows), rounds)

    @classmethod
    def equal(cls, values: np.ndarray) -> Grouped:
        """Rows with equal values (n, D) are one group, so that no copy of a test row is trained on."""
        return cls(np.unique(values, axis=0, return_inverse=True)[1].reshape(-1))

    def rows(self, split: int, valid: float) -> Rows:
        """Row indices by part; `valid` is the share of the training groups that is cut off for validation.

        Raises:
            DataError: the share leaves nothing to train on or to validate on.
        """
        n_groups = int(self.groups.max()) + 1
        train, test = next(islice(splits(n_groups, split + 1), split, None))
        cut = _cut(len(train), valid)
        place = np.argsort(np.concatenate([train, test]))[self.groups]  # where the row's group stands in the order
        order = np.argsort(place, kind="stable")
        return _named(order, np.searchsorted(place[order], [cut, len(train)]), valid)


@dataclass(frozen=True)
class Fixed:
    """One split, made by the source: its parts stand one after another.

    Attributes:
        sizes: part -> number of rows, in the order of the rows. Without a part "valid", a validation share is cut off
            the end of the training rows: MNIST's usual last 10,000 are valid=1/6.
    """

    sizes: Mapping[str, int]
    rounds: int = 1

    def rows(self, split: int, valid: float) -> Rows:
        """Row indices by part.

        Raises:
            DataError: a share is asked for where the source has a validation part, or it leaves no rows.
        """
        ends = np.cumsum(list(self.sizes.values()))
        order = np.arange(ends[-1])
        if "valid" in self.sizes:
            _refuse_share(valid)
            return dict(zip(self.sizes, np.split(order, ends[:-1]), strict=True))
        return _named(order, [_cut(self.sizes["train"], valid), ends[0]], valid)


@dataclass(frozen=True)
class Thirds:
    """Training, validation and test thirds of a random permutation whose seed is the number of the split."""

    n_rows: int
    rounds: int = 20

    def rows(self, split: int, valid: float) -> Rows:
        """Row indices by part, a third each.

        Raises:
            DataError: a validation share is asked for.
        """
        _refuse_share(valid)
        order = np.random.default_rng(split).permutation(self.n_rows)
        return dict(zip(("train", "valid", "test"), np.array_split(order, 3), strict=True))


@dataclass(frozen=True)
class Population:
    """No split: the rows are all there are, so that training and test rows are both the whole set."""

    n_rows: int
    rounds: int = 1

    def rows(self, split: int, valid: float) -> Rows:
        """Every row, twice.

        Raises:
            DataError: a validation share is asked for.
        """
        _refuse_share(valid)
        return {"train": np.arange(self.n_rows), "test": np.arange(self.n_rows)}


def _cut(n_train: int, valid: float) -> int:
    cut = n_train - round(valid * n_train)
    if valid and not 0 < cut < n_train:
        raise DataError(f"valid={valid} leaves no rows to train on or to validate on; give a share between 0 and 1")
    return cut


def _named(order: np.ndarray, bounds: np.ndarray | list[int], valid: float) -> Rows:
    train, held_out, test = np.split(order, bounds)
    return {"train": train, **({"valid": held_out} if valid else {}), "test": test}


def _refuse_share(valid: float) -> None:
    if valid:
        raise DataError(f"valid={valid}: the parts of this set are fixed; leave valid out")

"""Data frames on their way to tensors: columns chosen, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.lab.tables import DataError

_NUMBER_KINDS = {"integer", "floating", "mixed-integer-float", "decimal"}


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word, or an empty string if none is near.

    Example:
        >>> nearest("yach", ["yacht", "boston"])
        " (did you mean 'yacht'?)"
    """
    near = get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def select(frame: pd.DataFrame, targets: Sequence[str], features: Sequence[str] | None, *, name: str) -> pd.DataFrame:
    """The feature columns and, last, the targets.

    Raises:
        DataError: a column is unknown, a target is among the features, or no feature is left.
    """
    columns = [str(column) for column in frame.columns]
    chosen = [column for column in columns if column not in targets] if features is None else list(features)
    for column in (*targets, *chosen):
        if column not in columns:
            raise DataError(f"{name}: no column {column!r}{nearest(column, columns)}; it has {', '.join(columns)}")
    both = [target for target in targets if target in chosen]
    if both:
        raise DataError(f"{name}: the target {both[0]!r} is also among the features; leave it out there")
    if not chosen:
        raise DataError(f"{name}: no feature columns beside the target {', '.join(map(repr, targets))}; add some")
    return frame.set_axis(columns, axis=1)[[*chosen, *targets]]


def check_cells(frame: pd.DataFrame, *, name: str) -> None:
    """Refuse NaN, empty and infinite cells, naming columns and rows (the first data row is 1).

    Raises:
        DataError: there are such cells.
    """
    bad = {str(column): np.flatnonzero(_unusable(frame[column])) + 1 for column in frame}
    found = [f"{column} (rows {listed(rows)})" for column, rows in bad.items() if len(rows)]
    if found:
        raise DataError(
            f"{name}: NaN, empty or infinite cells in {listed(found)}; fill them in or drop the rows (`dropna`)"
        )


def is_number(column: pd.Series) -> bool:
    """True if a column's cells are real numbers, false if they are levels (text, booleans, categories)."""
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(column):
        return False
    return pd.api.types.infer_dtype(column, skipna=True) in _NUMBER_KINDS


def _unusable(column: pd.Series) -> np.ndarray:
    missing = column.isna().to_numpy(dtype=bool)
    return missing | np.isinf(numbers(column)) if is_number(column) else missing


def numbers(column: pd.Series) -> np.ndarray:
    """A column of numbers as float64 (n,), missing cells as NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def listed(items: Sequence[Any] | np.ndarray) -> str:
    """The first five items, and how many more there are."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(str(item) for item in items[:5]) + more


def level_names(column: pd.Series) -> tuple[str, ...]:
    """The distinct values of a column, sorted, as text."""
    values = list(pd.unique(column.astype(object)))
    try:
        values.sort()
    except TypeError:  # mixed kinds have no order of their own
        values.sort(key=str)
    return tuple(dict.fromkeys(str(value) for value in values))


def codes(column: pd.Series, levels: Sequence[str]) -> np.ndarray:
    """The index of each cell's level, -1 for a level not among them; int64 (n,)."""
    cells = pd.Index(column.astype(object).map(str), dtype=object)
    return pd.Index(list(levels), dtype=object).get_indexer(cells).astype(np.int64)


def target_tensor(column: pd.Series) -> tuple[Tensor, tuple[str, ...] | None]:
    """The target and its classes: numbers (n, 1) in their own unit and None, or class indices (n,) and sorted names.

    Numbers are always regression, however few distinct values they have; make them text to mean classes.
    """
    if is_number(column):
        return torch.tensor(numbers(column)[:, None], dtype=torch.get_default_dtype()), None
    classes = level_names(column)
    return torch.as_tensor(codes(column, classes)), classes


def targets_tensor(columns: pd.DataFrame, *, name: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """One target as `target_tensor` has it, or several numeric ones side by side, (n, K).

    Raises:
        DataError: several targets, and one of them is no number.
    """
    if columns.shape[1] == 1:
        return target_tensor(columns.iloc[:, 0])
    text = [str(column) for column in columns if not is_number(columns[column])]
    if text:
        raise DataError(f"{name}: several targets must be numbers, and {', '.join(text)} is text; choose one target")
    return torch.cat([target_tensor(columns[column])[0] for column in columns], 1), None


@dataclass(frozen=True, eq=False)
class Transform:
    """How feature columns become x: x = (encoded - mean) / sd, fitted on training rows.

    A numeric column is encoded as itself. A categorical one becomes one 0/1 column per training level, left unscaled
    (mean 0, sd 1), so that a level never seen in training is all zeros.

    Attributes:
        columns: feature columns of the source, in order.
        levels: categorical column -> its levels in the training rows, as text.
        mean: subtracted, shape (D,), float64.
        sd: divided by, shape (D,), float64; ddof 0, and 1 for a constant column.

    Example:
        >>> transform = Transform.fit(pd.DataFrame({"age": [1.0, 3.0], "sex": ["f", "m"]}))
        >>> transform.names
        ('age', 'sex=f', 'sex=m')
        >>> transform.apply(pd.DataFrame({"sex": ["m", "?"], "age": [2, 4]})).tolist()
        [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]
    """

    columns: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    mean: Tensor
    sd: Tensor

    @classmethod
    def fit(cls, frame: pd.DataFrame) -> Transform:
        """Means, standard deviations (ddof 0) and levels of the rows given."""
        columns = tuple(str(column) for column in frame.columns)
        levels = {column: level_names(frame[column]) for column in columns if not is_number(frame[column])}
        blocks = [_encoded(frame[column], levels.get(column)) for column in columns]
        raw = np.concatenate(blocks, axis=1)
        fixed = np.repeat([column in levels for column in columns], [block.shape[1] for block in blocks])
        constant = np.ptp(raw, axis=0) == 0  # by range: rounding leaves some constant columns a tiny deviation
        mean = np.where(fixed, 0.0, np.where(constant, raw[0], raw.mean(axis=0)))
        sd = np.where(fixed | constant, 1.0, raw.std(axis=0))
        return cls(columns, levels, torch.as_tensor(mean), torch.as_tensor(sd))

    @classmethod
    def rescale(cls, columns: Sequence[str], divisor: float) -> Transform:
        """Division by a known range instead of standardising, for pixels."""
        size = len(columns)
        mean, sd = torch.zeros(size, dtype=torch.float64), torch.full((size,), divisor, dtype=torch.float64)
        return cls(tuple(columns), {}, mean, sd)

    def raw(self) -> Transform:
        """The same columns and levels, unscaled."""
        return Transform(self.columns, self.levels, torch.zeros_like(self.mean), torch.ones_like(self.sd))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of x: the source's, or `column=level`."""
        return tuple(
            name
            for column in self.columns
            for name in ([f"{column}={level}" for level in self.levels[column]] if column in self.levels else [column])
        )

    def apply(self, frame: pd.DataFrame) -> Tensor:
        """Rows of x, shape (n, D), in torch's default dtype; further columns and a target are ignored.

        Raises:
            DataError: a column is missing, has unusable cells, or holds text where training had numbers.
        """
        missing = [column for column in self.columns if column not in frame]
        if missing:
            hint = nearest(missing[0], map(str, frame.columns))
            raise DataError(f"new rows: no column {listed(missing)}{hint}; add what is missing")
        frame = frame[list(self.columns)]
        check_cells(frame, name="new rows")
        text = [column for column in self.columns if column not in self.levels and not is_number(frame[column])]
        if text and len(frame):
            raise DataError(f"new rows: columns {', '.join(text)} were numbers in training, are text here; mend them")
        raw = np.concatenate([_encoded(frame[column], self.levels.get(column)) for column in self.columns], axis=1)
        return torch.as_tensor((raw - self.mean.numpy()) / self.sd.numpy(), dtype=torch.get_default_dtype())

    def to_dict(self) -> dict[str, Any]:
        """A JSON value; `from_dict` gives the same transform back, bit for bit."""
        levels = {column: list(names) for column, names in self.levels.items()}
        return {"columns": list(self.columns), "levels": levels, "mean": self.mean.tolist(), "sd": self.sd.tolist()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Transform:
        """The transform that `to_dict` described."""
        levels = {column: tuple(names) for column, names in value["levels"].items()}
        mean, sd = (torch.tensor(value[key], dtype=torch.float64) for key in ("mean", "sd"))
        return cls(tuple(value["columns"]), levels, mean, sd)


def _encoded(column: pd.Series, levels: Sequence[str] | None) -> np.ndarray:
    if levels is None:
        return numbers(column)[:, None]
    indicators = np.eye(len(levels) + 1)[:, :-1]  # the last row, reached by code -1, is all zeros
    return indicators[codes(column, levels)]

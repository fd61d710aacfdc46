"""Data before they are split: a frame of named columns, or arrays; each becomes the tables of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from zoo.lab import frames, screening
from zoo.lab.frames import Transform
from zoo.lab.partitions import Grouped, Partition, Rows
from zoo.lab.tables import DataError, Table

Targets = str | Sequence[str] | None


@dataclass(frozen=True)
class Frame:
    """A data set of named columns: x is standardised on the training rows, or rescaled.

    Attributes:
        targets: the target columns; () if the user has not said.
        unit: of the targets.
        partition: how it is split; None: 90/10, row by row.
        divisor: pixels are divided by this; None means that x is standardised.
        own: whether the columns are the user's, so that any of them may be the target.
        note: what was done to the source's columns, for the provenance.
        whole: whether x is all there is, for a model of its density: columns in [0, 1] are then left as they are.
    """

    frame: pd.DataFrame
    targets: tuple[str, ...]
    name: str = ""
    provenance: str = ""
    unit: str = ""
    partition: Partition | None = None
    divisor: float | None = None
    own: bool = False
    note: str = ""
    whole: bool = False

    @property
    def parts(self) -> Partition:
        return self.partition or Grouped.single(len(self.frame))

    def chosen(self, target: Targets, features: Sequence[str] | None) -> Frame:
        """The features and targets asked for, checked.

        Raises:
            DataError: they are not there, not allowed, or hold what is no number and no category.
        """
        targets = self._targets(target)
        if not targets:
            raise DataError(
                f"{self.name}: which column is the target? Give --target NAME (target='NAME' in Python), one of: "
                f"{', '.join(map(str, self.frame.columns))}"
            )
        frame = self._checked(targets, features)
        return replace(self, frame=frame, targets=targets, unit=self.unit or f"as in the column {', '.join(targets)}")

    def alone(self, target: Targets, features: Sequence[str] | None) -> Frame:
        """The set without targets: every column of an own file that is not named as one, or the features.

        Raises:
            DataError: see `chosen`.
        """
        targets = self._targets(target)
        frame = self._checked(targets, features).drop(columns=list(targets))
        note = f"without the column {', '.join(map(repr, targets))}" if self.own and targets else ""
        strange = next((column for column in frame if not _within(frame[column])), None)
        if strange is not None and not self.divisor:
            values = frames.numbers(frame[strange])
            value = values[(values < 0) | (values > 1)][0]
            note += f"{note and '; '}standardised, since column {str(strange)!r} holds {value:g}, outside [0, 1]"
        return replace(self, frame=frame, targets=(), note=note, whole=True)

    def _checked(self, targets: tuple[str, ...], features: Sequence[str] | None) -> pd.DataFrame:
        frame = self.frame.drop(columns=[column for column in self.targets if column not in targets])
        frame = frames.select(frame, targets, features, name=self.name)
        screening.check(frame, name=self.name)
        return frame

    def _targets(self, target: Targets) -> tuple[str, ...]:
        wanted = (target,) if isinstance(target, str) else tuple(target or self.targets)
        if self.own or set(wanted) <= set(self.targets):
            return wanted
        if len(self.targets) == 1:
            raise DataError(f"{self.name} has its own target, {self.targets[0]!r}; target= is for your own files")
        raise DataError(f"{self.name} has no target {wanted[0]!r}; choose among {', '.join(self.targets)}")

    def tables(self, rows: Rows, split: int) -> dict[str, Table]:
        """The parts, with x as the training rows scale it.

        Raises:
            DataError: the target is constant on the training rows.
        """
        whole = self._whole(rows["train"])
        return {part: _named(whole.subset(index), part, split) for part, index in rows.items()}

    def _whole(self, train: np.ndarray) -> Table:
        x, y = self.frame.drop(columns=list(self.targets)), self.frame[list(self.targets)]
        for column in y:
            _check_varies(y[column].iloc[train], name=self.name)
            _check_resolved(y[column].iloc[train], name=self.name)
        transform, unit = self._transform(x, train)
        table = Table(
            {"x": transform.apply(x)},
            name=self.name,
            units={"x": unit},
            provenance="; ".join(filter(None, [self.provenance, self.note])),
            columns=transform.names,
            transform=transform,
        )
        if not self.targets:
            return table
        answer, classes = frames.targets_tensor(y, name=self.name)
        units = {**table.units, "y": "class index" if classes else self.unit}
        return replace(table, tensors={**table.tensors, "y": answer}, units=units, classes=classes)

    def _transform(self, x: pd.DataFrame, train: np.ndarray) -> tuple[Transform, str]:
        if self.divisor:
            return Transform.rescale([str(column) for column in x], self.divisor), "pixel intensity, 0 to 1"
        fitted = Transform.fit(x.iloc[train])
        if self.whole and all(_within(x[column]) for column in x):
            return fitted.raw(), "as in the file, 0 to 1"
        return fitted, "training standard deviations; categories 0/1"


def _within(column: pd.Series) -> bool:
    """Whether a column can be pixels as it is: numbers in [0, 1], or levels, which become 0/1."""
    return not frames.is_number(column) or bool(column.between(0, 1).all())


@dataclass(frozen=True)
class Arrays:
    """A data set that is arrays already: pixels, binary variables, compositions. Floats are made part by part.

    Attributes:
        tensors: "x" (n, D), "y", or both, in any number type; an integer "y" is a class index.
        divisor: x is divided by this: 255 brings bytes to [0, 1].
        units: name -> unit.
        note: what was done to the source's rows, for the provenance.
        labelled: target name -> the set to take if that target is asked for.
    """

    tensors: Mapping[str, np.ndarray]
    parts: Partition
    units: Mapping[str, str]
    name: str = ""
    provenance: str = ""
    divisor: float = 1.0
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    note: str = ""
    labelled: Mapping[str, Arrays] = field(default_factory=dict)

    def chosen(self, target: Targets, features: Sequence[str] | None) -> Arrays:
        """The set with the target asked for.

        Raises:
            DataError: features are chosen, or the target is not one of this set's.
        """
        if features is not None:
            raise DataError(f"{self.name}: features= chooses columns of a table with names; leave it out here")
        if target is None:
            return self
        if not isinstance(target, str) or target not in self.labelled:
            known = ", ".join(self.labelled) or "leave target out"
            raise DataError(f"{self.name} has no target {target!r} to choose; {known}")
        return replace(self.labelled[target], name=self.name, provenance=self.provenance)

    def alone(self, target: Targets, features: Sequence[str] | None) -> Arrays:
        """The set without its target.

        Raises:
            DataError: see `chosen`; the set has no x.
        """
        found = self.chosen(target, features)
        if "x" not in found.tensors:
            raise DataError(f"{self.name} has no 'x', only {', '.join(found.tensors)}; choose data that have it")
        return replace(found, tensors={"x": found.tensors["x"]}, classes=None)

    def tables(self, rows: Rows, split: int) -> dict[str, Table]:
        """The parts; x in torch's default dtype."""
        return {part: self._part(part, index, split) for part, index in rows.items()}

    def _part(self, part: str, index: np.ndarray, split: int) -> Table:
        tensors = {key: self._tensor(key, values[index]) for key, values in self.tensors.items()}
        table = Table(
            tensors,
            name=self.name,
            units=self.units,
            provenance="; ".join(filter(None, [self.provenance, self.note])),
            columns=self.columns,
            classes=self.classes,
            transform=Transform.rescale(self.columns, self.divisor) if "x" in tensors else None,
        )
        return _named(table, part, split)

    def _tensor(self, key: str, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if key == "x":
            return (tensor / self.divisor).to(torch.get_default_dtype())  # bytes become floats in the division, once
        return tensor.to(torch.get_default_dtype() if tensor.is_floating_point() else torch.int64)


Source = Frame | Arrays


def _check_varies(column: pd.Series, *, name: str) -> None:
    if column.nunique() < 2:
        raise DataError(
            f"{name}: the target {column.name!r} is constant ({column.iloc[0]}) on the training rows: nothing to "
            "learn; choose another target"
        )


def _check_resolved(column: pd.Series, *, name: str) -> None:
    """Julian days vary in the eighth digit: in single precision they would be a constant."""
    dtype = torch.get_default_dtype()
    if not frames.is_number(column):
        return
    values = frames.numbers(column)
    if np.abs(values).max() * torch.finfo(dtype).eps > 1e-3 * values.std():
        raise DataError(
            f"{name}: the target {column.name!r} varies by {values.std():.3g} around {values.mean():.9g}, which "
            f"{str(dtype).removeprefix('torch.')} cannot tell apart; subtract a constant, or use --dtype float64"
        )


def _named(table: Table, part: str, split: int) -> Table:
    provenance = f"{table.provenance}; split {split}, {part}, {len(table)} rows"
    return replace(table, provenance=provenance)

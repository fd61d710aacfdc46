"""Named tensors with one row per datum, and the batches, subsets and splits taken from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from zoo.lab.frames import Transform

Batch = dict[str, Tensor]


class DataError(ValueError):
    """Data that cannot be used: one line that names the thing and how to mend it."""


class Batches:
    """Shuffled batches of a table: iterate as often as you like, each time in a new order.

    The order is a function of the pair (seed, epoch) alone; the global random state is neither read nor moved.
    Every iteration started takes the current epoch and moves on to the next one, so a plain loop reshuffles; a loop
    that counts its own epochs (and may resume) calls `set_epoch` first, as with torch's `DistributedSampler`.
    The last short batch is kept.

    Attributes:
        epoch: the epoch that the next iteration will serve.
    """

    def __init__(self, tensors: Mapping[str, Tensor], size: int, *, seed: int) -> None:
        if size < 1:
            raise DataError(f"a batch of {size} rows is impossible: give a size of 1 or more")
        if seed < 0:
            raise DataError(f"seed {seed} is negative: give 0 or more")
        self.tensors, self.size, self.seed, self.epoch = dict(tensors), size, seed, 0
        self.rows = len(next(iter(self.tensors.values())))

    def __len__(self) -> int:
        """Number of batches in one epoch."""
        return -(-self.rows // self.size)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration serve `epoch` (counted from 0)."""
        self.epoch = epoch

    def order(self, epoch: int) -> Tensor:
        """The row order of an epoch: a permutation, shape (N,), on the CPU."""
        # SeedSequence mixes the pair; seed + epoch would give neighbouring seeds the same orders, shifted.
        mixed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(mixed))

    def __iter__(self) -> Iterator[Batch]:
        order = self.order(self.epoch)
        self.epoch += 1  # here, not in the generator: two iterations open at once are two epochs
        return self._serve(order)

    def _serve(self, order: Tensor) -> Iterator[Batch]:
        device = next(iter(self.tensors.values())).device
        for rows in order.to(device).split(self.size):
            yield {name: tensor[rows] for name, tensor in self.tensors.items()}


@dataclass(frozen=True, eq=False)
class Table:
    """Named tensors with one row per datum, and what is known about them.

    A family with free parameters per datum wants a tensor `index`:
    `dataclasses.replace(table, tensors={**table.all(), "index": torch.arange(table.N)})`.

    Attributes:
        tensors: name -> tensor whose first dimension is N; arrays are accepted.
        name: the data set's name, as results show it.
        units: tensor name -> unit of its values.
        provenance: where the rows come from, with split and checksum where there are any.
        columns: names of the columns of `x`.
        classes: names of the classes that an integer `y` indexes; None for regression.
        transform: how a row of the source becomes a row of `x`; None if it does not apply.

    Raises:
        DataError: there is no tensor, or the first dimensions differ; a tensor is asked for that is not there.

    Example:
        >>> table = Table({"x": torch.zeros(5, 2), "y": torch.arange(5)}, name="five")
        >>> len(table), [len(batch["y"]) for batch in table.batches(2, seed=0)]
        (5, [2, 2, 1])
        >>> table.subset([0, 4])["y"]
        tensor([0, 4])
    """

    tensors: Mapping[str, Tensor]
    name: str = field(kw_only=True)
    units: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    provenance: str = field(default="", kw_only=True)
    columns: Sequence[str] = field(default=(), kw_only=True)
    classes: Sequence[str] | None = field(default=None, kw_only=True)
    transform: Transform | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        tensors = {name: torch.as_tensor(value) for name, value in self.tensors.items()}
        rows = {name: len(tensor) if tensor.ndim else None for name, tensor in tensors.items()}
        if len(set(rows.values())) != 1 or None in rows.values():
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "no tensor"
            raise DataError(f"table {self.name!r} wants tensors with the same number of rows, got {found}")
        object.__setattr__(self, "tensors", tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def N(self) -> int:
        """Number of rows."""
        return len(self)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise DataError(f"{self.name} has no {name!r}, only {', '.join(self.tensors)}; choose data that have it")
        return self.tensors[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={tuple(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"Table({self.name!r}, N={self.N}, {shapes})"

    def all(self) -> Batch:
        """Every row, as one batch."""
        return dict(self.tensors)

    def peek(self) -> Batch:
        """The first rows, eight at most: a prototype batch."""
        return {name: tensor[:8] for name, tensor in self.tensors.items()}

    def batches(self, size: int, *, seed: int) -> Batches:
        """Shuffled batches of `size` rows; see `Batches`."""
        return Batches(self.tensors, size, seed=seed)

    def subset(self, index: Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Table:
        """The rows of an index or of a boolean mask (N,), in that order, with the same metadata."""
        rows = torch.as_tensor(index)
        rows = rows if rows.dtype is torch.bool else rows.long()  # long: an empty list would arrive as floats
        return replace(self, tensors={name: tensor[rows.to(tensor.device)] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Table:
        """The table on a device, and its floating tensors in a dtype; class indices keep theirs."""
        return replace(self, tensors={name: _moved(tensor, device, dtype) for name, tensor in self.tensors.items()})


class Split(NamedTuple):
    """The parts of one split of a data set; `valid` is None where the protocol cuts none."""

    train: Table
    valid: Table | None
    test: Table


def row_pieces(batch: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The batch some rows at a time; what has no rows goes with every piece."""
    n = max((len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()), default=0)
    for begun in range(0, n, size):
        yield {
            key: value[begun : begun + size] if isinstance(value, Tensor) and value.dim() and len(value) == n else value
            for key, value in batch.items()
        }


def _moved(tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    options: dict[str, Any] = {"device": device, "dtype": dtype if tensor.is_floating_point() else None}
    return tensor.to(**{name: option for name, option in options.items() if option is not None})

"""Checkpoints: one file that is either the previous one or the new one, whatever kills the training."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.lab.state import Stateful, pack, unpack

CHECKPOINT = "checkpoint.safetensors"
SCHEMA = 1  # of checkpoints and manifests
PARTIAL = ".partial"  # how the names of unfinished files end
KEY = "pyro-zoo"  # of our JSON in the metadata of a safetensors file

Schedule = Sequence[tuple[str, int]]


class RunError(ValueError):
    """A run folder or checkpoint that cannot be used or written; the text names the file and the mend."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        schedule: (name, epochs) of every stage.
        done: epochs done, over all stages.
        state: JSON and tensors by `pack`: {name of the part: its state dict}.
    """

    path: Path
    schedule: Schedule
    done: int
    state: Any
    tensors: Mapping[str, Tensor]

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.done >= sum(epochs for _, epochs in self.schedule)

    @property
    def place(self) -> str:
        """How far the training is, in words: the stage and the epoch within it."""
        begun = 0
        for name, epochs in self.schedule:
            if self.done < begun + epochs:
                return f"in {name!r} after epoch {self.done - begun} of {epochs}"
            begun += epochs
        return f"after the last epoch of {self.schedule[-1][0]!r}"

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Load every part's state.

        Raises:
            RunError: a part is missing, or its state does not fit.
        """
        states = self.states()
        for name, part in parts.items():
            if name not in states:
                raise RunError(f"{self.path} holds no state of {name!r}, only of {', '.join(states)}")
            try:
                part.load_state_dict(states[name])
            except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
                raise RunError(f"{self.path} does not fit the {name} of this run: {brief(error)}") from error

    def states(self) -> dict[str, Any]:
        """{name of the part: its state dict}.

        Raises:
            RunError: the file is damaged.
        """
        try:
            return dict(unpack(self.state, self.tensors))
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{self.path} is damaged ({brief(error)}); restore it or start anew") from error


@dataclass
class Checkpoints:
    """Where a training leaves its state, at the end of an epoch and not more often than `every` seconds.

    A new folder, or one without a checkpoint; `Checkpoints.resume` goes on from one.

    Args:
        folder: is made if it is not there.
        every: seconds between two checkpoints; the last epoch is always kept.

    Raises:
        RunError: the folder holds a checkpoint already.
    """

    folder: str | Path
    every: float = field(default=2.0, kw_only=True)
    saved: Saved | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.path = Path(self.folder) / CHECKPOINT
        self.written = time.monotonic()
        if self.saved is None and self.path.exists():
            raise RunError(f"{self.path} exists already: resume from it, or give a new folder")

    @classmethod
    def resume(cls, folder: str | Path, *, every: float = 2.0) -> Checkpoints:
        """Go on from the folder's checkpoint, or from the start where none was written yet.

        Raises:
            RunError: see `read`.
        """
        path = Path(folder) / CHECKPOINT
        for partial in path.parent.glob(f"*{PARTIAL}"):  # left by a process that was killed while it wrote
            partial.unlink(missing_ok=True)
        return cls(folder, every=every, saved=read(path) if path.exists() else None)

    def restore(self, parts: Mapping[str, Stateful], schedule: Schedule) -> int:
        """Load the state of every part, if there is a checkpoint; returns the epochs done.

        Raises:
            RunError: the checkpoint is of another training.
        """
        if self.saved is None:
            return 0
        if list(schedule) != list(self.saved.schedule):
            raise RunError(f"{self.path} is of the stages {_shown(self.saved.schedule)}, not of {_shown(schedule)}")
        self.saved.restore(parts)
        return self.saved.done

    def offer(self, parts: Mapping[str, Stateful], schedule: Schedule, done: int) -> None:
        """At the end of an epoch: write a checkpoint if it is time, or if this was the last epoch."""
        last = done >= sum(epochs for _, epochs in schedule)
        if last or time.monotonic() - self.written >= self.every:
            write(self.path, parts, schedule, done)
            self.written = time.monotonic()


def write(path: Path, parts: Mapping[str, Stateful], schedule: Schedule, done: int) -> None:
    """Write the state of every part; the previous checkpoint stays until the new one is complete.

    Raises:
        RunError: it cannot be written. StateError: see `pack`.
    """
    state, tensors = pack({name: part.state_dict() for name, part in parts.items()})
    about = {"schema": SCHEMA, "schedule": [list(stage) for stage in schedule], "done": done, "state": state}
    data = safetensors.torch.save(tensors, {KEY: json.dumps(about)})
    with replacing(path) as partial:
        partial.write_bytes(data)


def read(path: Path) -> Saved:
    """The checkpoint in a file.

    Raises:
        RunError: there is none; it is truncated, foreign, damaged, or written by a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is no complete safetensors file ({brief(error)}); restore it or start anew") from error
    if text is None:
        raise RunError(f"{path} is a safetensors file, but no checkpoint of pyro-zoo")
    about = parse(text, path)
    try:
        schedule = [(str(name), int(epochs)) for name, epochs in about["schedule"]]
        return Saved(path, schedule, int(about["done"]), about["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({brief(error)}); restore it or start anew") from error


def parse(text: str, path: Path) -> dict[str, Any]:
    """A JSON object with a schema version that this version of pyro-zoo reads.

    Raises:
        RunError: it is none.
    """
    try:
        value = json.loads(text)
        schema = int(value["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({brief(error)}); restore it or start anew") from error
    if schema > SCHEMA:
        raise RunError(
            f"{path} was written by a newer pyro-zoo (schema {schema}, this one reads up to {SCHEMA}): upgrade pyro-zoo"
        )
    return value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when it is complete and on the disk.

    Raises:
        RunError: it cannot be written; what stood at `path` stands there still.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
        with suppress(OSError):  # not every system opens folders
            _to_disk(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(f"{path} could not be written ({_reason(error)}); {_kept(path)}") from error
        raise


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kept(path: Path) -> str:
    return "the one before is kept" if path.exists() else "nothing was overwritten"


def _reason(error: OSError) -> str:
    mend = "; make room" if error.errno == errno.ENOSPC else ""
    return f"{os.strerror(error.errno) if error.errno else brief(error)}{mend}"  # HDF5 tells long stories


def brief(error: BaseException) -> str:
    """The first telling line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _shown(schedule: Schedule) -> str:
    return ", ".join(f"{name} ({epochs} epochs)" for name, epochs in schedule)

"""Cells of experiments: measured side by side, each kept in a file of its own as soon as it is finished."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from zoo.lab import files
from zoo.lab.checkpoints import replacing
from zoo.lab.training import seed

Row = dict[str, Any]


class CellError(ValueError):
    """Cells that cannot be measured as asked; the text says how to mend it."""


@dataclass(frozen=True)
class Experiment:
    """What is measured, and where.

    Attributes:
        cells: budget -> cells. A cell is a dict of JSON values that says everything `measure` needs: data, split,
            guide, steps, seed. Equal cells are measured once, whatever the budget.
        measure: cell -> measured values, JSON values under keys that the cell does not have. A function of a module;
            it starts in float32, on one thread, seeded with 0. A number that is not finite is kept as None.
        slow: the cells of the smoke budget take more than a minute together.
        version: raise it when what `measure` computes changes, so that older cells are not used again.
    """

    cells: Callable[[str], list[Row]]
    measure: Callable[[Row], Mapping[str, Any]]
    slow: bool = field(default=False, kw_only=True)
    version: int = field(default=1, kw_only=True)


@dataclass(frozen=True)
class Task:
    """One cell of an experiment of a paper, and the file that keeps what came out."""

    paper: str
    name: str
    experiment: Experiment
    cell: Row
    folder: Path

    @property
    def path(self) -> Path:
        """The file, named by a digest of paper, experiment, version and cell."""
        identity = [self.paper, self.name, self.experiment.version, self.cell]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()
        return self.folder / self.paper.replace(":", ".") / f"{self.name}-{digest[:20]}.json"

    def record(self) -> Row | None:
        """What the file says: `measured` or `failed`, `seconds`, `date`, `machine`; None if there is none."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):  # a broken file is a cell to be measured again
            return None

    def outdated(self) -> bool:
        """Whether the file was written by another text of the module of `measure` than it has now."""
        record = self.record()
        return record is not None and record.get("code") != code(self.experiment.measure)


def code(measure: Callable[..., Any]) -> str:
    """A digest of the text of the function's module; "" where there is none to be read."""
    try:
        text = inspect.getsource(inspect.getmodule(measure))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache() -> Path:
    """The folder that keeps cells where none is named, inside the cache of downloads."""
    return files.cache() / "cells"


def run(
    tasks: Sequence[Task], *, jobs: int = 1, done: Callable[[int, int], None] = lambda finished, total: None
) -> None:
    """Measure the cells that have no result yet, `jobs` at once, each on one thread.

    A cell that fails is recorded with its reason and stops no other; it is tried again by the next run. Whatever ends
    the run, finished cells are kept.

    Args:
        done: called with the numbers of finished and of all cells.

    Raises:
        CellError: a worker was ended from outside.
    """
    missing = [task for task in tasks if "measured" not in (task.record() or {})]
    finished = len(tasks) - len(missing)
    done(finished, len(tasks))
    if not missing:
        return
    parallel = Parallel(n_jobs=min(jobs, len(missing)), return_as="generator_unordered")
    try:
        for number, _ in enumerate(
            parallel(delayed(_keep)(task, code(task.experiment.measure)) for task in missing), finished + 1
        ):
            done(number, len(tasks))
    except TerminatedWorkerError as error:
        raise CellError(
            "a worker was ended from outside, perhaps for want of memory; finished cells are kept: run it again with "
            "fewer jobs"
        ) from error


def plain(value: Any, where: str = "the result") -> Any:
    """The value as JSON knows it: tensors and arrays as numbers and lists, numbers that are not finite as None.

    Raises:
        TypeError: what has no form in JSON.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, arrays, numpy's numbers
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{where} is {type(value).__name__}, which JSON does not know")


def write(path: Path, text: str) -> None:
    """Write the whole of a file or nothing of it.

    Raises:
        RunError: it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def machine() -> dict[str, str]:
    """Versions and processors, which belong beside every figure."""
    packages = {"pyro-zoo": "pyro-zoo", "pyro": "pyro-ppl", "torch": "torch"}
    found = {name: version(package) for name, package in packages.items()}
    return {**found, "python": platform.python_version(), "cpus": str(os.cpu_count())}


def _keep(task: Task, text: str) -> None:
    """Measure one cell and write what came out, in the worker: what is finished outlives whoever asked for it."""
    began = time.perf_counter()
    result = _measured(task.experiment, task.cell)
    about = {"paper": task.paper, "experiment": task.name, "version": task.experiment.version, "cell": task.cell}
    about["code"] = text
    cost = {"seconds": round(time.perf_counter() - began, 3), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    write(task.path, json.dumps({**about, **result, **cost, "machine": machine()}, allow_nan=False, indent=1))


def _measured(experiment: Experiment, cell: Row) -> Row:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)  # whatever the cell before left behind
    seed(0)
    try:
        found = plain(experiment.measure(dict(cell)))
        _refuse_overlap(found, cell)
        return {"measured": found}
    except Exception as error:  # whatever the reason, the other cells go on
        text = " ".join(str(error).split()) or "no message"
        return {"failed": text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"}
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def _refuse_overlap(found: Row, cell: Row) -> None:
    taken = sorted(found.keys() & {*cell, "experiment", "seconds"})
    if taken:
        raise CellError(f"what is measured has the key {taken[0]!r}, which is taken; give it another name")


def rows(tasks: Iterable[Task]) -> list[Row]:
    """What was measured: `experiment`, the cell's values, the measured ones and `seconds`, in the tasks' order."""
    found = ((task, task.record() or {}) for task in tasks)
    return [
        {"experiment": task.name, **task.cell, **record["measured"], "seconds": record["seconds"]}
        for task, record in found
        if "measured" in record
    ]

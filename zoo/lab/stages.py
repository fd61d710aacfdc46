"""Training in stages: `run` is the one loop, with its progress bar and its guard against what is not finite."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from zoo.lab.checkpoints import Checkpoints
from zoo.lab.checks import TrainingError
from zoo.lab.state import Randomness, Stateful

Batch = Mapping[str, Any]
Batches = Iterable[Batch]
Step = Callable[[Batch], Tensor]


class NonFiniteLoss(TrainingError):
    """The loss is not finite; the parameters are those before the step."""


@dataclass
class Stage:
    """One phase of training: `step(batch)` returns a loss to descend, or updates by itself and returns one to record.

    Attributes:
        step: called on every batch; with an optimiser its result (nats per datum) is differentiated.
        optimiser: steps after each batch; None if `step` does its own updates.
        scheduler: steps after each optimiser step.
        state: {name: what has a state dict}, of a `step` that does its own updates: its optimisers.
    """

    name: str
    step: Step
    batches: Batches
    epochs: int
    optimiser: torch.optim.Optimizer | None = None
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    after_step: Callable[[float], None] = lambda loss: None
    after_epoch: Callable[[], None] = lambda: None
    state: Mapping[str, Stateful] = field(default_factory=dict)


def run(
    stages: Sequence[Stage], *, state: Mapping[str, Stateful] | None = None, keep: Checkpoints | None = None
) -> None:
    """Run stages one after the other: one progress bar (on a terminal, once it takes longer than two seconds).

    Args:
        state: {name: what has a state dict and belongs to a checkpoint}: modules, callbacks. Optimisers, schedulers,
            the stages' own state and the global random states are added.
        keep: where checkpoints are written at the ends of epochs, and where to go on from. A resumed run ends with
            the very same parameters, if each epoch's batches are a function of the epoch or of the global random
            states.

    Raises:
        TrainingError: checkpoints of nothing. RunError: a checkpoint does not fit, or cannot be written.
    """
    if keep is not None and not state:
        raise TrainingError("checkpoints of what? say state={'model': model, ...}")
    parts = {**(state or {}), **_own_state(stages), "random": Randomness()}
    schedule = [(stage.name, stage.epochs) for stage in stages]
    done = keep.restore(parts, schedule) if keep else 0
    with Bar(sum(stage.epochs for stage in stages), done) as bar:
        for stage, epoch in _epochs(stages)[done:]:
            for batch in at_epoch(stage.batches, epoch):
                _take(stage, batch)
            stage.after_epoch()
            bar.advance(stage.name)
            if keep:
                keep.offer(parts, schedule, bar.done)


def _epochs(stages: Sequence[Stage]) -> list[tuple[Stage, int]]:
    return [(stage, epoch) for stage in stages for epoch in range(stage.epochs)]


def _own_state(stages: Sequence[Stage]) -> dict[str, Stateful]:
    parts: dict[str, Stateful | None] = {}
    for number, stage in enumerate(stages, 1):
        parts |= {f"optimiser {number}": stage.optimiser, f"scheduler {number}": stage.scheduler}
        parts |= {f"{name} {number}": part for name, part in stage.state.items()}
    return {name: part for name, part in parts.items() if part is not None}


def _take(stage: Stage, batch: Batch) -> None:
    if stage.optimiser is None:
        value = float(stage.step(batch))
        if not math.isfinite(value):
            raise NonFiniteLoss(f"{stage.name}: a step gave {value}; its own updates have been made")
        stage.after_step(value)
        return
    stage.optimiser.zero_grad()
    loss = stage.step(batch)
    loss.backward()
    gradients = [p.grad for group in stage.optimiser.param_groups for p in group["params"] if p.grad is not None]
    if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        raise NonFiniteLoss(f"{stage.name}: the gradient is not finite; parameters are those before the step")
    stage.optimiser.step()
    if stage.scheduler is not None:
        stage.scheduler.step()
    stage.after_step(loss.item())


def at_epoch(batches: Batches, epoch: int) -> Batches:
    """The batches of one epoch: of a shuffled loader the order is a function of its seed and the epoch."""
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(epoch)
    return batches


class Bar:
    """A progress bar over epochs or draws that appears after two seconds, on a terminal only."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.began = total, done, time.perf_counter()
        self.progress: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def advance(self, name: str) -> None:
        self.done += 1
        if self.progress is None and sys.stderr.isatty() and time.perf_counter() - self.began > 2:
            self.progress = Progress(console=Console(stderr=True), transient=True)
            self.task = self.progress.add_task(name, total=self.total)
            self.progress.start()
        if self.progress is not None:
            self.progress.update(self.task, description=name, completed=self.done)

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

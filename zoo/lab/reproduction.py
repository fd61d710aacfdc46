"""Reproduction: the cells that some claims need are measured, and each claim is judged."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from zoo.lab import cells
from zoo.lab.cells import Experiment, Task
from zoo.lab.ledger import BUDGETS, Claim, Entry, Judge, LedgerError, Verdict


def choose(paper: str, claims: Sequence[Claim], ids: Iterable[str] | None) -> list[Claim]:
    """The claims of these ids, or all of them.

    Raises:
        LedgerError: unknown id, with the nearest one; no id at all.
    """
    known = {claim.id: claim for claim in claims}
    wanted = list(known if ids is None else dict.fromkeys(ids))
    if ids is not None and not wanted:
        raise LedgerError(f"no claim of {paper} is named; there are: {', '.join(known) or 'none'}")
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise LedgerError(f"{paper} has no claim {name!r}; {hint}there are: {', '.join(known) or 'none'}")
    return [known[name] for name in wanted]


def reproduce(
    paper: str,
    claims: Sequence[Claim],
    *,
    experiments: Mapping[str, Experiment],
    judges: Mapping[str, Judge],
    budget: str,
    folder: Path,
    jobs: int = 1,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> dict[str, Entry]:
    """Measure what the claims need and judge them.

    Args:
        paper: the name under which cells are kept.
        folder: keeps the finished cells; those that are there already are not measured again.
        jobs: cells at once.
        done: called with the numbers of finished and of all cells.

    Returns:
        {claim id: entry} in the order of the claims. A claim some of whose cells failed is `not attempted`, and its
        summary says why: no verdict rests on a part of the evidence.

    Raises:
        LedgerError: unknown budget, a claim without a judge, an experiment that is not there, equal cells, a judge
            that failed.
    """
    if budget not in BUDGETS:
        raise LedgerError(f"no budget {budget!r}; there are: {', '.join(BUDGETS)}")
    needed = {claim.id: _experiments(claim, experiments, judges) for claim in claims}
    names = dict.fromkeys(name for chosen in needed.values() for name in chosen)
    tasks = {name: _tasks(paper, name, experiments[name], budget, folder) for name in names}
    cells.run([task for name in names for task in tasks[name]], jobs=jobs, done=done)
    return {
        claim.id: _entry(claim, judges[claim.id], [task for name in needed[claim.id] for task in tasks[name]], budget)
        for claim in claims
    }


def _experiments(claim: Claim, experiments: Mapping[str, Experiment], judges: Mapping[str, Judge]) -> tuple[str, ...]:
    if claim.id not in judges:
        raise LedgerError(f"claim {claim.id} has no judge; give it one, or `not_attempted(why)`")
    for name in judges[claim.id].experiments:
        if name not in experiments:
            raise LedgerError(f"claim {claim.id} needs the experiment {name!r}; there are: {', '.join(experiments)}")
    return judges[claim.id].experiments


def _tasks(paper: str, name: str, experiment: Experiment, budget: str, folder: Path) -> list[Task]:
    tasks = [Task(paper, name, experiment, cell, folder.resolve()) for cell in experiment.cells(budget)]
    if len({task.path for task in tasks}) < len(tasks):
        raise LedgerError(f"experiment {name!r} has equal cells at the budget {budget!r}; a cell names its seed too")
    return tasks


def _entry(claim: Claim, judge: Judge, tasks: Sequence[Task], budget: str) -> Entry:
    records = [task.record() or {"failed": "no result was kept"} for task in tasks]
    failures = [record["failed"] for record in records if "failed" in record]
    verdict = _verdict(claim, judge, tasks, failures)
    done = [record for record in records if "measured" in record]
    return {
        "statement": claim.statement,
        "source": claim.source,
        "number": claim.number,
        "budget": budget,
        "outcome": verdict.outcome,
        "summary": verdict.summary,
        "date": max((record["date"] for record in done), default=None),
        "cells": len(tasks),
        "failed": len(failures),
        "outdated": sum(task.outdated() for task in tasks),
        "seconds": round(sum(record["seconds"] for record in done), 1),
        "machine": _machines([record["machine"] for record in done]),
        "rows": cells.plain(verdict.rows),
    }


def _verdict(claim: Claim, judge: Judge, tasks: Sequence[Task], failures: Sequence[str]) -> Verdict:
    if failures:
        return Verdict("not attempted", f"{len(failures)} of {len(tasks)} cells failed: {failures[0]}")
    try:
        return judge.verdict(cells.rows(tasks))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise LedgerError(f"the judge of claim {claim.id} failed ({reason}); finished cells are kept") from error


def _machines(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Every version that took part."""
    keys = dict.fromkeys(key for machine in found for key in machine)
    return {key: ", ".join(sorted({machine[key] for machine in found if key in machine})) for key in keys}

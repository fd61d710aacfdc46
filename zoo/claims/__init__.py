"""The experiments that measure what the papers claim, one file per paper.

A file has `EXPERIMENTS`, name -> `Experiment`; `JUDGES`, claim id -> `Judge`; and, where a page shows its results,
`TABLES`, name -> a function from `{claim id: entry}` to markdown.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import zoo
from zoo.lab import cells, ledger, rendering, reproduction


def of(paper_name: str) -> ModuleType:
    """The file that measures a paper's claims; for a user's own `module:Model` the module itself.

    Raises:
        LedgerError: there is none.
        PaperError: no such paper.
    """
    zoo.paper(paper_name)
    if ":" in paper_name:
        found = zoo.own_module(paper_name.partition(":")[0])
    elif importlib.util.find_spec(f"{__name__}.{paper_name}") is None:
        raise ledger.LedgerError(f"no claim of {paper_name} is measured yet: there is no zoo/claims/{paper_name}.py")
    else:
        found = importlib.import_module(f"{__name__}.{paper_name}")
    if not (hasattr(found, "EXPERIMENTS") and hasattr(found, "JUDGES")):
        raise ledger.LedgerError(f"{found.__name__} measures no claims: it has no EXPERIMENTS and JUDGES")
    return found


def reproduce(
    paper_name: str,
    *,
    budget: str = "smoke",
    claims: Iterable[str] | None = None,
    jobs: int = 1,
    folder: Path | None = None,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> dict[str, dict[str, Any]]:
    """Measure a paper's claims, or some of them: {claim id: entry of the ledger}.

    Args:
        budget: "smoke" or "full".
        folder: keeps finished cells; the user's cache folder by default.
        jobs: cells measured at once, each on one thread.
        done: called with the numbers of finished and of all cells.

    Raises:
        LedgerError: unknown claim or budget, a claim without a judge.
    """
    measured = of(paper_name)
    return reproduction.reproduce(
        paper_name,
        reproduction.choose(paper_name, zoo.paper(paper_name).CLAIMS, claims),
        experiments=measured.EXPERIMENTS,
        judges=measured.JUDGES,
        budget=budget,
        folder=folder or cells.cache(),
        jobs=jobs,
        done=done,
    )


def table(found: ledger.Ledger, paper_name: str, name: str) -> str:
    """One of a paper's tables as markdown, from the ledger: one of its `TABLES`, or of those that every paper has.

    Raises:
        LedgerError: no such table, or nothing of the paper is in the ledger.
    """
    every: dict[str, rendering.Renderer] = {"claims": rendering.claims, "outcomes": rendering.outcomes}
    tables = every | getattr(of(paper_name), "TABLES", {})
    if name not in tables:
        raise ledger.LedgerError(f"{paper_name} has no table {name!r}; there are: {', '.join(tables)}")
    entries = found.entries(paper_name)
    if not entries:
        raise ledger.LedgerError(f"the ledger has nothing of {paper_name}; run zoo reproduce {paper_name}")
    return tables[name](entries)

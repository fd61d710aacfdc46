"""The ledger: what a paper claims, what was measured, and the verdict, kept in `ledger.json`.

A paper lists its `CLAIMS`. An experiment measures cells, a judge turns their rows into a verdict, and the ledger keeps
it beside the claim, for each budget: `smoke`, minutes and part of the tests, and `full`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.lab import cells
from zoo.lab.cells import Experiment, Row

__all__ = ["Claim", "Experiment", "Judge", "Ledger", "LedgerError", "Row", "Verdict", "find", "not_attempted"]

SOURCES = ("read in code", "cited", "abstract", "recalled", "derived", "checked", "measured", "unknown")
OUTCOMES = ("reproduced", "not reproduced", "confounded", "not attempted")
BUDGETS = ("smoke", "full")
SCHEMA = 1
NAME = "ledger.json"

Entry = dict[str, Any]


class LedgerError(ValueError):
    """A claim, a verdict or a ledger that does not hold together; the text says how to mend it."""


@dataclass(frozen=True)
class Claim:
    """What a paper claims, in our words.

    Attributes:
        source: where the statement is from, one of `SOURCES`.
        number: the paper's own figures as text; None where it gives none.

    Raises:
        LedgerError: no such source.
    """

    id: str
    statement: str
    source: str = field(kw_only=True)
    number: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise LedgerError(f"claim {self.id}: no source {self.source!r}; there are: {', '.join(SOURCES)}")

    @property
    def theorem(self) -> bool:
        """A statement that was proved or checked here, so that any other outcome than `reproduced` is a fault."""
        return self.source in ("derived", "checked")


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        outcome: one of `OUTCOMES`.
        summary: a sentence or two with the figures; for `confounded` the control that shows it, for `not attempted`
            why.
        rows: aggregated figures for tables, flat dicts of JSON values.

    Raises:
        LedgerError: no such outcome, or no summary.
    """

    outcome: str
    summary: str
    rows: Sequence[Row] = ()

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise LedgerError(f"no outcome {self.outcome!r}; there are: {', '.join(OUTCOMES)}")
        if not self.summary.strip():
            raise LedgerError(f"a verdict {self.outcome!r} without a summary says nothing; give the figures")


class Judge:
    """How the rows of some experiments become a verdict.

    Args:
        verdict: rows -> Verdict. A row has `experiment`, the cell's values, the measured ones and `seconds`; rows stand
            in the order of the experiments and of their cells.
        experiments: their names.
    """

    def __init__(self, verdict: Callable[[list[Row]], Verdict], *experiments: str) -> None:
        self.verdict, self.experiments = verdict, experiments


def not_attempted(why: str) -> Judge:
    """The judge of a claim that is not measured."""
    return Judge(lambda rows: Verdict("not attempted", why))


class Ledger:
    """Entries by paper, claim and budget; a budget's entry never replaces that of another.

    Attributes:
        papers: {paper: {claim id: {budget: entry}}}.
    """

    def __init__(self, papers: Mapping[str, Mapping[str, Mapping[str, Entry]]] | None = None) -> None:
        self.papers = {
            paper: {claim: dict(budgets) for claim, budgets in claims.items()}
            for paper, claims in (papers or {}).items()
        }

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """The ledger in a file; an empty one if there is no file.

        Raises:
            LedgerError: the file is no ledger of this schema.
        """
        if not path.exists():
            return cls()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            schema, papers = found["schema"], found["papers"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise LedgerError(f"{path} is no ledger ({error}); move it away, or name another file") from error
        if schema != SCHEMA:
            raise LedgerError(f"{path} has schema {schema}, this version of pyro-zoo reads {SCHEMA}; name another file")
        return cls(papers)

    def add(self, paper: str, entries: Mapping[str, Entry]) -> None:
        """Take entries in, each at its own budget; one whose cells failed says nothing and is left out."""
        for claim, entry in entries.items():
            if not entry["failed"]:
                self.papers.setdefault(paper, {}).setdefault(claim, {})[entry["budget"]] = entry

    def entries(self, paper: str) -> dict[str, Entry]:
        """{claim id: entry} of a paper: the full one where there is one, else the smoke one."""
        claims = self.papers.get(paper, {})
        return {claim: claims[claim].get("full") or claims[claim]["smoke"] for claim in sorted(claims, key=_natural)}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all, one row a line, in an order that does not depend on the run."""
        cells.write(path, self.text())

    def text(self) -> str:
        """The file's text."""
        papers = {
            paper: {
                claim: {budget: self.papers[paper][claim][budget] for budget in BUDGETS if budget in budgets}
                for claim, budgets in sorted(self.papers[paper].items(), key=lambda item: _natural(item[0]))
            }
            for paper in sorted(self.papers)
        }
        return _dump({"schema": SCHEMA, "papers": papers}) + "\n"


def find(beside: Path) -> Path | None:
    """The ledger of the current folder, else that of the repository, else the one that was installed; or None.

    Args:
        beside: the folder of the package `zoo`.
    """
    candidates = (Path(NAME), beside.parent / NAME, beside / NAME)
    return next((path for path in candidates if path.is_file()), None)


def _natural(claim: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", claim) if part]


def _dump(value: Any, indent: str = "") -> str:
    """JSON with one line for a row or for the versions, so that a difference can be read."""
    deeper = indent + "  "
    if isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values()):
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {_dump(item, deeper)}" for key, item in value.items()]
        return "{" + ",".join(f"\n{deeper}{line}" for line in lines) + f"\n{indent}" + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        rows = [json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value]
        return "[" + ",".join(f"\n{deeper}{row}" for row in rows) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)

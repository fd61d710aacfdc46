"""`zoo reproduce`: measure what the papers claim, and write it down."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table as RichTable

from zoo.commands.options import AsJson, err, out

if TYPE_CHECKING:
    from zoo.lab.ledger import Ledger

Jobs = Annotated[int | None, typer.Option(min=1, help="Cells at once; the default is the number of cores.")]


def reproduce(
    paper_name: Annotated[
        str | None,
        typer.Argument(metavar="PAPER", help="A paper of `zoo list`, or your own module:Model; else all papers."),
    ] = None,
    budget: Annotated[str, typer.Option(help="smoke takes minutes, full may take hours.")] = "smoke",
    claims: Annotated[
        str | None, typer.Option(help="Claims of `zoo show PAPER`, separated by commas; else all.")
    ] = None,
    jobs: Jobs = None,
    folder: Annotated[
        Path | None, typer.Option("--cells", help="Keeps finished cells; a run that was stopped goes on from there.")
    ] = None,
    path: Annotated[Path, typer.Option("--out", help="The ledger; entries of other claims and budgets stay.")] = Path(
        "ledger.json"
    ),
    page: Annotated[
        Path | None, typer.Option("--render", help="Fill this page's tables from the ledger; without PAPER, only that.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the claims of a paper, and write the outcomes into the ledger.

    Finished cells are kept, so that a run that was stopped goes on with the missing ones. Exit code 1: some cells
    failed; their claims are not written down.
    """
    from zoo.lab.ledger import Ledger

    if page is not None and not page.is_file():
        raise FileNotFoundError(f"{page}: no such page; --render fills the tables of a page that is there")
    ledger = Ledger.load(path)
    found: dict[str, dict[str, Any]] = {}
    if paper_name is not None or page is None:
        for name in _papers(paper_name, claims):
            found[name] = _measure(name, budget, claims, jobs, folder)
            ledger.add(name, found[name])
            ledger.save(path)
        _tell(found, path, as_json)
    if page is not None:
        _fill(page, ledger)
    if any(entry["failed"] for entries in found.values() for entry in entries.values()):
        raise typer.Exit(1)


def _papers(paper_name: str | None, claims: str | None) -> list[str]:
    from zoo import PAPERS, PaperError, paper

    if paper_name is not None:
        return [paper_name]
    if claims is not None:
        raise PaperError(f"--claims {claims} needs a paper: zoo reproduce PAPER --claims {claims}")
    return [name for name in PAPERS if paper(name).CLAIMS]


def _measure(
    name: str, budget: str, claims: str | None, jobs: int | None, folder: Path | None
) -> dict[str, dict[str, Any]]:
    import zoo.claims

    chosen = None if claims is None else [claim.strip() for claim in claims.split(",") if claim.strip()]
    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{name}: cells of the {budget} budget", total=None)
        return zoo.claims.reproduce(
            name,
            budget=budget,
            claims=chosen,
            jobs=jobs or os.cpu_count() or 1,
            folder=folder,
            done=lambda finished, total: progress.update(task, completed=finished, total=total),
        )


def _tell(found: dict[str, dict[str, Any]], path: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    for name, entries in found.items():
        out.print(_table(name, entries))
        _warn([claim for claim, entry in entries.items() if entry["outdated"]])
    err.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _warn(outdated: list[str]) -> None:
    if outdated:
        text = (
            f"{', '.join(outdated)}: cells are from an earlier text of the module that measures them. If it measures "
            "something else now, raise the experiment's version, or name a new folder with --cells"
        )
        err.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(name: str, entries: dict[str, dict[str, Any]]) -> RichTable:
    table = RichTable("claim", "outcome", "measured", "seconds", title=name, box=SIMPLE_HEAD, pad_edge=False)
    for claim, entry in entries.items():
        published = f"\n(the paper: {entry['number']})" if entry["number"] else ""
        texts = (claim, entry["outcome"], entry["summary"] + published, f"{entry['seconds']:.0f}")
        table.add_row(*map(escape, texts))
    return table


def _fill(page: Path, ledger: Ledger) -> None:
    from zoo.claims import table
    from zoo.lab import cells, rendering

    text = page.read_text(encoding="utf-8")
    filled = rendering.fill(text, lambda paper, name: table(ledger, paper, name))
    if filled != text:
        cells.write(page, filled)
    err.print(f"{page}: {'filled' if filled != text else 'is what the ledger says'}", highlight=False, soft_wrap=True)

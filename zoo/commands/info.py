"""`zoo list` and `zoo show`: what there is to run, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.commands.options import AsJson, PaperName, err, listing, out


def list_(
    data: Annotated[
        bool, typer.Option("--data", help="List the data sets instead, and where they were found.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the papers and guides, or the data sets."""
    if data:
        from zoo.lab.data import catalogue

        found = catalogue()
        listing(found if as_json else [_set(entry) for entry in found], ("name", "size", "about"), as_json)
        return
    import zoo
    from zoo.lab.experiments import known_guides

    papers = [{"paper": name, "about": (zoo.paper(name).__doc__ or "").splitlines()[0]} for name in zoo.PAPERS]
    if as_json:
        print(json.dumps({"papers": papers, "guides": known_guides()}))
        return
    listing(papers, ("paper", "about"), as_json)
    out.print("Guides: " + ", ".join(known_guides()) + ", any Auto... of Pyro, or your own module:Family")


def _set(entry: Mapping[str, Any]) -> dict[str, str]:
    """A data set in three cells that stay readable in 80 columns."""
    here = f"not here: {entry['get']}" if entry["where"] == "not here" else f"here: {entry['where']}"
    about = [f"{entry['kind']}; {entry['source']}; licence: {entry['licence']}", here, entry["caveat"]]
    name = f"{entry['name']}\n({entry['alias']})" if entry["alias"] not in ("", entry["name"]) else entry["name"]
    return {"name": name, "size": f"{entry['rows']} x {entry['columns']}", "about": "\n".join(filter(None, about))}


def show(paper_name: PaperName, as_json: AsJson = False) -> None:
    """Print a paper's card, the code of every equation, and the claims with their outcomes.

    The card has the story, model, guide and bound with their equations, the notation, and departures from the paper.
    """
    import zoo
    from zoo.lab import cards

    paper = zoo.paper(paper_name)
    card = (paper.__doc__ or f"{paper_name} has no docstring").strip()
    entries, source = _measured(paper_name)
    if as_json:
        print(json.dumps(_as_dict(paper_name, card, paper, entries)))
        return
    text = [*cards.annotated(card, paper.EQUATIONS), *_claims(paper.CLAIMS, entries, source)]
    for line in cards.wrap(text, min(out.width, 120)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _measured(paper_name: str) -> tuple[dict[str, Any], Path | None]:
    """The paper's entries in the ledger that is nearest, and where it is."""
    import zoo
    from zoo.lab import ledger

    path = ledger.find(Path(zoo.__file__).parent)
    try:
        return (ledger.Ledger.load(path).entries(paper_name), path) if path else ({}, None)
    except ledger.LedgerError as error:  # a stranger's file of that name: the card is shown all the same
        err.print(f"zoo: {error}", markup=False, highlight=False, soft_wrap=True)
        return {}, None


def _claims(claims: Iterable[Any], entries: Mapping[str, Any], source: Path | None) -> Iterator[str]:
    for number, claim in enumerate(claims):
        if number == 0:
            yield from ("", f"Claims, and what was measured ({source or 'no ledger here'}):")
        figure = f"; the paper: {claim.number}" if claim.number else ""
        yield from ("", f"    {claim.id}  {claim.statement} [{claim.source}{figure}]")
        yield f"        {_outcome(entries.get(claim.id))}"


def _outcome(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "not measured here"
    return f"{entry['outcome']} ({entry['budget']} budget, {entry['date'] or 'no date'}): {entry['summary']}"


def _as_dict(paper_name: str, card: str, paper: Any, entries: Mapping[str, Any]) -> dict[str, Any]:
    from zoo.lab import cards

    formulas = cards.formulas(card)
    equations = [
        {"id": key, "formula": formulas[key].text if key in formulas else None, "function": cards.where(key, thing)}
        for key, thing in paper.EQUATIONS.items()
    ]
    claims = [{**asdict(claim), "measured": entries.get(claim.id)} for claim in paper.CLAIMS]
    return {"paper": paper_name, "card": card, "equations": equations, "claims": claims}

"""`zoo list` and `zoo show`: what there is to run, and what it says."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from zoo.commands.options import AsJson, PaperName, listing, out


def list_(
    data: Annotated[
        bool, typer.Option("--data", help="List the data sets instead, and where they were found.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the papers and guides, or the data sets."""
    if data:
        from zoo.lab.data import catalogue

        listing(catalogue(), ("name", "rows", "columns", "kind", "licence", "where", "caveat"), as_json)
        return
    import zoo
    from zoo.lab.experiments import known_guides

    papers = [{"paper": name, "about": (zoo.paper(name).__doc__ or "").splitlines()[0]} for name in zoo.PAPERS]
    if as_json:
        print(json.dumps({"papers": papers, "guides": known_guides()}))
        return
    listing(papers, ("paper", "about"), as_json)
    out.print("Guides: " + ", ".join(known_guides()) + ", any Auto... of Pyro, or your own module:Family")


def show(paper_name: PaperName) -> None:
    """Print a paper's card and where its equations live.

    The card has the model, guide and bound with their equations, the notation, and departures from the paper.
    """
    import zoo

    paper = zoo.paper(paper_name)
    out.print((paper.__doc__ or f"{paper_name} has no docstring").strip(), markup=False, highlight=False)
    if paper.EQUATIONS:
        rows = [{"equation": key, "function": _where(thing)} for key, thing in paper.EQUATIONS.items()]
        listing(rows, ("equation", "function"), as_json=False)


def _where(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    return f"{module}.{thing.__qualname__}" if module else thing.__name__

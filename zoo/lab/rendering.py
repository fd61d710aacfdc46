"""Tables of the ledger as markdown, and the blocks of a page that they fill.

A block of `README.md` stands between `<!-- ledger: PAPER TABLE -->` and `<!-- /ledger -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoo.lab.ledger import Entry, LedgerError

Renderer = Callable[[Mapping[str, Entry]], str]

BLOCK = re.compile(r"(<!-- ledger: (\S+) (\S+) -->\n).*?(<!-- /ledger -->)", re.DOTALL)
OPENING = re.compile(r"<!-- ledger:")


def markdown(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; what is None stays empty, and a bar or a line break does not break the table.

    Example:
        >>> print(markdown(["data", "RMSE"], [["yacht", ".80 ± .05"], ["naval", None]]))
        | data | RMSE |
        |---|---|
        | yacht | .80 ± .05 |
        | naval |  |
    """
    lines = [headers, ["---"] * len(headers), *rows]
    text = ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]
    return "\n".join([text[0], text[1].replace(" ", ""), *text[2:]])


def claims(entries: Mapping[str, Entry]) -> str:
    """The table that every paper has: what is claimed, and what came out."""
    headers = ["claim", "statement", "source", "the paper's number", "outcome", "measured"]
    return markdown(
        headers,
        [
            [claim, entry["statement"], entry["source"], entry["number"], outcome(entry), entry["summary"]]
            for claim, entry in entries.items()
        ],
    )


def outcomes(entries: Mapping[str, Entry]) -> str:
    """The same without what was measured, which takes room: `zoo show PAPER` has it."""
    rows = [[claim, e["statement"], e["source"], e["number"], outcome(e)] for claim, e in entries.items()]
    return markdown(["claim", "statement", "source", "the paper's number", "outcome"], rows)


def outcome(entry: Entry) -> str:
    """The outcome, and the budget where it is not the full one."""
    return entry["outcome"] if entry["budget"] == "full" else f"{entry['outcome']} ({entry['budget']} budget)"


def fill(text: str, table: Callable[[str, str], str]) -> str:
    """The page with every block filled anew.

    Args:
        text: the page.
        table: paper, name of the table -> markdown.

    Raises:
        LedgerError: a block is not closed, or opened otherwise than `<!-- ledger: PAPER TABLE -->`.
    """
    filled, blocks = BLOCK.subn(lambda found: f"{found[1]}{table(found[2], found[3])}\n{found[4]}", text)
    if blocks < len(OPENING.findall(text)):
        raise LedgerError(
            "a block of the ledger stands between '<!-- ledger: PAPER TABLE -->' and '<!-- /ledger -->', each on a "
            "line of its own; one here does not"
        )
    return filled


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")

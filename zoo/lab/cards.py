"""Reading a paper's card, its docstring: the formula of every equation id, and where the code of it is.

Two forms define an equation. A line that begins with the id:

    mg.4    entropy = d k (1 + log 2 pi) / 2 + ...
            a continuation is indented deeper

and a heading that names it: `Model (mg.9), N data: ...`, whose formula follows the colon or is the indented
block below. An id anywhere else is a mention.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, NamedTuple

ID = r"[a-z_]+\.\d+[a-z]?"
LINE = re.compile(rf"^(?P<indent>\s+)\(?(?P<id>{ID})\)?\s+(?P<formula>\S.*)$")
HEADING = re.compile(rf"^\w[^:(]*\((?P<id>{ID})\)(?P<rest>[^:]*):\s*(?P<formula>.*)$")


class Formula(NamedTuple):
    """The formula of an equation; the line of the card before which it has ended, and its indent there."""

    text: str
    end: int
    indent: int


def lines(card: str) -> list[str]:
    """The card's lines as they stand in the file, without the quotes' indent."""
    return inspect.cleandoc(card).splitlines()


def formulas(card: str) -> dict[str, Formula]:
    """{id: formula} of a card, in its order; of an id defined twice the first."""
    found: dict[str, Formula] = {}
    text = lines(card)
    for number, line in enumerate(text):
        for form, below in ((LINE, _continuation), (HEADING, _block)):
            if match := form.match(line):
                found.setdefault(match["id"], _formula(match, below(text[number + 1 :], match), number))
    return found


def _formula(match: re.Match[str], more: list[str], number: int) -> Formula:
    body = "\n".join([match["formula"], *textwrap.dedent("\n".join(more)).splitlines()]).strip()
    return Formula(body, number + 1 + len(more), match.start("formula") if match.re is LINE else 4)


def where(key: str, thing: Any) -> str:
    """The name of a function, class or module, and in parentheses its file and the lines that bear the id.

    Where no line of it does, the line on which it begins.
    """
    thing = inspect.unwrap(thing)
    marked = ", ".join(map(str, marks(key, thing) or [_span(thing).start]))
    name = thing.__name__ if inspect.ismodule(thing) else f"{thing.__module__}.{thing.__qualname__}"
    return f"{name} ({_file(thing)}:{marked})"


def marks(key: str, thing: Any) -> list[int]:
    """The lines of a function, class or module with a comment that bears the id."""
    text = Path(inspect.getsourcefile(thing) or "").read_text(encoding="utf-8").splitlines()
    comment = re.compile(rf"#.*(?<![\w.]){re.escape(key)}(?!\w)")
    return [number for number in _span(thing) if number <= len(text) and comment.search(text[number - 1])]


def annotated(card: str, equations: Mapping[str, Any]) -> list[str]:
    """The card's lines, with the function of an equation under its formula; those without a formula at the end."""
    text, known = lines(card), formulas(card)
    places: dict[int, list[str]] = {}
    for key in (key for key in equations if key in known):
        arrow = f"{' ' * known[key].indent}-> {where(key, equations[key])}"
        places.setdefault(known[key].end, []).append(arrow)
    shown = [part for number, line in enumerate([*text, ""]) for part in (*places.get(number, []), line)][:-1]
    bare = [f"    {key:<8}-> {where(key, thing)}" for key, thing in equations.items() if key not in known]
    return [*shown, "", "Equations whose formula stands in the code:", "", *bare] if bare else shown


def wrap(text: list[str], width: int) -> Iterator[str]:
    """Lines no longer than `width`: prose is filled anew, what is left of an indented line hangs below its start."""
    for prose, group in groupby(text, key=lambda line: bool(line) and not line.startswith(" ")):
        for line in [" ".join(group)] if prose else group:
            hang = "" if prose else _indent(line) + ("  " if line.lstrip().startswith("- ") else "    ")
            yield from textwrap.wrap(line, width, subsequent_indent=hang, break_on_hyphens=False) or [""]


def _continuation(below: list[str], match: re.Match[str]) -> list[str]:
    deeper = match["indent"] + " "
    return list(takewhile(lambda line: line.startswith(deeper), below))


def _block(below: list[str], match: re.Match[str]) -> list[str]:
    if match["formula"]:
        return list(takewhile(lambda line: line.startswith(" ") and not LINE.match(line), below))
    block = list(takewhile(lambda line: not line or line.startswith(" "), below))
    while block and not block[-1]:
        block.pop()
    return block


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _span(thing: Any) -> range:
    """The numbers of its lines."""
    body, first = inspect.getsourcelines(thing)
    return range(max(first, 1), max(first, 1) + len(body))


def _file(thing: Any) -> str:
    """The file, from the folder that holds the package on."""
    path = Path(inspect.getsourcefile(thing) or "?")
    module = inspect.getmodule(thing)
    depth = len(module.__name__.split(".")) if module else 1
    return "/".join(path.parts[-depth - (path.name == "__init__.py") :])

"""Every equation of every paper: a formula in the card, a line of code that bears its id, and a test."""

import ast
import inspect
import io
import re
import tokenize
from itertools import pairwise
from pathlib import Path

import pytest

import zoo
from zoo.lab import cards

EQUATIONS = [(name, key) for name in zoo.PAPERS for key in zoo.paper(name).EQUATIONS]

CARD = """A paper.

Model (toy.1), N data, where k is a width:

    x ~ N(0, 1)
    y | x ~ N(x, k)

Bound (toy.2): E_q log p,
    less the KL (toy.3).

    toy.3   KL = log q - log p
              under q
    toy.10  see toy.1

    symbol  name
"""


def marked() -> set[str]:
    """The ids in `@pytest.mark.equation(...)` anywhere under tests/."""
    found = set()
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.equation"):
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def commented(name: str) -> set[str]:
    """The ids in comments of a paper's file and of the files that its EQUATIONS point to."""
    paper = zoo.paper(name)
    prefixes = {key.split(".")[0] for key in paper.EQUATIONS}
    homes = {inspect.getsourcefile(inspect.unwrap(thing)) for thing in paper.EQUATIONS.values()} | {paper.__file__}
    ids = re.compile(rf"\b(?:{'|'.join(prefixes)})\.\d+[a-z]?")
    found: set[str] = set()
    for home in homes:
        text = io.StringIO(Path(str(home)).read_text(encoding="utf-8"))
        for token in tokenize.generate_tokens(text.readline):
            found |= set(ids.findall(token.string)) if token.type == tokenize.COMMENT else set()
    return found


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_every_equation_has_a_test(name: str) -> None:
    assert sorted(set(zoo.paper(name).EQUATIONS) - marked()) == []


def test_no_test_is_marked_with_an_unknown_id() -> None:
    """A theorem that no function of the code is may be marked too; then the card has its formula."""
    known = {key for name in zoo.PAPERS for key in cards.formulas(str(zoo.paper(name).__doc__))}
    assert sorted(marked() - {key for _, key in EQUATIONS} - known) == []


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_every_equation_stands_in_a_comment_and_every_such_comment_is_a_key(name: str) -> None:
    assert sorted(commented(name) ^ set(zoo.paper(name).EQUATIONS)) == []


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_every_equation_has_a_formula_in_the_card(name: str) -> None:
    paper = zoo.paper(name)
    assert sorted(set(paper.EQUATIONS) - set(cards.formulas(paper.__doc__))) == []


@pytest.mark.parametrize(("name", "key"), EQUATIONS)
def test_show_says_where_the_code_is(name: str, key: str) -> None:
    thing = zoo.paper(name).EQUATIONS[key]
    qualified, file, numbers = re.fullmatch(r"([\w.]+) \((.+):([\d, ]+)\)", cards.where(key, thing)).groups()
    text = (Path(zoo.__file__).parents[1] / file).read_text(encoding="utf-8").splitlines()
    first = text[int(numbers.split(",")[0]) - 1]
    assert key in first or inspect.getsourcelines(inspect.unwrap(thing))[0][0].strip() == first.strip()
    assert qualified.startswith(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


def test_formulas_of_a_card() -> None:
    found = {key: formula.text for key, formula in cards.formulas(CARD).items()}
    assert found == {
        "toy.1": "x ~ N(0, 1)\ny | x ~ N(x, k)",
        "toy.2": "E_q log p,\nless the KL (toy.3).",
        "toy.3": "KL = log q - log p\nunder q",
        "toy.10": "see toy.1",
    }


def test_the_function_stands_under_its_formula_and_nothing_of_the_card_is_lost() -> None:
    things = {"toy.10": cards.wrap, "toy.1": cards.lines, "toy.2": cards.marks, "toy.3": cards, "toy.7": cards.where}
    shown = cards.annotated(CARD, things)
    assert [line for line in shown if "->" not in line][: len(CARD.splitlines())] == CARD.splitlines()
    below = {line.split("->")[1].split()[0]: before for before, line in pairwise(shown) if "->" in line}
    assert below == {
        "zoo.lab.cards.lines": "    y | x ~ N(x, k)",
        "zoo.lab.cards.marks": "    less the KL (toy.3).",
        "zoo.lab.cards": "              under q",
        "zoo.lab.cards.wrap": "    toy.10  see toy.1",
        "zoo.lab.cards.where": "",
    }
    assert shown[-1].startswith("    toy.7   -> zoo.lab.cards.where (zoo/lab/cards.py:")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", zoo.PAPERS)
def test_a_card_fits_its_width_and_keeps_every_word(name: str, width: int) -> None:
    paper = zoo.paper(name)
    text = cards.annotated(paper.__doc__, paper.EQUATIONS)
    shown = list(cards.wrap(text, width))
    assert max(map(len, shown)) <= width and " ".join(shown).split() == " ".join(text).split()

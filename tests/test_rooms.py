"""Which room may import which, read from the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("guides", "zoo") for path in (ROOT / room).rglob("*.py"))
GUIDES_MAY = {"guides", "pyro", "torch", *sys.stdlib_module_names}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str | None = None) -> Iterator[str]:
    """Every module that a file may load, wherever in it; `from a import b` is both a and a.b."""
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def forbidden(name: str) -> list[str]:
    """The rooms that a module may not import from."""
    papers = set(zoo.PAPERS.values())
    if inside(name, "zoo.lab"):
        return [*papers, "zoo.claims", "zoo.__main__", "zoo.commands"]
    if name in papers:
        return [*(papers - {name}), "zoo.claims", "zoo.__main__", "zoo.commands"]
    return ["zoo.__main__"]


def violations(path: Path, source: str | None = None) -> list[str]:
    name, found = module_name(path), set(imports(path, source))
    if inside(name, "guides"):
        return sorted(module for module in found if module.split(".")[0] not in GUIDES_MAY)
    return sorted(module for module in found if any(inside(module, room) for room in forbidden(name)))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    assert not violations(path)


def test_every_paper_is_a_file_of_its_own_room() -> None:
    assert {ROOT / f"{name.replace('.', '/')}.py" for name in zoo.PAPERS.values()} <= set(FILES)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("guides/guide.py", "import numpy"),
        ("guides/guide.py", "from zoo import lab"),
        ("guides/guide.py", "def f():\n    import zoo.lab.data"),
        ("zoo/lab/data.py", "from zoo import matrix_gaussian"),
        ("zoo/lab/data.py", "from .. import matrix_gaussian"),
        ("zoo/lab/data.py", "from zoo.matrix_gaussian import Model"),
        ("zoo/lab/data.py", "import zoo.claims.matrix_gaussian"),
        ("zoo/matrix_gaussian.py", "from zoo import claims"),
        ("zoo/matrix_gaussian.py", "from .__main__ import main"),
        ("zoo/report.py", "import zoo.__main__"),
    ],
)
def test_a_violation_would_be_seen(where: str, source: str) -> None:
    assert violations(ROOT / where, source)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("guides/guide.py", "import math, torch.nn, pyro.distributions as dist\nfrom . import weights"),
        ("zoo/lab/data.py", "import numpy\nfrom zoo.lab import frames\nfrom guides import Guide"),
        ("zoo/matrix_gaussian.py", "from zoo.lab import scores\nfrom guides import Guide"),
        ("zoo/claims/matrix_gaussian.py", "from zoo import lab, matrix_gaussian"),
    ],
)
def test_what_is_allowed_is_not_seen_as_a_violation(where: str, source: str) -> None:
    assert not violations(ROOT / where, source)

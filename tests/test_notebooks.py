"""The notebooks: both forms of one agree, the committed one is executed and clean, and its own assertions hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|Users|private|opt)/|\b[A-Za-z]:\\\\?Users")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def sources(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def words(output: Any) -> str:
    """All text of an output; pictures are left out."""
    data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join([output.get("text", ""), *map(str, data.values())])


def test_there_is_a_notebook_for_every_text_form() -> None:
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py"))


@each_notebook
def test_both_forms_agree(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    assert sources(notebook) == sources(jupytext.read(path.with_suffix(".py")))


@each_notebook
def test_the_committed_notebook_is_executed_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not run once from top to bottom"
    found = outputs(notebook)
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not [output for output in found if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [words(output) for output in found if ABSOLUTE.search(words(output))]
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_the_committed_notebook_names_no_machine(path: Path) -> None:
    metadata = nbformat.read(path, 4).metadata
    assert metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(metadata) <= {"kernelspec", "language_info", "jupytext"}
    assert metadata.get("language_info", {}).keys() <= {"name"}


@each_notebook
def test_it_runs_and_its_assertions_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the small setting; a failing cell raises, with its traceback."""
    monkeypatch.setenv("ZOO_NOTEBOOK_STEPS", "small")
    notebook = jupytext.read(path.with_suffix(".py"))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.execute()
    assert not [words(output) for output in outputs(notebook) if output.get("name") == "stderr"]

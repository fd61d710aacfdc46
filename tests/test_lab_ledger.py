"""Cells, verdicts, the ledger, its tables, and every paper's claims at the smoke budget."""

import doctest
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo
import zoo.claims
from zoo.lab import cells, ledger, rendering, reproduction
from zoo.lab.ledger import Claim, Experiment, Judge, Ledger, LedgerError, Verdict, not_attempted

ROOT = Path(zoo.__file__).parents[1]
CLAIMS = (Claim("C2", "Squares grow.", source="derived", number="4"), Claim("C10", "Nobody knows.", source="unknown"))


def squares(budget: str) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(2 if budget == "smoke" else 4)]


def square(cell: dict[str, Any]) -> dict[str, Any]:
    return {"square": cell["n"] ** 2}


def grows(rows: list[dict[str, Any]]) -> Verdict:
    values = [row["square"] for row in rows]
    outcome = "reproduced" if values == sorted(set(values)) else "not reproduced"
    return Verdict(outcome, f"Squares {values}.", rows=[{"n": row["n"], "square": row["square"]} for row in rows])


def run(
    folder: Path,
    measure: Callable[[dict[str, Any]], dict[str, Any]] = square,
    *,
    budget: str = "smoke",
    jobs: int = 1,
    make: Callable[[str], list[dict[str, Any]]] = squares,
    verdict: Callable[[list[dict[str, Any]]], Verdict] = grows,
    version: int = 1,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> dict[str, Any]:
    return reproduction.reproduce(
        "toy",
        CLAIMS,
        experiments={"squares": Experiment(make, measure, version=version)},
        judges={"C2": Judge(verdict, "squares"), "C10": not_attempted("no data")},
        budget=budget,
        folder=folder,
        jobs=jobs,
        done=done,
    )


class Counted:
    """A measure that remembers for which cells it was called."""

    def __init__(self, measure: Callable[[dict[str, Any]], dict[str, Any]] = square) -> None:
        self.measure, self.calls = measure, []

    def __call__(self, cell: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(cell["n"])
        return self.measure(cell)


def test_a_claim_is_measured_and_judged(tmp_path: Path) -> None:
    found = run(tmp_path)
    entry = found["C2"]
    assert (entry["outcome"], entry["summary"], entry["budget"]) == ("reproduced", "Squares [0, 1].", "smoke")
    assert entry["rows"] == [{"n": 0, "square": 0}, {"n": 1, "square": 1}]
    assert (entry["statement"], entry["source"], entry["number"]) == ("Squares grow.", "derived", "4")
    assert (entry["cells"], entry["failed"]) == (2, 0) and entry["machine"]["torch"] == torch.__version__
    assert (found["C10"]["outcome"], found["C10"]["summary"], found["C10"]["date"]) == (
        "not attempted",
        "no data",
        None,
    )


def test_a_judge_sees_rows_in_the_order_of_the_cells_whatever_the_jobs(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def slower_first(cell: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3 if cell["n"] == 0 else 0.0)
        return {"square": cell["n"] ** 2}

    def look(rows: list[dict[str, Any]]) -> Verdict:
        seen.extend(rows)
        return grows(rows)

    run(tmp_path, slower_first, budget="full", jobs=2, verdict=look)
    assert [(row["experiment"], row["n"], row["square"]) for row in seen] == [("squares", n, n**2) for n in range(4)]
    assert seen[0]["seconds"] > 0.25 > seen[1]["seconds"]


def test_finished_cells_are_not_measured_again_and_are_shared_by_budgets(tmp_path: Path) -> None:
    measure, progress = Counted(), []
    run(tmp_path, measure)
    run(tmp_path, measure, budget="full", done=lambda finished, total: progress.append((finished, total)))
    assert measure.calls == [0, 1, 2, 3] and progress == [(2, 4), (3, 4), (4, 4)]
    run(tmp_path, measure, version=2)
    assert measure.calls == [0, 1, 2, 3, 0, 1], "another version is another measurement"


def test_cells_of_an_earlier_text_of_the_measure_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path)["C2"]["outdated"] == 0
    monkeypatch.setattr(cells, "code", lambda measure: "another text")
    assert run(tmp_path)["C2"]["outdated"] == 2 and run(tmp_path, version=2)["C2"]["outdated"] == 0


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    def flaky(cell: dict[str, Any]) -> dict[str, Any]:
        if cell["n"] == 0 and not (tmp_path / "mended").exists():
            raise ValueError("no disc;\nmount it")
        return square(cell)

    measure = Counted(flaky)
    entry = run(tmp_path / "cells", measure)["C2"]
    assert (entry["outcome"], entry["failed"]) == ("not attempted", 1)
    assert entry["summary"] == "1 of 2 cells failed: no disc; mount it"
    (tmp_path / "mended").touch()
    entry = run(tmp_path / "cells", measure)["C2"]
    assert (entry["outcome"], entry["failed"]) == ("reproduced", 0) and measure.calls == [0, 1, 0]


def test_a_killed_run_goes_on_with_the_missing_cells(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\nimport test_lab_ledger as t\n"
        "def slow(cell):\n    time.sleep(60 * (cell['n'] == 2)); return t.square(cell)\n"
        "t.run(Path(sys.argv[2]), slow, budget='full')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("toy/*.json"))) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    measure = Counted()
    assert run(tmp_path, measure, budget="full")["C2"]["outcome"] == "reproduced"
    assert measure.calls == [2, 3]


def test_a_worker_that_is_ended_is_one_line_and_finished_cells_are_kept(tmp_path: Path) -> None:
    def out_of_memory(cell: dict[str, Any]) -> dict[str, Any]:
        if cell["n"] == 3:
            time.sleep(1)
            os._exit(1)
        return square(cell)

    with pytest.raises(ValueError, match=r"a worker was ended from outside.* fewer jobs"):
        run(tmp_path, out_of_memory, budget="full", jobs=2)
    measure = Counted()
    assert run(tmp_path, measure, budget="full")["C2"]["outcome"] == "reproduced" and measure.calls == [3]


def test_a_broken_file_is_measured_again(tmp_path: Path) -> None:
    run(tmp_path)
    broken = sorted(tmp_path.glob("toy/*.json"))[0]
    broken.write_text('{"measured": {"squ', encoding="utf-8")
    measure = Counted()
    assert run(tmp_path, measure)["C2"]["outcome"] == "reproduced" and len(measure.calls) == 1


def test_every_cell_starts_from_the_same_state(tmp_path: Path) -> None:
    def draw(cell: dict[str, Any]) -> dict[str, Any]:
        state = {"square": cell["n"], "dtype": str(torch.get_default_dtype()), "draw": torch.randn(())}
        torch.set_default_dtype(torch.float64)
        return state

    seen: list[dict[str, Any]] = []
    run(tmp_path, draw, verdict=lambda rows: (seen.extend(rows), grows(rows))[1])
    assert seen[0]["draw"] == seen[1]["draw"] and seen[0]["dtype"] == seen[1]["dtype"] == "torch.float32"
    assert torch.get_default_dtype() == torch.float64, "the caller's own, which the fixture set"


def test_what_is_kept_is_what_json_knows() -> None:
    found = cells.plain({"a": torch.tensor(0.5), "b": np.float32(2), "c": (1, math.nan), "d": [-math.inf], "e": True})
    assert found == {"a": 0.5, "b": 2.0, "c": [1, None], "d": [None], "e": True}
    assert cells.plain(np.array([1.0, math.inf])) == [1.0, None]
    with pytest.raises(TypeError, match=r"the result\['a'\]\[0\] is Path|is PosixPath|is WindowsPath"):
        cells.plain({"a": [Path()]})


@pytest.mark.parametrize(
    ("measured", "reason"),
    [({"n": 1}, "has the key 'n', which is taken"), ({"x": object()}, "TypeError: the result['x'] is object")],
)
def test_a_result_that_cannot_be_kept_is_a_failure(tmp_path: Path, measured: dict[str, Any], reason: str) -> None:
    entry = run(tmp_path, lambda cell: measured)["C2"]
    assert entry["failed"] == 2 and reason in entry["summary"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Claim("C1", "s", source="hearsay"), "claim C1: no source 'hearsay'; there are: read in code, cited"),
        (lambda: Verdict("proved", "s"), "no outcome 'proved'; there are: reproduced, not reproduced"),
        (lambda: Verdict("confounded", " "), "without a summary"),
        (lambda: reproduction.choose("toy", CLAIMS, ["C22"]), "toy has no claim 'C22'; did you mean 'C2'"),
        (lambda: reproduction.choose("toy", (), ["C1"]), "toy has no claim 'C1'; there are: none"),
        (lambda: reproduction.choose("toy", CLAIMS, []), "no claim of toy is named; there are: C2, C10"),
        (lambda: run(Path(), budget="ful"), "no budget 'ful'; there are: smoke, full"),
        (lambda: run(Path(), make=lambda budget: [{"n": 1}, {"n": 1}]), "'squares' has equal cells"),
        (
            lambda: reproduction.reproduce("toy", CLAIMS, experiments={}, judges={}, budget="smoke", folder=Path()),
            "no judge",
        ),
        (
            lambda: reproduction.reproduce(
                "toy", CLAIMS, experiments={}, judges={"C2": Judge(grows, "cubes")}, budget="smoke", folder=Path()
            ),
            "claim C2 needs the experiment 'cubes'",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        wrong()


def test_a_judge_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        LedgerError, match=r"the judge of claim C2 failed \(KeyError: 'cube'\); finished cells are kept"
    ):
        run(tmp_path, verdict=lambda rows: Verdict("reproduced", rows[0]["cube"]))


def test_the_ledger_keeps_what_it_was_not_told_about(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    smoke, full = run(tmp_path / "cells"), run(tmp_path / "cells", budget="full")
    first = Ledger.load(path)
    first.add("toy", full)
    first.add("other", {"C2": smoke["C2"]})
    first.save(path)
    second = Ledger.load(path)
    second.add("toy", {"C2": smoke["C2"]})
    second.save(path)
    found = json.loads(path.read_text(encoding="utf-8"))["papers"]
    assert found == {"other": {"C2": {"smoke": smoke["C2"]}}, "toy": {"C2": {"smoke": smoke["C2"], "full": full["C2"]},
                     "C10": {"full": full["C10"]}}}  # fmt: skip
    assert Ledger.load(path).entries("toy") == full, "the full entry is the one that is shown"


def test_a_claim_whose_cells_failed_replaces_nothing(tmp_path: Path) -> None:
    found = Ledger()
    found.add("toy", run(tmp_path))
    before = found.text()
    found.add("toy", {"C2": run(tmp_path / "again", lambda cell: 1 / 0)["C2"]})
    assert found.text() == before


def test_the_file_does_not_depend_on_the_order_of_runs_and_has_a_row_a_line(tmp_path: Path) -> None:
    entries = run(tmp_path)
    texts = []
    for order in (["C2", "C10"], ["C10", "C2"]):
        one = Ledger()
        for claim in order:
            one.add("toy", {claim: entries[claim]})
        texts.append(one.text())
    assert texts[0] == texts[1] and texts[0].index('"C2"') < texts[0].index('"C10"')
    assert [line.strip(" ,") for line in texts[0].splitlines() if '"square"' in line] == [
        '{"n": 0, "square": 0}', '{"n": 1, "square": 1}'
    ]  # fmt: skip
    assert json.loads(texts[0])["papers"]["toy"]["C2"]["smoke"] == entries["C2"]


@pytest.mark.parametrize("text", ["", "[1]", '{"papers": {}}', '{"schema": 99, "papers": {}}'])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger.json").write_text(text, encoding="utf-8")
    with pytest.raises(LedgerError, match=r"ledger\.json (is no ledger|has schema 99)"):
        Ledger.load(tmp_path / "ledger.json")


def test_blocks_of_a_page_are_filled_and_only_they() -> None:
    page = "before\n<!-- ledger: toy claims -->\nold\n<!-- /ledger -->\nafter\n"
    filled = rendering.fill(page, lambda paper, table: f"| {paper} {table} |")
    assert filled == "before\n<!-- ledger: toy claims -->\n| toy claims |\n<!-- /ledger -->\nafter\n"
    assert rendering.fill(filled, lambda paper, table: f"| {paper} {table} |") == filled
    with pytest.raises(LedgerError, match="each on a line of its own; one here does not"):
        rendering.fill("<!-- ledger: toy claims -->\nold\n", lambda paper, table: "")


def test_the_table_of_claims(tmp_path: Path) -> None:
    lines = rendering.claims({**run(tmp_path, budget="full"), "C3": run(tmp_path)["C2"]}).splitlines()
    assert lines[2] == "| C2 | Squares grow. | derived | 4 | reproduced | Squares [0, 1, 4, 9]. |"
    assert lines[3] == "| C10 | Nobody knows. | unknown |  | not attempted | no data |"
    assert lines[4].endswith("| reproduced (smoke budget) | Squares [0, 1]. |")
    assert rendering.markdown(["a"], [["x | y\nz"]]).splitlines()[2] == "| x \\| y z |"
    assert doctest.testmod(rendering).failed == 0


MINE = """
from zoo.lab.ledger import Claim, Experiment, Judge, Verdict
class Model: pass
CLAIMS = (Claim("C1", "Two and [two].", source="checked", number="4"), Claim("C2", "Broken.", source="cited"))
def cells(budget): return [{"n": 2}]
def two(cell): return {"sum": cell["n"] + 2}
def broken(cell): raise ValueError("no such thing; find it")
def verdict(rows): return Verdict("reproduced", f"It is [{rows[0]['sum']}].", rows=[{"sum": rows[0]["sum"]}])
EXPERIMENTS = {"two": Experiment(cells, two), "broken": Experiment(cells, broken)}
JUDGES = {"C1": Judge(verdict, "two"), "C2": Judge(verdict, "broken")}
TABLES = {"sums": lambda entries: ", ".join(str(row["sum"]) for row in entries["C1"]["rows"])}
"""


@pytest.fixture
def cli(zoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine_claims.py").write_text(MINE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "mine_claims", raising=False)
    return zoo


def test_reproduce_writes_the_ledger_and_fills_a_page(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- ledger: mine_claims:Model sums -->\n<!-- /ledger -->\n", encoding="utf-8")
    code, out, err = cli("reproduce", "mine_claims:Model", "--claims", "C1", "--jobs", "1", "--render", "page.md")
    assert code == 0 and "It is [4]." in out and "reproduced" in out and "wrote ledger.json" in err
    assert "page.md: filled" in err and "-->\n4\n<!--" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert list((tmp_path / "cache" / "cells" / "mine_claims.Model").glob("two-*.json"))
    code, _, err = cli("reproduce", "--render", "page.md")
    assert code == 0 and "page.md: is what the ledger says" in err
    code, out, _ = cli("show", "mine_claims:Model")
    assert "C1  Two and [two]. [checked; the paper: 4]" in out and "reproduced (smoke budget, 2" in out
    assert "C2  Broken. [cited]\n        not measured here" in out and "(ledger.json)" in out
    code, out, _ = cli("show", "mine_claims:Model", "--json")
    first, second = json.loads(out)["claims"]
    assert (first["id"], first["source"], first["number"]) == ("C1", "checked", "4") and second["measured"] is None
    assert first["measured"]["outcome"] == "reproduced" and first["measured"]["rows"] == [{"sum": 4}]


def test_show_gives_formula_and_function_of_every_equation(cli: Callable[..., Any]) -> None:
    code, out, _ = cli("show", "matrix_gaussian", "--json")
    found = {equation["id"]: equation for equation in json.loads(out)["equations"]}
    assert code == 0 and found.keys() == zoo.paper("matrix_gaussian").EQUATIONS.keys()
    assert found["mg.4"]["formula"].startswith("entropy") and "log|U|" in found["mg.4"]["formula"]
    assert found["mg.4"]["function"].startswith("guides.distributions.MatrixNormal.entropy (guides/distributions.py:")


def test_reproduce_says_in_its_exit_code_that_cells_failed(cli: Callable[..., Any], tmp_path: Path) -> None:
    code, out, _ = cli("reproduce", "mine_claims:Model", "--jobs", "1", "--json", "--cells", "kept")
    found = json.loads(out)["mine_claims:Model"]
    assert code == 1 and out.count("\n") == 1
    assert found["C2"]["summary"] == "1 of 1 cells failed: no such thing; find it" and found["C1"]["rows"] == [
        {"sum": 4}
    ]
    assert list(Ledger.load(tmp_path / "ledger.json").papers["mine_claims:Model"]) == ["C1"]
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 2 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine_claims:Model", "--claims", "C3"), "no claim 'C3'; did you mean 'C"),
        (("mine_claims:Model", "--budget", "ful"), "no budget 'ful'"),
        (("--claims", "C1"), "--claims C1 needs a paper"),
        (("json:JSONDecoder",), "json measures no claims"),
        (("matrix_gaussin",), "did you mean 'matrix_gaussian'"),
        (("--render", "nopage.md"), "nopage.md"),
    ],
)
def test_errors_are_one_line(cli: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    code, out, err = cli("reproduce", *arguments)
    assert code == 2 and out == "" and err.startswith("zoo: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("table", ["sums", "claims"])
def test_a_table_of_nothing_is_refused(cli: Callable[..., Any], table: str) -> None:
    with pytest.raises(LedgerError, match="the ledger has nothing of mine_claims:Model; run zoo reproduce"):
        zoo.claims.table(Ledger(), "mine_claims:Model", table)
    with pytest.raises(LedgerError, match="has no table 'sum'; there are: claims, outcomes, sums"):
        zoo.claims.table(Ledger(), "mine_claims:Model", "sum")


PAPERS = [name for name in zoo.PAPERS if zoo.paper(name).CLAIMS]


def case(paper: str, claim: Claim) -> Any:
    measured = zoo.claims.of(paper)
    slow = any(measured.EXPERIMENTS[name].slow for name in measured.JUDGES[claim.id].experiments)
    return pytest.param(paper, claim, id=f"{paper} {claim.id}", marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_claim_has_a_judge_and_every_judge_a_claim(paper: str) -> None:
    measured = zoo.claims.of(paper)
    assert measured.JUDGES.keys() == {claim.id for claim in zoo.paper(paper).CLAIMS}
    assert {name for judge in measured.JUDGES.values() for name in judge.experiments} == measured.EXPERIMENTS.keys()
    for experiment in measured.EXPERIMENTS.values():
        cells = {budget: experiment.cells(budget) for budget in ledger.BUDGETS}
        assert json.loads(json.dumps(cells)) == cells and cells["full"], "none at the smoke budget is fine too"


@pytest.mark.parametrize(
    ("paper", "claim"), [case(paper, claim) for paper in PAPERS for claim in zoo.paper(paper).CLAIMS]
)
def test_a_claim_at_the_smoke_budget(paper: str, claim: Claim, kept: Path) -> None:
    (entry,) = zoo.claims.reproduce(paper, claims=[claim.id], folder=kept).values()
    if entry["failed"] and "ZOO_DATA" in entry["summary"]:
        pytest.skip(entry["summary"])
    assert not entry["failed"], entry["summary"]
    assert entry["outcome"] in ledger.OUTCOMES and not re.search(r"\b(nan|inf)\b", entry["summary"])
    assert (entry["cells"] > 0) == bool(zoo.claims.of(paper).JUDGES[claim.id].experiments)
    if claim.theorem:
        assert entry["outcome"] == "reproduced", entry["summary"]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_committed_ledger_is_about_the_claims_as_they_stand(paper: str) -> None:
    path = ROOT / ledger.NAME
    if not path.exists():
        pytest.skip("nothing was measured yet: there is no ledger.json")
    found = Ledger.load(path)
    assert found.text() == path.read_text(encoding="utf-8"), "written by hand? zoo reproduce writes it"
    claims = {claim.id: asdict(claim) for claim in zoo.paper(paper).CLAIMS}
    for name, budgets in found.papers.get(paper, {}).items():
        for entry in budgets.values():
            assert {key: entry[key] for key in ("statement", "source", "number")} == {
                key: value for key, value in claims[name].items() if key != "id"
            }

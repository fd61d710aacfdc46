"""The judges of `matrix_gaussian` on rows made by hand: what must not be called reproduced."""

from typing import Any

import pytest

from zoo.claims import matrix_gaussian_judges as judges

Row = dict[str, Any]


def trained(data: str, guide: str, rmse: list[float], loglik: list[float], **more: Any) -> Row:
    """A row of `side_by_side`."""
    n = len(rmse)
    same = {key: [1.0] * n for key in ("crps", "coverage", "kl", "settled")}
    row = {"experiment": "yacht", "data": data, "guide": guide, "noise": "raw", "splits": n, "steps": 10, "batch": 5}
    rest = {"rmse": rmse, "loglik": loglik, "objective": loglik, "rmse_of_mean": [14.0] * n, "is_bound": False}
    return {**row, "tau": "data", **rest, **same, **more}


def around(mean: float, n: int = 5) -> list[float]:
    return [mean + 0.01 * (i - (n - 1) / 2) for i in range(n)]


def test_scores_as_published_are_reproduced_and_worse_ones_are_not() -> None:
    good = trained("yacht", "MatrixNormalAuthors", around(0.72), around(-1.31))
    bad = trained("yacht", "MatrixNormalAuthors", around(1.4), around(-1.31))
    assert judges.as_published([good]).outcome == "reproduced"
    assert judges.as_published([bad]).outcome == "not reproduced"
    assert judges.as_published([]).outcome == "not reproduced"


def test_the_published_recipe_decides_where_it_was_run() -> None:
    ours = trained("yacht", "MatrixNormalAuthors", around(3.0), around(-3.0))
    theirs = trained("yacht", "MatrixNormalAuthors", around(0.72), around(-1.31), tau="prior")
    verdict = judges.as_published([ours, theirs])
    assert verdict.outcome == "reproduced" and "own recipe" in verdict.summary and "3.000" in verdict.summary


def test_two_splits_give_no_verdict() -> None:
    """Their standard error is so uncertain that a useless fit would agree with anything."""
    row = trained("yacht", "MatrixNormalAuthors", [1.2, 6.0], [-2.0, -4.5])
    verdict = judges.as_published([row])
    assert verdict.outcome == "not attempted" and "fewer than 5 splits" in verdict.summary


@pytest.mark.parametrize(
    ("raw", "rmse", "outcome"),
    [(2.45, 0.004, "reproduced"), (2.31, 13.9, "confounded"), (2.20, 0.004, "not reproduced")],
)
def test_the_cap_must_bind_for_a_net_that_predicts(raw: float, rmse: float, outcome: str) -> None:
    rows = [
        trained("naval-propulsion-plant", "MatrixNormalAuthors", around(rmse), around(raw)),
        trained("naval-propulsion-plant", "MatrixNormalAuthors", around(0.004), around(4.0), noise="standardised"),
    ]
    assert judges.the_cap(rows).outcome == outcome


def optimum(guide: str, bound: float) -> list[Row]:
    return [{"experiment": "optimum", "guide": guide, "noise": noise, "bound": bound} for noise in ("common", "each")]


def test_structure_helps_only_where_it_was_seen_to() -> None:
    exact = [*optimum("MatrixNormalTril", -45.0), *optimum("MeanField", -48.8)]
    assert judges.structure_helps(exact).outcome == "not reproduced"
    tril = trained("yacht", "MatrixNormalTril", around(1), around(-1))
    mean_field = trained("yacht", "MeanField", around(1), around(-2))
    assert judges.structure_helps([*exact, tril, mean_field]).outcome == "reproduced"
    assert judges.structure_helps([*exact, {**tril, "loglik": around(-3)}, mean_field]).outcome == "not reproduced"


def test_a_diagonal_law_above_mean_field_would_be_a_fault() -> None:
    above = [*optimum("MatrixNormal", -48.0), *optimum("MeanField", -48.8)]
    assert judges.never_better(above).outcome == "not reproduced"


def test_the_pseudo_outputs_carry_the_fit_only_if_it_falls_without_them() -> None:
    def row(guide: str, kl: float, error: float, without: float) -> Row:
        return {"guide": guide, "kl": [kl], "error": error, "error_without_outputs": without}

    plain = row("MatrixNormal", 600.0, 0.05, 0.05)
    assert judges.the_outputs_carry([row("MatrixNormalAuthors", 60.0, 0.03, 0.9), plain]).outcome == "reproduced"
    assert judges.the_outputs_carry([row("MatrixNormalAuthors", 60.0, 0.03, 0.04), plain]).outcome == "not reproduced"


def test_a_test_error_far_from_the_log_is_not_reproduced() -> None:
    row = {
        "errors": [0.0109] * 100,
        "error": 0.0109,
        "kl": [60.0] * 100,
        "epochs": 100,
        "weights": 1,
        "train_error": 0.0,
    }
    assert judges.digits_error([row]).outcome == "reproduced"
    assert judges.digits_error([{**row, "error": 0.02}]).outcome == "not reproduced"
    assert judges.digits_error([{**row, "epochs": 5}]).outcome == "not reproduced"


def test_the_table_shows_every_cell_beside_the_literature() -> None:
    verdict = judges.as_published([trained("yacht", "MatrixNormalAuthors", around(0.72), around(-1.31), tau="prior")])
    text = judges.regression_table({"G9": {"rows": list(verdict.rows)}})
    assert "`MatrixNormalAuthors`, published recipe | 0.720 ± 0.007 | -1.310 ± 0.007" in text
    assert "| yacht | published | 0.71 ± 0.05 | -1.30 ± 0.02 |" in text

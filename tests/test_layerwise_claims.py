"""The judges of `layerwise` on rows made by hand: what must not be called reproduced."""

from typing import Any

import pytest

from zoo.claims import layerwise_judges as judges

Row = dict[str, Any]

BOOKS = {
    "ceiling": -4.4, "blm": -8.0, "certificate": 0.0, "criterion": -8.5, "elbo_aggregated": -8.7, "codes": -8.8,
    "reconstruction": -9.0, "deep": -8.9, "elbo": -9.2, "information": 4.0, "kl": 0.5, "price": 0.6, "mean_field": -8.9,
}  # fmt: skip


def net(method: str, split: int, valid: float, test: float, **more: Any) -> Row:
    """A row of the random search."""
    place = {"data": "tea", "split": split, "repeat": 0, "method": method, "seconds": 1.0, "generative": 1000}
    return {**place, "valid": valid, "test": test, **more}


def search(gap: float, splits: int = 6, methods: tuple[str, str] = ("AERI", "stacked RBM")) -> list[Row]:
    """Two nets of each method; the first is better by `gap`, and its worse net on validation has the better test."""
    return [
        row
        for split in range(splits)
        for row in (
            net(methods[0], split, -20.0 + 0.1 * split, -20.0 + gap),
            net(methods[0], split, -30.0, 0.0),
            net(methods[1], split, -20.0, -20.0 + 0.1 * split),
        )
    ]


def test_the_net_is_chosen_on_validation_data() -> None:
    best = judges.selected(search(3.0), "AERI", data="tea")
    assert [row["test"] for row in best.values()] == [-17.0] * 6, "the better test score must not choose"


@pytest.mark.parametrize(
    ("gap", "splits", "outcome"), [(3.0, 6, "reproduced"), (0.3, 6, "not reproduced"), (3.0, 4, "not attempted")]
)
def test_a_method_beats_another_only_if_its_interval_does(gap: float, splits: int, outcome: str) -> None:
    assert judges.beats(search(gap, splits), [("AERI", "stacked RBM")]).outcome == outcome


def test_a_paired_difference_has_the_t_interval() -> None:
    found = judges.paired(search(1.0, 3), "AERI", "stacked RBM", data="tea")
    assert (found["mean"], found["places"]) == (pytest.approx(0.9), 3)
    assert found["half"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5), "two degrees of freedom"


WORLDS = {"experiment": "prices", "cases": 10, "above_blm": 0, "above_kl": 0, "above_price": 0, "above_naive": 2}


@pytest.mark.parametrize(
    ("worlds", "books", "outcome"),
    [
        ({}, {}, "reproduced"),
        ({"above_price": 1}, {}, "not reproduced"),
        ({"above_naive": 0}, {}, "not reproduced"),
        ({}, {"deep": -9.2}, "not reproduced"),
        ({}, {"deep": -7.9}, "not reproduced"),
        ({}, {"deep": -7.9, "certificate": 0.2}, "reproduced"),
    ],
)
def test_one_violation_breaks_the_guarantee(worlds: Row, books: Row, outcome: str) -> None:
    rows = [{**WORLDS, **worlds}, net("AERI", 0, -9.0, -9.0, **{**BOOKS, **books})]
    assert judges.guarantee(rows).outcome == outcome


@pytest.mark.parametrize(
    ("books", "outcome"),
    [
        ({}, "reproduced"),
        ({"mean_field": -5.0}, "reproduced"),
        ({"mean_field": -9.1}, "not reproduced"),
        ({"codes": -8.4}, "not reproduced"),
        ({"elbo_aggregated": -8.4}, "not reproduced"),
        ({"criterion": -7.9}, "not reproduced"),
    ],
)
def test_the_chain_of_bounds_must_hold_on_every_net(books: Row, outcome: str) -> None:
    rows = [net("AE", 0, -9.0, -9.0, **BOOKS), net("AE", 0, -9.0, -9.0, **{**BOOKS, **books})]
    assert judges.lower_bounds(rows).outcome == outcome


@pytest.mark.parametrize(
    ("sign", "nets", "outcome"), [(1, 20, "reproduced"), (-1, 20, "not reproduced"), (1, 19, "not attempted")]
)
def test_layers_are_selected_by_rank(sign: int, nets: int, outcome: str) -> None:
    rows = [
        net("AE", 0, -float(i), 0.0, **BOOKS, valid_b=-float(sign * i), valid_a=0.1 * i, valid_c=float(i % 3))
        for i in range(nets)
    ]
    assert judges.layers_selected(rows).outcome == outcome


def test_depth_is_judged_at_equal_parameters() -> None:
    small = [{**row, "generative": 900} for row in search(5.0, methods=("AERI", "RBM"))]
    stacked = [{**row, "method": "stacked RBM"} for row in small if row["method"] == "AERI"]
    larger = [net("RBM", split, 0.0, 0.0, generative=2019) for split in range(6)]
    assert judges.depth_pays([*small, *stacked]).outcome == "reproduced"
    verdict = judges.depth_pays([*small, *stacked, *larger])
    assert verdict.outcome == "reproduced" and "-15.00 ± 0.00" in verdict.summary, "what larger machines do is told"


def test_a_gain_below_the_divergence_would_be_a_fault() -> None:
    good = net("stacked RBM", 0, -9.0, -9.0, **BOOKS, rbm=-9.5, rbm_kl=0.9)
    assert judges.pessimistic([good]).outcome == "reproduced"
    assert judges.pessimistic([{**good, "rbm_kl": 1.1}]).outcome == "not reproduced"


def test_the_table_names_every_method_and_the_floor() -> None:
    floor = {"experiment": "floors", "data": "tea", "bits": [-49.0] * 6, "bits_test": [-49.0] * 6, "uniform": -69.3}
    rows = [*search(3.0), floor]
    text = judges.search_table({"C3": {"rows": list(judges.ranking(rows).rows)}})
    assert "| tea | independent bits | -49.00 ± 0.00 |" in text and "| tea | AERI | -17.00 ± 0.00 | +2.75 ±" in text

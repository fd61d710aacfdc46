"""The judges of `layerwise` on rows made by hand: what must not be called reproduced."""

from typing import Any

import pytest

from zoo import layerwise
from zoo.claims import layerwise_judges as judges
from zoo.claims import layerwise_methods as methods

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


@pytest.mark.parametrize(
    ("exact", "splits", "outcome"),
    [(-25.0, 6, "reproduced"), (-19.0, 6, "not reproduced"), (-25.0, 4, "not attempted")],
)
def test_depth_is_judged_against_the_rbm_of_the_exact_gradient(exact: float, splits: int, outcome: str) -> None:
    rows = [
        net(method, split, score, score + 0.01 * split, generative=900)
        for split in range(splits)
        for method, score in (*((deep, -20.0) for deep in judges.DEEP), ("RBM, exact", exact), ("RBM", -30.0))
    ]
    verdict = judges.depth_pays(rows)
    assert verdict.outcome == outcome, "the RBM trained by CD is far worse here, and does not judge"
    assert "+10.00 ± 0.00 (AERI minus RBM, tea)" in verdict.summary, "but it is told"


def test_depth_pays_only_if_every_deep_net_does() -> None:
    scores = {"AERI": -20.0, "stacked RBM, exact": -20.0, "stacked RBM": -26.0, "RBM, exact": -25.0, "RBM": -30.0}
    rows = [net(method, split, score, score + split) for split in range(6) for method, score in scores.items()]
    assert judges.depth_pays(rows).outcome == "not reproduced"


@pytest.mark.parametrize("D", [16, 100])
def test_a_single_rbm_has_as_many_parameters_as_two_layers(D: int) -> None:
    for n1 in range(4, 11):
        for n2 in range(4, 11):
            deep = layerwise.Model(D, [n1], top_hidden=n2)
            alone = layerwise.Model(D, [], top_hidden=methods.units(n1, n2, D))
            left = sum(p.numel() for p in deep.parameters()) - sum(p.numel() for p in alone.parameters())
            assert 0 <= left <= D, "one more unit, of D + 1 parameters, would be too much"


def test_single_rbms_get_the_steps_of_both_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(
        methods, "_fit", lambda model, guide, train, cell, plan: steps.append(cell["steps"] * len(plan))
    )
    cell = {"data": "tea", "split": 0, "method": "RBM, exact", "batch": 81, **methods.configuration(0, steps=(300,))}
    train = layerwise.data("tea").train
    for method in ("RBM", "RBM, exact", "AERI", "stacked RBM, exact"):
        methods.METHODS[method](cell, train)
    assert steps == [600] * 4


def test_far_better_is_judged_on_test_data() -> None:
    floor = {"experiment": "baselines", "data": "tea", "bits": [-99.0] * 20, "bits_test": [-49.0] * 20}
    nets = [net(method, split, -9.0, -20.0) for split in range(6) for method in ("AE", "AERI")]
    assert judges.far_better([*nets, floor]).outcome == "reproduced"
    late = [{**row, "test": -30.0} for row in nets]
    verdict = judges.far_better([*late, floor])
    assert verdict.outcome == "not reproduced" and "at least 19.0 nats" in verdict.summary


def test_a_gain_below_the_divergence_would_be_a_fault() -> None:
    good = net("stacked RBM", 0, -9.0, -9.0, **BOOKS, rbm=-9.5, rbm_kl=0.9)
    assert judges.pessimistic([good]).outcome == "reproduced"
    assert judges.pessimistic([{**good, "rbm_kl": 1.1}]).outcome == "not reproduced"


def test_the_table_names_every_method_and_the_floor() -> None:
    floor = {"experiment": "floors", "data": "tea", "bits": [-49.0] * 6, "bits_test": [-49.0] * 6, "uniform": -69.3}
    rows = [*search(3.0), floor]
    text = judges.search_table({"C3": {"rows": list(judges.ranking(rows).rows)}})
    assert "| tea | independent bits | -49.00 ± 0.00 |" in text and "| tea | AERI | -17.00 ± 0.00 | +2.75 ±" in text

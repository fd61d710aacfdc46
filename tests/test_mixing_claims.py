"""The judges of `mixing` on rows made by hand, the cells of its experiments, and the exact ones at the smoke budget."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import pytest
import torch
from test_mixing import built, joint

from guides.codes import states
from zoo import claims, mixing
from zoo.claims import mixing as measured
from zoo.claims import mixing_exact as exact
from zoo.claims import mixing_judges as judges
from zoo.lab import cells, markov
from zoo.lab.cells import CellError

Row = dict[str, Any]

BASE = {
    "classes in 10": 4.0, "classes in 25": 6.0, "of ceiling in 10": 0.6, "switch rate": 0.5, "ESS/step median": 0.2,
    "ESS/step worst": 0.1, "ESS/s worst": 9.0, "R-hat": 1.01, "class error": 0.1, "rejected": 0.2, "nearest": 3.0,
    "Parzen": -14.0, "loglik": -20.0, "stuck": 0, "TV after 3": 0.4, "TV after 10": 0.2,
}  # fmt: skip


def net(seed: int, depth: int, measure: str = "dbn", data: str = "digits", changed: Row | None = None) -> Row:
    """A row of a model; every measure moves a little with the seed, and not with the depth."""
    values = {key: value + 0.01 * seed if isinstance(value, float) else value for key, value in BASE.items()}
    shuffled = {f"shuffled {key}": value for key, value in values.items() if key in ("classes in 10", "loglik")}
    place = {"experiment": measure, "measure": measure, "data": data, "seed": seed, "depth": depth, "seconds": 1.0}
    return {**place, **values, **shuffled, "shuffled rejected": 0.9, "shuffled loglik": -90.0, **(changed or {})}


def ladder(seeds: int = 6, measure: str = "dbn", **by: float) -> list[Row]:
    """Depth 1 and 2; `by`, with _ for a blank and __ for a stroke, is what the deeper one has more, and a little noise.

    A seed more or less moves a difference by .01.
    """
    rows = []
    for seed in range(seeds):
        rows.append(net(seed, 1, measure))
        more = {key.replace("__", "/").replace("_", " "): value for key, value in by.items()}
        deep = net(seed, 2, measure)
        rows.append({**deep, **{key: deep[key] + value + 0.01 * (seed % 2) for key, value in more.items()}})
    return rows


# Differences.


def test_a_difference_is_paired_by_seed_with_its_t_interval() -> None:
    rows = ladder(3, classes_in_10=1.0)
    found = judges.change(rows, "classes in 10", {"depth": 2}, {"depth": 1})
    assert (found["seeds"], found["up"]) == (3, 3) and found["mean"] == pytest.approx(1 + 0.01 / 3)
    spread = math.sqrt(sum((d - 0.01 / 3) ** 2 for d in (0.0, 0.01, 0.0)) / 2)
    assert found["half"] == pytest.approx(4.302653 * spread / math.sqrt(3), rel=1e-5), "two degrees of freedom"
    alone = judges.change(
        [row for row in rows if row["seed"] or row["depth"] == 2], "loglik", {"depth": 2}, {"depth": 1}
    )
    assert alone["seeds"] == 2, "a seed of one depth only is in no pair"
    one = judges.change(ladder(1), "loglik", {"depth": 2}, {"depth": 1})
    assert one["half"] == math.inf
    none = judges.change([], "loglik", {"depth": 2}, {"depth": 1})
    assert none["seeds"] == 0 and math.isnan(none["mean"]) and none["half"] == math.inf
    assert judges.told(found) == "classes in 10 +1.003 ± 0.014 (3 of 3 seeds up)"


def test_a_figure_that_was_not_finite_is_in_no_difference() -> None:
    rows = ladder(6)
    rows[0]["relaxation"], rows[1]["relaxation"] = None, 3.0
    assert judges.change(rows, "relaxation", {"depth": 2}, {"depth": 1})["seeds"] == 0


# C1 and C2: visits.


@pytest.mark.parametrize(
    ("seeds", "by", "outcome"),
    [
        (6, {"classes_in_10": 0.5}, "reproduced"),
        (6, {"classes_in_10": 0.5, "loglik": 1.0, "Parzen": 1.0, "class_error": -0.05, "rejected": -0.1}, "reproduced"),
        (6, {"classes_in_10": 0.5, "loglik": -1.0}, "confounded"),
        (6, {"classes_in_10": 0.5, "Parzen": -1.0}, "confounded"),
        (6, {"classes_in_10": 0.5, "class_error": 0.1}, "confounded"),
        (6, {"classes_in_10": 0.5, "rejected": 0.1}, "confounded"),
        (6, {"classes_in_10": 0.0}, "not reproduced"),
        (6, {"classes_in_10": -0.5}, "not reproduced"),
        (6, {"classes_in_10": -0.5, "loglik": -1.0}, "not reproduced"),
        (4, {"classes_in_10": 0.5}, "not attempted"),
    ],
)
@pytest.mark.parametrize("measure", ["dbn", "cae"])
def test_more_visits_count_only_if_nothing_got_worse(
    measure: str, seeds: int, by: dict[str, float], outcome: str
) -> None:
    rows = ladder(seeds, measure, **by)
    if measure == "cae":
        by = {key: value for key, value in by.items() if key != "loglik"}
        rows = [
            {key: value for key, value in row.items() if "loglik" not in key} for row in ladder(seeds, measure, **by)
        ]
        outcome = "reproduced" if outcome == "confounded" and len(by) == 1 else outcome
    verdict = judges.visits_more(rows)
    assert verdict.outcome == outcome, verdict.summary
    if outcome == "confounded":
        worse = next(key for key in by if key != "classes_in_10").replace("_", " ")
        assert f"worse: {worse}." in verdict.summary
    assert "with one target see C8" in verdict.summary


def test_depth_three_and_other_pictures_do_not_decide_on_level_two() -> None:
    rows = ladder(6, classes_in_10=0.5)
    others = [net(seed, 3, changed={"classes in 10": 0.0, "loglik": -99.0}) for seed in range(6)]
    others += [net(0, depth, data="mnist", changed={"classes in 10": 9.0 - depth}) for depth in (1, 2)]
    verdict = judges.visits_more(rows + others)
    assert verdict.outcome == "reproduced" and [row["depth"] for row in verdict.rows if not row["control"]] == [1, 2, 3]


def test_stuck_chains_are_told() -> None:
    rows = ladder(6, classes_in_10=0.5)
    rows[0]["stuck"] = 2
    assert "never entered or never left: 1 of 12 models" in judges.visits_more(rows).summary


# C3: Parzen.


@pytest.mark.parametrize(
    ("seeds", "dbn", "cae", "outcome"),
    [
        (6, 1.0, 1.0, "reproduced"),
        (6, 1.0, 0.0, "not reproduced"),
        (6, -1.0, 1.0, "not reproduced"),
        (4, 1.0, 1.0, "not attempted"),
    ],
)
def test_deeper_samples_score_better_only_if_both_families_do(seeds: int, dbn: float, cae: float, outcome: str) -> None:
    rows = ladder(seeds, "dbn", Parzen=dbn) + ladder(seeds, "cae", Parzen=cae)
    mnist = [net(0, depth, data="mnist", changed={"Parzen": 100.0 + depth}) for depth in (1, 2)]
    verdict = judges.scores_better(rows + mnist)
    assert verdict.outcome == outcome and "DBN-1 101.0; DBN-2 102.0" in verdict.summary
    assert "are not compared" in verdict.summary and "MNIST pictures" not in judges.scores_better(rows).summary


# C4, C5, C6: levels.


def spaces(seeds: int, gain: dict[str, list[float]]) -> list[Row]:
    """Scores at every level of both families; `gain[kind]` are those of the levels above the pixels."""
    return [
        {"experiment": "levels", "kind": kind, "seed": seed, "seconds": 1.0,
         **{f"score at {level}": value + 0.01 * (seed % 2) * level for level, value in enumerate([0.0, *values])}}
        for seed in range(seeds)
        for kind, values in gain.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "dbn", "cae", "sign", "outcome"),
    [
        (6, [1.0, 2.0, 3.0], [1.0, 2.0], 1, "reproduced"),
        (6, [-1.0, -2.0, 3.0], [-1.0, 2.0], 1, "reproduced"),
        (6, [1.0, 2.0, -3.0], [1.0, 2.0], 1, "not reproduced"),
        (6, [1.0, 2.0, 3.0], [1.0, 0.0], 1, "not reproduced"),
        (6, [1.0, 2.0, 3.0], [1.0, 2.0], -1, "not reproduced"),
        (6, [-1.0, -2.0, -3.0], [-1.0, -2.0], -1, "reproduced"),
        (4, [1.0, 2.0, 3.0], [1.0, 2.0], 1, "not attempted"),
    ],
)
def test_the_top_levels_of_both_families_decide(
    seeds: int, dbn: list[float], cae: list[float], sign: int, outcome: str
) -> None:
    rows = spaces(seeds, {"DBN": dbn, "CAE": cae})
    verdict = judges.better_at_the_top(rows, keys=["score"], sign=sign, what="Score")
    assert verdict.outcome == outcome and len(verdict.rows) == 5
    assert verdict.summary.startswith(
        f"{'Fewer than 5 seeds. ' if seeds < 5 else ''}Score, each level minus raw pixels"
    )


def test_every_key_must_be_better() -> None:
    rows = [{**row, **{f"other at {k}": -float(k) for k in range(4)}} for row in
            spaces(6, {"DBN": [1.0, 2.0, 3.0], "CAE": [1.0, 2.0]})]  # fmt: skip
    assert judges.better_at_the_top(rows, keys=["score"], sign=1, what="S").outcome == "reproduced"
    assert judges.better_at_the_top(rows, keys=["score", "other"], sign=1, what="S").outcome == "not reproduced"


@pytest.mark.parametrize(
    ("gain", "fall", "outcome"),
    [
        (1.0, 1.0, "reproduced"),
        (1.0, -1.0, "confounded"),
        (1.0, 0.0, "confounded"),
        (-1.0, 1.0, "not reproduced"),
        (-1.0, -1.0, "not reproduced"),
    ],
)
def test_a_gain_of_smooth_means_alone_is_confounded(gain: float, fall: float, outcome: str) -> None:
    """The control is the fall of the score from a picture's own reconstruction."""
    rows = spaces(6, {"DBN": [gain] * 3, "CAE": [gain] * 2})
    rows = [
        {**row, **{f"fall at {k}": fall * (k > 0) + 0.01 * (row["seed"] % 2) * k for k in range(4)}} for row in rows
    ]
    verdict = judges.better_at_the_top(rows, keys=["score"], controls=["fall"], sign=1, what="S")
    assert verdict.outcome == outcome and sum(row["control"] for row in verdict.rows) == 5
    few = [row for row in rows if row["seed"] < 4]
    assert judges.better_at_the_top(few, keys=["score"], controls=["fall"], sign=1, what="S").outcome == "not attempted"


# C7: forgetting.


@pytest.mark.parametrize(
    ("seeds", "exactly", "simulated", "outcome"),
    [
        (6, -0.1, -0.1, "reproduced"),
        (6, 0.1, -0.1, "not reproduced"),
        (6, -0.1, 0.0, "not reproduced"),
        (4, -0.1, -0.1, "not attempted"),
    ],
)
def test_forgetting_is_faster_only_if_it_is_so_exactly_and_simulated(
    seeds: int, exactly: float, simulated: float, outcome: str
) -> None:
    small = [
        {"experiment": "forgetting", "measure": "forgetting", "data": "digits_4x4", "seed": seed, "depth": depth,
         "relaxation": 5.0 - depth, "loglik": -5.0,
         **{f"TV after {t}": 0.3 + (depth - 1) * exactly + 0.001 * seed * depth for t in (3, 10)}}
        for seed in range(seeds) for depth in (1, 2)
    ]  # fmt: skip
    large = ladder(seeds, "dbn", TV_after_3=simulated, TV_after_10=simulated)
    verdict = judges.forgets_faster(small + large)
    assert verdict.outcome == outcome and "relaxation -1.000" in verdict.summary
    assert [row["where"] for row in verdict.rows] == ["4x4, exact"] * 2 + ["8x8, simulated"] * 2


# C8: one target.


def times(models: int, sweep: float, alternate: float, top: float = 2.0) -> list[Row]:
    walks = {"sweep": sweep, "alternate": alternate, "top": top}
    taus = {f"{walk}, {name}": tau for walk, tau in walks.items() for name in judges.STATISTICS}
    same = {"experiment": "same target", "stationarity error": 1e-16, **taus}
    return [{**same, "seed": m, "sharpness": [0.5, 1.0][m % 2]} for m in range(models)]


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        (times(24, 3.0, 9.0), "reproduced"),
        (times(24, 1.5, 9.0), "not reproduced"),
        (times(24, 3.0, 1.5), "not reproduced"),
        (times(12, 3.0, 9.0) + times(12, 1.0, 9.0), "not reproduced"),
        (times(13, 3.0, 9.0) + times(11, 1.0, 9.0), "reproduced"),
        (times(19, 3.0, 9.0), "not attempted"),
    ],
)
def test_the_top_must_beat_both_other_walks_in_most_cases(rows: list[Row], outcome: str) -> None:
    assert judges.same_target(rows).outcome == outcome


def test_the_scale_of_the_parameters_is_told_by_itself() -> None:
    rows = [{**row, "sharpness": 0.5} for row in times(12, 3.0, 9.0)]
    rows += [{**row, "sharpness": 1.5} for row in times(12, 1.0, 9.0)]
    assert "by the scale of the parameters: 0.5: 48 of 48; 1.5: 0 of 48." in judges.same_target(rows).summary


def test_the_price_of_a_step_is_told_beside() -> None:
    """A sweep touches 135 units, x <-> h_1 15, and the top 10, by our count."""
    found = {(row["other"], row["per work"]): row for row in judges.same_target(times(20, 1.0, 3.0)).rows}
    assert found["sweep", False]["ratio"] == pytest.approx(0.5) and found["sweep", False]["ahead"] == 0
    assert found["sweep", True]["ratio"] == pytest.approx(0.5 * 13.5) and found["sweep", True]["ahead"] == 80
    assert found["alternate", True]["ratio"] == pytest.approx(1.5 * 1.5) and found["alternate", True]["cases"] == 80


# C9, C10, C11.


@pytest.mark.parametrize(
    ("seeds", "changed", "outcome"),
    [
        (6, {}, "reproduced"),
        (6, {"shuffled loglik": -10.0}, "not reproduced"),
        (6, {"shuffled rejected": 0.1}, "not reproduced"),
        (4, {}, "not attempted"),
    ],
)
def test_a_shuffled_stack_must_be_caught_by_fit_and_rejection_every_time(
    seeds: int, changed: Row, outcome: str
) -> None:
    rows = [net(seed, depth) for seed in range(seeds) for depth in (1, 2, 3)]
    rows[-1] = {**rows[-1], **changed}
    verdict = judges.shuffled_fails([*rows, net(0, 2, data="mnist", changed={"shuffled loglik": 0.0})])
    assert verdict.outcome == outcome and f"{2 * seeds} stacks" in verdict.summary
    first = [{**row, "shuffled loglik": 0.0} if row["depth"] == 1 else row for row in rows]
    assert judges.shuffled_fails(first).outcome == outcome, "an RBM has no upper weights"


@pytest.mark.parametrize(("broken", "outcome"), [(0, "reproduced"), (1, "not reproduced")])
def test_one_visit_above_the_ceiling_breaks_the_theorem(broken: int, outcome: str) -> None:
    row = {"checked": 320, "broken": broken, "closest": -1e-3, "cycle": 5.0, "cycle iid": 3.36}
    verdict = judges.under_the_ceiling([row])
    assert verdict.outcome == outcome and "visits 5 in 5 steps where independent draws visit 3.36" in verdict.summary


@pytest.mark.parametrize(
    ("misranked", "outcome"), [([1, 2, 3], "reproduced"), ([1, 0, 3], "not reproduced"), ([1, 2], "not attempted")]
)
def test_parzen_misranks_only_if_it_does_so_in_every_set(misranked: list[int], outcome: str) -> None:
    scores = [float(k) for k in range(10)]
    rows = [{"exact": scores, "parzen": scores, "misranked": m, "widest": 0.1 * m, "above data": 1} for m in misranked]
    verdict = judges.parzen_misranks(rows)
    total = sum(misranked)
    assert verdict.outcome == outcome and "log-likelihood 1.00 (lowest 1.00)" in verdict.summary
    assert f"{total} of {45 * len(rows)} pairs misranked, up to {0.1 * max(misranked):.2f} nats" in verdict.summary


# Cells.


def test_every_claim_has_a_judge_and_every_judge_its_experiments() -> None:
    assert set(measured.JUDGES) == {claim.id for claim in mixing.CLAIMS}
    for judge in measured.JUDGES.values():
        assert judge.experiments and set(judge.experiments) <= set(measured.EXPERIMENTS)
    assert claims.of("mixing") is measured


@pytest.mark.parametrize("budget", ["smoke", "full"])
@pytest.mark.parametrize("name", measured.EXPERIMENTS)
def test_cells_are_json_and_differ(name: str, budget: str) -> None:
    experiment = measured.EXPERIMENTS[name]
    found = experiment.cells(budget)
    texts = [json.dumps(cell, sort_keys=True, allow_nan=False) for cell in found]
    assert found and len(set(texts)) == len(texts) and [json.loads(text) for text in texts] == found
    assert all("seed" in cell for cell in found)
    assert {cell["measure"] for cell in found} <= {"dbn", "cae", *exact.MEASURES, "levels"}
    if budget == "full" and name in ("dbn", "cae", "levels", "forgetting"):
        seeds = {cell["seed"] for cell in found}
        assert len(seeds) >= judges.FEWEST, "enough for a verdict"


def test_the_full_budget_is_enough_for_every_judge() -> None:
    assert len(measured.target_cells("full")) >= 20 and len(measured.parzen_cells("full")) >= 3
    widths = {cell["width"] for cell in measured.dbn_cells("full") if cell["data"] == "digits"}
    assert len(widths) == 1, "levels have equal widths"


# What is exact, at the smoke budget.


def run(name: str) -> list[Row]:
    experiment, rows = measured.EXPERIMENTS[name], []
    for cell in experiment.cells("smoke"):
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        found = cells.plain(experiment.measure(dict(cell)))
        assert not set(found) & {*cell, "experiment", "seconds"}
        rows.append({"experiment": name, **cell, **found, "seconds": 1.0})
    return rows


def test_the_same_target_is_measured_at_the_smoke_budget() -> None:
    rows = run("same target")
    assert max(row["stationarity error"] for row in rows) < 1e-12
    for row in rows:
        assert row["sharpness"] != 1.0 or row["loglik"] == row["loglik sharpened"]
        for name in judges.STATISTICS:
            assert row[f"alternate, {name}"] >= 1 and 1 <= row[f"top, {name}"] <= row[f"top given h, {name}"]
    verdict = judges.same_target(rows)
    assert verdict.outcome == "not attempted" and "Fewer than 20 models" in verdict.summary


def test_ceilings_are_measured_at_the_smoke_budget() -> None:
    (row,) = run("ceilings")
    assert (row["checked"], row["broken"], row["cycle"]) == (320, 0, 5.0) and row["closest"] < 1e-12
    assert judges.under_the_ceiling([row]).outcome == "reproduced"


def test_parzen_s_ranking_is_measured_at_the_smoke_budget() -> None:
    (row,) = run("parzen")
    pairs = list(zip(row["exact"], row["parzen"], strict=True))
    wrong = [(a, b) for a, b in combinations(pairs, 2) if (a[0] - b[0]) * (a[1] - b[1]) < 0]
    assert len(pairs) == 10 and row["misranked"] == len(wrong) > 0
    assert row["widest"] == pytest.approx(max(abs(a[0] - b[0]) for a, b in wrong))
    assert judges.parzen_misranks([row]).outcome == "not attempted"


def test_forgetting_is_measured_at_the_smoke_budget() -> None:
    rows = run("forgetting")
    for row in rows:
        tv = [row[f"TV after {t}"] for t in exact.FORGET]
        assert all(0 <= value <= 1 for value in tv) and tv[-1] < 1e-6 and row["relaxation"] >= 1
        assert -16 * math.log(2) < row["loglik"] < 0
    simulated = ladder(2, "dbn")
    assert judges.forgets_faster(rows + simulated).outcome == "not attempted"


@pytest.mark.parametrize("widths", [(3,), (3, 2)], ids=str)
def test_what_is_forgotten_is_the_chain_of_the_model(widths: tuple[int, ...]) -> None:
    """Kernel, law of the code, decoder and codes of data against the joint law; x has 4 bits here."""
    model, x = built(widths), states(4)
    guide: Any = mixing.guide(model, {"x": x})
    P = joint(model).detach()
    with torch.no_grad():
        K, pi, decoder, encoded = exact._chain(model, guide, x)
        decoded = exact._decoded(decoder, torch.eye(16))
        torch.testing.assert_close(pi, P.flatten(2).sum((0, 2)) if P.dim() > 2 else P.sum(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(pi @ decoded, model.loglik(x).exp(), rtol=0, atol=1e-12)
        assert markov.stationarity_error(K, pi) < 1e-14
        torch.testing.assert_close(encoded.sum(1), torch.ones(16))
        if len(widths) == 1:
            torch.testing.assert_close(encoded, P / P.sum(1, keepdim=True), rtol=0, atol=1e-12)


def test_an_unknown_measure_is_no_cell() -> None:
    with pytest.raises((KeyError, CellError)):
        exact.measure({"measure": "nothing"})


# The table.


def test_the_depth_table_has_a_line_for_every_model_and_control() -> None:
    rows = [net(seed, depth) for seed in range(7) for depth in (1, 2)]
    deep = judges.visits_more(rows)
    bare = [net(seed, depth, "cae") for seed in range(6) for depth in (1, 2)]
    cae = judges.visits_more([{k: v for k, v in row.items() if "loglik" not in k and "shuf" not in k} for row in bare])
    entries = json.loads(json.dumps({c: {"rows": cells.plain(v.rows)} for c, v in (("C1", deep), ("C2", cae))}))
    text = measured.TABLES["depth"](entries)
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["model", *judges.SHOWN]
    names = [line[0] for line in lines[2:]]
    assert names == ["DBN-1", "DBN-1, shuffled", "DBN-2", "DBN-2, shuffled", "CAE-1", "CAE-2"]
    assert lines[2][lines[0].index("loglik")] == "-19.97 ± 0.02", "the mean over seeds, and its half interval"
    assert lines[6][lines[0].index("loglik")] in ("", "-")
    assert all(len(line) == len(lines[0]) for line in lines)


def test_large_figures_have_fewer_digits_and_one_seed_no_interval() -> None:
    values: list[Any] = [[1234.5, 12.0], [123.45, 1.0], [-1.234, None], None, [None, None]]
    assert [judges._cell(value) for value in values] == [
        "1,234 ± 12", "123.5 ± 1.0", "-1.23", None, None,
    ]  # fmt: skip

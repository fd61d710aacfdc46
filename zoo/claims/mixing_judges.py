"""How the rows of the experiments of `mixing` become verdicts, and its tables.

Intervals are 95 % t-intervals over training seeds, paired by seed. More visits are "reproduced" only if neither fit nor
class law got worse; otherwise "confounded": a blurred or worse model visits every class at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from scipy import stats

from zoo.lab.ledger import Verdict
from zoo.lab.rendering import markdown
from zoo.lab.scores import mean_and_error

Row = dict[str, Any]

FEWEST = 5  # seeds below which an interval is too uncertain to rest a verdict on
WORSE = {"loglik": -1, "Parzen": -1, "class error": 1, "rejected": 1}  # the sign of a change for the worse
SHOWN = ("classes in 10", "classes in 25", "of ceiling in 10", "switch rate", "ESS/step median", "ESS/step worst",
         "ESS/s worst", "R-hat", "TV after 10", "class error", "rejected", "nearest", "Parzen", "loglik")  # fmt: skip


def change(rows: Sequence[Row], key: str, deep: Mapping[str, Any], shallow: Mapping[str, Any], *, to: str = "") -> Row:
    """Mean paired difference of `to` (or key) in `deep` minus key in `shallow`, by seed, with its half interval."""
    a, b = _by_seed(rows, deep, to or key), _by_seed(rows, shallow, key)
    both = [seed for seed in a if seed in b]
    differences = [a[seed] - b[seed] for seed in both]
    mean, error = mean_and_error(differences) if differences else (math.nan, None)
    half = float(stats.t.ppf(0.975, len(both) - 1)) * error if error is not None else math.inf
    return {"key": to or key, "seeds": len(both), "mean": mean, "half": half, "up": sum(d > 0 for d in differences)}


def _by_seed(rows: Sequence[Row], which: Mapping[str, Any], key: str) -> dict[int, float]:
    chosen = [row for row in rows if all(row.get(name) == value for name, value in which.items())]
    return {row["seed"]: row[key] for row in chosen if row.get(key) is not None}


def told(found: Row) -> str:
    """A difference in words."""
    if found["seeds"] < 2:
        return f"{found['key']} known for {found['seeds']} seeds only"
    return f"{found['key']} {found['mean']:+.3f} ± {found['half']:.3f} ({found['up']} of {found['seeds']} seeds up)"


def visits_more(rows: list[Row]) -> Verdict:
    """C1 and C2: level 2 minus level 1, with fit and class law beside."""
    digits = [row for row in rows if row["data"] == "digits"]
    deep, shallow = {"depth": 2}, {"depth": 1}
    seen = change(digits, "classes in 10", deep, shallow)
    also = [change(digits, key, deep, shallow) for key in ("ESS/step median", "ESS/step worst", "switch rate")]
    controls = [change(digits, key, deep, shallow) for key in WORSE if any(key in row for row in digits)]
    bad = [c for c in controls if WORSE[c["key"]] * c["mean"] > c["half"]]
    stuck = sum(row.get("stuck", 0) > 0 for row in digits)
    summary = (
        f"Digits 8x8, level 2 minus level 1, equal widths: {told(seen)}; {'; '.join(map(told, also))}. Fit and class "
        f"law: {'; '.join(map(told, controls))}. Chains with a class never entered or never left: {stuck} of "
        f"{len(digits)} models. Targets of the levels differ; with one target see C8."
    )
    table = depth_rows(digits)
    if seen["seeds"] < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} seeds. {summary}", table)
    if not seen["mean"] > seen["half"]:
        return Verdict("not reproduced", summary, table)
    if bad:
        names = ", ".join(c["key"] for c in bad)
        return Verdict("confounded", f"More classes, but worse: {names}. {summary}", table)
    return Verdict("reproduced", summary, table)


def depth_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean and half interval of every measure at every depth; the shuffled control beside."""
    found = []
    for depth in sorted({row["depth"] for row in rows}):
        here = [row for row in rows if row["depth"] == depth]
        for prefix in ("", "shuffled "):
            keys = [key for key in SHOWN if any(row.get(prefix + key) is not None for row in here)]
            if keys:
                summary = {key: _mean([row.get(prefix + key) for row in here]) for key in keys}
                found.append({"depth": depth, "control": prefix.strip(), "seeds": len(here), **summary})
    return found


def _mean(values: Sequence[float | None]) -> list[float | None]:
    """Mean and half interval; none where a value is not finite, such as the R-hat of a stuck chain."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return [None, None]
    mean, error = mean_and_error(known)
    return [mean, None if error is None else float(stats.t.ppf(0.975, len(values) - 1)) * error]


def scores_better(rows: list[Row]) -> Verdict:
    """C3."""
    found = []
    for kind, measure in (("DBN", "dbn"), ("CAE", "cae")):
        mine = [row for row in rows if row["measure"] == measure and row["data"] == "digits"]
        found.append({"kind": kind, **change(mine, "Parzen", {"depth": 2}, {"depth": 1})})
    mnist = [row for row in rows if row["data"] == "mnist"]
    beside = "; ".join(f"{r['measure'].upper()}-{r['depth']} {r['Parzen']:.1f}" for r in mnist)
    words = "; ".join(f"{row['kind']} {told(row)}" for row in found)
    summary = (
        f"Parzen score of test digits, level 2 minus level 1: {words}. "
        + (f"One run each on 10,000 binary MNIST pictures: {beside}. " if mnist else "")
        + "Numbers of the paper are for other pictures (grey MNIST, Toronto faces) and are not compared."
    )
    if min(f["seeds"] for f in found) < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} seeds. {summary}", found)
    fine = all(f["mean"] > f["half"] for f in found)
    return Verdict("reproduced" if fine else "not reproduced", summary, found)


def better_at_the_top(
    rows: list[Row], *, keys: Sequence[str], sign: int, what: str, controls: Sequence[str] = ()
) -> Verdict:
    """C4, C5 and C6: the top level minus raw pixels, for both families.

    Args:
        sign: of a change for the better.
        controls: what must be better too; if not, the gain is that of the decoder's smooth means.
    """
    tops = {"DBN": 3, "CAE": 2}
    found = [
        {"kind": kind, "level": level, "control": key in controls, **_above_raw(rows, kind, level, key)}
        for kind, top in tops.items()
        for level in range(1, top + 1)
        for key in (*keys, *controls)
    ]
    words = "; ".join(f"{row['kind']} {told(row)}" for row in found)
    summary = f"{what}, each level minus raw pixels: {words}."
    if min(row["seeds"] for row in found) < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} seeds. {summary}", found)
    last = [row for row in found if row["level"] == tops[row["kind"]]]
    worse = [row for row in last if not sign * row["mean"] > row["half"]]
    if not worse:
        return Verdict("reproduced", summary, found)
    return Verdict("confounded" if all(row["control"] for row in worse) else "not reproduced", summary, found)


def _above_raw(rows: Sequence[Row], kind: str, level: int, key: str) -> Row:
    mine = [row for row in rows if row["kind"] == kind]
    return change(mine, f"{key} at 0", {}, {}, to=f"{key} at {level}")


def forgets_faster(rows: list[Row]) -> Verdict:
    """C7: exactly on digits 4 x 4, simulated on digits 8 x 8."""
    exact = [row for row in rows if row["measure"] == "forgetting"]
    digits = [row for row in rows if row["measure"] == "dbn" and row["data"] == "digits"]
    found = [
        {"where": where, **change(mine, f"TV after {t}", {"depth": 2}, {"depth": 1})}
        for where, mine in (("4x4, exact", exact), ("8x8, simulated", digits))
        for t in (3, 10)
    ]
    relaxed = change(exact, "relaxation", {"depth": 2}, {"depth": 1})
    loglik = change(exact, "loglik", {"depth": 2}, {"depth": 1})
    words = "; ".join(f"{row['where']}: {told(row)}" for row in found)
    summary = (
        "Total variation to the chain's own class law from a one-class start, level 2 minus level 1: "
        f"{words}. 4x4: {told(relaxed)} steps; {told(loglik)} nats."
    )
    if min(f["seeds"] for f in found) < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} seeds. {summary}", found)
    fine = all(-f["mean"] > f["half"] for f in found)
    return Verdict("reproduced" if fine else "not reproduced", summary, found)


# Units touched by a step of a DBN 9-6-4, our count: each of nine P(x_i | x_-i) at the price of x and h_1.
WORK = {"sweep": 9 * (9 + 6), "alternate": 9 + 6, "top": 6 + 4}
STATISTICS = ("pixel sum", "x_0", "rows", "columns")


def same_target(rows: list[Row]) -> Verdict:
    """C8."""
    found = []
    for other in ("sweep", "alternate"):
        for work in (False, True):
            cost = WORK if work else dict.fromkeys(WORK, 1)
            ratios = [
                row[f"{other}, {name}"] * cost[other] / (row[f"top, {name}"] * cost["top"])
                for row in rows
                for name in STATISTICS
            ]
            ahead = sum(ratio > 1 for ratio in ratios)
            middle = math.exp(fmean(map(math.log, ratios)))
            found.append({"other": other, "per work": work, "ahead": ahead, "cases": len(ratios), "ratio": middle})
    words = "; ".join(
        f"faster than the {row['other']} {'per unit of work ' if row['per work'] else ''}in {row['ahead']} of "
        f"{row['cases']} cases (geometric mean of the ratio of autocorrelation times {row['ratio']:.2f})"
        for row in found
    )
    error = max(row["stationarity error"] for row in rows)
    by_scale = "; ".join(f"{scale:g}: {_ahead(rows, scale)}" for scale in sorted({row["sharpness"] for row in rows}))
    summary = (
        f"{len(rows)} DBNs 9-6-4 on bars and stripes, {len(STATISTICS)} statistics, autocorrelation times exact "
        f"(largest stationarity error {error:.0e}). The decoded top walk is {words}. It beats the sweep, by the "
        f"scale of the parameters: {by_scale}."
    )
    if len(rows) < 20:
        return Verdict("not attempted", f"Fewer than 20 models. {summary}", found)
    steps = {row["other"]: row["ahead"] / row["cases"] for row in found if not row["per work"]}
    fine = min(steps.values()) > 0.5
    return Verdict("reproduced" if fine else "not reproduced", summary, found)


def _ahead(rows: Sequence[Row], scale: float) -> str:
    cases = [
        row[f"sweep, {name}"] > row[f"top, {name}"] for row in rows if row["sharpness"] == scale for name in STATISTICS
    ]
    return f"{sum(cases)} of {len(cases)}"


def shuffled_fails(rows: list[Row]) -> Verdict:
    """C9."""
    digits = [row for row in rows if row["data"] == "digits" and row["depth"] > 1]
    visits = [row["shuffled classes in 10"] - row["classes in 10"] for row in digits]
    fit = [row["shuffled loglik"] - row["loglik"] for row in digits]
    junk = [row["shuffled rejected"] - row["rejected"] for row in digits]
    caught = sum(f < 0 and j > 0 for f, j in zip(fit, junk, strict=True))
    summary = (
        f"{len(digits)} stacks with the entries of the top couplings shuffled: classes in 10 steps change by "
        f"{fmean(visits):+.2f} on average (up in {sum(v > 0 for v in visits)}), the test log-likelihood by "
        f"{fmean(fit):+.2f} nats, the share of draws of no class by {fmean(junk):+.2f}. Fit and rejection both "
        f"say so in {caught} of {len(digits)}."
    )
    if len(digits) < 2 * FEWEST:
        return Verdict("not attempted", f"Fewer than {2 * FEWEST} stacks. {summary}")
    return Verdict("reproduced" if caught == len(digits) else "not reproduced", summary)


def under_the_ceiling(rows: list[Row]) -> Verdict:
    """C10."""
    (row,) = rows
    summary = (
        f"{row['checked']} cases of random RBMs, labels hard and soft, T of 2 to 25: {row['broken']} above the ceiling "
        f"(closest {row['closest']:+.1e}). A deterministic cycle of five classes, which is not reversible, visits "
        f"{row['cycle']:.0f} in 5 steps where independent draws visit {row['cycle iid']:.2f}."
    )
    return Verdict("reproduced" if row["broken"] == 0 else "not reproduced", summary)


def parzen_misranks(rows: list[Row]) -> Verdict:
    """C11."""
    rho = [float(stats.spearmanr(row["exact"], row["parzen"]).statistic) for row in rows]
    wrong, widest = sum(row["misranked"] for row in rows), max(row["widest"] for row in rows)
    above = sum(row["above data"] for row in rows)
    summary = (
        f"Ten RBMs on digits 4x4 in each of {len(rows)} sets: Spearman correlation of Parzen score and exact test "
        f"log-likelihood {fmean(rho):.2f} (lowest {min(rho):.2f}); {wrong} of {45 * len(rows)} pairs misranked, up to "
        f"{widest:.2f} nats apart; {above} models score above the training data themselves."
    )
    if len(rows) < 3:
        return Verdict("not attempted", f"Fewer than 3 sets. {summary}")
    return Verdict("reproduced" if all(row["misranked"] for row in rows) else "not reproduced", summary)


def depth_table(entries: Mapping[str, Any]) -> str:
    """The measures by depth, from the rows of C1 and C2."""
    lines = []
    for claim, kind in (("C1", "DBN"), ("C2", "CAE")):
        for row in entries[claim]["rows"]:
            name = f"{kind}-{row['depth']}" + (f", {row['control']}" if row["control"] else "")
            lines.append([name, *(_cell(row.get(key)) for key in SHOWN)])
    return markdown(["model", *SHOWN], lines)


def _cell(value: list[float | None] | None) -> str | None:
    if value is None or value[0] is None:
        return None
    mean, half = float(value[0]), value[1]
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) >= 100 else 2
    return f"{mean:,.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")

"""How the rows of the experiments of `layerwise` become verdicts, and the table of its random search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from scipy import stats

from zoo.lab.ledger import Verdict
from zoo.lab.rendering import markdown
from zoo.lab.scores import mean_and_error

Row = dict[str, Any]

FEWEST = 5  # splits below which an interval is too uncertain to rest a verdict on
RANKS = 0.8  # our threshold for a rank correlation that selects layers
GAIN = 20.0  # our threshold, nats, for "far better" than independent pixels
TEA_BITS, CROP_BITS = -49.27, -67.38  # recalled from the paper
ROUNDING = 1e-5


def paired(rows: Sequence[Row], one: str, other: str, *, data: str) -> Row:
    """Test score of one method minus another's, each by its best net on validation: mean and 95 % t-interval."""
    a, b = selected(rows, one, data=data), selected(rows, other, data=data)
    differences = [a[place]["test"] - b[place]["test"] for place in a if place in b]
    mean, error = mean_and_error(differences) if differences else (math.nan, None)
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error if error is not None else math.inf
    return {"data": data, "one": one, "other": other, "places": len(differences), "mean": mean, "half": half}


def selected(rows: Sequence[Row], method: str, *, data: str) -> dict[tuple[int, int], Row]:
    """The net of a method with the best validation score on each split and repeat."""
    best: dict[tuple[int, int], Row] = {}
    for row in rows:
        place = (row.get("split", 0), row.get("repeat", 0))
        mine = row.get("method") == method and row["data"] == data
        if mine and (place not in best or row["valid"] > best[place]["valid"]):
            best[place] = row
    return best


def shown(difference: Row) -> str:
    """A paired difference in words."""
    half = "" if math.isinf(difference["half"]) else f" ± {difference['half']:.2f}"
    return f"{difference['mean']:+.2f}{half} ({difference['one']} minus {difference['other']}, {difference['data']})"


def beats(rows: list[Row], pairs: Sequence[tuple[str, str]], more: Sequence[tuple[str, str]] = ()) -> Verdict:
    """Whether the first of each pair beats the second on Tea: its 95 % interval lies above 0."""
    found = [paired(rows, one, other, data="tea") for one, other in pairs]
    rest = [paired(rows, one, other, data=data) for data in ("tea", "nltcs") for one, other in (*pairs, *more)]
    rest = [row for row in rest if row["places"] and row not in found]
    told = "; ".join(map(shown, found))
    beside = f" Beside it: {'; '.join(map(shown, rest))}." if rest else ""
    summary = f"Test log-likelihood, nats per datum, best of each search on validation, 95 % intervals: {told}.{beside}"
    every = [*found, *rest]
    if min(row["places"] for row in found) < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} splits. {summary}", every)
    better = all(row["mean"] > row["half"] for row in found)
    return Verdict("reproduced" if better else "not reproduced", summary, every)


def guarantee(rows: list[Row]) -> Verdict:
    """C1."""
    worlds, nets = [row for row in rows if "cases" in row], books(rows)
    cases = sum(row["cases"] for row in worlds)
    broken = sum(row[key] for row in worlds for key in ("above_blm", "above_kl", "above_price"))
    naive = sum(row["above_naive"] for row in worlds)
    failed = sum(
        net["criterion"] - net["deep"] > net["price"] + ROUNDING or net["deep"] > net["blm"] + slack(net)
        for net in nets
    )
    plain = sum(net["criterion"] - net["deep"] > net["kl"] + ROUNDING for net in nets)
    summary = (
        f"{cases} random worlds: {broken} violations of the three inequalities, {naive} of the naive form with "
        f"KL(q_D || P_J), which must fail somewhere. {len(nets)} trained nets: {failed} violations; the naive form "
        f"fails on {plain}."
    )
    holds = broken == 0 and failed == 0 and naive > 0
    return Verdict("reproduced" if holds else "not reproduced", summary, worlds)


def lower_bounds(rows: list[Row]) -> Verdict:
    """C2."""
    nets = books(rows)
    chain = ("reconstruction", "codes", "criterion")
    broken = sum(
        any(net[low] > net[high] + ROUNDING for low, high in pairwise(chain))
        or net["criterion"] > net["blm"] + slack(net)
        or net["reconstruction"] > net["elbo_aggregated"] + ROUNDING
        or net["elbo_aggregated"] > net["criterion"] + ROUNDING
        for net in nets
    )
    below = sum(net["mean_field"] < net["reconstruction"] - ROUNDING for net in nets)
    above = [net["mean_field"] - net["blm"] for net in nets if net["mean_field"] > net["blm"] + slack(net)]
    worst = f", by up to {max(above):.3f} nats" if above else ""
    summary = (
        f"{len(nets)} trained nets: {broken} violations of auto-encoder bound <= ELBO(q_D) <= criterion <= best latent "
        f"marginal. The mean-field loss lies below the auto-encoder bound on {below} of them, above the best latent "
        f"marginal on {len(above)}{worst}: it is no bound."
    )
    return Verdict("reproduced" if broken + below == 0 else "not reproduced", summary)


def books(rows: Sequence[Row]) -> list[Row]:
    """The nets that have an account of their bottom layer."""
    return [row for row in rows if row.get("blm") is not None]


def slack(net: Row) -> float:
    """How far the best latent marginal may lie above the value that EM reached."""
    return max(net["certificate"], 0.0) + ROUNDING


def layers_selected(rows: list[Row]) -> Verdict:
    """C5."""
    found = [
        {"data": data, "by": by, **_ranks(rows, data, key)}
        for data in ("tea", "nltcs")
        for by, key in (("U_V", "valid_b"), ("best latent marginal of train", "valid_a"), ("q_D of train", "valid_c"))
        if any(row["data"] == data for row in books(rows))
    ]
    told = "; ".join(f"{row['data']}, {row['by']}: {row['rho']:.2f} (lowest {row['lowest']:.2f})" for row in found)
    nets = min((row["nets"] for row in found), default=0)
    summary = (
        "Spearman correlation of the layer's promise on validation data with the final validation score, over all nets "
        f"of a split that have a bottom layer, mean over splits: {told}. Threshold {RANKS} for U_V is ours."
    )
    if nets < 20:
        return Verdict("not attempted", f"Fewer than 20 nets on a split. {summary}", found)
    fine = all(row["rho"] >= RANKS for row in found if row["by"] == "U_V")
    return Verdict("reproduced" if fine else "not reproduced", summary, found)


def _ranks(rows: Sequence[Row], data: str, key: str) -> Row:
    places: dict[Any, list[Row]] = {}
    for row in books(rows):
        if row["data"] == data:
            places.setdefault(row["split"], []).append(row)
    values = [
        float(stats.spearmanr([net[key] for net in nets], [net["valid"] for net in nets]).statistic)
        for nets in places.values()
    ]
    return {"rho": fmean(values), "lowest": min(values), "nets": min(map(len, places.values()))}


def tea_baselines(rows: list[Row]) -> Verdict:
    """C6."""
    (base,) = (row for row in rows if "bits" in row)
    perfect = max((row for row in rows if "loglik" in row), key=lambda row: row["gain"])
    low, high = min(base["bits"]), max(base["bits"])
    summary = (
        f"Uniform {base['uniform']:.2f}. Independent bits with one count added to each value, validation third of "
        f"{len(base['bits'])} splits: mean {fmean(base['bits']):.2f}, from {low:.2f} to {high:.2f}; {TEA_BITS} lies "
        f"{'inside' if low <= TEA_BITS <= high else 'outside'}. A two-layer net built by hand reaches "
        f"{perfect['loglik']:.7f}, the optimum being {perfect['optimum']:.7f}."
    )
    fine = low <= TEA_BITS <= high and abs(perfect["loglik"] - perfect["optimum"]) < 1e-6
    return Verdict("reproduced" if fine else "not reproduced", summary, [{**base, "bits": fmean(base["bits"])}])


def crop_baselines(rows: list[Row]) -> Verdict:
    """C7."""
    (base,) = rows
    mean = fmean(base["bits"])
    summary = (
        f"Uniform {base['uniform']:.2f}. Independent bits on the crop as recalled, {len(base['bits'])} splits: "
        f"{mean:.2f}, not {CROP_BITS}: crop, subset or memory differ."
    )
    return Verdict("reproduced" if abs(mean - CROP_BITS) < 0.2 else "not reproduced", summary, [{**base, "bits": mean}])


DEEP = ("AERI", "stacked RBM, exact", "stacked RBM")


def depth_pays(rows: list[Row]) -> Verdict:
    """C8: two layers against single RBMs of as many parameters, trained by the exact gradient; beside it, by CD."""
    found = [paired(rows, deep, single, data="tea") for single in ("RBM, exact", "RBM") for deep in DEEP]
    judged = found[: len(DEEP)]
    most = [
        max(row["generative"] for row in rows if row["data"] == "tea" and row["method"] in methods)
        for methods in (DEEP, ("RBM, exact",))
    ]
    told = "; ".join(map(shown, judged))
    summary = (
        f"Test log-likelihood, nats per datum, best of each search on validation, 95 % intervals; up to {most[0]:,} "
        f"parameters in two layers, up to {most[1]:,} in a single RBM, of which there are as many. Against single RBMs "
        f"trained by the exact gradient: {told}. Beside it, against those trained by CD: "
        f"{'; '.join(map(shown, found[len(DEEP) :]))}."
    )
    if min(row["places"] for row in judged) < FEWEST:
        return Verdict("not attempted", f"Fewer than {FEWEST} splits. {summary}", found)
    better = all(row["mean"] > row["half"] for row in judged)
    return Verdict("reproduced" if better else "not reproduced", summary, found)


def pessimistic(rows: list[Row]) -> Verdict:
    """C9."""
    nets = [row for row in books(rows) if row.get("rbm") is not None]
    gains = [net["criterion"] - net["rbm"] for net in nets]
    broken = sum(gain < net["rbm_kl"] - ROUNDING for gain, net in zip(gains, nets, strict=True))
    summary = (
        f"{len(nets)} trained RBMs: giving their codes the law q_D gains {fmean(gains):.2f} nats per datum on average "
        f"(KL(q_D || P_RBM) {fmean(net['rbm_kl'] for net in nets):.2f}); the gain is below the KL on {broken}."
    )
    return Verdict("reproduced" if broken == 0 else "not reproduced", summary)


def overfits(rows: list[Row]) -> Verdict:
    """C10."""
    found = [
        {"data": data, "method": method, **_promises([n for n in books(rows) if (n["data"], n["method"]) == key])}
        for key in dict.fromkeys((net["data"], net["method"]) for net in books(rows))
        for data, method in [key]
        if method in ("AE", "AERI", "AE, bound", "AERI, bound")
    ]
    told = "; ".join(
        f"{row['data']} {row['method']}: {row['blm']:.2f} on train, (a) {row['valid_a']:.2f}, "
        f"(b) {row['valid_b']:.2f}, (d) {row['valid']:.2f}"
        for row in found
    )
    tea = [row for row in found if row["data"] == "tea"]
    fine = bool(tea) and all(row["valid_a"] < row["valid"] < row["valid_b"] for row in tea)
    summary = (
        f"Mean over nets, nats per datum: best latent marginal of the training data, the same law on validation (a), "
        f"refitted there (b), and the final validation score (d). {told}."
    )
    return Verdict("reproduced" if fine else "not reproduced", summary, found)


def _promises(nets: Sequence[Row]) -> Row:
    return {key: fmean(net[key] for net in nets) for key in ("blm", "valid_a", "valid_b", "valid_c", "valid")}


def far_better(rows: list[Row]) -> Verdict:
    """C11."""
    (base,) = (row for row in rows if "bits" in row)
    gains = [
        best["test"] - base["bits_test"][split]
        for method in ("AE", "AERI")
        for (split, _), best in selected(rows, method, data="tea").items()
    ]
    summary = (
        f"Best auto-encoders of each search on validation, with an RBM on top, Tea, test: at least {min(gains):.1f} "
        f"nats above independent bits (mean {fmean(gains):.1f}); the threshold of {GAIN:g} is ours."
    )
    return Verdict("reproduced" if min(gains) > GAIN else "not reproduced", summary)


def search_table(entries: Mapping[str, Any]) -> str:
    """Every method on every data set, from the rows of C3's table."""
    rows = sorted((row for row in entries["C3"]["rows"] if "method" in row), key=lambda row: row["data"] != "tea")
    return markdown(
        ["data", "method", "test, nats per datum", "minus stacked RBM", "validation", "parameters", "s per net"],
        [
            [
                row["data"], row["method"], _pm(row["test"], row["test_error"]),
                *_rest(row),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _rest(row: Row) -> list[str]:
    if row["gain"] is None:
        return ["", "", "", ""]
    gain = "" if row["method"] == "stacked RBM" else _pm(row["gain"], row["half"], sign="+")
    return [gain, f"{row['valid']:.2f}", f"{row['generative']:.0f}", f"{row['seconds']:.0f}"]


def ranking(rows: list[Row]) -> Verdict:
    """C3, with the table of all methods."""
    verdict = beats(rows, [("AERI", "stacked RBM")], [("AERI", "stacked RBM, exact"), ("AERI", "joint")])
    methods = [
        _summary(rows, method, data)
        for data in ("tea", "nltcs")
        for method in dict.fromkeys(row["method"] for row in rows if row["data"] == data and "method" in row)
    ]
    floors = [_floor(row) for row in rows if "bits_test" in row]
    return Verdict(verdict.outcome, verdict.summary, [*verdict.rows, *floors, *methods])


def _floor(row: Row) -> Row:
    test, error = mean_and_error(row["bits_test"])
    return {"data": row["data"], "method": "independent bits", "test": test, "test_error": error, "gain": None}


def _summary(rows: Sequence[Row], method: str, data: str) -> Row:
    best = list(selected(rows, method, data=data).values())
    test, error = mean_and_error([row["test"] for row in best])
    difference = paired(rows, method, "stacked RBM", data=data)
    seconds = [row["seconds"] for row in rows if (row.get("method"), row["data"]) == (method, data)]
    return {
        "data": data, "method": method, "test": test, "test_error": error, "gain": difference["mean"],
        "half": None if math.isinf(difference["half"]) else difference["half"],
        "valid": fmean(row["valid"] for row in best), "generative": fmean(row["generative"] for row in best),
        "seconds": fmean(seconds), "nets": len(seconds), "places": len(best),
    }  # fmt: skip


def _pm(value: float, error: float | None, *, sign: str = "") -> str:
    return f"{value:{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")

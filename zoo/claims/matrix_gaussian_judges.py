"""How the rows of the experiments of `matrix_gaussian` become verdicts, and the table of its regression results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.lab.ledger import Verdict
from zoo.lab.rendering import markdown
from zoo.lab.scores import mean_and_error

Row = dict[str, Any]

# RMSE and log-likelihood on the benchmark splits with their standard errors: as published for the matrix Gaussian (the
# log-likelihood is cited, the rest recalled) and for dropout trained to convergence (cited; Mukhoti, Gal 2018).
LITERATURE = {
    "yacht": {"published": ((0.71, 0.05), (-1.30, 0.02)), "dropout, converged": ((0.67, 0.05), (-1.25, 0.01))},
    "concrete": {"published": ((4.89, 0.12), (-3.01, 0.03)), "dropout, converged": ((4.82, 0.16), (-2.93, 0.02))},
    "wine-quality-red": {
        "published": ((0.63, 0.01), (-0.95, 0.01)),
        "dropout, converged": ((0.62, 0.01), (-0.93, 0.01)),
    },
    "bostonHousing": {"published": ((2.70, 0.13), (-2.46, 0.09)), "dropout, converged": ((2.90, 0.18), (-2.40, 0.04))},
    "power-plant": {"published": ((4.04, 0.04), (-2.82, 0.01)), "dropout, converged": ((4.01, 0.04), (-2.80, 0.01))},
    "naval-propulsion-plant": {
        "published": ((0.00, 0.00), (2.46, 0.00)),
        "dropout, converged": ((0.00, 0.00), (4.45, 0.00)),
    },
}
FEWEST = 5  # splits below which a standard error is too uncertain to agree within
CAP = 2.480032  # mg.23 for the 10,741 training rows of Naval
MEASURED = ("kl", "error", "error_without_outputs")


def counts(rows: list[Row]) -> Verdict:
    """G1."""
    texts = []
    for row in rows:
        widths = "-".join(map(str, row["widths"]))
        texts.append(f"{widths}: {row['matrix_normal']:,} against {row['mean_field']:,} for {row['weights']:,} weights")
    fewer = all(row["matrix_normal"] < row["mean_field"] for row in rows)
    note = "A layer with one output has more (51 + 51 + 1 > 102): fewer holds iff (d - 1)(k - 1) > 1."
    return Verdict("reproduced" if fewer else "not reproduced", f"{'; '.join(texts)}. {note}", kept(rows))


def unchanged(rows: list[Row]) -> Verdict:
    """G2."""
    (row,) = rows
    told = [
        f"{name} {row[f'{key}_bias']:+.2f} ± {row[f'{key}_error']:.2f}"
        for name, key in (("local reparametrisation", "local"), ("weight space", "weight"))
    ]
    fine = all(abs(row[f"{key}_bias"]) < 5 * row[f"{key}_error"] for key in ("local", "weight"))
    summary = f"Mean loss minus the exact {-row['exact']:.4f} nats: {', '.join(told)}."
    return Verdict("reproduced" if fine else "not reproduced", summary, kept(rows))


def quieter(rows: list[Row]) -> Verdict:
    """G3."""
    told = {}
    for start in dict.fromkeys(row["log_start"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["log_start"] == start]
        told[start] = (min(ratios), max(ratios))
    texts = [f"{low:.1f} to {high:.1f} times at standard deviation e^{start:g}" for start, (low, high) in told.items()]
    outcome = "reproduced" if all(low > 1 for low, _ in told.values()) else "not reproduced"
    summary = (
        "Gradient variance in weight space over that of local reparametrisation, Yacht, batch 32, first layer, three "
        f"seeds: {'; '.join(texts)}."
    )
    return Verdict(outcome, summary, [{"log_start": s, "lowest": a, "highest": b} for s, (a, b) in told.items()])


def linear_kernel(rows: list[Row]) -> Verdict:
    """G4."""
    (row,) = rows
    worst = max(row["difference"], row["marginal_difference"])
    summary = f"Covariance of a batch of activations minus the kernel's, and of single rows: at most {worst:.1e}."
    return Verdict("reproduced" if worst < 1e-10 else "not reproduced", summary, kept(rows))


def never_better(rows: list[Row]) -> Verdict:
    """G5: a theorem about optima; what training makes of it stands beside it."""
    best = optima(rows)
    loss = {noise: best["MeanField", noise] - best["MatrixNormal", noise] for noise in ("common", "each")}
    found = paired(rows, "MatrixNormal", "MeanField", "objective")
    holds = all(value > -1e-6 for value in loss.values()) and abs(loss["each"] - 0.42035049) < 1e-4
    trained = "; ".join(f"{row['data']} {row['mean']:+.3f} ± {row['error']:.3f}" for row in found)
    summary = (
        f"At the optimum of the anchor the diagonal matrix normal is {loss['common']:.5f} (common noise) and "
        f"{loss['each']:.5f} nats (own noise) below mean field. Trained, paired difference of the bounds in nats per "
        f"datum, matrix normal minus mean field: {trained}."
    )
    return Verdict("reproduced" if holds else "not reproduced", summary, found)


def structure_helps(rows: list[Row]) -> Verdict:
    """G6."""
    best = optima(rows)
    gain = best["MatrixNormalTril", "common"] - best["MeanField", "common"]
    found = paired(rows, "MatrixNormalTril", "MeanField", "loglik")
    better = [row["data"] for row in found if row["mean"] > 2 * row["error"]]
    worse = [row["data"] for row in found if row["mean"] < -2 * row["error"]]
    scores = "; ".join(f"{row['data']} {row['mean']:+.3f} ± {row['error']:.3f}" for row in found)
    summary = (
        f"On the anchor full rows gain {gain:.4f} nats of bound. Test log-likelihood, full rows minus mean field, "
        f"paired, same steps: {scores}. Better by two standard errors on {', '.join(better) or 'no set'}, worse on "
        f"{', '.join(worse) or 'none'}."
    )
    if any(row["splits"] < FEWEST for row in found):
        return too_few(summary, found)
    outcome = "reproduced" if found and gain > 3 and len(better) == len(found) else "not reproduced"
    return Verdict(outcome, summary, found)


def cheaper(rows: list[Row]) -> Verdict:
    """G7."""
    texts = [
        f"{row['speed_ratio']:.2f} times as many for {row['d']} x {row['k']} weights, {row['m']} pseudo-points, "
        f"{row['rows']} rows"
        for row in rows
    ]
    outcome = "reproduced" if all(row["speed_ratio"] > 1 for row in rows) else "not reproduced"
    summary = (
        "Functions drawn per second from pseudo-outputs, over those from weights (CPU time, one thread): "
        f"{'; '.join(texts)}. The properties are kept (bound and row laws equal, tested); fewer random numbers "
        "alone do not make it cheaper."
    )
    return Verdict(outcome, summary, kept(rows))


def no_bound(rows: list[Row]) -> Verdict:
    """G8."""
    (row,) = rows
    summary = (
        f"J = {row['J']:.3f} ± {row['error']:.3f} nats where the log evidence is {row['evidence']:.3f}: "
        f"{row['excess']:.2f} above it."
    )
    return Verdict("reproduced" if row["excess"] > 5 * row["error"] else "not reproduced", summary, kept(rows))


def kept(rows: list[Row]) -> list[Row]:
    """The rows without what differs from one measurement to the next."""
    return [{key: value for key, value in row.items() if key not in ("experiment", "seconds")} for row in rows]


def summaries(rows: list[Row]) -> list[Row]:
    """One flat row for each trained cell: means and standard errors over its splits."""
    return [summary_of(row) for row in rows if "guide" in row and "splits" in row]


def summary_of(row: Row) -> Row:
    """Means and standard errors of a cell."""
    keys = ("rmse", "loglik", "crps", "coverage", "objective", "kl", "rmse_of_mean")
    told: Row = {key: row[key] for key in ("data", "guide", "noise", "splits", "steps", "batch", "is_bound")}
    told["recipe"] = "published" if row["tau"] == "prior" else "own"
    for key in keys:
        mean, error = mean_and_error(row[key])
        told |= {key: _short(mean), f"{key}_error": _short(error)}
    return told | {"settled": sum(row["settled"])}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def agrees(row: Row) -> bool:
    """Whether both scores are within two combined standard errors of the published ones, or better."""
    published = LITERATURE[row["data"]]["published"]
    ours = ((-row["rmse"], row["rmse_error"]), (row["loglik"], row["loglik_error"]))
    theirs = ((-published[0][0], published[0][1]), published[1])
    return all(a[0] > b[0] - 2 * math.hypot(a[1] or 0.0, b[1]) for a, b in zip(ours, theirs, strict=True))


def told(row: Row) -> str:
    """RMSE and log-likelihood of a summary, in one phrase."""
    rmse, loglik = (f"{row[k]:.3f} ± {row[f'{k}_error'] or 0:.3f}" for k in ("rmse", "loglik"))
    return f"{row['guide']} RMSE {rmse}, log-likelihood {loglik}"


def as_published(rows: list[Row]) -> Verdict:
    """G9, G10: the authors' pseudo-data against the published numbers, with the fair baseline beside them."""
    found = summaries(rows)
    theirs = [row for row in found if row["guide"] == "MatrixNormalAuthors"]
    texts = [
        f"{row['data']} ({row['splits']} splits, {row['steps']:,} steps, {row['recipe']} recipe): {told(row)}"
        for row in theirs
    ]
    fair = [f"{row['data']}: {told(row)}" for row in found if row["guide"] == "MatrixNormal"]
    published = {row["data"]: LITERATURE[row["data"]]["published"] for row in theirs}
    numbers = [f"{data} {a[0]:.2f} ± {a[1]:.2f} / {b[0]:.2f} ± {b[1]:.2f}" for data, (a, b) in published.items()]
    judged = [row for row in theirs if row["recipe"] == "published"] or theirs
    worse = [row["data"] for row in judged if not agrees(row)]
    outcome = "reproduced" if judged and not worse else "not reproduced"
    plain = f" Without pseudo-data, {'; '.join(fair)}." if fair else ""
    summary = (
        f"{'; '.join(texts)}. Published: {'; '.join(numbers)}.{plain} Reproduced means: no score worse than the "
        "published one by more than two combined standard errors, under the published recipe where it is known. "
        f"Worse: {', '.join(worse) or 'none'}."
    )
    if any(row["splits"] < FEWEST for row in judged):
        return too_few(summary, found)
    return Verdict(outcome, summary, found)


def too_few(summary: str, found: list[Row]) -> Verdict:
    """No verdict where standard errors are themselves too uncertain."""
    return Verdict("not attempted", f"{summary} No verdict from fewer than {FEWEST} splits.", found)


def the_cap(rows: list[Row]) -> Verdict:
    """G11: the cap is a theorem; claimed is that it binds, for a net that predicts better than the mean."""
    found = summaries(rows)
    by = {(row["guide"], row["noise"]): row for row in found}
    raw, standardised = by["MatrixNormalAuthors", "raw"], by["MatrixNormalAuthors", "standardised"]
    fallen = [f"{g} ({n})" for (g, n), row in by.items() if row["rmse"] > 0.9 * row["rmse_of_mean"]]
    capped = all(row["loglik"] <= CAP + 0.01 for (g, n), row in by.items() if n == "raw" and g != "Point")
    freed = capped and standardised["loglik"] > CAP
    outcome = "reproduced" if freed and raw["loglik"] > CAP - 0.1 else "not reproduced"
    if freed and raw["rmse"] > 0.9 * raw["rmse_of_mean"]:
        outcome = "confounded"  # the control: a constant scores nearly as much
    summary = (
        f"Cap {CAP}; published 2.46. With Gamma(6, 6) in raw units {told(raw)}; with the same prior for standardised "
        f"targets {told(standardised)}. No better than the training mean: {', '.join(fallen) or 'none'}."
    )
    return Verdict(outcome, summary, found)


def digits_error(rows: list[Row]) -> Verdict:
    """G12."""
    (row,) = rows
    last = row["errors"][-10:]
    mean, _ = mean_and_error(last)
    marks = [e for e in (1, 5, 10, 20, 50, 72, 100) if e <= len(row["errors"])]
    path = ", ".join(f"{100 * row['errors'][e - 1]:.2f} ({e})" for e in marks)
    kls = ", ".join(f"{row['kl'][e - 1]:,.0f} ({e})" for e in marks)
    summary = (
        f"Test error {100 * row['error']:.2f} % after {row['epochs']} epochs (last ten: {100 * mean:.2f} %), "
        f"training error {100 * row['train_error']:.3f} %. By epoch: {path}. KL of {row['weights']:,} weights "
        f"in nats: {kls}. The authors' log: 1.92 (10), 1.38 (20), 1.28 (50), 1.26 (72), 1.09 (100), last ten "
        "1.23 ± .06, KL 2,030 (1) to 60 (100). Reproduced means: final errors within .25 of one another."
    )
    outcome = "reproduced" if abs(100 * row["error"] - 1.09) < 0.25 and row["epochs"] == 100 else "not reproduced"
    rows = [{"epoch": e, "error": row["errors"][e - 1], "kl": _short(row["kl"][e - 1])} for e in marks]
    return Verdict(outcome, summary, kept(rows))


def the_outputs_carry(rows: list[Row]) -> Verdict:
    """G13."""
    found = []
    for guide in dict.fromkeys(row["guide"] for row in rows):
        mine = [row for row in rows if row["guide"] == guide]
        means = {key: mean_and_error([_last(row[key]) for row in mine])[0] for key in MEASURED}
        found.append({"guide": guide, "seeds": len(mine), **{key: _short(value) for key, value in means.items()}})
    texts = [
        f"{row['guide']}: KL {row['kl']:.0f} nats, error {100 * row['error']:.1f} %, with the pseudo-outputs reset "
        f"to A M {100 * row['error_without_outputs']:.1f} %"
        for row in found
    ]
    authors, plain = found
    carried = authors["kl"] < 0.25 * plain["kl"] and authors["error_without_outputs"] > 5 * authors["error"]
    return Verdict("reproduced" if carried else "not reproduced", f"Digits: {'; '.join(texts)}.", found)


def _last(value: float | Sequence[float]) -> float:
    return value[-1] if isinstance(value, Sequence) else value


def optima(rows: list[Row]) -> dict[tuple[str, str], float]:
    """{(guide, noise): best bound on the anchor}."""
    return {(row["guide"], row["noise"]): row["bound"] for row in rows if row["experiment"] == "optimum"}


def paired(rows: list[Row], first: str, second: str, key: str) -> list[Row]:
    """Mean difference of two guides over the splits of each set, with its standard error."""
    trained = {(r["data"], r["noise"], r["guide"]): r for r in rows if "splits" in r and r["tau"] == "data"}
    found = []
    for (data, noise, guide), row in trained.items():
        if guide == first and (data, noise, second) in trained:
            differences = [a - b for a, b in zip(row[key], trained[data, noise, second][key], strict=True)]
            mean, error = mean_and_error(differences)
            name = data if noise == "raw" else f"{data} ({noise})"
            found.append({"data": name, "mean": _short(mean), "error": _short(error), "splits": len(differences)})
    return found


def regression_table(entries: Mapping[str, Row]) -> str:
    """Test scores of every guide beside the literature."""
    rows = [row for claim in ("G9", "G10", "G11") if claim in entries for row in entries[claim]["rows"]]
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for row in [row for row in rows if row["data"] == data]:
            scores = [*(_interval(row, key) for key in ("rmse", "loglik")), f"{row['coverage']:.2f}"]
            training = [f"{row['steps']:,}", f"{row['settled']:.0f} of {row['splits']}"]
            lines.append([data, f"`{row['guide']}`{_remark(row)}", *scores, *training])
        for name, (rmse, loglik) in LITERATURE[data].items():
            numbers = [f"{mean:.2f} ± {error:.2f}" for mean, error in (rmse, loglik)]
            lines.append([data, name, *numbers, "", "", ""])
    return markdown(["data", "guide", "RMSE", "log-likelihood", "90 % interval covers", "steps", "settled"], lines)


def _remark(row: Row) -> str:
    if row["recipe"] == "published":
        return ", published recipe"
    return "" if row["noise"] == "raw" else ", standardised noise prior"


def _interval(row: Row, key: str) -> str:
    digits = 4 if row[key] < 0.1 and key == "rmse" else 3
    error = row[f"{key}_error"]
    return f"{row[key]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

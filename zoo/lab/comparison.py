"""Compare trained guides on the same test data: `compare` gives a table, JSON and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pyro.distributions import Delta
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from torch.distributions import kl_divergence

from guides.sites import kl_registered, latent_sites, paired_sites
from zoo.lab import figures, khat, scores
from zoo.lab.estimators import importance_score
from zoo.lab.pareto import threshold
from zoo.lab.pictures import pictures
from zoo.lab.predictive import Draws, density, draw, has_classes, observed
from zoo.lab.tables import Table
from zoo.lab.training import Fit

KHAT_DRAWS = 1000
ENOUGH = 50_000  # draws of the latents of a datum, over all data, for the bound of a density model
VARIANT = "log of the mean predictive density over draws of all latents (loglik_mixture)"
NO_DENSITY = "none, since the model has no density"
EXACT = "exact, by enumeration of all latents"
ESTIMATED = "importance-weighted over draws of the latents, too low in expectation"
ANNEALED = "log Z annealed, which makes it too high in expectation"


@dataclass
class Score:
    """One guide on all splits. Lists are in the order of the splits; log-likelihood and bound in nats per datum.

    Attributes:
        parameters: of the guide. model_parameters: of the model, where it learns too.
        loglik: test log-likelihood, `scores.loglik_mixture`, in the units of y.
        rmse: test RMSE in the units of y; empty for classes.
        error: test error rate; empty for regression.
        elbo: the bound on the training data; empty where it is none (point estimates).
        evidence: exact log evidence of the training data under the trained model; empty where it is not known.
        kl: {site: KL(q || prior) in nats} on the first split, where known in closed form.
        variant: which log-likelihood it is.
        loglik_error: largest Monte Carlo error of an estimated log-likelihood, of weights and log Z; None where exact.
        measured: {heading: one for each split}, what the paper measures besides.
        khat: Pareto k-hat of the joint importance weights on the first split; None where it is refused or too costly.
    """

    guide: str
    parameters: int
    loglik: list[float] = field(default_factory=list)
    rmse: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)
    kl: dict[str, float] = field(default_factory=dict)
    khat: float | None = None
    model_parameters: int = 0
    variant: str = VARIANT
    loglik_error: float | None = None
    measured: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Comparison:
    """What `compare` found. Prints as a table; `frame` for notebooks, `to_dict` for programs, `page` for people.

    Attributes:
        what: that the rows differ in: guides, or options of the paper.
        units: of the paper's own measures.
    """

    scores: list[Score]
    splits: int
    what: str = "guide"
    units: str = ""
    paper: str = ""
    data: str = ""
    title: str = ""
    about: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    evidence: list[float] = field(default_factory=list)
    pictures: list[tuple[str, Figure]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    variant: str = VARIANT
    losses: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def columns(self) -> dict[str, Callable[[Score], str]]:
        """Heading -> text of a cell, for the columns that mean something here."""
        first = self.scores[0]
        columns: dict[str, Callable[[Score], str]] = {
            self.what: lambda s: s.guide,
            "log-lik": lambda s: _interval(s.loglik) if s.loglik else "no density",
        }
        if self.splits > 1 and all(score.loglik for score in self.scores):
            columns[f"minus {first.guide}"] = lambda s: "" if s is first else _interval(_minus(s.loglik, first.loglik))
        if first.rmse:
            columns["RMSE"] = lambda s: _interval(s.rmse)
        if first.error:
            columns["error"] = lambda s: _interval(s.error)
        columns["bound"] = lambda s: _interval(s.elbo) if s.elbo else "no bound"
        if any(score.evidence and score.elbo for score in self.scores):
            columns["gap"] = lambda s: _interval(self.gaps(s)) if s.elbo and s.evidence else ""
        if any(score.khat is not None for score in self.scores):
            columns["k-hat"] = lambda s: "" if s.khat is None else f"{s.khat:.2f}"
        columns["guide parameters"] = lambda s: f"{s.parameters:,}"
        if any(score.model_parameters for score in self.scores):
            columns["model parameters"] = lambda s: f"{s.model_parameters:,}"
        columns["seconds"] = lambda s: f"{np.mean(s.seconds):.1f}"
        return columns

    def gaps(self, score: Score) -> list[float]:
        """Exact log evidence minus bound, in nats for the data set: what the guide leaves on the table."""
        return [n * (e - b) for n, e, b in zip(self.sizes, score.evidence, score.elbo, strict=True)]

    def add_evidence(self, evidence: Mapping[str, Sequence[float]], *, learned: bool) -> None:
        """Set the exact log evidence, {guide: one for each split} in nats for the data set.

        Args:
            learned: whether the model has parameters of its own, so that each guide leaves another evidence. If not,
                it is one number for all, and drawn into the learning curves.
        """
        for score in self.scores:
            score.evidence = [value / n for value, n in zip(evidence[score.guide], self.sizes, strict=True)]
        if learned:
            return
        self.evidence = self.scores[0].evidence
        if self.losses:
            self.pictures[0] = (
                self.pictures[0][0] + " The exact log evidence is a horizontal line.",
                figures.learning_curves(self.losses, self.evidence[0]),
            )

    @property
    def spread(self) -> str:
        """What stands behind a ±."""
        return "one split, no standard error" if self.splits < 2 else f"mean ± standard error over {self.splits} splits"

    @property
    def caption(self) -> str:
        """What the numbers are: units, variants, errors."""
        parts = [
            self.spread + (", differences paired" if self.splits > 1 else ""),
            f"log-lik: {self.variant}, nats per test datum",
            "bound: nats per training datum",
        ]
        if any(score.evidence for score in self.scores):
            parts.append("gap: exact log evidence minus bound, nats for all data")
        if any(score.khat is not None for score in self.scores):
            parts.append(
                "k-hat: of the importance weights p / q of all latents, first split, usable below "
                f"{threshold(KHAT_DRAWS):.2f}"
            )
        return "; ".join(parts)

    @property
    def frame(self) -> pd.DataFrame:
        """The table as text, one row for each guide."""
        columns = self.columns()
        rows = [{head: cell(s) for head, cell in columns.items()} for s in self.scores]
        return pd.DataFrame(rows).set_index(self.what)

    @property
    def measures(self) -> pd.DataFrame | None:
        """What the paper measures besides, as text, one column for each row of the table; None where nothing is."""
        headings = list(dict.fromkeys(heading for score in self.scores for heading in score.measured))
        if not headings:
            return None
        cells = {s.guide: [_interval(s.measured[h]) if h in s.measured else "" for h in headings] for s in self.scores}
        return pd.DataFrame(cells, index=pd.Index(headings, name="measure"))

    def __str__(self) -> str:
        more = self.measures
        return self.frame.to_string() + ("" if more is None else f"\n\n{more.to_string()}")

    def _repr_html_(self) -> str:
        more = self.measures
        return self.frame.to_html() + ("" if more is None else more.to_html())

    def rich(self) -> RichTable | Group:
        """The table for a terminal; a second one of the paper's own measures, where there are any."""
        more = self.measures
        if more is None:
            return self._rich()
        table = RichTable(caption=self.units, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i, head in enumerate(["measure", *more.columns]):
            table.add_column(head, justify="right" if i else "left", no_wrap=not i)
        for heading, row in more.iterrows():
            table.add_row(str(heading), *row)
        return Group(self._rich(), table)

    def _rich(self) -> RichTable:
        columns = self.columns()
        table = RichTable(
            title=self.title or None, caption=self.caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        for i, head in enumerate(columns):
            table.add_column(head, justify="right" if i else "left", no_wrap=not i)
        for score in self.scores:
            table.add_row(*(cell(score) for cell in columns.values()))
        return table

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison as JSON values: mean, standard error (None below two splits) and all values."""
        return {
            "paper": self.paper,
            "data": self.data,
            "splits": self.splits,
            "units": {"loglik": f"nats per datum, {self.variant}", "rmse": "units of y", "elbo": "nats per datum"},
            **({"evidence": _summary(self.evidence)} if self.evidence else {}),
            "results": [self._result(score) for score in self.scores],
            "about": self.about,
            "notes": self.notes,
        }

    def _result(self, score: Score) -> dict[str, Any]:
        return {
            "cell": {self.what: score.guide},
            "loglik": _summary(score.loglik),
            "rmse": _summary(score.rmse),
            **({"error": _summary(score.error)} if score.error else {}),
            **({"measured": {h: _summary(v) for h, v in score.measured.items()}} if score.measured else {}),
            "elbo": _summary(score.elbo),
            **({"evidence": _summary(score.evidence)} if score.evidence and not self.evidence else {}),
            "parameters": score.parameters,
            "model_parameters": score.model_parameters,
            "seconds": float(np.mean(score.seconds)),
            "converged": score.converged,
            "kl": score.kl,
            "khat": None if score.khat is None else _finite(score.khat),
            **({"loglik_error": _finite(score.loglik_error)} if score.loglik_error is not None else {}),
        }


def compare(
    fits: Mapping[str, Fit | Sequence[Fit]], test: Table | Sequence[Table], *, draws: int = 200, particles: int = 100
) -> Comparison:
    """Score trained guides on test data.

    A model may have a method `loglik(**batch)`: the exact log-likelihood of each datum (n,) in nats, or None where it
    cannot be had; then the score is exact, or importance-weighted over draws of the latents of each datum.

    Args:
        fits: {guide: Fit, or one Fit for each split}.
        test: the test table, or one for each split.
        draws: predictive draws per score. particles: draws of the bound.

    Returns:
        The `Comparison`, with figures of the first split.
    """
    tests = [test] if isinstance(test, Table) else list(test)
    runs = {name: [fit] if isinstance(fit, Fit) else list(fit) for name, fit in fits.items()}
    first: dict[str, Draws] = {}
    found = []
    for name, mine in runs.items():
        score = Score(name, mine[0].parameters, model_parameters=_learned(mine[0]))
        for split, (fit, table) in enumerate(zip(mine, tests, strict=True)):
            batch = table.to(device=fit.device).all()
            if not density(fit.model):
                score.variant = NO_DENSITY
            elif hasattr(fit.model, "loglik"):
                score.variant = _score_likelihood(score, fit, batch, draws)
            else:
                drawn = draw(fit.model, fit.guide, batch, draws)
                first.setdefault(name, drawn)
                _score_predictions(score, drawn)
            _score_bound(score, fit, particles)
            if split == 0:
                score.kl, score.khat = kl_by_site(fit), _khat(fit)
        found.append(score)
    comparison = Comparison(found, len(tests), variant=_variant(found))
    comparison.sizes = [fit.N for fit in next(iter(runs.values()))]
    comparison.losses = {
        name: curves for name, mine in runs.items() if is_bound(mine[0]) and (curves := mine[0].curves)
    }
    comparison.notes = _notes(found, runs, tests)
    comparison.pictures = pictures(comparison.losses, runs, first, tests[0])
    return comparison


def kl_by_site(fit: Fit) -> dict[str, float]:
    """KL(q || prior) of every global site in nats, where it is known in closed form (one draw of its parents)."""
    p, q = paired_sites(fit.model, fit.guide, fit.first_batch())
    known = {}
    for name, site in q.items():
        if name not in p or site["cond_indep_stack"] or _is_delta(site["fn"]):
            continue
        if kl_registered(site["fn"], p[name]["fn"]):
            known[name] = float(kl_divergence(site["fn"], p[name]["fn"]).detach().sum())
    return known


def is_bound(fit: Fit) -> bool:
    """Whether the fit's loss is an evidence bound; `why_no_bound` says why not."""
    return why_no_bound(fit) is None


def why_no_bound(fit: Fit) -> str | None:
    """Why the fit's loss is no evidence bound; None if it is one."""
    if not density(fit.model):
        return "the model has no density"
    if not getattr(fit.guide, "joint_density", True):
        return "draws follow another law than the one that is charged"
    _, q = paired_sites(fit.model, fit.guide, fit.first_batch())
    auxiliary = [site for site in q.values() if site["infer"].get("is_auxiliary")]
    if any(_is_delta(site["fn"]) for site in auxiliary or q.values()):
        return "a point mass has no entropy, so its loss is a log joint; compare predictions"
    relaxed = [name for name, site in q.items() if getattr(site["fn"], "relaxed", False)]
    if relaxed:
        return f"draws of {', '.join(relaxed)} are relaxed, and the loss is read between the codes; compare log-lik"
    return None


def _khat(fit: Fit) -> float | None:
    """The joint k-hat, unless it makes no sense or its draws over all data would take minutes.

    Latents of every datum make it say nothing of any of them; `zoo diagnose` gives theirs.
    """
    if KHAT_DRAWS * fit.N > 5_000_000 or hasattr(fit.model, "loglik"):
        return None
    try:
        return khat.joint(fit, draws=KHAT_DRAWS).value
    except khat.DiagnosisError:
        return None


def _score_likelihood(score: Score, fit: Fit, batch: Mapping[str, Any], draws: int) -> str:
    """Score a density model by its exact likelihood, or by the importance-weighted bound; returns which."""
    value = fit.model.loglik(**batch)  # type: ignore[operator]
    if value is not None:
        score.loglik.append(float(value.double().mean()))
        return EXACT
    mean, error = importance_score(fit.model, fit.guide, batch, particles=draws)
    annealed = getattr(fit.model, "annealed", None)
    score.loglik.append(mean)
    score.loglik_error = max(math.hypot(error, annealed.error if annealed else 0.0), score.loglik_error or 0.0)
    biases = [ESTIMATED] * bool(latent_sites(fit.model, batch)) + [ANNEALED] * (annealed is not None)
    return "; ".join(biases) or EXACT


def _variant(found: Sequence[Score]) -> str:
    """Which log-likelihoods the rows show; by name where they differ."""
    kinds = list(dict.fromkeys(score.variant for score in found))
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{score.guide}: {score.variant}" for score in found)


def _score_predictions(score: Score, drawn: Draws) -> None:
    out = observed(drawn)
    assert out.log_prob is not None and out.value is not None
    weight = 0.0 if drawn.local is None else drawn.local.double()
    score.loglik.append(scores.loglik_mixture(out.log_prob.double() + weight))
    if drawn.local is None and has_classes(out):
        score.error.append(scores.error_rate(out.value, out.mean.mean(0)))
    elif drawn.local is None:  # draws of local latents have seen y: their mean predicts nothing
        score.rmse.append(scores.rmse(out.value.to(out.mean), out.mean.mean(0)))


def _learned(fit: Fit) -> int:
    return sum(p.numel() for p in fit.model.parameters() if p.requires_grad)


def _score_bound(score: Score, fit: Fit, particles: int) -> None:
    if is_bound(fit):
        if hasattr(fit.model, "loglik"):  # latents of many data average their noise themselves
            particles = max(2, min(particles, ENOUGH // fit.N))
        score.elbo.append(fit.elbo(particles=particles)[0] / fit.N)
    score.seconds.append(fit.seconds)
    score.converged.append(fit.converged)


def _notes(found: Sequence[Score], runs: Mapping[str, Sequence[Fit]], tests: Sequence[Table]) -> list[str]:
    """What a reader should be told before believing the table."""
    notes = []
    for score in found:
        unfinished, first = score.converged.count(False), runs[score.guide][0]
        if first.unjudged:
            notes.append(
                f"{score.guide}: {', '.join(first.unjudged)} learned by a gradient whose loss is no likelihood, so "
                "whether it settled is not told"
            )
        if unfinished and first.curves:
            notes.append(
                f"{score.guide}: the loss was still falling (or too short to tell) on {unfinished} of "
                f"{len(score.converged)} splits; more epochs may change its row"
            )
        for site, kl in score.kl.items():
            if site.startswith("W") and kl < 0.1:
                notes.append(f"{score.guide}: q({site}) has returned to its prior (KL {kl:.3f} nats)")
    notes += [
        f"{score.guide}: Monte Carlo error of the log-lik {score.loglik_error:.2g} nats per datum; its bias is not in "
        f"it ({score.variant})"
        for score in found
        if score.loglik_error is not None
    ]
    densities = all(hasattr(fit.model, "loglik") or not density(fit.model) for mine in runs.values() for fit in mine)
    if any(not score.rmse and not score.error for score in found) and not densities:
        notes.append(
            "log-lik is an importance-weighted estimate over draws of the local latents, too low in expectation; "
            "predictions without y are not scored"
        )
    if found[0].rmse and all("y" in next(iter(mine[0].batches)) for mine in runs.values()):
        constant = [_rmse_of_mean(fit, table) for fit, table in zip(next(iter(runs.values())), tests, strict=True)]
        for score in found:
            if np.mean(score.rmse) > 0.98 * np.mean(constant):
                notes.append(
                    f"{score.guide}: RMSE {np.mean(score.rmse):.4g} is no better than predicting the training mean "
                    f"({np.mean(constant):.4g})"
                )
    return notes


def _rmse_of_mean(fit: Fit, table: Table) -> float:
    y = torch.cat([batch["y"] for batch in fit.batches]).double().cpu()
    return scores.rmse(table["y"].double().cpu(), y.mean(0))


def _is_delta(law: Any) -> bool:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, Delta)


def _minus(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(values, reference, strict=True)]


def _interval(values: Sequence[float]) -> str:
    mean, error = scores.mean_and_error(list(values))
    digits = 3 if abs(mean) < 10 else 2 if abs(mean) < 100 else 1
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _summary(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "se": None, "values": None}
    mean, error = scores.mean_and_error(list(values))
    return {
        "mean": _finite(mean),
        "se": None if error is None else _finite(error),
        "values": [_finite(v) for v in values],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON has no NaN

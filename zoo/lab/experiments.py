"""Comparisons over guides and splits: each cell is one fit, seeded by itself, run side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from joblib import Parallel, delayed
from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from zoo.lab.averaging import Average
from zoo.lab.checkpoints import Checkpoints
from zoo.lab.comparison import Comparison, compare
from zoo.lab.data import SPLITS, Split, Table, load, rounds
from zoo.lab.guide_names import ExperimentError, build_guide, known_guides
from zoo.lab.options import check_options, known_options, options_of
from zoo.lab.training import Fit, Phase, fit, seed

STEPS = 2000  # where no number of epochs is given


@dataclass(frozen=True)
class Recipe:
    """How every cell of a comparison is trained and scored: the same for all.

    Attributes:
        epochs: None takes about 2000 optimiser steps.
        batch: rows of a minibatch.
        lr, decay: Adam's rate, falling along a cosine to `decay * lr`.
        average: decay of the moving average that stands for the parameters in the end (`lab.Average`); 0: the last.
        seed: of the initial values, the order of the batches and the noise, together with the split.
        draws: predictive draws per score.
        model: options of the paper's model, of its training and of its measures.
    """

    epochs: int | None = None
    batch: int = 128
    lr: float = 1e-2
    decay: float = 0.01
    average: float = 0.0
    seed: int = 0
    draws: int = 200
    device: str | None = None
    dtype: str = "float32"
    model: Mapping[str, Any] = field(default_factory=dict)

    def epochs_for(self, train: Table) -> int:
        """The number of epochs, given or from the number of steps."""
        return self.epochs or math.ceil(STEPS / math.ceil(len(train) / self.batch))


def build_model(paper: Any, train: Table, options: Mapping[str, Any]) -> nn.Module:
    """The paper's model for a table: `Model.for_data(train, **options)`, or `Model(**options)` where it has none.

    Options of the training and of the measures are left out.

    Raises:
        ExperimentError: an option that none of them has.
    """
    make, known = getattr(paper.Model, "for_data", None), known_options(paper)
    unknown = sorted(set(options) - set(known or options))
    if unknown:
        there = ", ".join(known or [])
        raise ExperimentError(f"{paper.__name__} has no model option {unknown[0]!r}; there are: {there}")
    check_options(paper, options)
    others = {**options_of(paper, "phases", options), **options_of(paper, "measures", options)}
    options = {key: value for key, value in options.items() if key not in others}
    try:
        return make(train, **options) if make else paper.Model(**options)
    except TypeError as error:
        raise ExperimentError(f"the model cannot be made with the options {dict(options)}: {error}") from error


def build_phases(paper: Any, model: nn.Module, guide: nn.Module, options: Mapping[str, Any]) -> Sequence[Phase]:
    """The phases of a training that is not one bound, where the paper has any; options of other parts are left out."""
    if not hasattr(paper, "phases"):
        return ()
    return paper.phases(model, guide, **options_of(paper, "phases", options))


def measure(paper: Any, fit: Fit, split: Split, options: Mapping[str, Any]) -> Any:
    """What the paper's `measures(fit, split)` finds, beside the scores that every paper has; None where it has none.

    It has `row()`, {heading: number}, and `units` of it; `sentences`, and those of them that tell of `failures`; and
    `pictures()`, (alternative text, figure) pairs.
    """
    if not hasattr(paper, "measures"):
        return None
    check_options(paper, options)
    moved = (None if part is None else part.to(fit.device, torch.get_default_dtype()) for part in split)
    try:
        return paper.measures(fit, Split(*moved), **options_of(paper, "measures", options))  # type: ignore[arg-type]
    except TypeError as error:
        raise ExperimentError(f"{paper.__name__} cannot measure with {dict(options)}: {error}") from error


def open_data(paper: Any, name: str, split: int, target: str | Sequence[str] | None = None) -> Split:
    """One split of a data set, through the paper's own `data` where it has one."""
    options: dict[str, Any] = {} if target is None else {"target": target}
    return getattr(paper, "data", load)(name, split=split, **options)


@dataclass(frozen=True)
class Plan:
    """What determines a run: with the data and the same versions it can be trained again.

    Attributes:
        paper: its name, or `module:Model`.
        data: name of the data set, or the path of a file. split: which split. target: for a file.
        guide: its name; None for the paper's own.
    """

    paper: str
    data: str
    split: int = 0
    target: str | Sequence[str] | None = None
    guide: str | None = None
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True)
class Cell:
    """A model/guide pair that is ready to be trained on a table."""

    model: nn.Module
    guide: nn.Module
    bound: ELBO
    train: Table
    recipe: Recipe
    seed: int
    phases: Sequence[Phase] = ()

    def fit(self, *, keep: Checkpoints | None = None) -> Fit:
        """Train the pair in place as the recipe says."""
        recipe, batches = self.recipe, self.train.batches(self.recipe.batch, seed=self.seed)
        averages = [Average(recipe.average)] if recipe.average else []
        trained = fit(
            self.model,
            self.guide,
            batches,
            self.bound,
            epochs=recipe.epochs_for(self.train),
            lr=recipe.lr,
            decay=recipe.decay,
            callbacks=averages,
            phases=self.phases,
            device=recipe.device,
            keep=keep,
        )
        for average in averages:
            average.apply(trained)
        return trained


def prepare(plan: Plan) -> tuple[Cell, Split]:
    """Open the data of a plan and build its pair; torch's default dtype becomes the recipe's."""
    from zoo import paper as find

    paper = find(plan.paper)
    torch.set_default_dtype(getattr(torch, plan.recipe.dtype))
    split = open_data(paper, plan.data, plan.split, plan.target)
    return build_cell(paper, split, plan.split, plan.guide, plan.recipe), split


def build_cell(paper: Any, split: Split, index: int, guide_name: str | None, recipe: Recipe) -> Cell:
    """One guide (None: the paper's own) for one split; the seed is a function of recipe and split alone."""
    torch.set_default_dtype(getattr(torch, recipe.dtype))
    train = split.train.to(dtype=torch.get_default_dtype())
    seed(1000 * recipe.seed + index)
    model = build_model(paper, train, recipe.model)
    guide, bound = guide_and_bound(paper, guide_name, model, train.peek())
    phases = build_phases(paper, model, guide, recipe.model)
    return Cell(model, guide, bound, train, recipe, 1000 * recipe.seed + index, phases)


def guide_and_bound(
    paper: Any, guide_name: str | None, model: nn.Module, batch: Mapping[str, Any]
) -> tuple[nn.Module, ELBO]:
    """The guide of that name (the paper's, or one of `build_guide`), or the paper's own, and the bound that is its."""
    own = getattr(paper, "GUIDES", {})
    if guide_name is None and not hasattr(paper, "guide"):
        raise ExperimentError(f"{paper.__name__} has no guide of its own; choose one of {', '.join(known_guides())}")
    if guide_name is None or guide_name in own:
        guide = (own[guide_name] if guide_name else paper.guide)(model, batch)
    else:
        guide = build_guide(guide_name, model, batch, also=own)
    attach: Any = getattr(model, "attach", None)  # of a prior that refers to the guide
    if attach:
        attach(guide)
    return guide, getattr(paper, "bound", lambda guide: Trace_ELBO())(guide)


def train_cell(paper: Any, split: Split, index: int, guide_name: str | None, recipe: Recipe) -> Fit:
    """Build and train one guide on one split."""
    return build_cell(paper, split, index, guide_name, recipe).fit()


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: a guide (None: the paper's own) and how it is trained."""

    name: str
    guide: str | None
    recipe: Recipe


def variants(guide_names: Sequence[str], recipe: Recipe, axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every guide with every combination of the options that vary.

    Args:
        axes: {option: its values}, such as {"depth": [1, 2, 3]}. A row's name says only what differs between rows.

    Raises:
        ExperimentError: nothing to compare, or the same twice.
    """
    if not guide_names or any(len(set(map(str, some))) < len(some) for some in (guide_names, *axes.values())):
        raise ExperimentError("a comparison takes different guides and values, each named once")
    found = []
    for guide, values in product(guide_names, product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        told = [guide] * (len(guide_names) > 1 or not axes) + [f"{key} {value}" for key, value in chosen.items()]
        found.append(Variant(", ".join(told), guide, replace(recipe, model={**recipe.model, **chosen})))
    return found


def train_grid(
    paper_name: str,
    splits: Sequence[Split],
    rows: Sequence[Variant],
    *,
    jobs: int = 1,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> dict[str, list[Fit]]:
    """Every variant on every split, `jobs` fits at once, each on one thread; {name: fits in the order of splits}."""
    cells = [(index, row) for index in range(len(splits)) for row in rows]
    tasks = (delayed(_one_cell)(paper_name, splits[index], index, row.guide, row.recipe) for index, row in cells)
    fits: dict[str, list[Fit]] = {row.name: [] for row in rows}
    results = Parallel(n_jobs=min(jobs, len(cells)), return_as="generator")(tasks)
    for finished, ((_, row), result) in enumerate(zip(cells, results, strict=True), 1):
        fits[row.name].append(result)
        done(finished, len(cells))
    return fits


def _one_cell(paper_name: str, split: Split, index: int, guide_name: str | None, recipe: Recipe) -> Fit:
    from zoo import paper  # in the worker: a user's module is found by name there

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_cell(paper(paper_name), split, index, guide_name, recipe)
    finally:
        torch.set_num_threads(threads)


def run(
    paper_name: str,
    data: str,
    guide_names: Sequence[str],
    splits: int | None,
    recipe: Recipe,
    *,
    axes: Mapping[str, Sequence[Any]] | None = None,
    target: str | None = None,
    jobs: int = 1,
    done: Callable[[int, int], None] = lambda finished, total: None,
) -> Comparison:
    """The whole of a comparison: data, fits, scores, and what belongs beside them.

    Without a number of splits it takes five, or as many as the data have. All rows are built once before anything is
    trained, so that a wrong name costs no time.

    Args:
        axes: options whose values are compared, see `variants`.
    """
    from zoo import paper as find

    paper, axes = find(paper_name), axes or {}
    torch.set_default_dtype(getattr(torch, recipe.dtype))
    rows = variants(guide_names, recipe, axes)
    splits = splits or min(SPLITS, rounds(data, target=target))
    parts = [open_data(paper, data, split, target) for split in range(splits)]
    for row in rows:
        model = build_model(paper, parts[0].train, row.recipe.model)
        guide, _ = guide_and_bound(paper, row.guide, model, parts[0].train.peek())
        build_phases(paper, model, guide, row.recipe.model)
    fits = train_grid(paper_name, parts, rows, jobs=jobs, done=done)
    found = describe(paper, paper_name, parts, fits, recipe)
    found.what = ", ".join(axes) or found.what
    return found


def describe(
    paper: Any, paper_name: str, parts: Sequence[Split], fits: Mapping[str, Sequence[Fit]], recipe: Recipe
) -> Comparison:
    """Score the fits, and say beside the scores what was trained, what the paper remarks, and the exact evidence."""
    tests = [part.test.to(dtype=getattr(torch, recipe.dtype)) for part in parts]
    seed(recipe.seed)
    found = compare(fits, tests, draws=recipe.draws)
    train = parts[0].train
    found.paper, found.data, found.title = paper_name, train.name, f"{paper_name} on {train.name}"
    options = ", ".join(f"{key}={value}" for key, value in recipe.model.items()) or "the model's defaults"
    averaged = f", parameters averaged with decay {recipe.average:g}" if recipe.average else ""
    found.about = [
        f"Data: {train.provenance}.",
        f"Model: {options}. Each guide: {recipe.epochs_for(train)} epochs of Adam, batch {recipe.batch}, "
        f"rate {recipe.lr:g} falling to {recipe.lr * recipe.decay:g}{averaged}, seed {recipe.seed}, "
        f"{recipe.draws} draws.",
    ]
    if hasattr(paper, "remarks"):
        found.about += _remarks(paper, fits)
    if hasattr(paper, "measures"):
        _measure_all(found, paper, parts, fits, recipe)
    if hasattr(paper, "books"):
        found.about += [
            f"{name}, first split: {line}" for name, mine in fits.items() for line in paper.books(mine[0], parts[0])
        ]
    if hasattr(paper, "evidence"):
        known = {
            name: [paper.evidence(fit.model, part.train) for fit, part in zip(mine, parts, strict=True)]
            for name, mine in fits.items()
        }
        if not any(None in values for values in known.values()):
            first = next(iter(fits.values()))[0].model
            found.add_evidence(known, learned=any(p.requires_grad for p in first.parameters()))
    return found


def _measure_all(
    found: Comparison, paper: Any, parts: Sequence[Split], fits: Mapping[str, Sequence[Fit]], recipe: Recipe
) -> None:
    """The paper's own measures of every fit; words and pictures of the first split."""
    for score in found.scores:
        for index, (trained, part) in enumerate(zip(fits[score.guide], parts, strict=True)):
            measured = measure(paper, trained, part, recipe.model)
            for heading, value in measured.row().items():
                score.measured.setdefault(heading, []).append(value)
            found.units = getattr(measured, "units", "")
            if index == 0:
                alone = len(found.scores) == 1
                told = measured.sentences if alone else measured.failures
                found.about += [f"{score.guide}, first split: {line}" for line in told]
                found.pictures += [(f"{score.guide}: {alt}", figure) for alt, figure in measured.pictures()]


def _remarks(paper: Any, fits: Mapping[str, Sequence[Fit]]) -> list[str]:
    """What the paper remarks of the models of the first split; by name where they differ."""
    told = {name: paper.remarks(mine[0].model) for name, mine in fits.items()}
    first = next(iter(told.values()))
    if all(lines == first for lines in told.values()):
        return first
    return [f"{name}: {line}" for name, lines in told.items() for line in lines]

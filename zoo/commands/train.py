"""`zoo demo`, `zoo fit` and `zoo compare`: train guides and score them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from zoo.commands.options import (
    AsJson,
    Average,
    BatchSize,
    Data,
    Decay,
    Device,
    Download,
    Draws,
    Dtype,
    Epochs,
    Hidden,
    Jobs,
    PaperName,
    Rate,
    Seed,
    Set,
    Target,
    check_device,
    check_order,
    default,
    err,
    make_recipe,
    paper_options,
    split_axes,
    tell,
    torch_dtype,
    write,
)

if TYPE_CHECKING:
    from zoo.lab.checkpoints import Checkpoints
    from zoo.lab.comparison import Comparison
    from zoo.lab.data import Split
    from zoo.lab.experiments import Cell, Plan, Recipe

DEMO_GUIDES = "MatrixNormal,MatrixNormalLowRank,MeanField,AutoMultivariateNormal,Point"


def demo(
    splits: Annotated[int, typer.Option(min=1, max=20, help="Train/test splits of the diabetes data.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 250,
    seed: Seed = 0,
    page: Annotated[Path, typer.Option("--out", help="Where to write the HTML page.")] = Path("report/demo.html"),
    jobs: Jobs = None,
) -> None:
    """Compare five guides on real data and write a page.

    The data are scikit-learn's diabetes set. First a network with a hidden layer on several splits; then, on one
    split, the model without hidden layer, whose evidence is known exactly, so that each guide's gap to the truth can
    be seen.
    """
    network = _compare(
        "matrix_gaussian", "diabetes", DEMO_GUIDES, splits, make_recipe(epochs, seed=seed, hidden="20"), jobs
    )
    network.title = f"A network with 20 hidden units on diabetes, {splits} splits"
    recipe = make_recipe(4 * epochs, 512, 0.03, seed=seed, hidden="none")  # whole batches: as many steps, less noise
    linear = _compare("matrix_gaussian", "diabetes", DEMO_GUIDES, 1, recipe, jobs)
    linear.title = "No hidden layer, one split: the evidence is known exactly"
    _show([network, linear], page, title="pyro-zoo: one model, five guides")


def fit(
    context: typer.Context,
    paper_name: Annotated[
        str | None, typer.Argument(metavar="PAPER", help="A paper of `zoo list`, or your own module:Model.")
    ] = None,
    data: Data = None,
    target: Target = None,
    guide: Annotated[str | None, typer.Option(help="A guide of `zoo list`; the default is the paper's own.")] = None,
    split: Annotated[int, typer.Option(min=0, help="Which train/test split.")] = 0,
    epochs: Epochs = None,
    batch: BatchSize = 128,
    lr: Rate = 1e-2,
    decay: Decay = 0.01,
    average: Average = 0.0,
    seed: Seed = 0,
    draws: Draws = 200,
    hidden: Hidden = None,
    options: Set = None,
    device: Device = None,
    dtype: Dtype = "float32",
    folder: Annotated[
        Path | None, typer.Option("--out", help="A new folder for checkpoints, posterior (netCDF), scores and page.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped; no PAPER.")
    ] = None,
    download: Download = False,
    as_json: AsJson = False,
) -> None:
    """Train one guide on one split and score it.

    With --out, keeps checkpoints while it trains, so that a run that was stopped can be resumed, and at the end writes
    the posterior for ArviZ, the scores and a page. Options of the paper go by their own names: `--top rbm`.
    """
    from zoo.lab import runs
    from zoo.lab.data import obtain
    from zoo.lab.experiments import Plan, prepare

    if resume is not None:
        _refuse_beside_resume(context)
        _go_on(resume, device, as_json)
        return
    if paper_name is None:
        raise ValueError("fit what? give a PAPER of `zoo list` (or your own module:Model), or --resume RUN")
    check_order(paper_name)
    if folder is not None:
        runs.refuse_existing(folder)
    data = data or default(paper_name, "data", "diabetes")
    options = [*(options or []), *paper_options(context, paper_name)]
    recipe = make_recipe(epochs, batch, lr, decay, average, seed, draws, hidden, options, device, dtype)
    if download:
        obtain(data)
    plan = Plan(paper_name, data, split, target, guide, recipe)
    cell, parts = prepare(plan)
    keep = None if folder is None else runs.begin(folder, plan, cell, parts)
    _train(plan, cell, parts, keep, as_json)


def _refuse_beside_resume(context: typer.Context) -> None:
    """The manifest has all options; one that is given and not used would mislead."""
    words = [context.params.get("paper_name") or "", *context.args]  # an option that is not known is taken for PAPER
    strange = next((word for word in words if word.startswith("-")), None)
    if strange:
        raise ValueError(f"--resume takes all from the run (except --device); leave out {strange}")
    for parameter in context.command.params:
        name = parameter.name or ""
        given = getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        if given and name not in ("resume", "as_json", "device"):
            raise ValueError(f"--resume takes all from the run (except --device); leave out {parameter.opts[0]}")
    if context.args:
        raise ValueError(f"--resume takes all from the run (except --device); leave out {context.args[0]}")


def _go_on(folder: Path, device: str | None, as_json: bool) -> None:
    from zoo.lab import runs

    check_device(device)
    if runs.is_scored(folder):
        err.print(f"{folder} is finished: nothing to resume", highlight=False, soft_wrap=True)
        if as_json:
            print((folder / runs.SCORES).read_text(encoding="utf-8"))
        return
    plan, cell, parts, keep = runs.resume(folder, device=device)
    place = keep.saved.place if keep.saved else "from the start"
    err.print(f"{folder}: going on {place}", markup=False, highlight=False, soft_wrap=True)
    _train(plan, cell, parts, keep, as_json)


def _train(plan: Plan, cell: Cell, parts: Split, keep: Checkpoints | None, as_json: bool) -> None:
    """Train, score, tell, and fill the run's folder where there is one."""
    import zoo
    from zoo.lab import experiments, runs

    with _resumable(keep):
        trained = cell.fit(keep=keep)
        names = {plan.guide or "the paper's own": [trained]}
        found = experiments.describe(zoo.paper(plan.paper), plan.paper, [parts], names, plan.recipe)
        if keep is not None:
            test = parts.test.to(dtype=torch_dtype(plan.recipe.dtype))
            runs.finish(keep.path.parent, trained, found, test, draws=max(plan.recipe.draws, 1000))
    tell(found, as_json)
    if keep is not None:
        err.print(f"wrote {keep.folder}", highlight=False, soft_wrap=True)


@contextmanager
def _resumable(keep: Checkpoints | None) -> Iterator[None]:
    """Say how to go on when the user stops a run."""
    try:
        yield
    except KeyboardInterrupt:
        if keep is not None:
            err.print(f"go on with: zoo fit --resume {keep.folder}", markup=False, highlight=False, soft_wrap=True)
        raise


def compare(
    context: typer.Context,
    paper_name: PaperName,
    data: Data = None,
    target: Target = None,
    guides: Annotated[
        str | None, typer.Option(help="Guides of `zoo list`, separated by commas; else the paper's example.")
    ] = None,
    splits: Annotated[
        int | None, typer.Option(min=1, help="Train/test splits of the set's protocol; else 5, or as many as it has.")
    ] = None,
    epochs: Epochs = None,
    batch: BatchSize = 128,
    lr: Rate = 1e-2,
    decay: Decay = 0.01,
    average: Average = 0.0,
    seed: Seed = 0,
    draws: Draws = 200,
    hidden: Hidden = None,
    options: Set = None,
    device: Device = None,
    dtype: Dtype = "float32",
    page: Annotated[Path | None, typer.Option("--out", help="Write an HTML page there.")] = None,
    jobs: Jobs = None,
    download: Download = False,
    as_json: AsJson = False,
) -> None:
    """Compare several guides, or several values of an option, on several splits.

    Every row gets the same data, steps and seeds; differences are paired over the splits. Options of the paper go by
    their own names, `--top rbm`; in the plural they name the values to compare, `--depths 1,2,3`.
    """
    from zoo.lab.data import obtain

    check_order(paper_name)
    data = data or default(paper_name, "data", "diabetes")
    guides = guides or default(paper_name, "guides", "MatrixNormal,MeanField")
    own, axes = split_axes(paper_options(context, paper_name, axes=True), paper_name)
    recipe = make_recipe(
        epochs, batch, lr, decay, average, seed, draws, hidden, [*(options or []), *own], device, dtype
    )
    if download:
        obtain(data)
    found = _compare(paper_name, data, guides, splits, recipe, jobs, target, axes)
    tell(found, as_json)
    if page is not None:
        write([found], page, title=f"{paper_name}: {', '.join(score.guide for score in found.scores)} on {found.data}")


def _compare(
    paper_name: str,
    data: str,
    guides: str,
    splits: int | None,
    recipe: Recipe,
    jobs: int | None,
    target: str | None = None,
    axes: Mapping[str, Sequence[Any]] | None = None,
) -> Comparison:
    from zoo.lab import experiments

    names = [name.strip() for name in guides.split(",") if name.strip()]
    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{len(names)} guides", total=None)
        return experiments.run(
            paper_name,
            data,
            names,
            splits,
            recipe,
            axes=axes,
            target=target,
            jobs=jobs or os.cpu_count() or 1,
            done=lambda finished, total: progress.update(task, completed=finished, total=total),
        )


def _show(found: list[Comparison], page: Path, *, title: str) -> None:
    for comparison in found:
        tell(comparison, as_json=False)
    write(found, page, title=title)

"""`zoo demo`, `zoo fit` and `zoo compare`: train guides and score them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from zoo.commands.options import (
    AsJson,
    BatchSize,
    Data,
    Decay,
    Device,
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
    err,
    make_recipe,
    tell,
    torch_dtype,
    write,
)

if TYPE_CHECKING:
    from zoo.lab.comparison import Comparison
    from zoo.lab.experiments import Recipe

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
    paper_name: PaperName,
    data: Data = "diabetes",
    target: Target = None,
    guide: Annotated[str | None, typer.Option(help="A guide of `zoo list`; the default is the paper's own.")] = None,
    split: Annotated[int, typer.Option(min=0, help="Which train/test split.")] = 0,
    epochs: Epochs = None,
    batch: BatchSize = 128,
    lr: Rate = 1e-2,
    decay: Decay = 0.01,
    seed: Seed = 0,
    draws: Draws = 200,
    hidden: Hidden = None,
    options: Set = None,
    device: Device = None,
    dtype: Dtype = "float32",
    folder: Annotated[
        Path | None, typer.Option("--out", help="A new folder for the posterior (netCDF), parameters, scores and page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one guide on one split and score it.

    With --out, writes the posterior for ArviZ, the parameters, the scores and a page.
    """
    import zoo
    from zoo.lab import experiments, runs

    if folder is not None and folder.exists():
        raise FileExistsError(f"{folder} exists already; give a new folder to --out")
    paper = zoo.paper(paper_name)
    recipe = make_recipe(epochs, batch, lr, decay, seed, draws, hidden, options, device, dtype)
    parts = experiments.open_data(paper, data, split, target)
    trained = experiments.train_cell(paper, parts, split, guide, recipe)
    found = experiments.describe(paper, paper_name, [parts], {guide or "the paper's own": [trained]}, recipe)
    tell(found, as_json)
    if folder is not None:
        runs.save(folder, trained, found, parts.test.to(dtype=torch_dtype(dtype)), draws=max(draws, 1000))
        err.print(f"wrote {folder}", highlight=False, soft_wrap=True)


def compare(
    paper_name: PaperName,
    data: Data = "diabetes",
    target: Target = None,
    guides: Annotated[str, typer.Option(help="Guides of `zoo list`, separated by commas.")] = "MatrixNormal,MeanField",
    splits: Annotated[int, typer.Option(min=1, help="Train/test splits, 90/10 by the benchmark's seed.")] = 5,
    epochs: Epochs = None,
    batch: BatchSize = 128,
    lr: Rate = 1e-2,
    decay: Decay = 0.01,
    seed: Seed = 0,
    draws: Draws = 200,
    hidden: Hidden = None,
    options: Set = None,
    device: Device = None,
    dtype: Dtype = "float32",
    page: Annotated[Path | None, typer.Option("--out", help="Write an HTML page there.")] = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Compare several guides on several splits.

    Every guide gets the same data, steps and seeds; differences between guides are paired over the splits.
    """
    recipe = make_recipe(epochs, batch, lr, decay, seed, draws, hidden, options, device, dtype)
    found = _compare(paper_name, data, guides, splits, recipe, jobs, target)
    tell(found, as_json)
    if page is not None:
        write([found], page, title=f"{paper_name}: {guides.replace(',', ', ')} on {found.data}")


def _compare(
    paper_name: str, data: str, guides: str, splits: int, recipe: Recipe, jobs: int | None, target: str | None = None
) -> Comparison:
    from zoo.lab import experiments

    names = [name.strip() for name in guides.split(",") if name.strip()]
    with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{len(names)} guides x {splits} splits", total=None)
        return experiments.run(
            paper_name,
            data,
            names,
            splits,
            recipe,
            target=target,
            jobs=jobs or os.cpu_count() or 1,
            done=lambda finished, total: progress.update(task, completed=finished, total=total),
        )


def _show(found: list[Comparison], page: Path, *, title: str) -> None:
    for comparison in found:
        tell(comparison, as_json=False)
    write(found, page, title=title)

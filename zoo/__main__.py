"""The command line: `zoo demo | list | show | fit | compare`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from zoo.lab.comparison import Comparison
    from zoo.lab.experiments import Recipe

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
out = Console(width=None if sys.stdout.isatty() else 120)  # a pipe has no width of its own
err = Console(stderr=True)

DEMO_GUIDES = "MatrixNormal,MatrixNormalLowRank,MeanField,AutoMultivariateNormal,Point"

PaperName = Annotated[str, typer.Argument(metavar="PAPER", help="A paper of `zoo list`, or your own module:Model.")]
Data = Annotated[str, typer.Option(help="A set of `zoo list --data`, or your own .csv, .tsv or .parquet file.")]
Target = Annotated[str | None, typer.Option(help="The column to predict, for a file of your own.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data; the default takes about 2000 steps.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Rows of a minibatch.")]
Rate = Annotated[float, typer.Option("--lr", min=0.0, help="Adam's learning rate at the start.")]
Decay = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The rate falls to DECAY x LR along a cosine; 1: constant.")
]
Seed = Annotated[int, typer.Option(help="Seed of initial values, batches and noise.")]
Draws = Annotated[int, typer.Option(min=2, help="Predictive draws per score.")]
Hidden = Annotated[str | None, typer.Option(help="Hidden widths, such as 50 or 50,50; none: a linear model.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A model option; repeatable.")]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Fits at once; the default is the number of cores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.callback(epilog="Errors are one line; put --debug anywhere for the traceback.")
def cli() -> None:
    """Papers of probabilistic machine learning as Pyro model/guide pairs: swap a guide and compare."""


@app.command()
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
        "matrix_gaussian", "diabetes", DEMO_GUIDES, splits, _recipe(epochs, seed=seed, hidden="20"), jobs
    )
    network.title = f"A network with 20 hidden units on diabetes, {splits} splits"
    recipe = _recipe(4 * epochs, 512, 0.03, seed=seed, hidden="none")  # whole batches: as many steps, less noise
    linear = _compare("matrix_gaussian", "diabetes", DEMO_GUIDES, 1, recipe, jobs)
    linear.title = "No hidden layer, one split: the evidence is known exactly"
    _show([network, linear], page, title="pyro-zoo: one model, five guides")


@app.command("list")
def list_(
    data: Annotated[
        bool, typer.Option("--data", help="List the data sets instead, and where they were found.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the papers and guides, or the data sets."""
    if data:
        from zoo.lab.data import catalogue

        _listing(catalogue(), ("name", "rows", "columns", "kind", "licence", "where", "caveat"), as_json)
        return
    import zoo
    from zoo.lab.experiments import known_guides

    papers = [{"paper": name, "about": (zoo.paper(name).__doc__ or "").splitlines()[0]} for name in zoo.PAPERS]
    if as_json:
        print(json.dumps({"papers": papers, "guides": known_guides()}))
        return
    _listing(papers, ("paper", "about"), as_json)
    out.print("Guides: " + ", ".join(known_guides()) + ", any Auto... of Pyro, or your own module:Family")


@app.command()
def show(paper_name: PaperName) -> None:
    """Print a paper's card and where its equations live.

    The card has the model, guide and bound with their equations, the notation, and departures from the paper.
    """
    import zoo

    paper = zoo.paper(paper_name)
    out.print((paper.__doc__ or f"{paper_name} has no docstring").strip(), markup=False, highlight=False)
    if paper.EQUATIONS:
        rows = [{"equation": key, "function": _where(thing)} for key, thing in paper.EQUATIONS.items()]
        _listing(rows, ("equation", "function"), as_json=False)


@app.command()
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
    recipe = _recipe(epochs, batch, lr, decay, seed, draws, hidden, options, device, dtype)
    parts = experiments.open_data(paper, data, split, target)
    trained = experiments.train_cell(paper, parts, split, guide, recipe)
    found = experiments.describe(paper, paper_name, [parts], {guide or "the paper's own": [trained]}, recipe)
    _tell(found, as_json)
    if folder is not None:
        runs.save(folder, trained, found, parts.test.to(dtype=_dtype(dtype)), draws=max(draws, 1000))
        err.print(f"wrote {folder}", highlight=False, soft_wrap=True)


@app.command()
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
    recipe = _recipe(epochs, batch, lr, decay, seed, draws, hidden, options, device, dtype)
    found = _compare(paper_name, data, guides, splits, recipe, jobs, target)
    _tell(found, as_json)
    if page is not None:
        _write([found], page, title=f"{paper_name}: {guides.replace(',', ', ')} on {found.data}")


def main() -> None:
    """Run the command line: errors are one line on standard error and exit code 2."""
    warnings.filterwarnings("ignore", message="(?s).*ArviZ is undergoing")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        code = app(arguments or ["--help"], prog_name="zoo", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        err.print("zoo: interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # a wrong option, in every version of typer
            message = error.format_message()
        elif isinstance(error, ValueError | OSError):
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        err.print(f"zoo: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


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
        _tell(comparison, as_json=False)
    _write(found, page, title=title)


def _tell(found: Comparison, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
        return
    out.print(found.rich())
    for note in found.notes:
        out.print(f"- {note}", markup=False, highlight=False)


def _write(found: list[Comparison], page: Path, *, title: str) -> None:
    from zoo.lab import report

    err.print(f"wrote {report.page(found, page, title=title)}", highlight=False, soft_wrap=True)


def _recipe(
    epochs: int | None,
    batch: int = 128,
    lr: float = 1e-2,
    decay: float = 0.01,
    seed: int = 0,
    draws: int = 200,
    hidden: str | None = None,
    options: list[str] | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Recipe:
    from zoo.lab.experiments import Recipe

    _dtype(dtype)
    _check_device(device)
    model = dict(_key_value(option) for option in options or [])
    if hidden is not None:
        model["hidden"] = _widths(hidden)
    return Recipe(epochs, batch, lr, decay, seed, draws, device, dtype, model)


def _widths(text: str) -> list[int]:
    if text.strip().lower() in ("", "none", "0"):
        return []
    try:
        widths = [int(width) for width in text.split(",")]
    except ValueError:
        widths = [0]
    if min(widths) < 1:
        raise ValueError(f"--hidden takes widths such as 50 or 50,50, or none; not {text!r}")
    return widths


def _key_value(option: str) -> tuple[str, Any]:
    key, separator, value = option.partition("=")
    if not separator:
        raise ValueError(f"--set takes KEY=VALUE, not {option!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _dtype(name: str) -> Any:
    import torch

    if name not in ("float32", "float64"):
        raise ValueError(f"--dtype is float32 or float64, not {name!r}")
    return getattr(torch, name)


def _check_device(name: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); leave it out for the CPU") from error


def _where(thing: Any) -> str:
    module = getattr(thing, "__module__", None)
    return f"{module}.{thing.__qualname__}" if module else thing.__name__


def _listing(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    table = RichTable(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    out.print(table)


if __name__ == "__main__":
    main()

"""Options that several commands share, and how they become a recipe; what is printed, and where."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from zoo.lab.comparison import Comparison
    from zoo.lab.experiments import Recipe

out = Console(width=None if sys.stdout.isatty() else 120)  # a pipe has no width of its own
err = Console(stderr=True)

PaperName = Annotated[str, typer.Argument(metavar="PAPER", help="A paper of `zoo list`, or your own module:Model.")]
Data = Annotated[
    str | None,
    typer.Option(help="A set of `zoo list --data`, or your own .csv, .tsv or .parquet file; else the paper's example."),
]
Target = Annotated[str | None, typer.Option(help="The column to predict, for a file of your own.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data; the default takes about 2000 steps.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Rows of a minibatch.")]
Rate = Annotated[float, typer.Option("--lr", min=0.0, help="Adam's learning rate at the start.")]
Decay = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The rate falls to DECAY x LR along a cosine; 1: constant.")
]
Average = Annotated[
    float, typer.Option(min=0.0, max=0.9999, help="Decay of a moving average of all parameters; 0: the last values.")
]
Seed = Annotated[int, typer.Option(help="Seed of initial values, batches and noise.")]
Draws = Annotated[int, typer.Option(min=2, help="Predictive draws per score.")]
Hidden = Annotated[str | None, typer.Option(help="Hidden widths, such as 50 or 50,50; none: a linear model.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A model option; repeatable.")]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Fits at once; the default is the number of cores.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a known data set that is not on this machine, checked by SHA256.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


PASSING = {"allow_extra_args": True, "ignore_unknown_options": True}  # for `paper_options`


def paper_options(context: typer.Context, paper_name: str, *, axes: bool = False) -> list[str]:
    """What is left of the command line as KEY=VALUE: options of the paper by their own names, `--top rbm`.

    Args:
        axes: whether an option in the plural, `--depths 1,2,3`, may name the values to compare; see `split_axes`.

    Raises:
        ValueError: neither the command nor the paper has such an option.
    """
    from zoo import paper
    from zoo.lab.options import known_options, varying_options

    pairs, rest = [], list(context.args)
    own = [option.removeprefix("--") for parameter in context.command.params for option in parameter.opts]
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"unexpected argument {name!r}")
        key, known = name.removeprefix("--").replace("-", "_"), known_options(paper(paper_name))
        if known is not None and key not in known and not (axes and _singular(key, varying_options(paper(paper_name)))):
            near = difflib.get_close_matches(key.replace("_", "-"), [*own, *(k.replace("_", "-") for k in known)], 1)
            hint = f"did you mean --{near[0]}? " if near else ""
            raise ValueError(f"no such option {name}; {hint}{paper_name} has the options: {', '.join(known)}")
        if not equals and (not rest or rest[0].startswith("--")):
            raise ValueError(f"option {name} needs a value")
        pairs.append(f"{key}={value if equals else rest.pop(0)}")
    return pairs


def _singular(key: str, known: list[str]) -> str | None:
    """The option whose plural this is."""
    singular = key.removesuffix("s")
    return singular if singular != key and singular in known and key not in known else None


def split_axes(pairs: list[str], paper_name: str) -> tuple[list[str], dict[str, list[Any]]]:
    """Options with one value, and those in the plural with the values that are compared, {option: values}."""
    from zoo import paper
    from zoo.lab.options import varying_options

    known, single, axes = varying_options(paper(paper_name)), [], {}
    for pair in pairs:
        key, _, values = pair.partition("=")
        option = _singular(key, known)
        if option in axes:
            raise ValueError(f"option {key} is given twice")
        if option is None:
            single.append(pair)
        else:
            axes[option] = [key_value(f"{option}={value.strip()}")[1] for value in values.split(",") if value.strip()]
    both = next((option for option in axes if any(pair.startswith(f"{option}=") for pair in single)), None)
    if both:
        raise ValueError(f"option {both} is given with one value and, in the plural, with several")
    return single, axes


def check_order(paper_name: str) -> None:
    """An option of the paper that stands before its name is taken for it.

    Raises:
        ValueError: it is no name.
    """
    if paper_name.startswith("-"):
        raise ValueError(f"PAPER is missing before {paper_name}: options of the paper come after its name")


def default(paper_name: str, what: str, otherwise: str) -> str:
    """The paper's own example, where it names one in `DEFAULTS`."""
    from zoo import paper

    return getattr(paper(paper_name), "DEFAULTS", {}).get(what, otherwise)


def make_recipe(
    epochs: int | None,
    batch: int = 128,
    lr: float = 1e-2,
    decay: float = 0.01,
    average: float = 0.0,
    seed: int = 0,
    draws: int = 200,
    hidden: str | None = None,
    options: list[str] | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Recipe:
    from zoo.lab.experiments import Recipe

    torch_dtype(dtype)
    check_device(device)
    model = key_values(options or [], {} if hidden is None else {"hidden": _widths(hidden)})
    return Recipe(epochs, batch, lr, decay, average, seed, draws, device, dtype, model)


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


def key_values(options: list[str], found: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """KEY=VALUE pairs as a dict, beside what is found already.

    Raises:
        ValueError: an option that is given twice.
    """
    model = dict(found)
    for key, value in map(key_value, options):
        if key in model:
            raise ValueError(f"option {key} is given twice")
        model[key] = value
    return model


def key_value(option: str) -> tuple[str, Any]:
    key, separator, value = option.partition("=")
    if not separator:
        raise ValueError(f"--set takes KEY=VALUE, not {option!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def torch_dtype(name: str) -> Any:
    import torch

    if name not in ("float32", "float64"):
        raise ValueError(f"--dtype is float32 or float64, not {name!r}")
    return getattr(torch, name)


def check_device(name: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); leave it out for the CPU") from error


def tell(found: Comparison, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))
        return
    out.print(found.rich())
    for note in [*found.about, *found.notes]:
        out.print(f"- {note}", markup=False, highlight=False)


def write(found: list[Comparison], page: Path, *, title: str) -> None:
    from zoo.lab import report

    err.print(f"wrote {report.page(found, page, title=title)}", highlight=False, soft_wrap=True)


def listing(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    table = RichTable(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    out.print(table)

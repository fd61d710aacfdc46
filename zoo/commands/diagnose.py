"""`zoo diagnose`: what a run says of its own posterior."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from zoo.commands.options import AsJson, Device, check_device, err, key_values, out, paper_options
from zoo.commands.runs import RunFolder

if TYPE_CHECKING:
    from zoo.lab.runs import Run


def diagnose(
    context: typer.Context,
    folder: RunFolder,
    draws: Annotated[int, typer.Option(min=100, help="Draws of the guide for k-hat.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of these draws.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say of a trained guide how good its posterior is, one sentence for each number.

    Bound and gap to the exact evidence where that is known; Pareto k-hat, joint and for each datum; what cannot be
    said, and why. Then what the paper measures of its own, with its options (`--chains 100`), and figures in the run's
    folder.
    """
    import zoo
    from zoo import lab
    from zoo.lab import diagnosis, experiments
    from zoo.lab.manifests import precision
    from zoo.lab.options import options_of
    from zoo.lab.pareto import finite

    check_device(device)
    run = lab.load(folder, device=device)
    split, paper = run.data(), zoo.paper(run.manifest.paper)
    own = key_values(paper_options(context, run.manifest.paper))
    if other := set(own) - set(options_of(paper, "measures", own)):
        raise ValueError(f"--{min(other)} is no option of what {run.manifest.paper} measures; a run keeps its model")
    lab.seed(seed)
    fit = replace(run.fit, batches=split.train.batches(run.recipe.batch, seed=seed))
    with precision(run.recipe.dtype):  # for models that build tensors of their own
        found = diagnosis.diagnose(fit, evidence=_evidence(run, split.train), draws=draws)
        measured = experiments.measure(paper, fit, split, {**run.recipe.model, **own})
    books = _books(run, split)
    row = {} if measured is None else {heading: finite(value) for heading, value in measured.row().items()}
    if as_json:
        said = {"run": str(folder), "data": split.train.name, **found.to_dict(), "books": books}
        print(json.dumps({**said, **({"measured": row} if row else {})}, allow_nan=False))
        return
    for sentence in [*found.sentences, *books]:
        out.print(f"- {sentence}", markup=False, highlight=False)
    if measured is not None:
        _tell(measured, folder)


def _tell(measured: Any, folder: Path) -> None:
    """What the paper measures: a table, sentences, and figures and chains in the run's folder."""
    from zoo.lab.checkpoints import replacing

    table = RichTable("measure", "value", box=SIMPLE_HEAD, pad_edge=False)
    for heading, value in measured.row().items():
        table.add_row(heading, f"{value:.4g}")
    out.print(table)
    for sentence in measured.sentences:
        out.print(f"- {sentence}", markup=False, highlight=False)
    written = []
    for number, (alt, figure) in enumerate(measured.pictures(), 1):
        with replacing(folder / f"figure_{number}.png") as partial:
            figure.savefig(partial, format="png", dpi=130, metadata={"Description": alt})
        written.append(f"figure_{number}.png")
    with replacing(folder / "chains.nc") as partial:
        measured.inference_data().to_netcdf(str(partial))
    err.print(f"wrote {', '.join(written)}, chains.nc in {folder}", highlight=False, soft_wrap=True)


def _books(run: Run, split: Any) -> list[str]:
    import zoo

    paper = zoo.paper(run.manifest.paper)
    return [f"{line[0].upper()}{line[1:]}" for line in paper.books(run.fit, split)] if hasattr(paper, "books") else []


def _evidence(run: Run, train: Any) -> float | None:
    import zoo

    paper = zoo.paper(run.manifest.paper)
    return paper.evidence(run.fit.model, train) if hasattr(paper, "evidence") else None

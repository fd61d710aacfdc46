"""`zoo diagnose`: what a run says of its own posterior."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.commands.options import AsJson, Device, check_device, out
from zoo.commands.runs import RunFolder

if TYPE_CHECKING:
    from zoo.lab.runs import Run


def diagnose(
    folder: RunFolder,
    draws: Annotated[int, typer.Option(min=100, help="Draws of the guide for k-hat.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of these draws.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say of a trained guide how good its posterior is, one sentence for each number.

    Bound and gap to the exact evidence where that is known; Pareto k-hat, joint and for each datum; what cannot be
    said, and why.
    """
    from zoo import lab
    from zoo.lab import diagnosis
    from zoo.lab.manifests import precision

    check_device(device)
    run = lab.load(folder, device=device)
    train = run.data().train
    lab.seed(seed)
    fit = replace(run.fit, batches=train.batches(run.recipe.batch, seed=seed))
    with precision(run.recipe.dtype):  # for models that build tensors of their own
        found = diagnosis.diagnose(fit, evidence=_evidence(run, train), draws=draws)
    if as_json:
        print(json.dumps({"run": str(folder), "data": train.name, **found.to_dict()}, allow_nan=False))
        return
    for sentence in [*found.sentences, *_books(run, run.data())]:
        out.print(f"- {sentence}", markup=False, highlight=False)


def _books(run: Run, split: Any) -> list[str]:
    import zoo

    paper = zoo.paper(run.manifest.paper)
    return [f"{line[0].upper()}{line[1:]}" for line in paper.books(run.fit, split)] if hasattr(paper, "books") else []


def _evidence(run: Run, train: Any) -> float | None:
    import zoo

    paper = zoo.paper(run.manifest.paper)
    return paper.evidence(run.fit.model, train) if hasattr(paper, "evidence") else None

"""`zoo predict`: what can be asked of a run that has been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.commands.options import AsJson, Device, check_device, err

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `zoo fit --out` wrote.")]


def predict(
    folder: RunFolder,
    data: Annotated[Path, typer.Option(help="Your .csv, .tsv or .parquet file with the columns of the training.")],
    page: Annotated[Path | None, typer.Option("--out", help="A new .csv file to write instead of printing.")] = None,
    draws: Annotated[int, typer.Option(min=2, help="Predictive draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a file with a trained run.

    One row for each row of the file, as CSV: mean, standard deviation, 5 % and 95 % quantile in the units of y, or the
    class and the probability of each. The target need not be in the file. Of a model of densities the log-likelihood of
    each row, in nats.
    """
    from zoo import lab
    from zoo.lab.checkpoints import replacing
    from zoo.lab.data import read
    from zoo.lab.predictions import LogLikelihood

    check_device(device)
    if page is not None and page.exists():
        raise FileExistsError(f"{page} exists already; give a new file to --out")
    run = lab.load(folder, device=device)
    frame = read(data, text=run.transform.levels if run.transform else ())
    lab.seed(seed)
    predicted = run.predict(frame, draws=draws)
    found, density = predicted.frame, isinstance(predicted, LogLikelihood)
    if isinstance(predicted, LogLikelihood) and not predicted.exact:
        err.print(
            f"zoo: importance-weighted over {draws} draws, too low in expectation", highlight=False, soft_wrap=True
        )
    for line in run.unseen(frame):
        err.print(f"zoo: {line}", markup=False, highlight=False, soft_wrap=True)
    if page is not None:
        with replacing(page) as partial:
            found.to_csv(partial, index=False)
        err.print(f"wrote {page}", highlight=False, soft_wrap=True)
    if as_json:
        about = {"run": str(folder), "data": str(data), "unit": "nats" if density else run.manifest.units.get("y", "")}
        print(json.dumps({**about, "draws": draws, "rows": found.to_dict(orient="records")}))
    elif page is None:
        print(found.to_csv(index=False), end="")

"""Run folders: begun before the training, kept while it lasts, read again afterwards.

manifest.json            what the run is: enough to build model and guide again
checkpoint.safetensors   parameters, optimiser, random states, losses: the last end of an epoch that was kept
losses.csv  posterior.nc  report.html  scores.json        of a run that has been scored
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from guides.sites import latent_sites
from zoo.lab import manifests
from zoo.lab.arviz_bridge import to_arviz
from zoo.lab.averaging import Average
from zoo.lab.checkpoints import CHECKPOINT, PARTIAL, Checkpoints, RunError, Saved, read, replacing
from zoo.lab.comparison import Comparison
from zoo.lab.experiments import Cell, Plan, Recipe, guide_and_bound, open_data, prepare
from zoo.lab.frames import Transform, codes
from zoo.lab.manifests import Manifest, precision, undisturbed
from zoo.lab.predictions import LogLikelihood, Prediction, PredictionError, log_likelihood
from zoo.lab.report import page
from zoo.lab.tables import Split, Table
from zoo.lab.training import Fit

SCORES = "scores.json"
CODED = 200  # rows of the test data whose own latents go into posterior.nc


@dataclass(frozen=True)
class Run:
    """A run as its last checkpoint left it.

    Attributes:
        fit: model, guide, bound, losses; its `batches` are one batch of zeros until they are replaced.
        finished: whether it was trained to the end.
    """

    folder: Path
    manifest: Manifest
    fit: Fit
    finished: bool

    @property
    def recipe(self) -> Recipe:
        """How it was trained."""
        return self.manifest.plan.recipe

    @property
    def transform(self) -> Transform | None:
        """How a row of the source becomes a row of x; None if it does not apply."""
        return None if self.manifest.transform is None else Transform.from_dict(self.manifest.transform)

    def data(self) -> Split:
        """The tables it was trained and tested on, opened again in the run's dtype.

        Raises:
            DataError: they are not here. RunError: they are other data than those of the training.
        """
        from zoo import paper

        plan = self.manifest.plan
        with precision(plan.recipe.dtype):
            split = open_data(paper(plan.paper), plan.data, plan.split, plan.target)
        refuse_other_data(self.folder, self.manifest, split)
        return split

    def predict(self, frame: pd.DataFrame, *, draws: int = 1000) -> Prediction | LogLikelihood:
        """Predictions for rows with the columns of the source; a target is not needed.

        Of a model of densities they are the log-likelihoods of the rows, of x as the training scaled it.

        Raises:
            DataError: a column is missing or holds what it must not. PredictionError: the run was not trained on
                columns.
        """
        if self.transform is None:
            raise PredictionError(f"{self.folder} was not trained on columns of a file; use run.fit.predict(table)")
        if not len(frame):
            raise PredictionError("no rows to predict: the file has a header only")
        with precision(self.recipe.dtype):
            x = self.transform.apply(frame.set_axis([str(column) for column in frame.columns], axis=1))
            if hasattr(self.fit.model, "loglik"):
                return log_likelihood(self.fit.model, self.fit.guide, {"x": x.to(self.fit.device)}, draws=draws)
            found = self.fit.predict({"x": x}, draws=draws)
        return replace(found, classes=self.manifest.classes)

    def unseen(self, frame: pd.DataFrame) -> list[str]:
        """One line for each column with levels that the training did not see; they count as none of the known."""
        known = self.transform.levels if self.transform else {}
        strange = {c: frame[c][codes(frame[c], levels) < 0].astype(str) for c, levels in known.items() if c in frame}
        return [
            f"column {column!r}: {', '.join(map(repr, sorted(set(cells))[:5]))} not seen in training "
            f"({len(cells)} rows), so none of the known levels"
            for column, cells in strange.items()
            if len(cells)
        ]


def begin(folder: Path, plan: Plan, cell: Cell, split: Split) -> Checkpoints:
    """Make a run folder with its manifest, before anything is trained.

    Raises:
        RunError: the folder is there already, or the model's arguments cannot be read back.
    """
    refuse_existing(folder)
    partial = folder.with_name(folder.name + PARTIAL)
    manifest = manifests.describe(plan, cell, split.train)
    manifests.write(manifest, partial)
    partial.rename(folder)
    return Checkpoints(folder)


def refuse_existing(folder: Path) -> None:
    """Nothing is overwritten.

    Raises:
        RunError: the folder is there already.
    """
    if folder.exists():
        resume = f", or go on with `zoo fit --resume {folder}`" if (folder / manifests.MANIFEST).exists() else ""
        raise RunError(f"{folder} exists already; give a new folder{resume}")


def resume(folder: Path, *, device: str | None = None) -> tuple[Plan, Cell, Split, Checkpoints]:
    """Open the data of a run again, build its pair, and stand ready to go on from its last checkpoint.

    Args:
        device: another one than the run began on.

    Raises:
        RunError: the run is damaged, its data are others, or its model is built otherwise now.
    """
    manifest = manifests.read(folder)
    keep = Checkpoints.resume(folder)
    plan = manifest.plan
    plan = replace(plan, recipe=replace(plan.recipe, device=device or plan.recipe.device))
    cell, split = prepare(plan)
    refuse_other_data(folder, manifest, split)
    if manifests.arguments(cell.model) != manifest.arguments:
        raise RunError(f"{folder}: the paper now builds another model for these data than when the run began")
    return plan, cell, split, keep


def load(folder: str | Path, *, device: Any = None) -> Run:
    """A run as its last checkpoint left it. Nothing is unpickled, and the data are not needed.

    Args:
        device: where model and guide go; the CPU if not given.

    Raises:
        RunError: no such run, or it is damaged, foreign, newer than this version, or does not fit its model.
        PaperError: a user's own module is not found here.
    """
    folder = Path(folder)
    manifest = manifests.read(folder)
    saved = _checkpoint(folder)
    with precision(manifest.plan.recipe.dtype), undisturbed():
        fit = _rebuild(folder, manifest)
    saved.restore({"parameters": fit.bound(fit.model, fit.guide), "fit": fit})
    if manifest.plan.recipe.average:
        average = Average(manifest.plan.recipe.average)
        saved.restore({"callback 1": average})
        average.apply(fit)
    fit.model.to(device), fit.guide.to(device)
    return Run(folder, manifest, fit, saved.finished)


def finish(folder: Path, fit: Fit, found: Comparison, test: Table, *, draws: int = 1000) -> None:
    """Write losses, posterior (netCDF, for ArviZ), page and scores into a run folder; the scores last.

    Of a density model, whose latents belong to the data, the posterior is that of the first `CODED` test data; a model
    without latents has none.

    Raises:
        RunError: something cannot be written.
    """
    steps = range(1, fit.steps + 1)
    with replacing(folder / "losses.csv") as partial:
        pd.DataFrame({"step": steps, "loss": fit.losses}).to_csv(partial, index=False)
    few = test.subset(range(min(len(test), CODED))) if hasattr(fit.model, "loglik") else test
    if latent_sites(fit.model, fit.first_batch()):
        with replacing(folder / "posterior.nc") as partial:
            to_arviz(fit, few.to(device=fit.device), draws=draws).to_netcdf(str(partial))
    with replacing(folder / "report.html") as partial:
        page([found], partial, title=found.title)
    with replacing(folder / SCORES) as partial:
        partial.write_text(json.dumps(found.to_dict(), indent=2), encoding="utf-8")


def is_scored(folder: Path) -> bool:
    """Whether nothing is left to do in a run folder."""
    return (folder / SCORES).exists()


def refuse_other_data(folder: Path, manifest: Manifest, split: Split) -> None:
    """A run goes on, and is judged, on its own data only.

    Raises:
        RunError: the training tensors have another SHA256.
    """
    now = manifests.fingerprint(split.train)
    if now != manifest.data["sha256"]:
        raise RunError(
            f"{folder} was trained on other data: {manifest.data['name']} now gives training tensors of SHA256 "
            f"{now[:12]}..., not {manifest.data['sha256'][:12]}...; restore the data ({manifest.data['provenance']})"
        )


def _checkpoint(folder: Path) -> Saved:
    path = folder / CHECKPOINT
    if not path.exists():
        raise RunError(f"{folder} has no checkpoint yet: `zoo fit --resume {folder}` trains it")
    return read(path)


def _rebuild(folder: Path, manifest: Manifest) -> Fit:
    from zoo import paper

    model, batch = manifests.model_of(manifest), manifests.prototype(manifest)
    guide, bound = guide_and_bound(paper(manifest.paper), manifest.guide, model, batch)
    if type(bound).__name__ != manifest.bound:
        raise RunError(f"{folder} was trained on {manifest.bound}; the paper now gives {type(bound).__name__}")
    return Fit(model, guide, bound, [batch])

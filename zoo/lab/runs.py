"""Run folders: what `zoo fit --out` leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from zoo.lab.arviz_bridge import to_arviz
from zoo.lab.comparison import Comparison
from zoo.lab.report import page
from zoo.lab.tables import Table
from zoo.lab.training import Fit


def save(folder: Path, fit: Fit, found: Comparison, test: Table, *, draws: int = 1000) -> None:
    """Write parameters (safetensors), posterior (netCDF, for ArviZ), scores (JSON) and a page, all or nothing.

    The folder is filled under another name and renamed when it is complete.

    Raises:
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; give a new folder")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    state = fit.bound(fit.model, fit.guide).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, partial / "parameters.safetensors")
    to_arviz(fit, test.to(device=fit.device), draws=draws).to_netcdf(str(partial / "posterior.nc"))
    (partial / "scores.json").write_text(json.dumps(found.to_dict(), indent=2), encoding="utf-8")
    page([found], partial / "report.html", title=found.title)
    partial.rename(folder)

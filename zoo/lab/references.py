"""Small models whose posterior is known by long runs of NUTS: posteriordb, found through `ZOO_DATA`.

Magnusson, Torgander, Buerkner, Zhang, Carpenter, Vehtari 2024: posteriordb, a set of posteriors for Bayesian inference
and probabilistic programming. Its reference draws are 10 chains of 1000, thinned until nearly independent.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from zoo.lab import diagnosis
from zoo.lab.distances import distance
from zoo.lab.files import File, checked, find
from zoo.lab.guide_names import build_guide
from zoo.lab.posteriors import EightSchools, FlatRegression
from zoo.lab.predictive import draw
from zoo.lab.tables import DataError
from zoo.lab.training import Fit, fit, seed

GUIDES = (
    "MeanField",
    "SiteFullRank",
    "Point",
    "AutoNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoIAFNormal",
    "AutoDelta",
)


@dataclass(frozen=True)
class Reference:
    """A posterior of posteriordb.

    Attributes:
        model: with `start()`, `evidence(**batch)`, and `parameters_of(latents)`, the numbers that `draws` are of.
        batch: all data.
        draws: {number: (10, 1000)}.
    """

    name: str
    model: Any
    batch: dict[str, Tensor]
    draws: dict[str, np.ndarray]


def _eight_schools(data: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    return EightSchools(), {"sigma": _tensor(data["sigma"]), "y": _tensor(data["y"])}


def _kidscore_momiq(data: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    x, y = _tensor(data["mom_iq"]), _tensor(data["kid_score"])
    return FlatRegression(x, y, cauchy=2.5), {"x": x, "y": y}


def _logearn_height(data: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    x, y = _tensor(data["height"]), _tensor(data["earn"]).log()
    return FlatRegression(x, y), {"x": x, "y": y}


@dataclass(frozen=True)
class Source:
    """Where a posterior is below a folder of `ZOO_DATA`, how its model is built, and the SHA256 of its two files."""

    stem: str
    build: Callable[[Mapping[str, Any]], tuple[nn.Module, dict[str, Tensor]]]
    data: str
    draws: str

    @property
    def files(self) -> tuple[File, File]:
        """Data and draws."""
        place = f"posteriordb/{self.stem}"
        return File((f"{place}.data.json",), self.data), File((f"{place}.draws.npz",), self.draws)


POSTERIORS = {
    "eight_schools": Source(
        "eight_schools-eight_schools_noncentered",
        _eight_schools,
        data="ffab95db56309c4e06102ad6d5900bf0d7be71a19b41206dc8ff67670c6c0071",
        draws="a8556f477a4fcb59256dfeb79acfbde2780fc1fa49b563948f0488c52400156f",
    ),
    "kidscore_momiq": Source(
        "kidiq-kidscore_momiq",
        _kidscore_momiq,
        data="646820df49c39b578271332caf97d16abb7f12f5e983725e949540d6a0ced8af",
        draws="a5400bab2b8f9c8d9f670c59f462d6d7ad990740cc0d4bb466786f9f7c99274f",
    ),
    "logearn_height": Source(
        "earnings-logearn_height",
        _logearn_height,
        data="07cae2eba7b70dc198e69dea7d3f40f08e20f83f955f9105fe537ef377da49d3",
        draws="703ba92f2fd280f54a1072591b2a225083cf3cb97779f33124235c47f2bd7fee",
    ),
}


def reference(name: str) -> Reference:
    """A posterior by name, with its model, data and reference draws.

    Raises:
        DataError: unknown name, no such files on `ZOO_DATA`, or other files than the known ones.
    """
    if name not in POSTERIORS:
        raise DataError(f"no reference posterior {name!r}; there are: {', '.join(POSTERIORS)}")
    source = POSTERIORS[name]
    found = find(source.files)
    if found is None:
        places = ", ".join(file.places[0] for file in source.files)
        raise DataError(f"{name} is not here: set ZOO_DATA to the folder that holds {places}")
    data, draws = (checked(file, path) for file, path in zip(source.files, found[1], strict=True))
    model, batch = source.build(json.loads(data))
    with np.load(io.BytesIO(draws), allow_pickle=False) as numbers:
        return Reference(name, model, batch, {key: numbers[key].astype(float) for key in numbers})


def train_reference(known: Reference, guide_name: str, *, steps: int = 3000, seed_: int = 0) -> Fit:
    """Fit one guide by `Trace_ELBO` of 64 particles on all data, Adam's rate falling from .1 to .0001.

    Fewer particles leave a full covariance short of a correlation of .998: 16 gave standard deviations .74 times the
    true ones after 4000 steps at .03.
    """
    seed(seed_)
    guide = build_guide(guide_name, known.model, known.batch)
    bound = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    return fit(known.model, guide, [known.batch], bound, epochs=steps, lr=0.1, decay=1e-3)


def reference_table(
    name: str, guides: Sequence[str] = GUIDES, *, steps: int = 3000, seed: int = 0, draws: int = 10_000
) -> list[dict[str, Any]]:
    """One row for each guide: distance to the reference draws, k-hat and bound, as JSON values.

    Rows have `guide`, `steps`, `converged`, `distance` (see `Distance.to_dict`), `khat`, `bound` (nats for the data
    set, with the gap to the exact evidence); where one of these is refused, None, and the reason in `notes`.

    Raises:
        DataError: unknown name, or no such files on `ZOO_DATA`.
    """
    return [_row(reference(name), guide, steps=steps, seed=seed, draws=draws) for guide in guides]


def _row(known: Reference, guide: str, *, steps: int, seed: int, draws: int) -> dict[str, Any]:
    fitted = train_reference(known, guide, steps=steps, seed_=seed)
    latents = draw(fitted.model, fitted.guide, known.batch, draws).latents
    numbers = {name: value.unsqueeze(0).detach() for name, value in known.model.parameters_of(latents).items()}
    measures: dict[str, Callable[[], Any]] = {
        "distance": lambda: distance(numbers, known.draws),
        "khat": lambda: diagnosis.joint(fitted, draws=draws),
        "bound": lambda: diagnosis.bound(fitted, evidence=known.model.evidence(**known.batch)),
    }
    row: dict[str, Any] = {"guide": guide, "steps": steps, "converged": fitted.converged, "notes": []}
    for key, measure in measures.items():
        try:
            row[key] = measure().to_dict()
        except diagnosis.DiagnosisError as refusal:
            row[key] = None
            row["notes"].append(str(refusal))
    return row


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.get_default_dtype())

"""Published tables that are found as files: NLTCS, Tecator, collagen, compositions of ChemCam targets."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from zoo.lab.files import File
from zoo.lab.partitions import Fixed, Grouped
from zoo.lab.raw import Arrays, Frame
from zoo.lab.sets import DataSet, Files, Package

NLTCS = {
    "train": "e547a7aedad1dd2f7177030881ab1b92c7e24ae5464c71a0f1f89daecaf52b30",
    "valid": "93bbbf5c6febdc9bc6e5b5bfab636f4dc0685ab2896d24b23dd267794c3bfcf6",
    "test": "f9ffa6b74b27dc03bee3203d157ee31079e80b13be40d0c0093d635c25aed523",
}
# A public mirror of the files, not tried from here; the checksums decide.
NLTCS_MIRROR = "https://raw.githubusercontent.com/UCLA-StarAI/Density-Estimation-Datasets/master/datasets/nltcs/{file}"
TECATOR = "c8d0fa4920c56bb115cc6e53b9df5aa096bdf87edc3e5972dc98321dd7a21118"
TECATOR_VALUES = "4f9c2a1becf2a267e319becb3750a3caacecccfdb1f2d9c67515641280b4e867"
CONTENTS = ("water", "fat", "protein")
COLLAGEN = "ee342a119e1eaaa0d4e8f9debeabbb3be1110bd358816ef9b856ba4843afebe7"
# rows kept, and SHA256 of the file, by rows of the file
CHEMCAM = {
    386: (365, "873c3faee2e8c67d0d44e0af252b93b97902d707414abeae62f350e8a3d257e1"),
    767: (663, "3554b4f678fe120a6fc62c3dc051a95027a17bc996fd56e3c356021a2b89145d"),
}
OXIDES = ("SiO2", "TiO2", "Al2O3", "FeOT", "MgO", "CaO", "Na2O", "K2O")


def published() -> list[DataSet]:
    """The sets of this room."""
    return [_nltcs(), _tecator(), _collagen(), *(_chemcam(rows) for rows in CHEMCAM)]


def _nltcs() -> DataSet:
    source = "National Long Term Care Survey, standard density-estimation split"
    files = tuple(
        File((f"nltcs/{file}", file), sha, NLTCS_MIRROR.format(file=file))
        for part, sha in NLTCS.items()
        for file in [f"nltcs.{part}.data"]
    )
    return DataSet("nltcs", 21574, 16, "density", "none stated", source, (Files(files, _read_nltcs, source),))


def _read_nltcs(contents: Sequence[bytes]) -> Arrays:
    parts = [np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.uint8, ndmin=2) for text in contents]
    sizes = {part: len(rows) for part, rows in zip(NLTCS, parts, strict=True)}
    names = tuple(f"x{k}" for k in range(16))
    return Arrays({"x": np.concatenate(parts)}, Fixed(sizes), {"x": "0 or 1"}, columns=names)


def _tecator() -> DataSet:
    source = "StatLib: Tecator, near-infrared absorbance of meat"
    files = (File(("spectra/meats_tecator.csv",), TECATOR),)
    return DataSet(
        "tecator",
        215,
        100,
        "regression",
        "none known; give credit",
        source,
        (
            Files(files, lambda contents: _spectra(pd.read_csv(io.BytesIO(contents[0])).to_numpy(float)), source),
            Package("modeldata", "meats", TECATOR_VALUES, _spectra, source),
        ),
        caveat="22 rows are copies: copies stay on one side of a split; targets water, fat, protein, or some of them",
    )


def _spectra(values: np.ndarray) -> Frame:
    names = [*(f"x_{k:03}" for k in range(1, 101)), *CONTENTS]
    parts = Grouped.equal(values[:, :100])
    return Frame(pd.DataFrame(values, columns=names), CONTENTS, unit="percent of weight", partition=parts)


def _collagen() -> DataSet:
    source = "FTIR spectra of four materials, from the package orange-spectroscopy"
    return DataSet(
        "collagen",
        731,
        234,
        "classes",
        "none known",
        source,
        (Files((File(("spectra/collagen.csv",), COLLAGEN),), _read_collagen, source),),
        caveat="21 rows are copies: copies stay on one side of a split",
    )


def _read_collagen(contents: Sequence[bytes]) -> Frame:
    frame = pd.read_csv(io.BytesIO(contents[0]), skiprows=[1, 2])  # the format's rows of column kinds
    spectra = frame.drop(columns="type")
    return Frame(frame, ("type",), partition=Grouped.equal(spectra.to_numpy()))


def _chemcam(rows: int) -> DataSet:
    kept, sha = CHEMCAM[rows]
    source = f"NASA/PDS: ChemCam calibration targets, {rows} compositions without spectra, republished in a thesis"
    return DataSet(
        f"chemcam_{rows}",
        kept,
        len(OXIDES) + 1,
        "compositions",
        "none known; give credit",
        source,
        (Files((File((f"chemcam_y/compositions_{rows}.csv",), sha),), _read_chemcam, source),),
        caveat=f"y only; {rows - kept} rows whose oxides sum to less than 70 % are left out",
    )


def _read_chemcam(contents: Sequence[bytes]) -> Arrays:
    frame = pd.read_csv(io.BytesIO(contents[0]))
    percent = frame[list(OXIDES)].to_numpy(float)
    y = compositions(percent)
    note = (
        f"{len(percent) - len(y)} of {len(percent)} rows left out, whose oxides sum to less than 70 percent; MnO left "
        "out, which has gaps; percent divided by 100, and by the sum where it exceeds 1; the rest is 'other'"
    )
    return Arrays({"y": y}, Grouped.equal(y), {"y": f"share of weight: {', '.join(OXIDES)}, other"}, note=note)


def compositions(percent: np.ndarray) -> np.ndarray:
    """Weight percent of K oxides (n, K) as points of the simplex (m, K + 1), the last share being the remainder.

    Rows that sum to less than 70 are taken for incomplete, and left out. Rows that sum to more than 100 are divided by
    their sum, which leaves a remainder of 0.

    Example:
        >>> compositions(np.array([[50.0, 30.0], [100.0, 25.0], [1.0, 0.9]])).round(3).tolist()
        [[0.5, 0.3, 0.2], [0.8, 0.2, 0.0]]
    """
    shares = percent[percent.sum(1) >= 70] / 100
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1)
    return np.column_stack([shares, np.clip(1 - shares.sum(1), 0, None)])

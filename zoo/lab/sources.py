"""Where data sets come from: embedded in scikit-learn, folders on the search path `ZOO_DATA`, a user's own file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

from zoo.lab import frames
from zoo.lab.tables import DataError

LAYOUT = ("data.txt", "index_features.txt", "index_target.txt")


@dataclass(frozen=True)
class Raw:
    """A data set as it stands in its source: one frame, and what its tables will say about it.

    Attributes:
        target: the target column; None if the user has not said.
        splits: how many splits there are.
        divisor: pixels are divided by this; None means that x is standardised.
    """

    name: str
    frame: pd.DataFrame
    target: str | None
    provenance: str
    unit: str = ""
    splits: int = 20
    divisor: float | None = None


@dataclass(frozen=True)
class Embedded:
    """A set that ships inside scikit-learn: no network, no file."""

    read: Callable[..., datasets.Bunch]  # type: ignore[name-defined]
    rows: int
    columns: int
    kind: str
    licence: str
    source: str
    unit: str = ""
    options: Mapping[str, bool] = field(default_factory=dict)
    divisor: float | None = None


@dataclass(frozen=True)
class Pinned:
    """A set of the UCI regression benchmark: its splits follow from row order, so `data.txt` is known by its SHA256."""

    alias: str
    rows: int
    names: str
    unit: str
    sha256: str
    splits: int = 20
    licence: str = "terms of the UCI repository"
    source: str = "UCI Machine Learning Repository"
    caveat: str = ""


EMBEDDED = {
    "diabetes": Embedded(
        datasets.load_diabetes, 442, 10, "regression", "none stated", "Efron, Hastie, Johnstone, Tibshirani 2004",
        unit="disease progression score one year after baseline", options={"scaled": False},
    ),
    "digits": Embedded(
        datasets.load_digits, 1797, 64, "classes", "terms of the UCI repository",
        "UCI, optical recognition of handwritten digits (8 x 8 pixels, test part)", divisor=16.0,
    ),
    "breast_cancer": Embedded(
        datasets.load_breast_cancer, 569, 30, "classes", "terms of the UCI repository",
        "UCI, breast cancer Wisconsin (diagnostic)",
    ),
}  # fmt: skip

PINNED = {
    "bostonHousing": Pinned(
        "boston", 506, "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT MEDV", "1000 USD",
        "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a", licence="none stated", source="StatLib",
        caveat="long criticised: column B is built on the share of Black residents; only for comparison with papers",
    ),
    "concrete": Pinned(
        "concrete", 1030, "cement slag fly_ash water superplasticizer coarse_aggregate fine_aggregate age strength",
        "MPa", "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
    ),
    "wine-quality-red": Pinned(
        "wine", 1599, "fixed_acidity volatile_acidity citric_acid residual_sugar chlorides free_sulfur_dioxide "
        "total_sulfur_dioxide density pH sulphates alcohol quality", "quality score, 0 to 10",
        "3ba41eaf4ab562088cf47b5c9dca2b4de2a330c3ee38a7920b4527a09574d5c1",
    ),
    "power-plant": Pinned(
        "power", 9568, "AT V AP RH PE", "MW", "daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31",
    ),
    "protein-tertiary-structure": Pinned(
        "protein", 45730, "F1 F2 F3 F4 F5 F6 F7 F8 F9 RMSD", "angstrom",
        "d35f332707e8a73f21e021039250a1e7b26e14f7dd826a0337ffa8e8e48b9727", splits=5,
    ),
    "naval-propulsion-plant": Pinned(
        "naval", 11934, "lever speed GTT GTn GGn Ts Tp T48 T1 T2 P48 P1 P2 Pexh TIC mf compressor_decay turbine_decay",
        "decay coefficient", "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
    ),
    "yacht": Pinned(
        "yacht", 308, "buoyancy prismatic length_displacement beam_draught length_beam froude resistance",
        "residuary resistance per unit weight of displacement",
        "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
    ),
}  # fmt: skip

_ALIASES = {pinned.alias: name for name, pinned in PINNED.items()}


def fetch(name: str, target: str | None) -> Raw:
    """The data set of that name, folder or file.

    Raises:
        DataError: the name is unknown, the data are not here or not what they should be, or a target is given for a
            set that has its own.
    """
    if name.lower().endswith(frames.SUFFIXES):
        return _from_file(Path(name).expanduser(), target)
    raw = _from_sklearn(name) if name in EMBEDDED else _from_folder(_ALIASES.get(name, name))
    if target not in (None, raw.target):
        raise DataError(f"{name} has its own target, {raw.target!r}; target= is for your own files")
    return raw


def _from_file(path: Path, target: str | None) -> Raw:
    frame = frames.read(path)
    provenance = f"file {path.name}, SHA256 {_sha256(path)}"
    return Raw(path.name, frame, target, provenance, f"as in column {target!r}")


def _from_sklearn(name: str) -> Raw:
    known = EMBEDDED[name]
    bunch = known.read(as_frame=True, **known.options)
    frame = bunch.frame
    if known.kind == "classes":
        frame = frame.assign(target=np.asarray(bunch.target_names).astype(str)[bunch.target])
    return Raw(name, frame, "target", f"{known.source}; embedded in scikit-learn", known.unit, divisor=known.divisor)


def _from_folder(name: str) -> Raw:
    places = _places(name)
    folder = next((place for place in places if _has_layout(place)), None)
    if folder is None:
        raise _missing(name, places)
    frame, target = _read_layout(folder, name)
    known = PINNED.get(name)
    provenance = f"{known.source if known else folder}; SHA256 of data.txt {_sha256(folder / 'data.txt')}"
    unit, splits = (known.unit, known.splits) if known else ("as in data.txt", 20)
    return Raw(name, frame, target, provenance, unit, splits)


def roots() -> list[Path]:
    """The folders of the search path `ZOO_DATA`, in order."""
    return [Path(root).expanduser() for root in os.environ.get("ZOO_DATA", "").split(os.pathsep) if root]


def _places(name: str) -> list[Path]:
    names = dict.fromkeys([name, PINNED[name].alias] if name in PINNED else [name])
    return [root / folder for name in names for root in roots() for folder in (Path("uci", name), Path(name))]


def _has_layout(folder: Path) -> bool:
    return all((folder / file).is_file() for file in LAYOUT)


def _missing(name: str, places: list[Path]) -> DataError:
    looked = f"looked in {', '.join(map(str, places))}" if places else "ZOO_DATA is not set"
    if name in PINNED:
        return DataError(
            f"{name} is not here: {looked}; set the environment variable ZOO_DATA to the folder that holds "
            f"uci/{name}/ with {', '.join(LAYOUT)}"
        )
    known = [*EMBEDDED, *PINNED, *_ALIASES, *(folder.name for folder in _unpinned())]
    hint = frames.nearest(name, known) or f" (known: {', '.join(dict.fromkeys([*EMBEDDED, *_ALIASES]))})"
    return DataError(
        f"unknown data set {name!r}{hint}; {looked}; for a file of your own give its path, ending in "
        f"{', '.join(frames.SUFFIXES)}, and its target"
    )


def _read_layout(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    _check_hash(folder / "data.txt", name)
    try:
        values = np.loadtxt(folder / "data.txt", ndmin=2)
        index = [int(column) for column in np.loadtxt(folder / "index_features.txt", ndmin=1)]
        (answer,) = (int(column) for column in np.loadtxt(folder / "index_target.txt", ndmin=1))
        names = PINNED[name].names.split() if name in PINNED else [f"x{column}" for column in range(values.shape[1])]
        frame = pd.DataFrame({names[column]: values[:, column] for column in [*index, answer]})
    except (ValueError, OSError, IndexError) as error:
        raise DataError(f"{folder}: cannot be read as {', '.join(LAYOUT)} ({error}); mend the files") from error
    return frame, names[answer]


def _check_hash(path: Path, name: str) -> None:
    found = _sha256(path)
    if name in PINNED and found != PINNED[name].sha256:
        raise DataError(
            f"{path}: SHA256 {found[:12]}... is not the pinned {PINNED[name].sha256[:12]}...: the canonical splits "
            "would not be the benchmark's; restore the original file, or rename the folder to use it as your own data"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def catalogue() -> list[dict[str, str | int]]:
    """Every data set known here, as JSON values for `zoo list --data`.

    Returns:
        One dict per set: name, alias, rows, columns (of x), kind ("regression" or "classes"), licence, source,
        where ("embedded", a folder, or "not here"), caveat.
    """
    return [
        *(_embedded_entry(name, known) for name, known in EMBEDDED.items()),
        *(_pinned_entry(name, known) for name, known in PINNED.items()),
        *(_unpinned_entry(folder) for folder in _unpinned()),
    ]


def _entry(name: str, rows: int, columns: int, kind: str, **more: str) -> dict[str, str | int]:
    return {"name": name, "alias": "", "rows": rows, "columns": columns, "kind": kind, "caveat": "", **more}


def _embedded_entry(name: str, known: Embedded) -> dict[str, str | int]:
    more = {"licence": known.licence, "source": known.source, "where": "embedded"}
    return _entry(name, known.rows, known.columns, known.kind, **more)


def _pinned_entry(name: str, known: Pinned) -> dict[str, str | int]:
    where = next((str(place) for place in _places(name) if _has_layout(place)), "not here")
    more = {"licence": known.licence, "source": known.source, "where": where, "caveat": known.caveat}
    columns = len(known.names.split()) - (2 if known.alias == "naval" else 1)  # naval's second decay is never used
    return _entry(name, known.rows, columns, "regression", alias=known.alias, **more)


def _unpinned_entry(folder: Path) -> dict[str, str | int]:
    rows, columns = (len(np.loadtxt(folder / file, ndmin=1)) for file in LAYOUT[:2])
    more = {"licence": "unknown", "source": "your own folder", "where": str(folder)}
    return _entry(folder.name, rows, columns, "regression", **more)


def _unpinned() -> list[Path]:
    folders = [folder for root in roots() for parent in (root / "uci", root) for folder in sorted(parent.glob("*/"))]
    return [folder for folder in folders if _has_layout(folder) and folder.name not in {*PINNED, *_ALIASES}]

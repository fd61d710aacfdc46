"""A user's file as a data frame, or one line that says why not."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from zoo.lab.tables import DataError

SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")


def read(path: Path, *, text: Collection[str] = ()) -> pd.DataFrame:
    """A file as a frame with unique, non-empty column names.

    Args:
        text: columns of a text file whose cells are taken as they are written: `01` alone would be read as 1.

    Raises:
        DataError: the file is missing, of an unknown type or not parseable, or its column names will not do.
    """
    suffix = next((ending for ending in SUFFIXES if path.name.lower().endswith(ending)), None)
    if suffix is None:
        raise DataError(f"{path}: unknown file type; give one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}; check the path")
    try:
        return _read_parquet(path) if suffix == ".parquet" else _read_text(path, SEPARATORS[suffix], text)
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be parsed as {suffix}: the text is not UTF-8; save it as UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: cannot be parsed as {suffix}: the file is empty") from error
    except (ValueError, OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: cannot be parsed as {suffix} ({reason}); check or rewrite the file") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    _check_names(path, pq.read_schema(path).names)
    frame = pd.read_parquet(path)
    return frame.reset_index(drop=frame.index.names == [None])  # a named index is a column, an unnamed one a row count


def _read_text(path: Path, separator: str, text: Collection[str]) -> pd.DataFrame:
    # The header is read apart, as text: pandas renames repeated names.
    header = pd.read_csv(path, sep=separator, skipinitialspace=True, header=None, nrows=1, dtype=str, na_filter=False)
    names = header.iloc[0].tolist()
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if other:
        raise DataError(f"{path}: cannot be parsed: the separator seems to be {other!r}, not {separator!r}; rewrite it")
    _check_names(path, names)
    written = {name: str for name in names if name in text}
    frame = pd.read_csv(path, sep=separator, skipinitialspace=True, low_memory=False, dtype=written)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a surplus cell for a row label
        raise DataError(f"{path}: cannot be parsed: rows have more cells than the header has names; mend the header")
    return frame


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if "" in names:
        place = list(names).index("") + 1
        raise DataError(f"{path}: column {place} has no name (a saved row index?); name it or drop it")
    if repeated:
        raise DataError(f"{path}: duplicate column names: {', '.join(repeated)}; rename them")

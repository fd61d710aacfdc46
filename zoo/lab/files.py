"""Files of data sets: where they are looked for, and whether they are the right ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from zoo.lab.tables import DataError


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Attributes:
        places: where it may lie below a folder of the search path; a download goes to the first.
        sha256: of the content, unpacked if the file ends in .gz; "" where the reader checks the values itself.
        url: a public address; "" if none is known.
        harm: what would be wrong with another content, for the message.
    """

    places: tuple[str, ...]
    sha256: str = ""
    url: str = ""
    harm: str = "results would not be comparable"

    def below(self, root: Path) -> Path | None:
        """The file below a folder, packed or not; None if it is not there."""
        paths = (root / (place + ending) for place in self.places for ending in ("", ".gz"))
        return next((path for path in paths if path.is_file()), None)


def search_path() -> list[Path]:
    """The folders of `ZOO_DATA`, in order: read, never written."""
    return [Path(root).expanduser() for root in os.environ.get("ZOO_DATA", "").split(os.pathsep) if root]


def cache() -> Path:
    """The folder of downloads: `ZOO_CACHE`, or the user's cache directory of the platform."""
    chosen = os.environ.get("ZOO_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("pyro-zoo", appauthor=False)


def find(files: Sequence[File]) -> tuple[Path, list[Path]] | None:
    """The first folder of the search path, then the cache, that holds all the files; and their paths there."""
    for root in [*search_path(), cache()]:
        paths = [file.below(root) for file in files]
        if None not in paths:
            return root, [path for path in paths if path]
    return None


def content(path: Path) -> bytes:
    """What a file holds, unpacked if its name ends in .gz.

    Raises:
        DataError: it cannot be read or unpacked.
    """
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); restore the file") from error


def checked(file: File, path: Path) -> bytes:
    """The content of a file of a known SHA256.

    Raises:
        DataError: it cannot be read, or it is not the known content.
    """
    found = content(path)
    check(found, file.sha256, what=str(path), harm=file.harm)
    return found


def digest(found: bytes) -> str:
    """The SHA256 of some bytes, in hexadecimal."""
    return hashlib.sha256(found).hexdigest()


def check(found: bytes, expected: str, *, what: str, harm: str) -> None:
    """Compare the SHA256 of some bytes with the pinned one, if there is one.

    Raises:
        DataError: they differ.
    """
    if expected and digest(found) != expected:
        raise DataError(
            f"{what}: SHA256 {digest(found)[:12]}... is not the pinned {expected[:12]}...: {harm}; restore the "
            "original, or use it as data of your own under another name"
        )


def values_bytes(values: np.ndarray) -> bytes:
    """Numbers as bytes that do not depend on where they were read from: float64, little endian, row by row."""
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def parsed(reader: Callable[..., Any], source: Any, *, what: str, **options: Any) -> Any:
    """`reader(source, **options)`, whose failure is one line.

    Raises:
        DataError: the content cannot be parsed.
    """
    try:
        return reader(source, **options)
    except DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError, IndexError, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{what}: cannot be parsed ({reason}); restore the original file") from error

"""Downloads: only when told to, only what is pinned by SHA256, and whole or not at all.

The addresses stand with the data sets. They are public mirrors that were not tried from here: the checksum decides
whether what they hold is the data set.
"""

from __future__ import annotations

import gzip
import http.client
import os
import tempfile
import zlib
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from zoo.lab.files import File, check
from zoo.lab.tables import DataError

TIMEOUT = 30.0  # seconds of silence


def download(file: File, root: Path) -> Path:
    """Fetch a file's content into a folder, unpacked, and return its path there.

    A file that is there already is left alone (it is checked when it is read).

    Raises:
        DataError: no address is known, it cannot be reached, the transfer breaks off, the content is not the pinned
            one, or the folder cannot be written. Nothing is left behind then.
    """
    path = root / file.places[0]
    if path.is_file():
        return path
    if not (file.url and file.sha256):
        raise DataError(f"{path.name}: no address and checksum are known for a download; place the file by hand")
    found = _unpacked(_transfer(file.url), file.url)
    check(found, file.sha256, what=file.url, harm="it was not kept; the source has changed or the transfer was damaged")
    _write(found, path)
    return path


def _transfer(url: str) -> bytes:
    mend = "check the network, or place the files under ZOO_DATA by hand"
    try:
        with urlopen(url, timeout=TIMEOUT) as response:
            return response.read()
    except http.client.IncompleteRead as error:
        raise DataError(f"{url}: the transfer broke off after {len(error.partial)} bytes; try again") from error
    except HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}; {mend}") from error
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url}: cannot be reached ({getattr(error, 'reason', error)}); {mend}") from error


def _unpacked(packed: bytes, url: str) -> bytes:
    try:
        return gzip.decompress(packed) if url.endswith(".gz") else packed
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{url}: cannot be unpacked ({error}); try again, or place the files by hand") from error


def _write(found: bytes, path: Path) -> None:
    """Under a temporary name first, so that a killed download leaves no half file behind its real name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(found)
            os.replace(unfinished, path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); set ZOO_CACHE to a folder that can") from error

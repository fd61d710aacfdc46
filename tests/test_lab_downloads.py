"""Downloads against a local server: whole and pinned, or one clear line and nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from zoo.lab import files, sets, sources, uci
from zoo.lab.data import DataError, catalogue, load, obtain, splits
from zoo.lab.downloads import download
from zoo.lab.files import File

TABLE = "\n".join(f"{k} {k * k % 7} {k * k % 11}" for k in range(30)).encode()


class Handler(BaseHTTPRequestHandler):
    served: ClassVar[dict[str, bytes]] = {
        "/data.txt": TABLE,
        "/packed.gz": gzip.compress(TABLE),
        "/torn.gz": gzip.compress(TABLE)[:-9],
        "/broken": TABLE,
    }
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.served:
            self.send_error(404)
            return
        body = self.served[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (99 if self.path == "/broken" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def pinned(url: str, content: bytes = TABLE) -> File:
    return File(("uci/mine/data.txt",), hashlib.sha256(content).hexdigest(), url)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("page", ["/data.txt", "/packed.gz"])
def test_a_download_is_the_unpacked_content_at_its_place(server: str, tmp_path: Path, page: str) -> None:
    path = download(pinned(server + page), tmp_path)
    assert path == tmp_path / "uci" / "mine" / "data.txt" and path.read_bytes() == TABLE
    assert left(tmp_path) == [path]


def test_what_is_there_is_not_fetched_again(server: str, tmp_path: Path) -> None:
    for _ in range(2):
        download(pinned(f"{server}/data.txt"), tmp_path)
    assert Handler.asked == ["/data.txt"]


@pytest.mark.parametrize(
    ("page", "content", "message"),
    [
        ("/data.txt", b"other", r"data\.txt: SHA256 .* is not the pinned .*: it was not kept"),
        ("/nothing", TABLE, r"/nothing: the server answers 404 Not Found; check the network, or place the files under"),
        ("/broken", TABLE, rf"/broken: the transfer broke off after {len(TABLE)} bytes; try again"),
        ("/torn.gz", TABLE, r"/torn\.gz: cannot be unpacked \("),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server: str, tmp_path: Path, page: str, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        download(pinned(server + page, content), tmp_path)
    assert "\n" not in str(error.value) and not left(tmp_path)


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.txt"
        with pytest.raises(DataError, match=r"data\.txt: cannot be reached \(.*\); check the network, or place"):
            download(pinned(url), tmp_path)
    assert not left(tmp_path)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("zoo.lab.downloads.TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DataError, match=r"cannot be reached .*timed out"):
            download(pinned(f"http://127.0.0.1:{silent.getsockname()[1]}/data.txt"), tmp_path)


def test_a_file_without_address_or_checksum_is_not_downloaded(tmp_path: Path) -> None:
    for file in (File(("a.txt",), "", "http://127.0.0.1:1/a.txt"), File(("a.txt",), "0" * 64)):
        with pytest.raises(DataError, match=r"a\.txt: no address and checksum are known"):
            download(file, tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(server: str, tmp_path: Path) -> None:
    (tmp_path / "uci").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"data\.txt: cannot be written \(.*\); set ZOO_CACHE"):
        download(pinned(f"{server}/data.txt"), tmp_path)


@pytest.fixture
def mine(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The catalogue with one pinned set of the local server, and an empty machine; returns the cache."""
    known = uci.Pinned("short", 30, "a b y", "unit", hashlib.sha256(TABLE).hexdigest())
    monkeypatch.setattr(uci, "PINNED", {"mine": known})
    monkeypatch.setattr(uci, "MIRROR", server + "/data.txt")
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nothing_is_downloaded_unless_told_to(mine: Path) -> None:
    with pytest.raises(DataError, match=r"mine is not here: .*; set ZOO_DATA to .*, or give --download"):
        load("mine")
    assert not Handler.asked and not mine.exists()


def test_told_to_a_set_is_downloaded_once_and_found_in_the_cache(mine: Path) -> None:
    first, again = load("short", download=True).test, load("mine").test
    assert Handler.asked == ["/data.txt"]
    assert first["y"].tolist() == again["y"].tolist() and "SHA256" in again.provenance
    (entry,) = (entry for entry in catalogue() if entry["name"] == "mine")
    assert entry["where"] == "cache"
    _, rows = next(splits(30, 1))
    assert first["y"].squeeze(1).tolist() == np.loadtxt(mine / "uci" / "mine" / "data.txt")[rows, 2].tolist()


def test_what_is_on_the_search_path_is_not_downloaded(
    mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.txt").write_bytes(TABLE)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    load("mine", download=True)
    assert not Handler.asked and not mine.exists()


def test_a_damaged_cache_is_refused(mine: Path) -> None:
    load("mine", download=True)
    (mine / "uci" / "mine" / "data.txt").write_bytes(TABLE + b"\n1 2 3")
    with pytest.raises(DataError, match=r"data\.txt: SHA256 .* the canonical splits would not be the benchmark's"):
        load("mine", download=True)


def test_a_set_without_address_says_so(mine: Path) -> None:
    with pytest.raises(DataError, match="collagen cannot be downloaded: no address with a checksum is known; set ZOO_"):
        load("collagen", download=True)


def test_every_download_has_a_checksum() -> None:
    forms = [form for known in sources.known().values() for form in known.forms if isinstance(form, sets.Files)]
    addressed = [file for form in forms for file in form.files if file.url]
    assert len(addressed) == 7 + 3 + 2 * 4, "MNIST and its crop are made of the same four files"
    assert all(len(file.sha256) == 64 for file in addressed)


def test_the_cache_is_the_users_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOO_CACHE", raising=False)
    assert files.cache().name == "pyro-zoo" and files.cache().is_absolute()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert files.cache() == tmp_path


def test_obtaining_fetches_what_is_missing_and_nothing_else(mine: Path, tmp_path: Path) -> None:
    obtain("diabetes")
    obtain(str(tmp_path / "my.csv"))
    assert not Handler.asked
    obtain("short")
    obtain("short")
    assert Handler.asked == ["/data.txt"] and load("mine").train.name == "mine"
    with pytest.raises(DataError, match=r"unknown data set 'shrt' \(did you mean 'short'\?\)"):
        obtain("shrt")

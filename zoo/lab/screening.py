"""What is refused in the columns of a user's file: whatever is neither a number nor a category, in one line each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from zoo.lab.frames import check_cells, is_number, level_names, listed, numbers
from zoo.lab.tables import DataError

# A cell must look like one of these, and parse, before its column counts as dates: "10-20" and "1.2.3" do neither.
_DATE = (
    r"(?i)\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}( .*)?|\d{1,2}/\d{1,2}/\d{2}( .*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[ap]m)?|.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec).*\d{4}.*"
)
_DATE_KINDS = {"date", "datetime", "datetime64", "time", "timedelta", "timedelta64", "period", "interval"}
# Numbers that a machine does not read as such: 1,234.5  1.234,5  1 234  3,14  12 %
_FORMATTED = r"[+-]?(\d{1,3}([ ,.'\u2019\u00a0]\d{3})+([.,]\d+)?|\d*,\d+|\d+([.,]\d+)? ?%)"
# Beyond this, neighbouring integers are one and the same float.
_LARGEST = 2.0**53


def check(frame: pd.DataFrame, *, name: str) -> None:
    """Refuse what has no meaning as a number or a category; constant columns are fine.

    Raises:
        DataError: fewer than 10 rows, date or time columns, missing or infinite cells, numbers written for people or
            mixed with text, numbers too large, or a column of identifiers.
    """
    if len(frame) < 10:
        raise DataError(f"{name}: {len(frame)} rows are too few for a 90/10 split; give 10 or more")
    dates = [str(column) for column in frame if _is_date(frame[column])]
    if dates:
        raise DataError(
            f"{name}: date or time columns: {', '.join(dates)}; they mean nothing as numbers or categories: "
            "convert them (to days since a date, month, hour) or drop them"
        )
    check_cells(frame, name=name)
    for column in frame:
        where = f"{name}: column {str(column)!r}"
        if is_number(frame[column]):
            _check_size(numbers(frame[column]), where)
        else:
            _check_text(frame[column], where)
            _check_levels(frame[column], where)


def _check_size(values: np.ndarray, where: str) -> None:
    rows = np.flatnonzero(np.abs(values) > _LARGEST) + 1
    if len(rows):
        raise DataError(
            f"{where} has numbers beyond 9e15 (rows {listed(rows)}): drop it if it is an identifier, take a larger "
            "unit if it is a quantity"
        )


def _check_text(column: pd.Series, where: str) -> None:
    """Text that is numbers after all: as people write them, too long, or with a few words in between."""
    if pd.api.types.infer_dtype(column) not in ("string", "mixed", "mixed-integer"):
        return
    cells = column.astype(object).map(str).str.strip()
    values = pd.to_numeric(cells.where(~cells.isin(["True", "False"]), "no number"), errors="coerce").to_numpy(float)
    plain = np.isfinite(values)
    formatted = cells.str.fullmatch(_FORMATTED).to_numpy(bool) & ~plain
    if formatted.any() and (formatted | plain).all():
        raise DataError(
            f"{where} has numbers with separators, decimal commas or % (such as {cells[formatted].iloc[0]!r}): write "
            "them as 1234.5"
        )
    _check_size(np.where(plain, values, 0), where)
    if len(cells) > plain.sum() > len(cells) / 2:
        raise DataError(
            f"{where} mixes numbers and text (rows {listed(np.flatnonzero(~plain) + 1)}, such as "
            f"{cells[~plain].iloc[0]!r}): mend or drop those rows, or write every level as a word"
        )


def _check_levels(column: pd.Series, where: str) -> None:
    levels = len(level_names(column))
    if levels > min(0.9 * len(column), 1000):
        raise DataError(
            f"{where} has {levels} distinct levels in {len(column)} rows: it looks like an identifier or free text; "
            "drop it"
        )


def _is_date(column: pd.Series) -> bool:
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind != "string":
        return kind in _DATE_KINDS
    cells = pd.Series(column.dropna().unique(), dtype=object)
    alike = bool(cells.str.fullmatch(_DATE).all())
    return alike and bool(pd.to_datetime(cells, errors="coerce", format="mixed").notna().all())

"""The one way to read and write a CSV file."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from .files import MAX_BYTES, atomic_file, read_lines


MAX_CELLS = 10_000_000
"""Tables of more cells are refused: a short cell takes fifty times its bytes in memory."""


def read_table(
    path: str | os.PathLike, expected: str = "a CSV with a header"
) -> tuple[list[str], list[dict[str, str]]]:
    """
    Reads a CSV file, every cell as the text that it is.

    Returns:
        `tuple[list[str], list[dict[str, str]]]`: The columns, and the rows in order.

    Raises:
        ValueError: See [`read_lines`]; or there is no row, a column comes twice, or a row (counted from 1 after the
            header) does not fit the header.
    """
    # Strict, because a quotation mark that is never closed would silently take the following rows into its cell.
    reader = csv.DictReader(_table_lines(path, expected), strict=True)
    rows: list[dict[str, str]] = []
    try:
        columns = list(reader.fieldnames or [])
        if twice := sorted(column for column, count in Counter(columns).items() if count > 1):
            raise ValueError(f"{path} has the column {twice[0]!r} more than once; rename one of them.")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}: row {len(rows) + 1} does not have the {len(columns)} cells of the header.")
            if len(rows) * len(columns) > MAX_CELLS:
                raise ValueError(f"{path} has more than {MAX_CELLS:,} cells; expected {expected}. Split it.")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path}: row {len(rows) + 1} cannot be read ({error}); expected {expected}.") from error
    if not rows:
        raise ValueError(f"{path} has no rows; expected {expected} and at least one row.")
    return columns, rows


def write_table(path: str | os.PathLike, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a CSV file atomically, gzipped where its name ends in .gz."""
    with atomic_file(path) as file:
        packed = str(path).lower().endswith(".gz")
        binary = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if packed else file
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()
        if packed:
            binary.close()


def _table_lines(path: str | os.PathLike, expected: str) -> Iterator[str]:
    size = 0
    for number, line in enumerate(read_lines(path, expected), 1):
        size += len(line) + 1
        if size > MAX_BYTES:
            raise ValueError(f"{path} holds more than {MAX_BYTES:,} characters; expected {expected}. Split it.")
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: it holds a NUL character; expected {expected}.")
        yield line + "\n"

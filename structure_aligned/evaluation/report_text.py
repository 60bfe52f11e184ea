"""Numbers as people read them, and the summary as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def difference(row: Mapping[str, Any]) -> str:
    """`+0.012`, or `×0.95` where it is a ratio."""
    if row["difference"] is None:
        return MISSING
    if row["logarithm"]:
        return f"×{row['difference']:.3f}"
    return _signed(row["difference"])


def interval(row: Mapping[str, Any], ratio: bool = False) -> str:
    """`−0.010 to +0.034`; signs only of differences."""
    if row["low"] is None or row["high"] is None:
        return MISSING
    if ratio:
        return f"×{row['low']:.3f} to ×{row['high']:.3f}"
    written = _signed if "difference" in row else number
    return " to ".join(written(row[end]) for end in ("low", "high"))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if value else number(value)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def summary_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparisons of the summary, one line each, with aligned columns."""
    if not rows:
        return "There is nothing to compare: one model, or no results."
    header = ("metric", "other", "baseline", "other's", "difference", "95 % interval", "p", "Holm p", "verdict")
    lines = [header]
    for row in rows:
        lines.append(
            (
                row["label"],
                row["series"],
                number(row["base"]),
                number(row["other"]),
                difference(row),
                interval(row, row["logarithm"]),
                p_value(row["p"]),
                p_value(row["holm"]),
                row["verdict"] if row["why"] is None else f"{row['verdict']} ({row['why']})",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    left = (0, 1, 8)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )

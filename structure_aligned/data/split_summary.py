"""What splits hold: counts, histograms, and a figure of them."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets.utils import logging

from ..utils.files import atomic_file, write_json


logger = logging.get_logger(__name__)

SUMMARY_NAME = "splits.json"
FIGURE_NAME = "splits.png"

# Quantity: axis label, width of a bin (None: half an octave), whether it is of experimental or predicted chains only.
_QUANTITIES = {
    "resolution": ("resolution (Å)", 0.2, False),
    "r_free": ("R-free", 0.02, False),
    "year": ("year of deposition", 1, False),
    "length": ("length (residues)", None, None),
    "mean_b_factor": ("mean B-factor of a chain (Å²)", 5, False),
    "mean_plddt": ("mean pLDDT of a chain", 5, True),
}
_MAX_BINS = 40
_COLOURS = {"reference": "#E69F00", "train": "#0072B2", "validation": "#009E73", "test": "#D55E00"}


@dataclass
class SplitSummary:
    """
    What [`split_chains`] made. `print` shows a table; `save` writes it beside the dataset.

    Args:
        splits (`dict`): For each split its numbers of `chains`, `residues`, `groups` and `predicted` chains.
        left_out (`list[dict]`): `{"source", "reason"}` of each chain that is in no split.
        below_quality (`dict[str, int]`): Number of chains that are not of high quality, by kind of reason; all chains
            count, whichever split they are in.
        histograms (`dict`): For each quantity its `edges`, `counts` of each split (one less than edges), and
            `not_stated`, the number of each split's chains without a value. Resolution, R-free, year and B-factor
            concern experimental chains only, pLDDT predicted ones.
        options (`dict`): What was asked for.
    """

    splits: dict[str, dict[str, int]]
    left_out: list[dict[str, str]]
    below_quality: dict[str, int]
    histograms: dict[str, dict[str, Any]]
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        rows: list[dict[str, Any]],
        means: np.ndarray,
        groups: np.ndarray,
        members: dict[str, np.ndarray],
        left_out: list[dict[str, str]],
        below_quality: dict[str, int],
        options: dict[str, Any],
    ) -> SplitSummary:
        """From the dataset's rows, their mean B-factors (or pLDDT) and groups, and the row numbers of each split."""
        predicted = np.array([bool(row["predicted"]) for row in rows], dtype=bool)
        lengths = np.array([row["length"] for row in rows], dtype=int)
        values = {
            name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=float)
            for name in ("resolution", "r_free", "length")
        }
        dates = [row["deposition_date"] for row in rows]
        values["year"] = np.array([np.nan if date is None else float(date[:4]) for date in dates], dtype=float)
        values["mean_b_factor"] = values["mean_plddt"] = means
        splits = {
            name: {
                "chains": len(chosen),
                "residues": int(lengths[chosen].sum()),
                "groups": len(np.unique(groups[chosen])),
                "predicted": int(predicted[chosen].sum()),
            }
            for name, chosen in members.items()
        }
        histograms = {}
        for name, (_, width, of_predicted) in _QUANTITIES.items():
            applies = np.ones(len(rows), dtype=bool) if of_predicted is None else predicted == of_predicted
            chosen = {split: values[name][one[applies[one]]] for split, one in members.items()}
            stated = {split: found[np.isfinite(found)] for split, found in chosen.items()}
            everything = np.concatenate(list(stated.values()))
            if len(everything) == 0:
                continue
            edges = _edges(everything, width)
            histograms[name] = {
                "edges": edges.tolist(),
                "counts": {split: np.histogram(found, edges)[0].tolist() for split, found in stated.items()},
                "not_stated": {split: len(chosen[split]) - len(found) for split, found in stated.items()},
            }
        return cls(splits, left_out, below_quality, histograms, options)

    def reasons(self) -> dict[str, int]:
        """Number of chains that are in no split, by kind of reason."""
        return dict(Counter(item["reason"].split(":")[0] for item in self.left_out).most_common())

    def __str__(self) -> str:
        lines = [f"{'split':<12}{'chains':>9}{'residues':>12}{'groups':>9}{'predicted':>11}"]
        for name, counts in self.splits.items():
            lines.append(
                f"{name:<12}{counts['chains']:>9}{counts['residues']:>12}{counts['groups']:>9}{counts['predicted']:>11}"
            )
        lines += [f"in no split, {reason}: {count}" for reason, count in self.reasons().items()]
        lines += [f"not of high quality, {reason}: {count}" for reason, count in self.below_quality.items()]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """
        Writes `splits.json` and, where matplotlib is installed, `splits.png`.

        Returns:
            `list[Path]`: What was written.
        """
        folder = Path(folder)
        written = [folder / SUMMARY_NAME]
        write_json(written[0], asdict(self))
        if importlib.util.find_spec("matplotlib") is None:
            logger.warning(f"No {FIGURE_NAME}: matplotlib is not installed (pip install structure-aligned[plot]).")
        else:
            written.append(folder / FIGURE_NAME)
            self.plot(written[1])
        return written

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the histograms, each split as shares of its own chains. Needs matplotlib (the extra `plot`)."""
        # No pyplot: this draws to a file and must not choose a backend for the rest of the process.
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        shown = list(self.histograms)
        columns = min(3, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.5), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, name in zip(axes, shown):
            histogram = self.histograms[name]
            edges, missing = np.array(histogram["edges"]), []
            for split, counts in histogram["counts"].items():
                stated, unknown = sum(counts), histogram["not_stated"][split]
                if unknown:
                    missing.append(f"{split} {unknown / (stated + unknown):.0%}")
                if stated:
                    # Points at the middles of bins: the bars of four splits would hide each other.
                    middles = (edges[:-1] + edges[1:]) / 2
                    axis.plot(middles, np.array(counts) / stated, "o-", color=_COLOURS[split], markersize=3.5)
            if name == "length":
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter("{x:.0f}")
            else:
                axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=name == "year"))
            axis.set_xlim(edges[0], edges[-1])
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=False))
            axis.set_xlabel(_QUANTITIES[name][0])
            if missing:
                axis.set_title(f"not stated: {', '.join(missing)}", fontsize=8, color="#555555", loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.25)
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel("share of the split")
        handles = [
            (axes[0].plot([], [], color=_COLOURS[split], linewidth=3)[0], f"{split}: {counts['chains']:,} chains")
            for split, counts in self.splits.items()
        ]
        figure.legend(*zip(*handles), loc="outside upper center", ncols=len(handles), frameon=False)
        with atomic_file(path) as file:
            figure.savefig(file, dpi=120, format=Path(path).suffix.removeprefix(".") or "png")


def _edges(values: np.ndarray, width: float | None) -> np.ndarray:
    """Round edges of equal width that hold all values, in at most 40 bins; half octaves where there is no width."""
    values = np.log2(values) if width is None else values
    step = width or 0.5
    low, high = float(values.min()), float(values.max())
    while (high - low) / step > _MAX_BINS - 2:
        step *= 2
    # A value on the last edge would be counted below it, so there is always a bin beyond.
    count = np.arange(np.floor(low / step + 1e-9), np.floor(high / step + 1e-9) + 2)
    edges = np.round(count * step, 9)
    return np.exp2(edges) if width is None else edges

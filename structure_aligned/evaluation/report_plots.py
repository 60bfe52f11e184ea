"""The pictures of a report, each as PNG in the page itself; without matplotlib there are none, and it says so."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.names import picture_text
from .contacts import contact_map
from .report_inputs import EvaluationInputs
from .report_tables import METRICS, Metric, Series, metrics_of, values_of
from .report_tasks import decode_map


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's, which the colour-blind tell apart; the baseline is grey.
_BASE, _OTHERS, _INK = "#6B7480", ("#0072B2", "#D55E00", "#009E73", "#AA3377", "#E69F00", "#56B4E9"), "#24292F"
_MARKERS = "osD^vP"
_MAX_MAPS = 4  # models beside each other


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, with what it shows in words."""

    png: str
    alt: str
    caption: str = ""
    group: str = ""


def draw_plots(
    report: Mapping[str, Any], results: Mapping[str, Any], inputs: EvaluationInputs, baseline: Series
) -> tuple[dict[str, list[Picture]], str | None]:
    """
    Pictures by section of the page, and why there are none if so.

    Args:
        report (`dict`): As [`evaluate_models`] makes it.
        results (`dict`): By task and model, contact maps included.
        inputs ([`EvaluationInputs`]): For the true contacts of the maps.
        baseline ([`Series`]): What others are drawn against.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}, 'Plots need matplotlib: pip install "structure-aligned[plot]", then run the same command again.'
    series = [Series(name, tuple(members)) for name, members in report["series"].items()]
    drawer = _Drawer(report, results, inputs, series, baseline)
    sections = {
        "contacts": [*drawer.precision("contacts"), *drawer.calibration("contacts"), *drawer.maps("contacts")],
        "pair_head": [*drawer.precision("pair_head"), *drawer.calibration("pair_head"), *drawer.maps("pair_head")],
        "fitness": [*drawer.assays()],
        "perplexity": [*drawer.intervals("perplexity")],
        "probes": [*drawer.intervals("probes")],
        "secondary_structure": [*drawer.intervals("secondary_structure")],
        "differences": [*drawer.differences()],
    }
    return {name: pictures for name, pictures in sections.items() if pictures}, None


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    return figure, axes


def _picture(figure: Figure, alt: str, caption: str = "", group: str = "") -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return Picture(base64.b64encode(file.getvalue()).decode(), alt, caption, group)


class _Drawer:
    def __init__(
        self,
        report: Mapping[str, Any],
        results: Mapping[str, Any],
        inputs: EvaluationInputs,
        series: list[Series],
        baseline: Series,
    ) -> None:
        self.report, self.results, self.inputs = report, results, inputs
        self.series, self.baseline = series, baseline
        others = [one.name for one in series if not set(one.members) & set(baseline.members)]
        self.others = [one for one in series if one.name in others]
        self.colours = {one.name: _BASE for one in series}
        self.colours |= {name: _OTHERS[index % len(_OTHERS)] for index, name in enumerate(others)}
        self.markers = {one.name: _MARKERS[index % len(_MARKERS)] for index, one in enumerate(series)}

    def _estimates(self, task: str) -> dict[tuple[str, str, str], dict[str, Any]]:
        found = {}
        for row in self.report["estimates"]:
            if row["task"] == task and row["value"] is not None:
                found[row["table"], row["key"], row["series"]] = row
        return found

    def _style(self, name: str) -> dict[str, Any]:
        colour = self.colours[name]
        return {"color": colour, "marker": self.markers[name], "label": picture_text(name), "markersize": 5}

    def _legend(self, figure: Figure, axes: Axes) -> None:
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, loc="outside upper center", frameon=False, fontsize=9, ncols=min(3, len(labels))
            )

    def precision(self, task: str) -> Iterator[Picture]:
        """P@L by range, with intervals."""
        found = self._estimates(task)
        if not found:
            return
        ranges = ("short", "medium", "long", "all")
        figure, axes = _figure(4.2, 3.7)
        present = [one for one in self.series if any(key[2] == one.name for key in found)]
        for index, one in enumerate(present):
            offset = (index - (len(present) - 1) / 2) * min(0.16, 0.6 / len(present))
            rows = [found.get(("contacts", f"{name}_P@L", one.name)) for name in ranges]
            _error_bars(axes, [(place + offset, row) for place, row in enumerate(rows) if row], self._style(one.name))
        axes.set_xticks(range(4), ["short\n6–11", "medium\n12–23", "long\n≥ 24", "all\n≥ 6"])
        axes.set_ylabel("P@L", fontsize=10)
        axes.set_ylim(bottom=0)
        self._legend(figure, axes)
        yield _picture(
            figure,
            "Precision of the top L predicted contacts by range of sequence separation, for each model",
            "Precision of the L highest-ranked pairs, by sequence separation; bars are 95 % intervals over proteins.",
        )

    def calibration(self, task: str) -> Iterator[Picture]:
        """How often predicted probabilities come true."""
        stored = {
            name: result["calibration"]
            for name, result in self.results.get(task, {}).items()
            if result.get("calibration")
        }
        if not stored:
            return
        figure, axes = _figure(4.2, 4.2)
        axes.plot([0, 1], [0, 1], color="#B8B8B8", linewidth=1, linestyle="--")
        errors = []
        for name, bins in stored.items():
            pairs, contacts, probability = (
                np.array(bins[key], dtype=float) for key in ("pairs", "contacts", "probability")
            )
            kept = pairs >= 20
            axes.plot(
                probability[kept] / pairs[kept], contacts[kept] / pairs[kept], linewidth=1.4, **self._style(name)
            )
            if bins["error"] is not None:
                errors.append(f"{name} {bins['error']:.4f}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("predicted probability of a contact", fontsize=10)
        axes.set_ylabel("share that are contacts", fontsize=10)
        self._legend(figure, axes)
        yield _picture(
            figure,
            "Reliability of contact probabilities: predicted probability against observed share",
            "On the dashed line a probability means what it says. All labelled pairs of |i − j| ≥ 6 of all "
            f"test chains, bins of at least 20 pairs. Expected calibration error: {'; '.join(errors) or 'undefined'}.",
        )

    def maps(self, task: str) -> Iterator[Picture]:
        """Above the diagonal what a model predicts, below it the truth."""
        chains = {chain.id: chain for chain in self.inputs.test_chains}
        models = {name: result for name, result in self.results.get(task, {}).items() if result.get("maps")}
        for identifier in next(iter(models.values()))["maps"] if models else ():
            chain = chains[identifier]
            contacts, valid = contact_map(chain.coords, chain.sequence)
            for name, result in list(models.items())[:_MAX_MAPS]:
                row = next(row for row in result["tables"]["contacts"] if row["id"] == identifier)
                precision = row["long_P@L"]
                shown = "undefined" if precision is None else f"{precision:.2f}"
                figure, axes = _figure(3.9, 3.7)
                self._draw_map(axes, decode_map(result["maps"][identifier]), contacts, valid)
                title = (
                    f"{picture_text(identifier)}, {len(chain)} residues\n{picture_text(name)}: long-range P@L {shown}"
                )
                axes.set_title(title, fontsize=10, color=_INK)
                yield _picture(
                    figure,
                    f"Contact map of {identifier}: {name} above the diagonal, truth below; P@L {shown}",
                    group=identifier,
                )

    @staticmethod
    def _draw_map(axes: Axes, predicted: np.ndarray, contacts: np.ndarray, valid: np.ndarray) -> None:
        from matplotlib import colormaps

        truth = np.where(valid, contacts.astype(float), np.nan)
        index = np.arange(len(predicted))
        separation = np.abs(index[:, None] - index)
        image = np.where(index[:, None] < index, predicted, truth)
        image[separation < 6] = np.nan  # what heads are not fitted on
        colours = colormaps["magma_r"].with_extremes(bad="#E4E6E9")
        size = len(predicted)
        drawn = axes.imshow(
            image, cmap=colours, vmin=0, vmax=1, interpolation="nearest", extent=(0.5, size + 0.5, size + 0.5, 0.5)
        )
        axes.spines[:].set_visible(False)
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.75, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
        box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
        axes.text(0.97, 0.95, "model", ha="right", transform=axes.transAxes, fontsize=9, color=_INK, bbox=box)
        axes.text(0.03, 0.03, "truth", transform=axes.transAxes, fontsize=9, color=_INK, bbox=box)

    def assays(self) -> Iterator[Picture]:
        """Spearman of each assay, models beside each other."""
        metric = next(metric for metric in METRICS if metric.task == "fitness" and metric.key == "spearman")
        values = {one.name: found for one in self.series if (found := values_of(self.results, metric, one))}
        if not values:
            return
        first = values.get(self.baseline.name) or next(iter(values.values()))
        order = sorted(first, key=lambda name: -math.inf if math.isnan(first[name]) else first[name])
        figure, axes = _figure(5, 1.2 + 0.27 * len(order))
        axes.axvline(0, color="#B8B8B8", linewidth=0.8)
        for place, name in enumerate(order):
            across = [own[name] for own in values.values() if not math.isnan(own.get(name, math.nan))]
            if len(across) > 1:
                axes.plot([min(across), max(across)], [place, place], color="#C8CDD3", linewidth=2, zorder=1)
        for name, own in values.items():
            kept = [
                (place, own[assay]) for place, assay in enumerate(order) if not math.isnan(own.get(assay, math.nan))
            ]
            axes.plot([value for _, value in kept], [place for place, _ in kept], linestyle="", **self._style(name))
        axes.set_yticks(range(len(order)), [picture_text(name, 26) for name in order], fontsize=8)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlabel("Spearman correlation with the measurement", fontsize=10)
        self._legend(figure, axes)
        yield _picture(
            figure,
            "Spearman correlation of each assay for each model",
            "Each line is an assay, sorted by the baseline. A correlation of 0 is no better than chance.",
        )

    def intervals(self, task: str) -> Iterator[Picture]:
        """Means with intervals of all of a task's metrics of one scale."""
        found = self._estimates(task)
        metrics = [metric for metric in metrics_of(self.results) if metric.task == task]
        if not found or not metrics:
            return
        figure, axes = _figure(5, 1.1 + 0.62 * len(metrics))
        for index, one in enumerate(self.series):
            offset = (index - (len(self.series) - 1) / 2) * min(0.18, 0.7 / len(self.series))
            rows = [found.get((metric.table, metric.key, one.name)) for metric in metrics]
            places = [(place + offset, row) for place, row in enumerate(rows) if row]
            if places:
                _error_bars(axes, places, self._style(one.name), horizontal=True)
        axes.set_yticks(range(len(metrics)), [_wrapped(metric.label, 25) for metric in metrics], fontsize=8)
        axes.set_ylim(len(metrics) - 0.5, -0.5)
        axes.set_xlabel("geometric mean over proteins" if metrics[0].logarithm else "mean over proteins", fontsize=10)
        self._legend(figure, axes)
        better = (
            ""
            if any(metric.higher != metrics[0].higher for metric in metrics)
            else (" More is better." if metrics[0].higher else " Less is better.")
        )
        yield _picture(figure, f"Means with intervals: {task}", f"Bars are 95 % intervals over proteins.{better}")

    def differences(self) -> Iterator[Picture]:
        """Each protein's value under the baseline against that under another model."""
        for metric in metrics_of(self.results):
            base = values_of(self.results, metric, self.baseline) if metric.headline else None
            for other in self.others if base is not None else ():
                values = values_of(self.results, metric, other)
                shared = [name for name in base if values is not None and name in values]
                pairs = np.array([(base[name], values[name]) for name in shared]).reshape(-1, 2)
                pairs = pairs[~np.isnan(pairs).any(axis=1)]
                if len(pairs):
                    yield self._scatter(metric, np.exp(pairs) if metric.logarithm else pairs, other)

    def _scatter(self, metric: Metric, pairs: np.ndarray, other: Series) -> Picture:
        figure, axes = _figure(3.8, 4.2)
        low, high = pairs.min(), pairs.max()
        margin = 0.04 * (high - low) or 0.05
        ends = (low * 0.95, high * 1.05) if metric.logarithm else (low - margin, high + margin)
        axes.plot(ends, ends, color="#B8B8B8", linewidth=1, linestyle="--")
        colour = self.colours[other.name]
        axes.plot(pairs[:, 0], pairs[:, 1], linestyle="", marker="o", markersize=4, alpha=0.6, color=colour)
        if metric.logarithm:
            axes.set(xscale="log", yscale="log")
            if ends[1] / ends[0] < 20:
                from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    axis.set_major_formatter(ScalarFormatter())
                    axis.set_minor_formatter(NullFormatter())
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set_xlabel(picture_text(self.baseline.name), fontsize=10)
        axes.set_ylabel(picture_text(other.name), fontsize=10)
        change = pairs[:, 1] - pairs[:, 0]
        better, worse = ((change > 0).sum(), (change < 0).sum())
        if not metric.higher:
            better, worse = worse, better
        axes.set_title(_wrapped(metric.label, 40), fontsize=9, color=_INK)
        equal = len(pairs) - better - worse
        return _picture(
            figure,
            f"{metric.label}: each {metric.unit} under {self.baseline.name} and {other.name}",
            f"{len(pairs)} {metric.unit}s: {other.name} is better for {better}, worse for {worse}, equal for {equal}.",
        )


def _error_bars(
    axes: Axes, places: list[tuple[float, Mapping[str, Any]]], style: dict, horizontal: bool = False
) -> None:
    where = [place for place, _ in places]
    values = [row["value"] for _, row in places]
    # An interval may leave its value out by rounding, and there may be none at all.
    ends = [
        (
            max(0.0, row["value"] - (row["value"] if row[end] is None else row[end]))
            if end == "low"
            else max(0.0, (row["value"] if row[end] is None else row[end]) - row["value"])
        )
        for end in ("low", "high")
        for _, row in places
    ]
    spread = np.array(ends).reshape(2, -1)
    common = {"linestyle": "", "linewidth": 1.4, "capsize": 2} | style
    if horizontal:
        axes.errorbar(values, where, xerr=spread, **common)
    else:
        axes.errorbar(where, values, yerr=spread, **common)


def _wrapped(label: str, width: int = 30) -> str:
    import textwrap

    return "\n".join(map(picture_text, textwrap.wrap(label, width)))

"""From rows per protein to the tables of a report: means with intervals, paired tests against a baseline, seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contacts import CONTACT_RANGES, PAPER_METRIC, TOP_FRACTIONS
from .statistics import Estimate, bootstrap_mean, compare, holm, mean_and_sd_over_seeds


Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Result by task and model; see `report_tasks.Result`."""


@dataclass(frozen=True)
class Metric:
    """
    One column of rows, and how it is read.

    Args:
        task, table, key (`str`): Where it is found.
        label (`str`): For people.
        unit (`str`, *optional*, defaults to `"protein"`): What a row is.
        higher (`bool`, *optional*, defaults to `True`): Whether more is better.
        headline (`bool`, *optional*, defaults to `False`): In the summary; fixed here, before any result is seen.
        logarithm (`bool`, *optional*, defaults to `False`): Values are natural logarithms: means are shown as
            geometric means, differences as ratios.
        chance (`str`, *optional*): Column of what guessing gives.
    """

    task: str
    table: str
    key: str
    label: str
    unit: str = "protein"
    higher: bool = True
    headline: bool = False
    logarithm: bool = False
    chance: str | None = None

    def shown(self, value: float | None) -> float | None:
        return math.exp(value) if self.logarithm and value is not None else value


@dataclass(frozen=True)
class Series:
    """What is compared: a model, or several seeds of one, whose values are averaged protein by protein."""

    name: str
    members: tuple[str, ...]


_RANGE_LABELS = {
    name: f"{name} range ({low}–{high})" if high else f"{name} range (≥ {low})"
    for name, (low, high) in CONTACT_RANGES.items()
}
_RANGE_LABELS["all"] = "all ranges (≥ 6)"


def _contact_metrics(task: str, source: str) -> list[Metric]:
    metrics = []
    for name, label in reversed(_RANGE_LABELS.items()):
        for top in TOP_FRACTIONS:
            headline = (name, top) in (("all", "P@L"), ("long", "P@L"), ("long", "P@L/5"))
            metrics.append(
                Metric(task, "contacts", f"{name}_{top}", f"Contacts {source}, {label}, {top}", headline=headline)
            )
        metrics.append(Metric(task, "contacts", f"{name}_AP", f"Contacts {source}, {label}, average precision"))
    label = f"Contacts {source}, |i − j| ≥ 7, P@L/5 (as in the paper)"
    return [*metrics, Metric(task, "contacts", PAPER_METRIC, label, headline=True)]


_SETS = {"structures": "test chains", "natural": "natural sequences"}
_METHODS = {"one-by-one": "one residue masked at a time", "masked": "15 % masked"}

METRICS: tuple[Metric, ...] = (
    *_contact_metrics("contacts", "from attention"),
    *_contact_metrics("pair_head", "from hidden states"),
    Metric("fitness", "fitness", "spearman", "Effects of mutations, Spearman", "assay", headline=True),
    Metric("fitness", "fitness", "auc", "Effects of mutations, AUC", "assay"),
    Metric("fitness", "fitness", "ndcg", "Effects of mutations, NDCG", "assay"),
    Metric("fitness", "fitness", "top_recall", "Effects of mutations, top-10 % recall", "assay"),
    *(
        Metric(
            "perplexity",
            f"{name}, {method}",
            "log_perplexity",
            f"Pseudo-perplexity, {set_label}, {method_label}",
            higher=False,
            headline=method == "one-by-one",
            logarithm=True,
        )
        for name, set_label in _SETS.items()
        for method, method_label in _METHODS.items()
    ),
    *(
        Metric("probes", "probes", key, label, headline=key != "fold_class", chance=chance)
        for key, label, chance in (
            ("secondary_structure", "Probe, secondary structure (Q3)", "secondary_structure_majority"),
            ("structure_tokens", "Probe, 3Di tokens (accuracy)", "structure_tokens_majority"),
            ("fold_class", "Probe, fold class (accuracy)", "fold_class_majority"),
            ("silhouette", "Embeddings, silhouette by secondary structure", None),
            ("knn_purity", "Embeddings, neighbours of the same secondary structure", "knn_purity_chance"),
        )
    ),
    *(
        Metric("secondary_structure", "secondary_structure", key, label, headline=headline, chance=chance)
        for key, label, headline, chance in (
            ("secondary_structure", "Probe, labelled set, Q3", True, "secondary_structure_majority"),
            ("silhouette", "Embeddings, labelled set, silhouette", False, None),
            ("knn_purity", "Embeddings, labelled set, neighbours of the same state", False, "knn_purity_chance"),
        )
    ),
    Metric(
        "tokens",
        "tokens",
        "token_accuracy",
        "3Di tokens by the model's own head (accuracy)",
        headline=True,
        chance="token_accuracy_majority",
    ),
)


def metrics_of(results: Results) -> list[Metric]:
    """Metrics that at least one model has a number for, in the order of tasks."""
    return [metric for metric in METRICS if any(_has_number(result, metric) for result in _of_task(results, metric))]


def series_of(names: Sequence[str]) -> list[Series]:
    """Every model, and behind the last seed of a group (`name#1`, `name#2`, …) the group."""
    series, groups = [], {}
    for name in names:
        if "#" in name:
            groups.setdefault(name.rpartition("#")[0], []).append(name)
    for name in names:
        series.append(Series(name, (name,)))
        members = groups.get(name.rpartition("#")[0], []) if "#" in name else []
        if len(members) > 1 and members[-1] == name:
            series.append(Series(f"{name.rpartition('#')[0]} ({len(members)} seeds)", tuple(members)))
    return series


def baseline_of(names: Sequence[str], wanted: str | None = None) -> Series:
    """
    The model of that name, or all seeds of a group of that name; by default of the first model.

    Raises:
        ValueError: There is none of that name.
    """
    series = series_of(names)
    wanted = names[0].rpartition("#")[0] or names[0] if wanted is None else wanted
    for one in reversed(series):
        if one.name == wanted or (len(one.members) > 1 and one.members[0].rpartition("#")[0] == wanted):
            return one
    if len(alone := [one for one in series if one.name.rpartition("#")[0] == wanted]) == 1:
        return alone[0]
    raise ValueError(f"The baseline {wanted!r} is none of the models: {', '.join(names)}.")


def values_of(results: Results, metric: Metric, series: Series) -> dict[str, float] | None:
    """Value by protein (or assay), NaN where undefined; `None` where a member has no such table."""
    tables = []
    for member in series.members:
        rows = results.get(metric.task, {}).get(member, {}).get("tables", {}).get(metric.table)
        if rows is None or not any(metric.key in row for row in rows):
            return None
        tables.append({row["id"]: _number(row.get(metric.key)) for row in rows})
    ids = [one for one in tables[0] if all(one in table for table in tables)]
    return {one: float(np.mean([table[one] for table in tables])) for one in ids}


def estimates(results: Results, series: Iterable[Series], seed: int = 0) -> list[dict[str, Any]]:
    """Per metric and series: `value`, `low`, `high` (95 %), `n` and `undefined` proteins, `why` if there are none."""
    rows = []
    series = list(series)
    for metric in metrics_of(results):
        for one in series:
            row: dict[str, Any] = _names(metric) | {"series": one.name, "value": None, "low": None, "high": None}
            row["guessing"] = _chance(results, metric, one)
            values = values_of(results, metric, one)
            numbers = np.array(list(values.values()) if values is not None else [])
            row |= {"n": int((~np.isnan(numbers)).sum()), "undefined": int(np.isnan(numbers).sum()), "why": None}
            if values is None:
                row["why"] = "not run for this model"
            elif row["n"] == 0:
                row["why"] = f"undefined for every {metric.unit}"
            else:
                row |= _interval(metric, bootstrap_mean(numbers, seed=seed))
            rows.append(row)
    return rows


def comparisons(
    results: Results, series: Iterable[Series], baseline: Series, seed: int = 0, headline: bool = False
) -> list[dict[str, Any]]:
    """
    Every other series against the baseline, metric by metric, on the proteins that both have a value for.

    Args:
        headline (`bool`, *optional*, defaults to `False`): Only metrics of the summary.

    Returns:
        `list[dict]`: `base` and `other` (means, geometric ones where `logarithm`), `difference` (a ratio there) with
        `low` and `high`, `p`, `holm` (over the rows of this very table), `n`, `dropped`, `verdict` and `why` for what
        is not there.
    """
    rows = []
    compared = [one for one in series if not set(one.members) & set(baseline.members)]
    for metric in metrics_of(results):
        if headline and not metric.headline:
            continue
        for one in compared:
            row: dict[str, Any] = _names(metric) | {"baseline": baseline.name, "series": one.name}
            row |= dict.fromkeys(("base", "other", "difference", "low", "high", "p", "holm", "test", "interval"))
            row |= {"n": 0, "dropped": 0, "verdict": "undefined", "why": None}
            base, other = (values_of(results, metric, which) for which in (baseline, one))
            if base is None or other is None:
                row["why"] = f"not run for {baseline.name if base is None else one.name}"
                rows.append(row)
                continue
            shared = [unit for unit in base if unit in other]
            a, b = (np.array([values[unit] for unit in shared], dtype=float) for values in (other, base))
            if not (~np.isnan(a) & ~np.isnan(b)).any():
                row["dropped"] = len(shared)
                row["why"] = f"no {metric.unit} has a value for both"
                rows.append(row)
                continue
            found = compare(a, b, seed=seed)
            row |= {"base": metric.shown(found.mean_b), "other": metric.shown(found.mean_a)}
            row |= {"difference": metric.shown(found.difference), "p": found.p, "test": found.test}
            row |= {"n": found.n, "dropped": found.dropped, "interval": found.interval}
            if math.isfinite(found.low) and math.isfinite(found.high):
                row |= {"low": metric.shown(found.low), "high": metric.shown(found.high)}
            else:
                row["why"] = f"one {metric.unit} alone has no interval"
            rows.append(row)
    tested = [row for row in rows if row["p"] is not None]
    if tested:
        for row, corrected in zip(tested, holm([row["p"] for row in tested])):
            row["holm"] = float(corrected)
            row["verdict"] = _verdict(row)
    return rows


def over_seeds(results: Results, series: Iterable[Series]) -> list[dict[str, Any]]:
    """For groups of seeds: mean and standard deviation over seeds of each metric's mean over proteins."""
    rows = []
    for one in series:
        if len(one.members) < 2:
            continue
        for metric in metrics_of(results):
            values = [values_of(results, metric, Series(member, (member,))) for member in one.members]
            row: dict[str, Any] = _names(metric) | {"series": one.name, "mean": None, "sd": None, "why": None}
            means = [
                float(np.nanmean(list(value.values())))
                for value in values
                if value is not None and not np.isnan(list(value.values())).all()
            ]
            if len(means) < len(one.members):
                row["why"] = f"{len(one.members) - len(means)} of {len(one.members)} seeds have no value"
            else:
                summary = mean_and_sd_over_seeds([metric.shown(mean) for mean in means])
                row |= {"mean": summary.mean, "sd": summary.sd}
            rows.append(row)
    return rows


def _verdict(row: Mapping[str, Any]) -> str:
    if row["test"] == "identical":
        return "identical"
    if row["holm"] >= 0.05:
        return "no clear difference"
    more = row["difference"] > (1 if row["logarithm"] else 0)
    return "better" if more == row["higher"] else "worse"


def _interval(metric: Metric, estimate: Estimate) -> dict[str, Any]:
    found = {"value": metric.shown(estimate.value)}
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        return found | {"low": metric.shown(estimate.low), "high": metric.shown(estimate.high)}
    return found | {"why": f"one {metric.unit} alone has no interval"}


def _names(metric: Metric) -> dict[str, Any]:
    return vars(metric).copy()


def _chance(results: Results, metric: Metric, series: Series) -> float | None:
    if metric.chance is None:
        return None
    rows = results.get(metric.task, {}).get(series.members[0], {}).get("tables", {}).get(metric.table, ())
    known = [value for row in rows if not math.isnan(value := _number(row.get(metric.chance)))]
    return sum(known) / len(known) if known else None


def _of_task(results: Results, metric: Metric) -> Iterable[Mapping[str, Any]]:
    return results.get(metric.task, {}).values()


def _has_number(result: Mapping[str, Any], metric: Metric) -> bool:
    rows = result.get("tables", {}).get(metric.table) or []
    return any(not math.isnan(_number(row.get(metric.key))) for row in rows)


def _number(value: Any) -> float:
    """NaN for what is missing or no number, such as a class by name."""
    return float(value) if isinstance(value, (int, float)) else float("nan")

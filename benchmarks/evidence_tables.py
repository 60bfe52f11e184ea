"""
Tables of RESULTS.md from the report.json of examples/evaluate.py.

    python benchmarks/evidence_tables.py outputs/report/report.json --base base --control mlm_only --aligned aligned
    python benchmarks/evidence_tables.py outputs/ablations/report.json --base full --rows

The first compares the aligned seeds with the base model and the seeds of the control (`--plot` also draws it, each
seed a dot); the second (`--rows`) lists every model of the report with its difference to the base. Differences are
paired over proteins (assays), with 95 % bootstrap intervals; p is of the paired test, in the first table corrected
(Holm) over its rows and both comparisons.
"""

import argparse
import json
from pathlib import Path

from structure_aligned.evaluation.report_tables import baseline_of, comparisons, estimates, over_seeds, series_of
from structure_aligned.evaluation.statistics import holm
from structure_aligned.utils.files import atomic_file


PRIMARY = ("contacts", "all_P@L")
MAIN = [
    PRIMARY,
    ("contacts", "long_P@L"),
    ("contacts", "long_P@L/5"),
    ("contacts", "paper_P@L/5"),
    ("pair_head", "all_P@L"),
    ("pair_head", "long_P@L"),
    ("fitness", "spearman"),
    ("perplexity", "log_perplexity"),
    ("secondary_structure", "secondary_structure"),
    ("probes", "secondary_structure"),
    ("probes", "structure_tokens"),
    ("probes", "silhouette"),
    ("probes", "knn_purity"),
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--base", default="base")
    parser.add_argument("--control", default="mlm_only")
    parser.add_argument("--aligned", default="aligned")
    parser.add_argument("--rows", action="store_true", help="one row per model instead")
    parser.add_argument("--plot", type=Path, help="also draw the main metrics here")
    parser.add_argument(
        "--metrics", nargs="+", default=["all_P@L", "long_P@L"], help="columns of contacts, with --rows"
    )
    return parser.parse_args()


def find(rows, metric, name):
    """The rows of one metric (several, where a task has several tables) and series."""
    return [row for row in rows if (row["task"], row["key"]) == metric and row["series"] == name]


def number(value):
    return "" if value is None else f"{value:.3f}"


def p_value(value):
    return "" if value is None else f"{value:.1g}"


def interval(row):
    sign = "×" if row["logarithm"] else ""
    plus = "" if row["logarithm"] else "+"
    bounds = ", ".join(f"{row[name]:{plus}.3f}" if row[name] is not None else "?" for name in ("low", "high"))
    return f"{sign}{row['difference']:{plus}.3f} [{bounds}], {p_value(row['holm'])}"


def main_table(results, names, arguments):
    series = series_of(names)
    base, control, aligned = (
        baseline_of(names, name) for name in (arguments.base, arguments.control, arguments.aligned)
    )
    to_base, to_control = (comparisons(results, series, one) for one in (base, control))
    # Of this table, whose rows were chosen before; not of everything that a report computes.
    shown = [row for metric in MAIN for rows in (to_base, to_control) for row in find(rows, metric, aligned.name)]
    for row, corrected in zip(shown, holm([row["p"] for row in shown])):
        row["holm"] = float(corrected)
    seeds, alone = over_seeds(results, series), estimates(results, series)

    def spread(metric, one, table):
        if len(one.members) == 1:
            return number(next(row["value"] for row in find(alone, metric, one.name) if row["table"] == table))
        row = next(row for row in find(seeds, metric, one.name) if row["table"] == table)
        return f"{number(row['mean'])} ± {number(row['sd'])}"

    yield f"| | {base.name} | {control.name} | {aligned.name} | aligned − base | aligned − control |"
    yield "|---|---|---|---|---|---|"
    for metric in MAIN:
        for row in find(to_base, metric, aligned.name):
            other = next(one for one in find(to_control, metric, aligned.name) if one["table"] == row["table"])
            label = row["label"].replace("|", "\\|")
            label = f"**{label}**" if metric == PRIMARY else label
            cells = [spread(metric, one, row["table"]) for one in (base, control, aligned)]
            yield f"| {label} | {' | '.join(cells)} | {interval(row)} | {interval(other)} |"


def row_table(results, names, arguments):
    base = baseline_of(names, arguments.base)
    series = series_of(names)
    compared, alone = comparisons(results, series, base), estimates(results, series)
    metrics = [("contacts", key) for key in arguments.metrics]
    labels = {metric: next(row["label"] for row in alone if (row["task"], row["key"]) == metric) for metric in metrics}
    yield "| model | " + " | ".join(f"{labels[metric]} | minus {base.name}" for metric in metrics) + " |"
    yield "|---" * (1 + 2 * len(metrics)) + "|"
    for one in series:
        cells = []
        for metric in metrics:
            (value,) = find(alone, metric, one.name)
            found = find(compared, metric, one.name)
            cells += [f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"]
            cells += [interval(found[0] | {"holm": found[0]["p"]}) if found else ""]
        yield f"| {one.name} | {' | '.join(cells)} |"


PLOTTED = [
    (PRIMARY, "contacts, attention, P@L ≥ 6"),
    (("contacts", "paper_P@L/5"), "contacts, attention, P@L/5 ≥ 7"),
    (("pair_head", "all_P@L"), "contacts, hidden states, P@L ≥ 6"),
    (("probes", "secondary_structure"), "secondary structure, probe"),
    (("probes", "structure_tokens"), "3Di tokens, probe"),
]


def plot(results, names, arguments):
    from matplotlib.figure import Figure

    alone = estimates(results, series_of(names))
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    groups = [arguments.base, arguments.control, arguments.aligned]
    for axes, (metric, label) in zip(figure.subplots(1, len(PLOTTED)), PLOTTED):
        for place, (group, colour) in enumerate(zip(groups, ("#8a8a8a", "#4c78a8", "#d1662a"))):
            for name in names:
                if name.rpartition("#")[0] == group or name == group:
                    (row,) = find(alone, metric, name)
                    shift = 0.18 * (int(name.rpartition("#")[2]) - 1) if "#" in name else 0.0
                    error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
                    axes.errorbar(place + shift, row["value"], error, fmt="o", ms=5, color=colour, capsize=2)
        axes.set_xticks(range(3), ["base", "MLM only", "aligned"], fontsize=8)
        axes.set_xlim(-0.5, 2.5)
        axes.set_title(label, fontsize=8.5)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("one dot per seed, with the 95 % interval over proteins", fontsize=8)
    with atomic_file(arguments.plot) as file:
        figure.savefig(file, dpi=130)


def main():
    arguments = parse_arguments()
    report = json.loads(arguments.report.read_text())
    if arguments.plot:
        plot(report["results"], list(report["models"]), arguments)
    table = row_table if arguments.rows else main_table
    print("\n".join(table(report["results"], list(report["models"]), arguments)))


if __name__ == "__main__":
    main()

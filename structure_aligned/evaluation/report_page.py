"""The page of a report: one HTML file that needs no other, the summary first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .contacts import CONTACT_RANGES
from .report_plots import Picture
from .report_style import CSS
from .report_text import MISSING, difference, duration, interval, number, p_value


Cell = tuple[str, str]
"""A cell's class and its HTML."""

_VERDICTS = {"better": "▲ better", "worse": "▼ worse", "identical": "= identical"}
_MANY, _ALSO_SHOWN = 8, {f"{name}_P@L" for name in CONTACT_RANGES}
_WIDE = {"fitness", "perplexity", "probes", "secondary_structure"}

_HOW_TO_READ = """
<p>Every model saw the same proteins, and the <em>unit is the protein</em> (the assay, for effects of mutations): its
residues are not independent of each other. <b>Difference</b> is the other model minus the baseline, on the proteins
that both have a value for; for perplexities, where less is better, it is a ratio (×0.95 is 5 % less). The <b>95 %
interval</b> says how far the mean difference would vary with other proteins of the same kind (bootstrap, 9,999
resamples); one that holds 0 (×1) is no evidence for a difference. <b>p</b> is of a paired permutation test,
two-sided. <b>Holm p</b> is corrected for the number of rows of its table: below 0.05 the verdict says better or worse.
Which metrics are in the summary was fixed before any result was seen.</p>
""".strip()

_EXPLANATIONS = {
    "contacts": "A logistic regression with L1 penalty on all attention maps, fitted anew for every model on the same "
    "training chains; contacts are pairs of residues with CB atoms (CA of glycine) less than 8 Å apart. P@L is the "
    "share of contacts among the L best-ranked pairs, L being the number of resolved residues.",
    "pair_head": "A small network on the hidden states of two residues, over the frozen model, as in the "
    "structure-alignment paper; fitted anew for every model on the same training chains.",
    "fitness": "Zero-shot: how well the model's log-odds of mutant against wild type rank the measured effects. No "
    "model was trained on any of these assays.",
    "perplexity": "exp of the mean −log p of residues that the model cannot see; less is better. Means are over "
    "proteins, each of which counts the same. The same residues were masked for every model.",
    "probes": "Logistic regressions on the last hidden state of the frozen model, fitted on the same training "
    "residues; and how well separated its embeddings are without any fitting.",
    "secondary_structure": "The same probe, on sequences whose secondary structure comes with them.",
    "tokens": "3Di structure tokens that the checkpoint's own alignment head gives for whole sequences.",
}


def render_page(
    report: Mapping[str, Any], plots: Mapping[str, Sequence[Picture]], why_no_plots: str | None = None
) -> str:
    """
    HTML of a report, self-contained: no scripts, no other files, no network.

    Args:
        report (`dict`): As [`evaluate_models`] makes it.
        plots (`dict`): Pictures by section, see [`draw_plots`].
        why_no_plots (`str`, *optional*): Shown where there are none.
    """
    others = [name for name in report["models"] if name not in report["series"][report["baseline"]]]
    title = f"{', '.join(others)} against {report['baseline']}" if others else f"Evaluation of {report['baseline']}"
    sections = [("summary", "Summary", _summary(report, why_no_plots))]
    if report["seeds"]:
        sections.append(("seeds", "Over seeds", _seeds(report)))
    for task, name in report["tasks"].items():
        if task in report["results"]:
            sections.append((task, name, _task(report, task, plots.get(task, ()))))
    if "differences" in plots:
        text = "<p>Each point is a protein (or assay). On the dashed line both models are equal.</p>"
        sections.append(("differences", "Protein by protein", text + _gallery(plots["differences"])))
    if report["comparisons"]:
        sections.append(("all", "All comparisons", _all(report)))
    sections.append(("run", "What was run", _run(report)))
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>\n{content}\n</section>'
        for name, heading, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{CSS}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">{_line_of_facts(report)}</p>
<nav>{links}</nav>
{body}
</body>
</html>
"""


def _line_of_facts(report: Mapping[str, Any]) -> str:
    inputs = report["run"]["inputs"]
    words = {"test_chains": "test chains", "assays": "mutation assays", "sequences": "natural sequences"}
    words["labelled"] = "labelled sequences"
    counts = [f"{inputs[part]['count']:,} {word}" for part, word in words.items() if part in inputs]
    return escape(f"{len(report['models'])} checkpoints; {', '.join(counts)}; {report['run']['date']}.")


def _summary(report: Mapping[str, Any], why_no_plots: str | None) -> str:
    parts = []
    if report["summary"]:
        parts.append(
            _comparison_table(report["summary"], several=len({row["series"] for row in report["summary"]}) > 1)
        )
    else:
        parts.append("<p>There is only one model, and nothing to compare it with: see the values below.</p>")
    parts.append(_HOW_TO_READ)
    parts += [f'<p class="problem">{escape(problem)}</p>' for problem in _problems(report)]
    notes = [
        *(f"{report['tasks'][task]}: left out, {reason}." for task, reason in report["left_out"].items()),
        *(
            f"{report['tasks'][task]}: not for {name}, {reason}."
            for task, reasons in report["not_possible"].items()
            for name, reason in reasons.items()
        ),
    ]
    if why_no_plots:
        notes.append(why_no_plots)
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    return "\n".join(parts)


def _problems(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{report['tasks'][task]} failed for {name}: {reason}"
        for task, reasons in report["failed"].items()
        for name, reason in reasons.items()
    ]


def _comparison_table(rows: Sequence[Mapping[str, Any]], several: bool) -> str:
    header = [("", "Metric")]
    if several:
        header.append(("", "Model"))
    header.append(("", "Verdict"))
    header += [("number", escape(rows[0]["baseline"])), ("number", "Other" if several else escape(rows[0]["series"]))]
    header += [("number", name) for name in ("Difference [95 % interval]", "p", "Holm p")]
    header.append(("number", "n"))
    lines = []
    for row in rows:
        line: list[Cell] = [("", escape(row["label"]) + (" ↓" if not row["higher"] else ""))]
        if several:
            line.append(("", escape(row["series"])))
        line.append(_verdict(row))
        change = MISSING if row["difference"] is None else difference(row)
        if row["low"] is not None:
            change += f" [{interval(row, row['logarithm'])}]"
        line += [("number", number(row["base"])), ("number", number(row["other"])), ("number", change)]
        line += [("number", p_value(row["p"])), ("number", p_value(row["holm"]))]
        left_out = f'<span class="why">{row["dropped"]} undefined</span>' if row["dropped"] else ""
        lines.append([*line, ("number", f"{row['n']}{left_out}")])
    return _table(header, lines) + '<p class="soft">↓ less is better. n: proteins (assays) compared.</p>'


def _verdict(row: Mapping[str, Any]) -> Cell:
    kind = row["verdict"] if row["verdict"] in ("better", "worse") else "neutral"
    text = MISSING if row["verdict"] == "undefined" else _VERDICTS.get(row["verdict"], row["verdict"])
    why = f'<span class="why">{escape(row["why"])}</span>' if row["why"] else ""
    return "verdict", f'<span class="{kind}">{escape(text)}</span>{why}'


def _seeds(report: Mapping[str, Any]) -> str:
    header = [("", "Metric"), ("", "Model"), ("number", "Mean ± standard deviation over seeds")]
    lines = []
    for row in report["seeds"]:
        value = MISSING if row["mean"] is None else f"{number(row['mean'])} ± {number(row['sd'])}"
        why = f'<span class="why">{escape(row["why"])}</span>' if row["why"] else ""
        lines.append([("", escape(row["label"])), ("", escape(row["series"])), ("number", value + why)])
    text = (
        "<p>How much a result depends on the random numbers of training. Above, seeds of one model are also compared "
        "as one, by the mean of each protein's values.</p>"
    )
    return text + _table(header, lines)


def _task(report: Mapping[str, Any], task: str, pictures: Sequence[Picture]) -> str:
    rows = [row for row in report["estimates"] if row["task"] == task]
    names = [name for name in report["series"] if any(row["series"] == name for row in rows)]
    guessing = any(row["guessing"] is not None for row in rows)
    header = [("", "Metric"), *(("number", escape(name)) for name in names)]
    header += [("number", "Guessing")] if guessing else []
    lines, firsts = [], []
    for key in dict.fromkeys((row["table"], row["key"]) for row in rows):
        own = {row["series"]: row for row in rows if (row["table"], row["key"]) == key}
        first = next(iter(own.values()))
        firsts.append(first)
        label = first["label"] + ("" if first["higher"] else " ↓")
        line: list[Cell] = [("", escape(label)), *(("number", _estimate(own[name])) for name in names)]
        if guessing:
            line.append(("number", number(first["guessing"])))
        lines.append(line)
    parts = [f"<p>{escape(_EXPLANATIONS.get(task, ''))}</p>", _settings(report, task)]
    shown = [line for line, first in zip(lines, firsts) if first["headline"] or first["key"] in _ALSO_SHOWN]
    parts.append(_table(header, shown if len(lines) > _MANY else lines))
    if len(lines) > _MANY:
        parts.append(f"<details><summary>All {len(lines)} metrics</summary>{_table(header, lines)}</details>")
    parts.append('<p class="soft">Mean over proteins or assays, below it the 95 % interval; n: how many have one.</p>')
    if task == "fitness":
        parts.append(_assays(report))
    maps = [picture for picture in pictures if not picture.caption]
    plots = [picture for picture in pictures if picture.caption]
    if plots:
        parts.append(_gallery(plots, wide=task in _WIDE))
    if maps:
        parts.append(
            "<h3>Contact maps</h3><p>Above the diagonal the predicted probability, below it the contacts of the "
            "structure, on one colour scale; grey is unresolved or nearer than six residues. Proteins were chosen by "
            "length alone.</p>"
            + "".join(
                _gallery([one for one in maps if one.group == group])
                for group in dict.fromkeys(picture.group for picture in maps)
            )
        )
    return "\n".join(parts)


def _estimate(row: Mapping[str, Any]) -> str:
    undefined = f", {row['undefined']} undefined" if row["undefined"] else ""
    between = f"{interval(row)}; " if row["low"] is not None else ""
    why = f"<br>{escape(row['why'])}" if row["why"] else ""
    return f'{number(row["value"])}<span class="why">{between}n&nbsp;=&nbsp;{row["n"]}{undefined}{why}</span>'


def _settings(report: Mapping[str, Any], task: str) -> str:
    first = next(iter(report["results"][task].values()))
    parts = []
    if first.get("fitted_on"):
        parts.append(f"Fitted on {len(first['fitted_on'])} training proteins.")
    if first.get("attention_heads"):
        kept = ", ".join(f"{name} {result['attention_heads']}" for name, result in report["results"][task].items())
        parts.append(f"Attention heads that the penalty left in the regression: {kept}.")
    if first.get("position_fraction"):
        sets = {"structures": "the test chains", "natural": "the natural sequences"}
        shares = ", ".join(
            f"{100 * share:.2g} % of {sets[name]}" for name, share in first["position_fraction"].items()
        )
        parts.append(f"Residues masked one by one: {shares}, drawn by seed, at least one of each protein.")
    if first.get("strategy"):
        parts.append(f"Strategy: {first['strategy']}.")
    return f'<p class="soft">{escape(" ".join(parts))}</p>' if parts else ""


def _assays(report: Mapping[str, Any]) -> str:
    results = report["results"]["fitness"]
    tables = {name: {row["id"]: row for row in result["tables"]["fitness"]} for name, result in results.items()}
    header = [("", "Assay"), ("number", "Residues"), ("number", "Mutants")]
    header += [("number", f"Spearman, {escape(name)}") for name in tables]
    lines = []
    for assay, first in next(iter(tables.values())).items():
        line: list[Cell] = [("", escape(assay)), ("number", str(first["num_residues"])), ("number", f"{first['n']:,}")]
        for table in tables.values():
            row = table.get(assay, {})
            why = row.get("undefined", {}).get("spearman") if row.get("spearman") is None else None
            note = f'<span class="why">{escape(why)}</span>' if why else ""
            line.append(("number", number(row.get("spearman")) + note))
        lines.append(line)
    return f"<details><summary>All {len(lines)} assays</summary>{_table(header, lines)}</details>"


def _all(report: Mapping[str, Any]) -> str:
    count = sum(row["p"] is not None for row in report["comparisons"])
    rows = report["comparisons"]
    several = len({row["series"] for row in rows}) > 1
    text = f"<p>Every metric; Holm's correction is over the {count} tests of this table, so it is stricter here.</p>"
    return f"{text}<details><summary>{len(rows)} comparisons</summary>{_comparison_table(rows, several)}</details>"


def _run(report: Mapping[str, Any]) -> str:
    run = report["run"]
    header = [("", "Name"), ("", "Checkpoint"), ("", "Family"), ("number", "Parameters"), ("", "Run in")]
    header += [("", "Digest of the weights"), ("", "Digest of the trunk"), ("", "Aligned with pGNN")]
    models = []
    for name, facts in report["models"].items():
        code = [
            f"<code>{escape((facts[key] or MISSING)[:16])}</code>"
            for key in ("digest", "trunk_digest", "aligned_with")
        ]
        line: list[Cell] = [("", escape(name)), ("break", f"<code>{escape(facts['path'])}</code>")]
        line += [
            ("", escape(facts["model_type"])),
            ("number", f"{facts['parameters']:,}"),
            ("", escape(facts["dtype"])),
        ]
        models.append([*line, *(("", one) for one in code)])
    times = []
    for task, results in report["results"].items():
        for name, result in results.items():
            line = [("", escape(report["tasks"][task])), ("", escape(name)), ("number", duration(result["seconds"]))]
            times.append([*line, ("", escape(result["date"])), ("", escape(result["hardware"]))])
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    inputs = [
        [
            ("", escape(part.replace("_", " "))),
            ("number", f"{facts['count']:,}"),
            ("", f"<code>{facts['digest'][:16]}</code>"),
        ]
        for part, facts in run["inputs"].items()
    ]
    options = [
        [("", f"<code>{escape(name)}</code>"), ("", escape("not set" if value is None else str(value)))]
        for name, value in run["options"].items()
    ]
    budgets = ", ".join(f"{name} {tokens:,} tokens" for name, tokens in run["budgets"].items())
    parts = [
        f"<p>{escape(versions)}; code <code>{run['code'][:16]}</code>. {escape(run['hardware'])}.</p>",
        f"<pre><code>{escape(run['command'])}</code></pre>" if run["command"] else "",
        "<h3>Checkpoints</h3>" + _table(header, models),
        "<h3>Proteins</h3>"
        + _table([("", "Set"), ("number", "Count"), ("", "Digest")], inputs)
        + (f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in run['notes'])}</ul>" if run["notes"] else ""),
        "<h3>Options</h3>" + _table([("", "Option"), ("", "Value")], options),
        f'<p class="soft">Read by one model: {escape(budgets)}, at most about.</p>',
        "<h3>Time</h3>"
        + _table([("", "Task"), ("", "Model"), ("number", "Took"), ("", "When"), ("", "On")], times)
        + '<p class="soft">Models with the same weights share one result.</p>',
    ]
    return "\n".join(part for part in parts if part)


def _table(header: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> str:
    head = "".join(f"<th{_class(kind)}>{content}</th>" for kind, content in header)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{_class(kind)}>{content}</td>" for kind, content in rest)
        lines.append(f'<tr><th scope="row">{first[1]}</th>{cells}</tr>')
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _gallery(pictures: Sequence[Picture], wide: bool = False) -> str:
    figures = []
    for picture in pictures:
        caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
        image = f'<img src="data:image/png;base64,{picture.png}" alt="{escape(picture.alt)}">'
        figures.append(f"<figure>{image}{caption}</figure>")
    return f'<div class="{"wide" if wide else "gallery"}">{"".join(figures)}</div>'

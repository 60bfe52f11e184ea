"""Facts about a run, in the words of a model card. What is not known is said to be unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..utils.names import markdown_cell as _cell
from .results import TRAINER_TITLE, ResultTable
from .run_facts import RunFacts
from .template import CITATIONS, TEMPLATE


UNKNOWN = "not known"
FAMILIES = {"esm": "ESM2", "AMPLIFY": "AMPLIFY"}

_EVALUATIONS = {
    "contact": "contact prediction",
    "mutation": "effects of mutations",
    "perplexity": "pseudo-perplexity",
    "secondary structure": "secondary structure",
}
"""Tasks that a card names as not measured where no result mentions the word."""

_SNIPPET = """\
```python
{imports}from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer("MSVVGIDLGFQSCYVAV", return_tensors="pt")
outputs = model(**inputs, output_hidden_states=True)
outputs.logits  # (1, tokens, vocabulary)
outputs.hidden_states[-1]  # (1, tokens, width): a representation of every residue, special tokens included
```"""

_ADAPTER_SNIPPET = """\
```python
from structure_aligned import export_trunk

export_trunk("{name}", "merged")  # adapters merged into the model that they adapt; then as any other checkpoint
```"""


def render(facts: RunFacts, tables: Sequence[ResultTable] = (), recipe: str | None = None) -> ModelCard:
    """The card, with its metadata, of a trained model or (with `recipe`, its text) of one that is not there."""
    name = facts.name or "model"
    card = ModelCard.from_template(
        metadata(facts, tables, recipe is not None),
        template_str=TEMPLATE,
        table=_table,
        name=name,
        family=FAMILIES.get(facts.model_type or "", facts.model_type or f"family {UNKNOWN}"),
        recipe=recipe,
        finished=facts.run.get("finished", True),
        step=facts.run.get("steps", UNKNOWN),
        about=_about(facts, recipe is not None),
        snippet=_snippet(facts, name if recipe is None else f"outputs/{name}"),
        usage=_usage(facts, name if recipe is None else f"outputs/{name}"),
        run=_run(facts),
        data=_data(facts),
        arguments=_arguments(facts),
        versions=", ".join(f"{package} {number}" for package, number in facts.versions.items())
        or UNKNOWN.capitalize(),
        results=_results(tables, recipe is not None),
        limits="\n".join(f"* {one}" for one in _limits(facts, tables, recipe is not None)),
        licence=_licence(facts),
        citation=_citation(facts),
    )
    # Jinja leaves the lines of its statements empty.
    return ModelCard(re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n")


def metadata(facts: RunFacts, tables: Sequence[ResultTable] = (), recipe: bool = False) -> ModelCardData:
    """The block that the hub reads. No language: amino acids are none."""
    family = {"esm": "esm2", "AMPLIFY": "amplify"}.get(facts.model_type or "")
    tags = ["protein-language-model", "structure-aligned", *([family] if family else []), *(["recipe"] * recipe)]
    results = [
        EvalResult(
            task_type="fill-mask",
            task_name=row.task,
            dataset_type="protein-structures",
            dataset_name=row.dataset,
            metric_type=row.key or row.metric,
            metric_name=row.metric,
            metric_value=row.value,
        )
        for table in tables
        for row in table.rows
        if math.isfinite(row.value)
    ]
    found = {"eval_results": results, "model_name": facts.name or "model"} if results else {}
    return ModelCardData(
        base_model=facts.base_model,
        license=facts.license or "unknown",
        library_name="peft" if facts.adapters else "transformers",
        pipeline_tag="fill-mask",
        tags=tags,
        **found,
    )


def _about(facts: RunFacts, recipe: bool) -> dict[str, Any]:
    heads = facts.head_parameters
    rows = {
        "base model": facts.base_note or (f"`{facts.base_model}`" if facts.base_model else UNKNOWN),
        "parameters": None if facts.parameters is None else f"{facts.parameters:,}",
        "of the alignment heads on top": None if heads is None else f"{heads:,}" if heads else "none in this folder",
        "pGNN": f"`{facts.pgnn}`" if facts.pgnn else None,
        "width of the pGNN's embeddings": facts.structure_dim,
        "reference model": facts.reference,
    }
    if facts.adapters:
        rows["adapters"] = facts.adapters
    # What only a trained model has is not unknown of a recipe: there is none.
    return {name: value for name, value in rows.items() if value is not None or not recipe}


def _snippet(facts: RunFacts, name: str) -> str:
    if facts.adapters:
        return _ADAPTER_SNIPPET.format(name=name)
    imports = "import structure_aligned  # makes the Auto classes know AMPLIFY\n" * (facts.model_type == "AMPLIFY")
    return _SNIPPET.format(name=name, imports=imports)


def _usage(facts: RunFacts, name: str) -> str:
    aligned = (
        "The alignment heads (3Di tokens, projections) are in the folder too, under `alignment.*`, which plain "
        f'Transformers passes over: `structure_aligned.AutoModelForStructureAlignment.from_pretrained("{name}")`.'
    )
    if facts.adapters:
        return "The folder holds adapters and alignment heads, and needs the base model."
    if facts.model_type == "AMPLIFY":
        first = "AMPLIFY is not part of Transformers; with `structure_aligned` no remote code is needed."
    elif facts.model_type == "esm":
        first = "Neither `structure_aligned` nor remote code is needed."
    else:
        first = f"The family of this model is {UNKNOWN}."
    return f"{first} {aligned}" if facts.head_parameters != 0 else first


def _run(facts: RunFacts) -> dict[str, Any]:
    run = facts.run
    hours, resumed = run.get("hours"), run.get("resumed_at")
    steps = run.get("steps")
    if steps is not None and run.get("max_steps"):
        steps = f"{steps:,} of {run['max_steps']:,}"
    time = None if hours is None else f"{hours:.2f} hours" if hours >= 0.1 else f"{3600 * hours:.1f} seconds"
    if resumed and time is not None:
        time += f" since it was resumed at update {resumed:,}; before that {UNKNOWN}"
    return {
        "updates": steps,
        "epochs": run.get("epochs"),
        "update whose weights were kept": run.get("kept_step"),
        "time": time,
        "processes": run.get("processes"),
        "hardware of a process": run.get("hardware"),
        "tokens to which longer proteins were cropped": facts.max_length,
        "date": run.get("date"),
    }


def _data(facts: RunFacts) -> str:
    if not facts.data:
        return f"Which data it was trained on is {UNKNOWN}."
    columns = ("chains", "residues", "predicted", "synthetic", "fingerprint")
    lines = ["| split | chains | residues | predicted structures | synthetic folds | fingerprint |"]
    lines += ["|---|---:|---:|---:|---:|---|"]
    for split, found in facts.data.items():
        lines.append(f"| {_cell(split)} | {' | '.join(_number(found.get(column)) for column in columns)} |")
    build = facts.build
    if build:
        left_out = ", ".join(f"{_cell(reason)}: {count:,}" for reason, count in (build.get("left_out") or {}).items())
        lines += ["", f"Built from {_number(build.get('files'))} files with {_number(build.get('chains'))} chains."]
        lines += [f"Files and chains that were left out, by reason: {left_out or 'none'}."]
    else:
        lines += [
            "",
            f"What was left out of the dataset is {UNKNOWN}: no build_report.json lay beside it.",
        ]
    if facts.splits:
        asked = ", ".join(
            f"{_cell(name)} = {_cell(value)}" for name, value in facts.splits.items() if value is not None
        )
        lines += ["", f"Splits were made by `split_chains`: {asked}."]
    else:
        lines += ["", f"How the splits were made, and whether chains of two splits are related, is {UNKNOWN}."]
    return "\n".join(lines)


def _arguments(facts: RunFacts) -> str:
    if not facts.arguments:
        return f"{UNKNOWN.capitalize()}."
    lines = ["| argument | value | default |", "|---|---:|---:|"]
    for name, found in facts.arguments.items():
        value, default = _cell(found["value"]), _cell(found["default"])
        same = (found["value"] or None) == (found["default"] or None)
        lines.append(f"| `{name}` | {value} | {'' if same else default} |")
    return "\n".join(lines)


def _results(tables: Sequence[ResultTable], recipe: bool) -> str:
    if recipe:
        return "No training was run for this card; there are no results."
    if not tables:
        return "No result of this model has been measured, or none was given to this card."
    return "\n\n".join(table.markdown() for table in tables)


def _limits(facts: RunFacts, tables: Sequence[ResultTable], recipe: bool) -> list[str]:
    measured = " ".join(f"{row.task} {row.metric}" for table in tables for row in table.rows).lower()
    missing = [label for word, label in _EVALUATIONS.items() if word not in measured]
    limits = []
    if missing and not recipe:
        limits.append(f"Not measured in this card: {', '.join(missing)}. Nothing is claimed about them.")
    limits.append(_bias(facts, recipe))
    validated = any(table.title == TRAINER_TITLE for table in tables)
    if validated and not facts.splits:
        limits.append(
            "Whether chains of the validation split have relatives in the training set is not known; if so, its "
            "figures say little about new proteins."
        )
    if validated and (facts.arguments.get("load_best_model_at_end") or {}).get("value"):
        limits.append("The validation split also decided which checkpoint was kept, so its figures flatter the model.")
    limits += [
        "The training sees single chains without partners, ligands or water, and one conformation of each.",
        "Structure tasks can cost some masked language modelling; compare pseudo-perplexity with the base model.",
        "A prediction from sequence is no experiment. The model was not tested for clinical use.",
    ]
    return limits


def _bias(facts: RunFacts, recipe: bool) -> str:
    solved = (
        "Experimental structures are those of proteins that could be solved: ordered, soluble and much-studied ones; "
        "disordered residues have no coordinates and teach nothing about structure."
    )
    train = facts.data.get("train", {})
    chains, predicted, synthetic = (train.get(name) for name in ("chains", "predicted", "synthetic"))
    if recipe:
        return solved
    if not chains or predicted is None:
        return f"What structures it was trained on is {UNKNOWN}, and so is its bias. {solved}"
    if synthetic:
        return (
            f"{synthetic:,} of {chains:,} training chains are synthetic folds of ideal geometry: what was learnt from "
            "them says nothing about natural proteins."
        )
    if predicted:
        wrong = f"{predicted:,} of {chains:,} training structures are predictions, whose errors it learnt too."
        return wrong if predicted == chains else f"{wrong} {solved}"
    return solved


def _licence(facts: RunFacts) -> str:
    base = f"`{facts.base_model}`" if facts.base_model else "the base model"
    if facts.license is None:
        return f"The licence of {base} is {UNKNOWN} here. Find out before you use or share this model."
    return (
        f"`{facts.license}`, as of {base}. Structures and pGNN weights have terms of their own, which this card does "
        "not judge."
    )


def _citation(facts: RunFacts) -> str:
    pgnn = (facts.pgnn or "").partition(":")[0]
    keys = ["method", facts.model_type, pgnn, "Foldseek"]
    return "\n".join(["```bibtex", "\n\n".join(CITATIONS[key] for key in keys if key in CITATIONS), "```"])


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(UNKNOWN if value is None else value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _number(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"

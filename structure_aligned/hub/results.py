"""Results that a model card may state: those of JSON files in the model's folder, each number with its file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.features import file_digest
from ..training.report import METRICS
from ..utils.files import read_json
from ..utils.names import markdown_cell as _cell


RESULTS_FOLDER = "results"
EVAL_FILE = "eval_results.json"
TRAINER_TITLE = "Validation split"
BEFORE_FILE = "before_training_results.json"
MAJORITY = "eval_token_accuracy_majority"
"""In `eval_results.json`: the accuracy of always predicting the most frequent 3Di token."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_FILE = re.compile(r"\[`([^`]+)`\]\([^()]*\) \(SHA-256 `([0-9a-f]{64})`\)")
_SECTION = re.compile(r"^## Results\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CardResult:
    """
    One measured number.

    Args:
        task, dataset, metric (`str`): In words.
        value (`float`): As measured.
        interval (`tuple[float, float]`, *optional*): 95 %.
        others (`dict`): Further numbers of the row, by column.
        key (`str`, *optional*): Identifier of the metric for machines; by default its name.
    """

    task: str
    dataset: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    others: dict[str, float | None] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True)
class ResultTable:
    """Results that come from the same files, with these files and their digests."""

    title: str
    files: dict[str, str]
    rows: list[CardResult]
    note: str = ""

    def columns(self) -> list[str]:
        names = list(dict.fromkeys(name for row in self.rows for name in row.others))
        names = [name for name in names if any(row.others.get(name) is not None for row in self.rows)]
        return (["95 % interval"] if any(row.interval for row in self.rows) else []) + names

    def markdown(self) -> str:
        columns = self.columns()
        sources = " and ".join(f"[`{name}`]({name}) (SHA-256 `{digest}`)" for name, digest in self.files.items())
        lines = [f"### {_cell(self.title)}", "", f"From {sources}.{' ' + self.note if self.note else ''}", ""]
        lines += [f"| metric | value | {' | '.join(map(_cell, columns))} |" if columns else "| metric | value |"]
        lines += ["|---|" + "---:|" * (1 + len(columns))]
        for row in self.rows:
            cells = [shown(row.value)]
            for name in columns:
                if name == "95 % interval" and name not in row.others:
                    cells.append("" if row.interval is None else " to ".join(map(shown, row.interval)))
                else:
                    cells.append(shown(row.others.get(name)))
            label = f"{row.task}: {row.metric}" if row.task not in (self.title, row.metric) else row.metric
            lines.append(f"| {_cell(label)} | {' | '.join(cells)} |")
        return "\n".join(lines)


def shown(value: float | None) -> str:
    """A number as the card prints it: four decimals, counts as they are, nothing for what is not there."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"


def read_table(folder: str | os.PathLike, names: Iterable[str], model: str | None = None) -> ResultTable:
    """
    The results in JSON files of a model's folder: one of the Trainer's metrics (with that of before the training), a
    list of results, or an evaluation's report.

    A list has one `{"task", "dataset", "metric", "value"}` for each result and, optionally, its 95 % `"interval"`
    `[low, high]`; it may be the whole file or its `"results"`.

    Args:
        names (`Iterable[str]`): Of the files, relative to `folder`; the second is that of before the training.
        model (`str`, *optional*): What a report calls the model.

    Raises:
        ValueError: A file is missing, no JSON, or of another form.
    """
    names = list(names)
    contents = {name: _read(Path(folder), name) for name in names}
    files = {name: file_digest(Path(folder) / name) for name in names}
    main = contents[names[0]]
    if isinstance(main, Mapping) and "estimates" in main:
        return _report_table(names[0], main, files, model)
    if isinstance(main, Mapping) and any(name.startswith("eval_") for name in main):
        return _trainer_table(main, contents[names[1]] if len(names) > 1 else {}, files)
    listed = main.get("results") if isinstance(main, Mapping) else main
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f"{names[0]} holds no results that are known here; expected metrics of Trainer.evaluate, the report.json "
            'of an evaluation, or a list of {"task", "dataset", "metric", "value", "interval"}.'
        )
    return ResultTable("Evaluation", files, [_listed(names[0], item) for item in listed])


def named_files(text: str) -> list[str]:
    """Files of results that a card names."""
    return [name for name, _ in _FILE.findall(text)]


def check_results(folder: str | os.PathLike, text: str, values: Iterable[float] = ()) -> None:
    """
    Raises `ValueError` where a card states results without their file.

    Args:
        folder (`str` or `os.PathLike`): Of the model.
        text (`str`): Of the card: every table of its section "Results" must name its files and their digests, and
            every number in it must be in one of them, up to rounding.
        values (`Iterable[float]`): Of the card's metadata; must be in the files exactly.
    """
    every: set[float] = set()
    section = _SECTION.search(text)
    for part in re.split(r"^### ", section[1] if section else "", flags=re.MULTILINE):
        rows = [line for line in part.splitlines() if line.startswith("|")][2:]
        numbers: set[float] = set()
        for name, digest in _FILE.findall(part):
            path = Path(folder) / name
            if not path.is_file():
                raise ValueError(f"The card states results of {name}, which is not in {folder}; write the card again.")
            if file_digest(path) != digest:
                raise ValueError(
                    f"The card states results of {name} with the SHA-256 {digest[:12]}…, but that file has changed; "
                    "write the card again."
                )
            numbers |= set(_numbers(read_json(path)))
        rounded: dict[str, set[str]] = {}  # by the way in which the card prints them
        for row in rows:
            for text_of_number in _NUMBER.findall(" ".join(row.strip("|").split(" | ")[1:])):
                form = _form_of(text_of_number)
                if form not in rounded:
                    rounded[form] = {f"{number:{form}}" for number in numbers}
                if text_of_number.removeprefix("+") not in rounded[form]:
                    raise ValueError(
                        f"The card states {text_of_number} in {row!r}, a number that is in none of the files that it "
                        "names; results come from files only."
                    )
        every |= numbers
    for value in values:
        if value not in every:
            raise ValueError(f"The card's metadata state {value}, which is in none of the files that the card names.")


def _trainer_table(after: Mapping[str, Any], before: Mapping[str, Any], files: dict[str, str]) -> ResultTable:
    guessing = {"token_accuracy": MAJORITY, "retrieval_at_1": "eval_retrieval_chance"}
    rows = []
    for name in METRICS:
        if (key := f"eval_{name}") in after:
            others = {"before the training": before.get(key)} if before else {}
            others["guessing"] = after.get(guessing.get(name, ""))
            rows.append(CardResult(TRAINER_TITLE, "validation split", name, after[key], others=others))
    note = "Losses in nats per residue; guessing is the most frequent 3Di token, or a residue of the batch at random."
    return ResultTable(TRAINER_TITLE, files, rows, note)


def _report_table(name: str, report: Mapping[str, Any], files: dict[str, str], series: str | None) -> ResultTable:
    """The headline metrics, which the evaluation fixed beforehand, whichever way they went."""
    baseline = report.get("baseline")
    compared = {
        (row["task"], row["table"], row["key"]): row
        for row in report.get("summary") or ()
        if row["series"] == series and row["difference"] is not None
    }
    rows, others = [], 0
    for row in report["estimates"]:
        if row["series"] != series or row["value"] is None:
            continue
        if not row["headline"]:
            others += 1
            continue
        extra: dict[str, float | None] = {"n": row["n"], "guessing": row.get("guessing")}
        if (found := compared.get((row["task"], row["table"], row["key"]))) is not None:
            extra |= {f"{baseline}": found["base"], f"difference from {baseline}": None, f"ratio to {baseline}": None}
            extra[f"{'ratio to' if row['logarithm'] else 'difference from'} {baseline}"] = found["difference"]
            extra |= {"low": found["low"], "high": found["high"], "p (Holm)": found["holm"]}
        interval = None if row["low"] is None or row["high"] is None else (row["low"], row["high"])
        # Means of logarithms are stored as geometric means of what they are logarithms of.
        key = f"{row['task']}/{row['table']}/{row['key'].removeprefix('log_' if row['logarithm'] else '')}"
        label, dataset = row["label"], _dataset_of(report, row)
        rows.append(CardResult(label, dataset, label, row["value"], interval, extra, key))
    if not rows:
        raise ValueError(f"{name} has no headline result of {series!r}.")
    note = f"This model is `{series}` there; low and high bound the difference or ratio (95 %)."
    note += f" {others} more metrics are in the file." if others else ""
    return ResultTable("Evaluation", files, rows, note)


def _dataset_of(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Kind and digest of what was evaluated on, as far as the report says."""
    part = {"fitness": "assays", "secondary_structure": "labelled"}.get(row["task"], "test_chains")
    part = "sequences" if row["table"].startswith("natural") else part
    digest = (report.get("run", {}).get("inputs", {}).get(part) or {}).get("digest")
    return part.replace("_", " ") + (f" {digest[:12]}" if digest else ", not stated which")


def _listed(name: str, item: Any) -> CardResult:
    needed = ("task", "dataset", "metric", "value")
    if not isinstance(item, Mapping) or any(key not in item for key in needed):
        raise ValueError(f"{name} has the result {item!r}; expected a dict with {', '.join(needed)}.")
    value, interval = item["value"], item.get("interval")
    for number in (value, *(interval or ())):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{name} has the result {item!r}; expected finite numbers.")
    if interval is not None and len(interval) != 2:
        raise ValueError(f"{name} has the interval {interval!r}; expected [low, high].")
    texts = [str(item[key]) for key in needed[:3]]
    return CardResult(*texts, value, None if interval is None else tuple(interval))


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        raise ValueError(
            f"{name} is no file in {folder}. A card states results of files beside it only; add_results copies one."
        )
    return read_json(path)


def _numbers(content: Any) -> Iterable[float]:
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list):
        return [content] if isinstance(content, (int, float)) and not isinstance(content, bool) else []
    return [number for one in content for number in _numbers(one)]


def _form_of(text: str) -> str:
    """How to format a number with as many decimals as the text of one has."""
    mantissa, _, exponent = text.partition("e")
    return f".{len(mantissa.partition('.')[2])}{'e' if exponent else 'f'}"

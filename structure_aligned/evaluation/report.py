"""An evaluation of several checkpoints side by side: what is missing is computed, then all is put on one page."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import logging

from ..utils.files import write_text
from .report_inputs import EvaluationInputs, EvaluationOptions
from .report_models import LoadedCheckpoint, load_checkpoint
from .report_page import render_page
from .report_plots import draw_plots
from .report_store import ResultStore, code_version, to_json
from .report_tables import baseline_of, comparisons, estimates, over_seeds, series_of
from .report_tasks import DEFAULT_TASKS, TASKS, Task


logger = logging.get_logger(__name__)

_PACKAGES = ("structure-aligned", "torch", "transformers", "numpy", "scipy", "scikit-learn")


def evaluate_models(
    models: Mapping[str, str | os.PathLike],
    inputs: EvaluationInputs,
    output: str | os.PathLike,
    options: EvaluationOptions | None = None,
    tasks: Sequence[str] = DEFAULT_TASKS,
    baseline: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Evaluates checkpoints on the same proteins and writes `report.json` and `report.html`, which needs no other file.

    Each result lies in `results/` under a key of the weights, the inputs, the options and the code that it depends
    on, so that a run that was cut off, or is given one more model, computes only what is not there.

    Args:
        models (`dict[str, str]`): Folder or hub name of each checkpoint, whatever `AutoModelForMaskedLM` loads, by the
            name that the report calls it. Names that end in `#1`, `#2`, … are seeds of one model.
        inputs ([`EvaluationInputs`]): Of [`load_inputs`].
        output (`str` or `os.PathLike`): Folder to write to.
        options ([`EvaluationOptions`], *optional*): Those that `inputs` were made with.
        tasks (`Sequence[str]`, *optional*): Some of `TASKS`; those whose inputs are missing are left out and named.
        baseline (`str`, *optional*): What all others are compared with; by default the first model.
        device, dtype (*optional*, default to `"cpu"` and `torch.float32`): Of every model alike.
        command (`str`, *optional*): That started this, for the page.
        progress (`bool`, *optional*, defaults to `True`): Whether to show progress bars.

    Returns:
        `dict`: The content of `report.json`; `failed` names what could not be computed and why.

    Raises:
        ValueError: No models, an unknown task or baseline, or a checkpoint that cannot be evaluated.
    """
    options = EvaluationOptions() if options is None else options
    names, output = list(models), Path(output)
    if not names:
        raise ValueError("models is empty; expected at least one checkpoint by name.")
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"tasks has {unknown}; expected some of {', '.join(TASKS)}.")
    base = baseline_of(names, baseline)
    chosen = [TASKS[name] for name in dict.fromkeys(tasks)]
    left_out = {task.name: reason for task in chosen if (reason := task.lacking(inputs))}
    if len(left_out) == len(chosen):
        reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise ValueError(f"None of the tasks can be run: {reasons}.")
    run = _Run(inputs, options, ResultStore(output / "results"), device, dtype, progress)
    with tqdm(total=len(names) * len(chosen), desc="Evaluation", unit="task", disable=not progress) as bar:
        for name, path in models.items():
            run.model(name, str(path), [task for task in chosen if task.name not in left_out], bar)
    series = series_of(names)
    settings = {"seed": options.seed}
    report = {
        "models": {name: facts.as_dict() for name, facts in run.facts.items()},
        "baseline": base.name,
        "tasks": {task.name: task.title for task in chosen},
        "left_out": left_out,
        "not_possible": run.not_possible,
        "failed": run.failed,
        "summary": comparisons(run.results, series, base, headline=True, **settings),
        "comparisons": comparisons(run.results, series, base, **settings),
        "estimates": estimates(run.results, series, **settings),
        "seeds": over_seeds(run.results, series),
        "series": {one.name: one.members for one in series},
        "run": _description(command, device, run) | {"options": vars(options), "notes": inputs.notes},
        "results": {
            task: {name: {key: value for key, value in result.items() if key != "maps"} for name, result in of.items()}
            for task, of in run.results.items()
        },
    }
    plots, why_not = draw_plots(report, run.results, inputs, base)
    write_text(output / "report.json", to_json(report))
    write_text(output / "report.html", render_page(report, plots, why_not))
    return report


class _Run:
    """One evaluation: results by task and model, what each took, and what could not be done."""

    def __init__(
        self,
        inputs: EvaluationInputs,
        options: EvaluationOptions,
        store: ResultStore,
        device: str | torch.device,
        dtype: torch.dtype,
        progress: bool,
    ) -> None:
        self.inputs, self.options, self.store = inputs, options, store
        self.device, self.dtype, self.progress = device, dtype, progress
        self.facts: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.not_possible: dict[str, dict[str, str]] = {}
        self.failed: dict[str, dict[str, str]] = {}

    def model(self, name: str, path: str, tasks: Sequence[Task], bar: tqdm) -> None:
        bar.set_postfix_str(f"loading {name}")
        checkpoint = load_checkpoint(name, path, self.device, self.dtype)
        self.facts[name] = checkpoint.facts
        for task in tasks:
            bar.set_postfix_str(f"{task.name}, {name}")
            if reason := task.lacking_in(checkpoint):
                self.not_possible.setdefault(task.name, {})[name] = reason
            else:
                self._task(task, checkpoint)
            bar.update()

    def _task(self, task: Task, checkpoint: LoadedCheckpoint) -> None:
        depends_on = task.depends_on(checkpoint, self.inputs, self.options, code_version())
        try:
            result = self.store.get(task.name, depends_on, self._timed(task, checkpoint))
        except (ValueError, RuntimeError) as error:
            # Hours of other results must not be lost to one that fails; it is named on the page and not stored.
            logger.warning(f"{task.name} of {checkpoint.facts.name} failed: {error}")
            self.failed.setdefault(task.name, {})[checkpoint.facts.name] = f"{type(error).__name__}: {error}"
            return
        self.results.setdefault(task.name, {})[checkpoint.facts.name] = result

    def _timed(self, task: Task, checkpoint: LoadedCheckpoint) -> Callable[[], dict[str, Any]]:
        def compute() -> dict[str, Any]:
            start = time.monotonic()
            result = task.run(checkpoint, self.inputs, self.options, self.progress)
            measured = {
                "seconds": round(time.monotonic() - start, 2),
                "date": _now(),
                "hardware": hardware(self.device),
            }
            return result | measured

        return compute


def hardware(device: str | torch.device) -> str:
    """What a model ran on, in words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}: {platform.machine()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree that was never installed
        from .. import __version__

        return __version__ if package == "structure-aligned" else "unknown"


def _description(command: str | None, device: str | torch.device, run: _Run) -> dict[str, Any]:
    return {
        "date": _now(),
        "command": command,
        "hardware": hardware(device),
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES},
        "code": code_version(),
        "inputs": {
            part: {"count": sum(map(len, value.values())) if part == "labelled" else len(value), "digest": digest}
            for part, value in vars(run.inputs).items()
            if part != "notes" and value and (digest := run.inputs.digest(part))
        },
        "budgets": {name: run.options.budget(name) for name in ("perplexity", "fitness")},
        "computed": run.store.computed,
    }

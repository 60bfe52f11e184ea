"""What a training run changed, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from .running import LOSS_NAMES


METRICS = ("loss", *(f"{name}_loss" for name in LOSS_NAMES), "token_accuracy", "retrieval_at_1")


def majority_accuracy(dataset: datasets.Dataset) -> float:
    """Accuracy of always predicting the most frequent 3Di token of the dataset itself."""
    counts = np.zeros(256, dtype=np.int64)
    columns = dataset.with_format(None).select_columns(["structure_tokens", "structure_token_mask"])
    for row in columns:
        counts += np.bincount(
            np.asarray(row["structure_tokens"])[np.asarray(row["structure_token_mask"])], minlength=256
        )
    return float(counts.max() / counts.sum())


def comparison_table(
    before: dict[str, float], after: dict[str, float], dataset: datasets.Dataset, proteins: Sequence[Any] = ()
) -> str:
    """
    Markdown table of two results of [`StructureAlignmentTrainer.evaluate`], with what guessing gives: the majority
    class for tokens, one of the batch's residues for retrieval.

    Args:
        before, after (`dict[str, float]`): Of the whole of `dataset`, masked as in training.
        dataset (`datasets.Dataset`): That was evaluated.
        proteins (`Sequence[ProteinMetric]`, *optional*): Lines with intervals over proteins, the difference and the p
            value of a paired test, as [`compare_scores`] gives them.
    """
    guessing = {"token_accuracy": majority_accuracy(dataset), "retrieval_at_1": after.get("eval_retrieval_chance")}
    header = ["validation", "before", "after", "difference", "p", "guessing"]
    lines = []
    for metric in proteins:
        paired = metric.comparison
        low, high = f"{paired.low:+.3f}", f"{paired.high:+.3f}"
        cells = [_interval(metric.before), _interval(metric.after), f"{paired.difference:+.3f} ({low} to {high})"]
        lines.append([f"{metric.name} (n = {paired.n})", *cells, f"{paired.p:.2g}", f"{metric.guessing:.3f}"])
    for name in METRICS:
        if f"eval_{name}" in after:
            first, second = before[f"eval_{name}"], after[f"eval_{name}"]
            chance = f"{guessing[name]:.4f}" if guessing.get(name) is not None else ""
            lines.append([name, f"{first:.4f}", f"{second:.4f}", f"{second - first:+.4f}", "", chance])
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _interval(estimate: Any) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"

"""What a training run changed, as a table."""

from __future__ import annotations

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


def comparison_table(before: dict[str, float], after: dict[str, float], dataset: datasets.Dataset) -> str:
    """
    Markdown table of two results of [`StructureAlignmentTrainer.evaluate`], with what guessing gives: the majority
    class for tokens, one of the batch's residues for retrieval.
    """
    guessing = {"token_accuracy": majority_accuracy(dataset), "retrieval_at_1": after.get("eval_retrieval_chance")}
    lines = ["| validation | before | after | guessing |", "|---|---:|---:|---:|"]
    for name in METRICS:
        if f"eval_{name}" in after:
            chance = f"{guessing[name]:.4f}" if guessing.get(name) is not None else ""
            lines.append(f"| {name} | {before[f'eval_{name}']:.4f} | {after[f'eval_{name}']:.4f} | {chance} |")
    return "\n".join(lines)

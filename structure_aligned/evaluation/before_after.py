"""What a training run changed, protein by protein: contacts and 3Di tokens of some validation chains, twice."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..structure.chain import ProteinChain
from . import contact_heads
from .contact_heads import MIN_SEPARATION, ContactRegression
from .contact_prediction import evaluate_contacts
from .statistics import Comparison, Estimate, bootstrap_mean, compare
from .tokens import evaluate_structure_tokens
from .trunk_outputs import attention_shape


CONTACT_METRIC = "contacts P@L"
TOKEN_METRIC = "3Di token accuracy"

MAX_RESIDUES = 1022
"""Longer chains are not drawn: attention maps grow with the square of the length."""

MAX_FEATURES = 25_000_000
"""Numbers that the contact regression may be fitted on, pairs times attention heads: about 1 GB, and seconds."""


@dataclass(frozen=True)
class ProteinMetric:
    """
    One line of a before-and-after table.

    Args:
        name (`str`): Of the metric.
        before, after ([`Estimate`]): Means over the proteins, each with its interval.
        comparison ([`Comparison`]): After minus before, paired.
        guessing (`float`): What guessing gives on the same proteins: every pair equally likely, or the most frequent
            token.
    """

    name: str
    before: Estimate
    after: Estimate
    comparison: Comparison
    guessing: float


@dataclass
class ProteinScores:
    """
    Rows of one model: of [`evaluate_structure_tokens`], and of [`evaluate_contacts`] where structures are known.

    `empty_regression` says that the contact regression kept no attention head, so that all pairs rank the same.
    """

    tokens: list[dict[str, Any]]
    contacts: list[dict[str, Any]] = field(default_factory=list)
    empty_regression: bool = False


def draw_rows(dataset: datasets.Dataset, count: int, seed: int = 0) -> datasets.Dataset:
    """Up to `count` rows of at most `MAX_RESIDUES` residues, at random, in the order of the dataset."""
    lengths = np.asarray(dataset.with_format(None)["length"][:])
    short = np.flatnonzero(lengths <= MAX_RESIDUES)
    chosen = np.random.default_rng(seed).permutation(short)[:count]
    return dataset.select(np.sort(chosen))


def score_proteins(
    model: PreTrainedModel,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    chains: Sequence[ProteinChain] = (),
    fit_chains: Sequence[ProteinChain] = (),
    progress: bool = True,
) -> ProteinScores:
    """
    Token accuracy of rows, and precision of contacts by a [`ContactRegression`] that is fitted to this model.

    Args:
        model ([`PreTrainedModel`]): An alignment model; compiled layers are run as they were before.
        rows (`datasets.Dataset`): Of [`StructureDatasetBuilder`].
        tokenizer ([`PreTrainedTokenizerBase`]): Of the model.
        chains, fit_chains (`Sequence[ProteinChain]`): To evaluate contacts on, and to fit the regression on, which
            must be others. Without either there are no contacts. Of `fit_chains` the first are taken that fit into
            `MAX_FEATURES`; see [`affordable_chains`].
    """
    with torch.compiler.set_stance("force_eager"):
        scores = ProteinScores(evaluate_structure_tokens(model, rows, tokenizer, progress=progress))
        if chains and fit_chains:
            fitted = affordable_chains(model, fit_chains)
            with _said_by_us():
                head = ContactRegression.fit(model, fitted, tokenizer)
            scores.empty_regression = not bool(head.weight.any())
            scores.contacts = evaluate_contacts(model, chains, head, tokenizer, progress=progress)
    return scores


def affordable_chains(model: PreTrainedModel, chains: Sequence[ProteinChain]) -> list[ProteinChain]:
    """The first that a regression on all attention heads can be fitted on in seconds; the shortest where none can."""
    heads, left, taken = int(np.prod(attention_shape(model))), MAX_FEATURES, []
    for chain in chains:
        span = max(len(chain) - MIN_SEPARATION, 0)
        cost = heads * span * (span + 1) // 2
        if cost <= left:
            taken.append(chain)
            left -= cost
    return taken or [min(chains, key=len)]


def compare_scores(before: ProteinScores, after: ProteinScores) -> list[ProteinMetric]:
    """
    Lines of a table: contacts and tokens, each with 95 % intervals and a paired test. A metric that no protein has is
    left out.
    """
    metrics = []
    if _any_value(before.contacts, "all_P@L"):
        base = [row["all_contacts"] / row["all_pairs"] for row in after.contacts if row["all_pairs"]]
        metrics.append(_metric(CONTACT_METRIC, before.contacts, after.contacts, "all_P@L", base))
    if _any_value(before.tokens, "token_accuracy"):
        majority = [row["token_accuracy_majority"] for row in after.tokens]
        metrics.append(_metric(TOKEN_METRIC, before.tokens, after.tokens, "token_accuracy", majority))
    return metrics


def _any_value(rows: list[dict[str, Any]], column: str) -> bool:
    return any(not np.isnan(row[column]) for row in rows)


def _metric(
    name: str, before: list[dict[str, Any]], after: list[dict[str, Any]], column: str, guessing: list[float]
) -> ProteinMetric:
    first, second = ([row[column] for row in rows] for rows in (before, after))
    return ProteinMetric(
        name, bootstrap_mean(first), bootstrap_mean(second), compare(second, first), float(np.nanmean(guessing))
    )


@contextmanager
def _said_by_us() -> Iterator[None]:
    """Without the warning of an empty regression: an untrained trunk mostly gives one, and the table says so."""
    logger = python_logging.getLogger(contact_heads.__name__)
    level = logger.level
    logger.setLevel(python_logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Deep mutational scans in ProteinGym's form: reading them, and how well scores rank their mutants."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score, roc_auc_score
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..inference.fasta import read_single_fasta
from ..utils.files import read_table
from .fitness import score_mutations
from .mutants import mutated_sequence, parse_mutants


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Assay:
    """
    A deep mutational scan.

    Args:
        name (`str`): Such as `BLAT_ECOLX_Stiffler_2015`.
        wild_type (`str`): L one-letter codes.
        mutants (`list[str]`): n mutants, such as `H24C`.
        measured (`np.ndarray` of shape `(n,)`): float64; higher is fitter.
        binary (`np.ndarray` of shape `(n,)`, *optional*): bool, fit or not, where the file says so.
        offset (`int`, *optional*, defaults to 1): Number of the first residue of `wild_type`.
    """

    name: str
    wild_type: str
    mutants: list[str]
    measured: np.ndarray
    binary: np.ndarray | None = None
    offset: int = 1


@dataclass(frozen=True)
class FitnessMetrics:
    """
    How well scores rank mutants. What is not defined is NaN, and `undefined` says why.

    Args:
        n (`int`): Mutants.
        spearman (`float`): Rank correlation, ties at their mean rank.
        auc (`float`): Area under the ROC curve of the fit mutants against the others.
        top_recall (`float`): ProteinGym's top-10 % recall: of the mutants measured at or above the 90th percentile,
            the share that is scored at or above the 90th percentile of the scores.
        ndcg (`float`): Of the measurements scaled to 0 … 1, over the best-scored tenth. As ProteinGym's but for ties,
            which get their mean gain here.
        undefined (`dict[str, str]`): Reason for each metric that is NaN.
    """

    n: int
    spearman: float
    auc: float
    top_recall: float
    ndcg: float
    undefined: dict[str, str] = field(default_factory=dict)


def fitness_metrics(
    scores: np.ndarray,
    measured: np.ndarray,
    binary: np.ndarray | None = None,
    threshold: float | None = None,
    top_fraction: float = 0.1,
) -> FitnessMetrics:
    """
    Compares scores with measurements.

    Args:
        scores, measured (`np.ndarray` of shape `(n,)`): Finite; higher is fitter in both.
        binary (`np.ndarray` of shape `(n,)`, *optional*): Fit or not, for the AUC.
        threshold (`float`, *optional*): Without `binary`: fit is what was measured above it; by default the median.
        top_fraction (`float`, *optional*, defaults to 0.1): Of the top recall and the NDCG.

    Returns:
        [`FitnessMetrics`]
    """
    scores, measured = np.asarray(scores, dtype=float), np.asarray(measured, dtype=float)
    if scores.ndim != 1 or scores.shape != measured.shape or not len(scores):
        raise ValueError(
            f"scores have shape {scores.shape} and measured {measured.shape}; expected the same (n,) with n > 0."
        )
    for name, values in (("scores", scores), ("measured", measured)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} are not finite at {np.flatnonzero(~np.isfinite(values))[:10].tolist()}; leave these mutants "
                "out of both."
            )
    if not 0 < top_fraction < 1:
        raise ValueError(f"top_fraction is {top_fraction}; expected a number between 0 and 1.")
    fit = measured > (np.median(measured) if threshold is None else threshold)
    if binary is not None:
        fit = np.asarray(binary).astype(bool)
        if fit.shape != scores.shape:
            raise ValueError(f"binary has shape {fit.shape}; expected that of the scores, {scores.shape}.")
    undefined: dict[str, str] = {}
    for name, values in (("measured", measured), ("scores", scores)):
        if np.ptp(values) == 0:
            undefined |= dict.fromkeys(("spearman", "top_recall", "ndcg"), f"all {name} are the same")
    if fit.all() or not fit.any():
        undefined["auc"] = f"{'all' if fit.all() else 'none'} of the {len(fit)} mutants are fit"
    top = int(len(scores) * top_fraction)
    if top < 1:
        undefined.setdefault("ndcg", f"{top_fraction:.0%} of {len(scores)} mutants is less than one")

    def value(name: str, metric: Any) -> float:
        return float("nan") if name in undefined else float(metric())

    def recall() -> float:
        best, chosen = (values >= np.percentile(values, 100 * (1 - top_fraction)) for values in (measured, scores))
        return (best & chosen).sum() / best.sum()

    def ndcg() -> float:
        gains = (measured - measured.min()) / np.ptp(measured)
        return ndcg_score(gains[None], scores[None], k=top)

    return FitnessMetrics(
        n=len(scores),
        spearman=value("spearman", lambda: spearmanr(scores, measured).statistic),
        auc=value("auc", lambda: roc_auc_score(fit, scores)),
        top_recall=value("top_recall", recall),
        ndcg=value("ndcg", ndcg),
        undefined=undefined,
    )


def read_assay(
    path: str | Path, wild_type: str | Path | None = None, offset: int = 1, name: str | None = None
) -> Assay:
    """
    Reads a deep mutational scan with ProteinGym's columns `mutant` and `DMS_score`; `DMS_score_bin` and
    `mutated_sequence` are used where they are there, other columns are left alone.

    Args:
        path (`str` or `Path`): A .csv or .csv.gz.
        wild_type (`str` or `Path`, *optional*): A FASTA file (also gzipped) of one protein, or the sequence itself. By
            default the .fasta of the same name beside the file, else the first `mutated_sequence` with its mutations
            taken back.
        offset (`int`, *optional*, defaults to 1): Number of the first residue of the wild type.
        name (`str`, *optional*): By default that of the file.

    Raises:
        ValueError: Naming the row, counted from 1 without the header, where a mutant, a measurement or a mutated
            sequence does not fit.
    """
    path = Path(path)
    name = name or path.name.removesuffix(".gz").removesuffix(".csv")
    columns, rows = read_table(path)
    if missing := [column for column in ("mutant", "DMS_score") if column not in columns]:
        raise ValueError(f"{path} has no column {' and no '.join(missing)}; its columns are {', '.join(columns)}.")
    mutants = [row["mutant"] for row in rows]
    if wild_type is None:
        wild_type = _find_wild_type(path, columns, rows[0], offset)
    elif isinstance(wild_type, Path) or not wild_type.isalpha():
        wild_type = read_single_fasta(wild_type)
    try:
        parsed = parse_mutants(mutants, wild_type, offset)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    measured = np.array([_number(path, index, row["DMS_score"], "DMS_score") for index, row in enumerate(rows, 1)])
    binary = None
    if "DMS_score_bin" in columns:
        bins = [_number(path, index, row["DMS_score_bin"], "DMS_score_bin") for index, row in enumerate(rows, 1)]
        if wrong := [index for index, value in enumerate(bins, 1) if value not in (0, 1)]:
            raise ValueError(f"{path}: row {wrong[0]} has a DMS_score_bin that is neither 0 nor 1.")
        binary = np.array(bins, dtype=bool)
    if "mutated_sequence" in columns:
        for index, (row, mutant) in enumerate(zip(rows, parsed), 1):
            if row["mutated_sequence"] != mutated_sequence(wild_type, mutant):
                raise ValueError(
                    f"{path}: row {index} ({row['mutant']!r}) has a mutated_sequence that is not the wild type with "
                    "this mutation; check the wild type and offset."
                )
    return Assay(name, wild_type, mutants, measured, binary, offset)


def evaluate_fitness(
    model: PreTrainedModel,
    assays: Iterable[Assay],
    tokenizer: PreTrainedTokenizerBase | None = None,
    strategy: str = "masked-marginals",
    max_residues: int = 1022,
    max_tokens: int = 4096,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """
    Scores assays, as [`score_mutations`] does, and compares with what was measured.

    Returns:
        `list[dict]`: One row per assay, in order: `assay`, `num_residues`, `n`, `spearman`, `auc`, `top_recall`,
        `ndcg` and `undefined` (see [`FitnessMetrics`]).
    """
    assays = list(assays)
    if not assays:
        raise ValueError("There are no assays; expected at least one.")
    rows = []
    bar = tqdm(assays, desc="Assays", unit="assay", disable=not progress)
    for assay in bar:
        bar.set_postfix_str(assay.name)
        scores = score_mutations(
            model,
            assay.wild_type,
            assay.mutants,
            tokenizer,
            strategy,
            assay.offset,
            max_residues,
            max_tokens,
        )
        metrics = fitness_metrics(scores, assay.measured, assay.binary)
        rows.append({"assay": assay.name, "num_residues": len(assay.wild_type)} | vars(metrics))
    return rows


def _find_wild_type(path: Path, columns: list[str], row: dict[str, str], offset: int) -> str:
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".fasta")
    if beside.is_file():
        return read_single_fasta(beside)
    if "mutated_sequence" not in columns:
        raise ValueError(f"There is no {beside} and no column mutated_sequence in {path}; give wild_type.")
    letters = list(row["mutated_sequence"])
    for part in row["mutant"].split(":"):
        if re.fullmatch("[0-9]{1,9}", part[1:-1]) and 0 <= int(part[1:-1]) - offset < len(letters):
            letters[int(part[1:-1]) - offset] = part[0]
    return "".join(letters)


def _number(path: Path, row: int, text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"{path}: row {row} has the {column} {text!r}; expected a finite number.")
    return value

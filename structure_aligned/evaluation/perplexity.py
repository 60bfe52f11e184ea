"""Pseudo-perplexity of a masked language model: how well it predicts residues that it cannot see."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.modes import evaluating
from ..models.trunks import tokenizer_of
from .masked_lm import (
    AMINO_ACIDS,
    MaskedRow,
    amino_acid_ids,
    centred_window,
    check_budget,
    check_protein,
    residue_log_probs,
)
from .statistics import Estimate, bootstrap_ratio


METHODS = ("one-by-one", "masked")


@dataclass(frozen=True)
class PseudoPerplexity:
    """
    What a model makes of some proteins, one number pair per protein.

    Args:
        nll (`np.ndarray` of shape `(num_proteins,)`): Sum of −log p over the residues predicted, in nats.
        count (`np.ndarray` of shape `(num_proteins,)`): How many were predicted; 0 for a protein without any of the 20
            amino acids.
    """

    nll: np.ndarray
    count: np.ndarray

    @property
    def value(self) -> float:
        """Of all proteins together: exp(Σ nll / Σ count), so that every residue weighs the same."""
        return float(np.exp(self.nll.sum() / self.count.sum()))

    @property
    def per_protein(self) -> np.ndarray:
        """Of each protein alone, `(num_proteins,)`; NaN where `count` is 0."""
        return np.exp(np.divide(self.nll, self.count, out=np.full(len(self.nll), np.nan), where=self.count > 0))

    def interval(self, confidence: float = 0.95, num_resamples: int = 9999, seed: int = 0) -> Estimate:
        """[`PseudoPerplexity.value`] with a bootstrap interval over proteins."""
        mean = bootstrap_ratio(self.nll, self.count, confidence, num_resamples, seed)
        # exp is monotone: the interval of the mean, transformed, is that of the perplexity (BCa and percentile both).
        return mean.transformed(np.exp)


def pseudo_perplexity(
    model: PreTrainedModel,
    sequences: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: str = "one-by-one",
    position_fraction: float = 1.0,
    mask_fraction: float = 0.15,
    num_maskings: int = 4,
    seed: int = 0,
    max_residues: int = 1022,
    max_tokens: int = 4096,
    progress: bool = False,
) -> PseudoPerplexity:
    """
    Pseudo-perplexity of proteins: exp of the mean −log p(residue | what is not masked), p over the whole vocabulary.

    * `"one-by-one"`: each residue is masked alone, one forward row each. A protein of more than `max_residues` is read
      in windows of so many, each residue in the one that has it nearest to its middle.
    * `"masked"`: `mask_fraction` of the residues are masked at once, as in training, `num_maskings` times over with
      different residues: a few rows per protein. Longer proteins are cut into as few and as equal pieces as possible.

    Masks are always the mask token. Only the 20 amino acids are masked and predicted; X and the like are context.
    Which residues are drawn depends on `seed` and the protein's own sequence alone, so two models see the same ones.

    Args:
        model ([`PreTrainedModel`]): Whatever `AutoModelForMaskedLM` loads.
        sequences (`Sequence[str]`): One-letter codes.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): By default that of the model's family.
        method (`str`, *optional*, defaults to `"one-by-one"`): Or `"masked"`.
        position_fraction (`float`, *optional*, defaults to 1.0): `"one-by-one"` only: share of each protein's residues
            that are predicted, drawn at random, at least one; for large sets.
        mask_fraction (`float`, *optional*, defaults to 0.15): `"masked"` only; at least one residue is masked.
        num_maskings (`int`, *optional*, defaults to 4): `"masked"` only.
        seed (`int`, *optional*, defaults to 0): Of the residues drawn.
        max_residues (`int`, *optional*, defaults to 1022): Of a window.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, special tokens included.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar of the proteins.

    Returns:
        [`PseudoPerplexity`]: Proteins in the order given.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    for name, fraction in (("position_fraction", position_fraction), ("mask_fraction", mask_fraction)):
        if not 0 < fraction <= 1:
            raise ValueError(f"{name} is {fraction}; expected more than 0 and at most 1.")
    if num_maskings < 1:
        raise ValueError(f"num_maskings is {num_maskings}; expected at least 1.")
    check_budget(max_residues, max_tokens)
    if isinstance(sequences, str) or len(sequences) == 0:
        raise ValueError(f"sequences is {sequences!r}; expected a list of at least one protein.")
    for index, sequence in enumerate(sequences):
        check_protein(sequence, f"Sequence {index}")
    if not any(letter in AMINO_ACIDS for sequence in sequences for letter in sequence):
        raise ValueError("No sequence has any of the 20 amino acids, so there is nothing to predict.")
    tokenizer = tokenizer or tokenizer_of(model.config)
    columns = dict(zip(AMINO_ACIDS, amino_acid_ids(tokenizer)))

    def rows_of(sequence: str) -> list[MaskedRow]:
        generator = np.random.default_rng([seed, zlib.crc32(sequence.encode())])
        if method == "one-by-one":
            return _one_by_one(sequence, position_fraction, generator, max_residues)
        return _masked(sequence, mask_fraction, num_maskings, generator, max_residues)

    # Proteins of like length beside each other, the longest first: what does not fit into memory fails at once.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    waiting: deque[tuple[int, MaskedRow]] = deque()
    bar = tqdm(total=len(sequences), desc="Pseudo-perplexity", unit="protein", disable=not progress)

    def all_rows() -> Iterator[MaskedRow]:
        for index in order:
            for row in rows_of(sequences[index]):
                waiting.append((index, row))
                yield row
            bar.update()

    nll, count = np.zeros(len(sequences)), np.zeros(len(sequences), dtype=np.int64)
    with evaluating(model), bar:
        for log_probs in residue_log_probs(model, all_rows(), tokenizer, max_tokens):
            index, row = waiting.popleft()
            targets = [columns[row.sequence[position]] for position in row.read]
            nll[index] -= log_probs[np.arange(len(targets)), targets].astype(float).sum()
            count[index] += len(targets)
    return PseudoPerplexity(nll, count)


def _targets(sequence: str) -> np.ndarray:
    return np.array([index for index, letter in enumerate(sequence) if letter in AMINO_ACIDS], dtype=int)


def _one_by_one(sequence: str, fraction: float, generator: np.random.Generator, max_residues: int) -> list[MaskedRow]:
    positions = _draw(_targets(sequence), fraction, generator)
    rows = []
    for position in positions.tolist():
        start, stop = centred_window(position, len(sequence), max_residues)
        rows.append(MaskedRow(sequence[start:stop], (position - start,), (position - start,)))
    return rows


def _masked(
    sequence: str, fraction: float, num_maskings: int, generator: np.random.Generator, max_residues: int
) -> list[MaskedRow]:
    rows = []
    pieces = np.array_split(np.arange(len(sequence)), -(-len(sequence) // max_residues))
    for piece in (sequence[indices[0] : indices[-1] + 1] for indices in pieces):
        for _ in range(num_maskings):
            positions = _draw(_targets(piece), fraction, generator).tolist()
            if positions:
                rows.append(MaskedRow(piece, positions, positions))
    return rows


def _draw(positions: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """A share of the positions, rounded, at least one where there is one; sorted."""
    count = min(len(positions), max(1, round(fraction * len(positions))))
    return np.sort(generator.choice(positions, count, replace=False)) if count else positions

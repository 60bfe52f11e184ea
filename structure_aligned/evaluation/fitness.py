"""
Effects of mutations from a masked language model, without training on any of them.

Source: Meier et al., "Language models enable zero-shot prediction of the effects of mutations on protein function"
(NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    residue_log_probs,
)
from .mutants import Substitution, mutated_sequence, parse_mutants


STRATEGIES = ("masked-marginals", "wt-marginals", "pseudo-ppl")

_COLUMN = {letter: column for column, letter in enumerate(AMINO_ACIDS)}


def score_mutations(
    model: PreTrainedModel,
    wild_type: str,
    mutants: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    strategy: str = "masked-marginals",
    offset: int = 1,
    max_residues: int = 1022,
    max_tokens: int = 4096,
    progress: bool = False,
) -> np.ndarray:
    """
    How much likelier, to the model, each mutant is than the wild type. Higher is fitter; the wild type itself
    (`WT`, or a substitution like `A24A`) scores exactly 0.

    Strategies, with p the distribution over the whole vocabulary:

    * `"masked-marginals"`: the sum over substitutions of log p(mutant letter) − log p(wild-type letter), each position
      masked on its own in the wild type, so that the substitutions of one mutant do not see each other. One forward
      row per position, however many mutants there are.
    * `"wt-marginals"`: the same sum, read from the wild type without any mask. One row, or a few.
    * `"pseudo-ppl"`: the sum over residues of log p(residue | all others), each masked on its own, of the mutant minus
      that of the wild type. L rows for every mutant.

    A protein of more than `max_residues` is read through windows of so many. Each masked residue is read in the
    window that has it nearest to its middle; `"wt-marginals"` lays windows that overlap by half over the protein and
    reads each position in that of them which has it nearest to its middle. `"pseudo-ppl"` leaves out residues whose
    window holds no mutated position: their terms cancel. Residues other than the 20 amino acids are context, never
    targets.

    Args:
        model ([`PreTrainedModel`]): Whatever `AutoModelForMaskedLM` loads.
        wild_type (`str`): L one-letter codes.
        mutants (`Sequence[str]`): Such as `H24C`; several substitutions as `A24G:L30P`; `WT` for the wild type.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): By default that of the model's family.
        strategy (`str`, *optional*, defaults to `"masked-marginals"`): One of the three above.
        offset (`int`, *optional*, defaults to 1): Number of the first residue of `wild_type`.
        max_residues (`int`, *optional*, defaults to 1022): Of a window.
        max_tokens (`int`, *optional*, defaults to 4096): Of a batch, special tokens included.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar of the forward rows.

    Returns:
        `np.ndarray` of shape `(len(mutants),)`: float64 scores in nats, in the order given.

    Raises:
        ValueError: A mutant does not fit the wild type (the message names its row, counted from 1), or there are none.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}.")
    check_budget(max_residues, max_tokens)
    # A residue replaced by itself changes nothing.
    parsed = [
        tuple(one for one in mutant if one.mutant != one.wild_type)
        for mutant in parse_mutants(mutants, wild_type, offset)
    ]
    tokenizer = tokenizer or tokenizer_of(model.config)
    reader = _Reader(model, tokenizer, wild_type, max_residues, max_tokens, progress)
    with evaluating(model):
        if strategy == "pseudo-ppl":
            return reader.likelihood_ratios(parsed)
        positions = sorted({one.index for mutant in parsed for one in mutant})
        read = reader.masked_marginals if strategy == "masked-marginals" else reader.wild_type_marginals
        marginals = read(positions)
    return np.array([sum(_log_odds(marginals[one.index], one) for one in mutant) for mutant in parsed], dtype=float)


def _log_odds(log_probs: np.ndarray, substitution: Substitution) -> float:
    return float(log_probs[_COLUMN[substitution.mutant]]) - float(log_probs[_COLUMN[substitution.wild_type]])


class _Reader:
    """One wild type and how it is read."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        wild_type: str,
        max_residues: int,
        max_tokens: int,
        progress: bool,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.wild_type, self.length = wild_type, len(wild_type)
        self.max_residues, self.max_tokens, self.progress = max_residues, max_tokens, progress
        self.ids = amino_acid_ids(tokenizer)

    def _run(self, rows: Iterator[MaskedRow], total: int) -> Iterator[np.ndarray]:
        """Log-probabilities of the 20 amino acids for each row, `(len(read), 20)`."""
        results = residue_log_probs(self.model, rows, self.tokenizer, self.max_tokens)
        results = tqdm(results, total=total, desc="Scoring", unit="row", disable=not self.progress)
        return (log_probs[:, self.ids] for log_probs in results)

    def _masked(self, sequence: str, position: int) -> MaskedRow:
        start, stop = centred_window(position, self.length, self.max_residues)
        return MaskedRow(sequence[start:stop], (position - start,), (position - start,))

    def masked_marginals(self, positions: list[int]) -> dict[int, np.ndarray]:
        rows = (self._masked(self.wild_type, position) for position in positions)
        return {position: found[0] for found, position in zip(self._run(rows, len(positions)), positions)}

    def wild_type_marginals(self, positions: list[int]) -> dict[int, np.ndarray]:
        starts = np.arange(0, max(self.length - self.max_residues, 0) + 1, max(self.max_residues // 2, 1))
        if starts[-1] + self.max_residues < self.length:
            starts = np.append(starts, self.length - self.max_residues)
        middles = starts + (min(self.max_residues, self.length) - 1) / 2
        in_window: dict[int, list[int]] = {}
        for position in positions:
            start = int(starts[np.argmin(np.abs(middles - position))])
            in_window.setdefault(start, []).append(position)
        rows = (
            MaskedRow(self.wild_type[start : start + self.max_residues], (), [place - start for place in places])
            for start, places in in_window.items()
        )
        marginals = {}
        for found, places in zip(self._run(rows, len(in_window)), in_window.values()):
            marginals |= dict(zip(places, found))
        return marginals

    def likelihood_ratios(self, mutants: list[tuple[Substitution, ...]]) -> np.ndarray:
        """Pseudo-log-likelihood of each mutant minus that of the wild type."""
        jobs = {mutated_sequence(self.wild_type, mutant): self._affected(mutant) for mutant in mutants if mutant}
        shared = sorted(set().union(*jobs.values())) if jobs else []
        jobs = {self.wild_type: shared} | jobs
        rows = (self._masked(sequence, position) for sequence, positions in jobs.items() for position in positions)
        found = self._run(rows, sum(map(len, jobs.values())))
        terms = {
            sequence: np.array([float(next(found)[0, _COLUMN[sequence[position]]]) for position in positions])
            for sequence, positions in jobs.items()
        }
        # Zeros where nothing is read are never asked for: a mutant's positions are among the shared ones.
        wild_type = np.zeros(self.length)
        wild_type[shared] = terms[self.wild_type]
        scores = {sequence: (terms[sequence] - wild_type[jobs[sequence]]).sum() for sequence in jobs}
        return np.array([scores[mutated_sequence(self.wild_type, mutant)] for mutant in mutants], dtype=float)

    def _affected(self, mutant: tuple[Substitution, ...]) -> list[int]:
        """Positions whose window holds a mutated one, those that are no amino acid left out."""
        mutated = {one.index for one in mutant}
        affected = []
        for position, letter in enumerate(self.wild_type):
            start, stop = centred_window(position, self.length, self.max_residues)
            if letter in _COLUMN and any(start <= index < stop for index in mutated):
                affected.append(position)
        return affected

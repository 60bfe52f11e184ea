"""Amino-acid substitutions as assays write them: `H24C`, several as `A24G:L30P`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .masked_lm import AMINO_ACIDS, check_protein


_SUBSTITUTION = re.compile(r"([A-Za-z*])(-?\d{1,9})([A-Za-z*=?-])", flags=re.ASCII)


@dataclass(frozen=True)
class Substitution:
    """One residue replaced: `index` counts from 0 at the first residue of the wild type, whatever its number."""

    wild_type: str
    index: int
    mutant: str


def parse_mutants(mutants: Sequence[str], wild_type: str, offset: int = 1) -> list[tuple[Substitution, ...]]:
    """
    Reads mutants and checks them against the wild type.

    Args:
        mutants (`Sequence[str]`): `H24C`; several substitutions joined by `:`; `WT` (in any case) for the wild type.
            An empty string is an error, because a missing cell looks like that.
        wild_type (`str`): L one-letter codes.
        offset (`int`, *optional*, defaults to 1): Number of the first residue of `wild_type`.

    Returns:
        `list[tuple[Substitution, ...]]`: One per mutant, in order; empty for the wild type.

    Raises:
        ValueError: With the number of the row, counted from 1: a mutant that cannot be read, another letter in the
            wild type, a position outside it or twice in one mutant, a letter that is not one of the 20 amino acids.
    """
    check_protein(wild_type, "The wild type")
    if isinstance(mutants, str):
        raise ValueError(f"mutants is the string {mutants!r}; expected a list of them.")
    if len(mutants) == 0:
        raise ValueError("There are no mutants; expected at least one.")
    return [
        _parse(f"Row {row} ({_shown(mutant)})", mutant, wild_type, offset) for row, mutant in enumerate(mutants, 1)
    ]


def mutated_sequence(wild_type: str, substitutions: Sequence[Substitution]) -> str:
    """The wild type with its substitutions."""
    letters = list(wild_type)
    for substitution in substitutions:
        letters[substitution.index] = substitution.mutant
    return "".join(letters)


def _shown(mutant: object) -> str:
    text = repr(mutant)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _parse(row: str, mutant: str, wild_type: str, offset: int) -> tuple[Substitution, ...]:
    if not isinstance(mutant, str) or not mutant.strip():
        raise ValueError(f"{row} has no mutant; expected one like A24G, or WT for the wild type.")
    if mutant.strip().upper() == "WT":
        return ()
    substitutions: dict[int, Substitution] = {}
    last = offset + len(wild_type) - 1
    for part in mutant.strip().split(":"):
        found = _SUBSTITUTION.fullmatch(part)
        if found is None:
            raise ValueError(
                f"{row} cannot be read at {_shown(part)}; expected substitutions like A24G, joined by ':'."
            )
        before, number, after = found[1], int(found[2]), found[3]
        if not offset <= number <= last:
            raise ValueError(
                f"{row} is at position {number}, but the wild type has the numbers {offset} to {last}; offset is the "
                "number of its first residue."
            )
        if unknown := [letter for letter in (before, after) if letter not in AMINO_ACIDS]:
            raise ValueError(
                f"{row} has the letter {unknown[0]!r}; expected one of {AMINO_ACIDS}. Stops, gaps and unknown "
                "residues cannot be scored."
            )
        index = number - offset
        if wild_type[index] != before:
            raise ValueError(
                f"{row} says {before} at position {number}, where the wild type has {wild_type[index]}; check the "
                f"wild type, and that its first residue has the number {offset} (offset)."
            )
        if index in substitutions:
            raise ValueError(f"{row} changes position {number} twice; expected each position once in a mutant.")
        substitutions[index] = Substitution(before, index, after)
    return tuple(substitutions.values())

"""
A structure as gemmi parses it, in which each residue of the file is a residue of its own.

gemmi joins atoms that share chain, number and name, wherever they stand. In most files these identify a residue; where
they do not (two molecules under one chain id, insertion codes that somebody removed), an atom that comes twice without
being marked as an alternative gives it away, and the residues are numbered again before the text is parsed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import gemmi

from .chain import BACKBONE_ATOMS
from .components import simulated_parent


class MergedResiduesError(ValueError):
    """gemmi took several residues for one, so the text has to be parsed again with its residues numbered."""

    def __init__(self) -> None:
        super().__init__("an atom comes twice in one residue without being marked as an alternative location")


@dataclass
class ParsedStructure:
    """
    A structure of one model, and what gemmi's structure does not hold.

    Args:
        structure (`gemmi.Structure`): Chains are runs of one chain id between TER records, in file order.
        parents (`dict[str, str]`): Parents of modified residues by component.
        ends (`frozenset[int]`, *optional*): Numbers of atoms that stand before the TER records.
        labelled (`bool`, *optional*, defaults to `False`): Subchains are the file's own (label_asym_id of mmCIF).
        numbers (`list[str]`, *optional*): Where residues were numbered again: what the file gives as their number.
        places (`list[str]`, *optional*): Where residues were numbered again: the line at which each begins.
        resolution (`float`, *optional*): In Å; 0 where the file does not say.
        names_predictor, model_cif (`bool`, *optional*): Marks of a predicted structure.
        unread (`Callable`, *optional*): Names the first atom line whose coordinates are not numbers, for errors; of
            `False`, the first whose coordinates are not marked as missing either.
        first_atom (`str`, *optional*): Where the atoms begin, for errors.
    """

    structure: gemmi.Structure
    parents: dict[str, str] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    labelled: bool = False
    numbers: list[str] | None = None
    places: list[str] | None = None
    resolution: float = 0.0
    names_predictor: bool = False
    model_cif: bool = False
    unread: Callable[[bool], str | None] = lambda marked: None
    first_atom: str = "row 1 of _atom_site"


class AtomLine(NamedTuple):
    """What tells residues apart: a place in the file's numbering, and the atom that stands there."""

    site: tuple
    component: str
    altloc: str
    name: str
    position: tuple
    line: str


def keep_first_model(structure: gemmi.Structure) -> None:
    if len(structure) == 0:
        raise ValueError("no atoms")
    del structure[1:]
    _check_runs(structure[0])


def _check_runs(model: gemmi.Model) -> None:
    """Raises where other chains stand between the atoms of an amino acid."""
    last: dict[str, gemmi.Residue] = {}
    for chain in model:
        one, other = last.get(chain.name, chain[-1]), chain[0]
        same = one.seqid == other.seqid and one.name == other.name and one.het_flag == other.het_flag == "A"
        if same and chain.name in last and not {atom.name for atom in one} & {atom.name for atom in other}:
            raise ValueError(
                f"atoms of other chains stand between those of residue {one.name} {one.seqid} of chain "
                f"{chain.name!r}; sort the atoms by chain and residue"
            )
        last[chain.name] = chain[-1]


def name_standard_residues(structure: gemmi.Structure) -> None:
    """Gives amino acids that a simulation program named after their state the name of the amino acid."""
    names = structure[0].get_all_residue_names()
    parents = {name: parent for name in names if (parent := simulated_parent(name))}
    if parents:
        for chain in structure[0]:
            for residue in chain:
                residue.name = parents.get(residue.name, residue.name)


def number_residues(atoms: Iterable[AtomLine]) -> Iterator[int]:
    """
    For each atom the number of its residue, counted from 1.

    Atoms in a row at one site are one residue with its alternatives, unless the residue name changes or the first
    backbone atom comes again, at another place and without being marked as an alternative: there another residue
    begins.

    Raises:
        ValueError: Another atom comes again, so that the residues cannot be told apart; the message names the line.
    """
    residue = 0
    for _, group in itertools.groupby(atoms, key=lambda atom: atom.site):
        residue += 1
        components: set[str] = set()
        seen: dict[tuple, tuple] = {}
        first = None
        for atom in group:
            if components and atom.component not in components and not atom.altloc:
                residue, components, seen, first = residue + 1, set(), {}, None
            components.add(atom.component)
            if atom.name in BACKBONE_ATOMS:
                first = first or atom.name
                key = (atom.component, atom.name, atom.altloc)
                if seen.get(key, atom.position) != atom.position:
                    if atom.name == first:
                        residue, components, seen = residue + 1, {atom.component}, {}
                    elif any(name == "CA" for _, name, _ in seen):
                        raise ValueError(
                            f"{atom.line}: the atom {atom.name} of residue {atom.component} "
                            f"{''.join(map(str, atom.site)).strip()} comes twice without being marked as an "
                            "alternative location"
                        )
                seen[key] = atom.position
            yield residue

"""
Which residues of a parsed structure make up which protein chain.

A chain is one molecule under one chain id. Where a file puts several under one id, its own marks tell them apart: the
molecule's own id in mmCIF (label_asym_id); in PDB files the segment, the TER record, and residue numbers that come
again.
"""

from __future__ import annotations

import itertools
import operator
import re
from dataclasses import dataclass

import gemmi
import numpy as np

from .atoms import read_backbone
from .chain import BACKBONE_ATOMS, ProteinChain
from .components import has_ca, one_letter
from .parsed import MergedResiduesError, ParsedStructure


_PEPTIDES = (
    gemmi.PolymerType.PeptideL,
    gemmi.PolymerType.PeptideD,
    gemmi.PolymerType.CyclicPseudoPeptide,
)
_WITHOUT_NUMBER = re.compile(r"(?:^|,)(?![-\d])")
_NUMBER_STARTS = frozenset("-0123456789")
_N, _CA, _C = (BACKBONE_ATOMS.index(name) for name in ("N", "CA", "C"))
_PEPTIDE_BOND = 2.0
"""Å between C and N of neighbours: 1.33 in a peptide bond, more only in poor models."""
_NEIGHBOURING_CA = 4.5
"""Å between the CA of neighbours, 3.8 or, in a cis peptide, 2.9."""
_ONE_RESIDUE = 2.5
"""Å between the CA of conformers of one residue, which is less than neighbours ever have."""
_OTHER_MOLECULE = 25.0
"""Å between CA that no short loop spans."""
_LOST = 0.1
"""Share of a file's atoms that may lack coordinates without their being refused as unreadable."""
_REACH = 3.9
"""Å that each residue of a missing loop can span."""
_LONGEST_LOOP = 30
"""Residues that may be missing where a TER stands within a chain. Beyond it another molecule begins."""


@dataclass
class _Residues:
    """Columns of the residues that may be part of a protein chain, in file order."""

    rows: list[int]  # over all residues of the model; -1 for those left out
    keys: list[tuple[str, str, str]]  # chain id, segment, subchain where that is the file's own
    runs: list[int]  # what stands between TER records, or between waters
    letters: list[str]
    numbers: list[str]
    labels: list[int | None]
    places: list[str]  # among all residues, where these were numbered again


def extract_chains(parsed: ParsedStructure, metadata: dict) -> list[ProteinChain]:
    """
    The protein chains of a structure, which is of no use afterwards.

    Args:
        parsed ([`ParsedStructure`]): Of one model.
        metadata (`dict`): The fields of [`ProteinChain`] that all chains share.

    Raises:
        ValueError: A chain has no backbone atom whose coordinates can be read.
    """
    _find_polymers(parsed)
    residues, closed = _list_residues(parsed)
    coords, b_factors, has_atoms, has_backbone, lost = read_backbone(parsed.structure, residues.rows)
    molecules = _split_into_molecules(residues, coords, closed, parsed)
    names = {name for name, _ in molecules}
    chains, used = [], set()
    for name, rows in molecules:
        if not has_backbone[rows].any():
            _refuse_without_coordinates(parsed, name, rows, has_atoms)
        chain_id, count = name, 1
        while chain_id in used or (count > 1 and chain_id in names):
            count += 1
            chain_id = f"{name}-{count}"
        used.add(chain_id)
        of_molecule = operator.itemgetter(*rows, rows[0])  # one more, so that a single row gives a tuple, too
        chains.append(
            ProteinChain(
                chain_id=chain_id,
                sequence="".join(of_molecule(residues.letters)[:-1]),
                coords=coords[rows],
                residue_numbers=_complete_numbers(of_molecule(residues.numbers)[:-1]),
                b_factors=b_factors[rows],
                **metadata,
            )
        )
    if lost > _LOST and (unread := parsed.unread(False)):
        raise ValueError(f"{lost:.0%} of its protein atoms have no coordinates; {unread} has no three numbers there")
    return chains


def _refuse_without_coordinates(parsed: ParsedStructure, name: str, rows: list[int], has_atoms: np.ndarray) -> None:
    """Coordinates that mmCIF marks as unknown are as good as none; anything else is an error."""
    unread = parsed.unread(True)
    if unread is None and not has_atoms[rows].any():
        return
    why = f"{unread} has no three numbers there" if unread else "its atoms are not called N, CA, C, O or CB"
    raise ValueError(
        f"chain {name!r} has {len(rows)} residues but not one backbone atom with coordinates; {why} "
        f"(its atoms begin at {parsed.first_atom})"
    )


# --- Polymers ----------------------------------------------------------------------------------------------------


def _find_polymers(parsed: ParsedStructure) -> None:
    """Sets the entity type of each residue: by the file's entities, its TER records, or gemmi's heuristics."""
    model = parsed.structure[0]
    if parsed.labelled:
        parsed.structure.merge_chain_parts()
        parsed.structure.add_entity_types()
        if not parsed.structure.entities:
            for chain in model:
                _restore_polymer(chain)
        if any(chain[0].subchain == "" for chain in model):
            parsed.structure.assign_subchains(False)
        return
    parsed.structure.add_entity_types()
    previous: dict[str, gemmi.Residue | None] = {}  # where an earlier run of this id ends; none after a TER record
    for chain, ended in zip(model, _ended_runs(parsed)):
        name = chain.name
        if ended:
            _end_polymer(chain)
        else:
            if name in previous:
                _set_type(chain, gemmi.EntityType.NonPolymer)
            _restore_polymer(chain, previous.get(name))
        previous[name] = None if ended or previous.get(name, chain[0]) is None else chain[-1]
    parsed.structure.assign_subchains(True)


def _set_type(chain: gemmi.Chain | gemmi.ResidueSpan, kind: gemmi.EntityType) -> None:
    for residue in chain:
        residue.entity_type = gemmi.EntityType.Water if residue.is_water() else kind


def _ended_runs(parsed: ParsedStructure) -> list[bool]:
    """Whether a TER record ends each run of the model's chains."""
    ended, atoms = [], 0
    for chain in parsed.structure[0]:
        atoms += chain.count_atom_sites()
        ended.append(atoms in parsed.ends)
    return ended


def _closed_runs(parsed: ParsedStructure) -> list[bool]:
    """Whether a TER record stands before each run and after an earlier one of the same chain id."""
    if parsed.labelled:
        return [False] * len(parsed.structure[0])
    closed, over = [], set()
    for chain, ended in zip(parsed.structure[0], _ended_runs(parsed)):
        closed.append(chain.name in over)
        if ended:
            over.add(chain.name)
    return closed


def _restore_polymer(chain: gemmi.Chain, previous: gemmi.Residue | None = None) -> None:
    """
    Marks as polymer what a run that no TER record ends holds of proteins.

    gemmi ends the polymer at the first water or unknown HETATM residue, and takes a run that follows on a chain of the
    same id for ligands. The polymer goes from the first to the last of the ATOM records' amino acids that are bonded
    to another, or to the `previous` residue of the chain. Amino acids that stand alone, or that are HETATM records,
    are ligands.
    """
    polymer_type = gemmi.EntityType.Polymer
    if len(chain.get_polymer()) == len(chain):
        return
    if not any(
        residue.entity_type != polymer_type
        and (residue.het_flag == "A" or (before and before.entity_type == polymer_type and has_ca(residue)))
        for before, residue in zip(itertools.chain([None], chain), chain)
    ):
        return
    peptides = [i for i, residue in enumerate(chain) if residue.find_atom("CA", "*") and _is_amino_acid(residue)]
    bonded = [(i, j) for i, j in itertools.pairwise(peptides) if _are_bonded(chain[i], chain[j])]
    polymer = sorted({i for pair in bonded if any(chain[k].het_flag == "A" for k in pair) for i in pair})
    may_go_on = previous and previous.entity_type == polymer_type and previous.find_atom("CA", "*")
    if may_go_on and peptides[:1] == [0] and chain[0].het_flag == "A" and _are_bonded(previous, chain[0]):
        polymer = [0, *polymer]
    if polymer:
        for i in peptides:
            if polymer[0] <= i <= polymer[-1] and (chain[i].het_flag == "A" or i in polymer):
                chain[i].entity_type = polymer_type


def _is_amino_acid(residue: gemmi.Residue) -> bool:
    """Whether a residue that has an atom CA is no calcium ion."""
    return len(residue) > 1 or gemmi.find_tabulated_residue(residue.name).is_amino_acid()


def _end_polymer(chain: gemmi.Chain) -> None:
    """
    Marks a run that a TER record ends as polymer, up to its last amino acid; ligands and waters of the chain may stand
    before the TER, too, and amino acids among them are those that are not bonded to the polymer.
    """
    last = len(chain) - 1
    while last >= 0 and (chain[last].het_flag != "A" or not (has_ca(chain[last]) or one_letter(chain[last].name))):
        last -= 1
    if last < 0:
        return  # nucleic acids, ligands, waters
    while last + 1 < len(chain) and has_ca(chain[last + 1]) and _are_bonded(chain[last], chain[last + 1]):
        last += 1
    if len(chain.get_polymer()) != last + 1:
        _set_type(chain[: last + 1], gemmi.EntityType.Polymer)
        _set_type(chain[last + 1 :], gemmi.EntityType.NonPolymer)


def _are_bonded(one: gemmi.Residue, other: gemmi.Residue) -> bool:
    atoms = [residue.find_atom(name, "*") for residue, name in zip((one, other, one, other), ("C", "N", "CA", "CA"))]
    if atoms[0] and atoms[1]:
        return atoms[0].pos.dist(atoms[1].pos) < _PEPTIDE_BOND
    return atoms[2].pos.dist(atoms[3].pos) < _NEIGHBOURING_CA


def _is_protein(structure: gemmi.Structure, span: gemmi.ResidueSpan) -> bool:
    """By the file's entity, else by the residues: a protein may share its chain id with a longer nucleic acid."""
    entity = structure.get_entity_of(span)
    kind = entity.polymer_type if entity else gemmi.PolymerType.Unknown
    if kind == gemmi.PolymerType.Unknown:
        kind = span.check_polymer_type()
        if kind not in _PEPTIDES:
            polymer = (residue for residue in span if residue.entity_type == gemmi.EntityType.Polymer)
            return sum(residue.het_flag == "A" and has_ca(residue) for residue in polymer) > 1
    return kind in _PEPTIDES


# --- Residues ----------------------------------------------------------------------------------------------------


def _list_residues(parsed: ParsedStructure) -> tuple[_Residues, list[bool]]:
    """The residues, and whether each of their runs begins behind the end of another of its chain id."""
    structure = parsed.structure
    parents = parsed.parents | {modified.res_id.name: modified.parent_comp_id for modified in structure.mod_residues}
    rows: list[int] = []
    found: list[tuple] = []
    closed: list[bool] = []
    letters, polymer = {}, gemmi.EntityType.Polymer
    for chain, is_closed in zip(structure[0], _closed_runs(parsed)):
        closed.append(is_closed)
        after_water = False
        for span in chain.subchains():
            key = (chain.name, "", span.subchain_id() if parsed.labelled else "")
            protein = _is_protein(structure, span)
            previous = None
            for residue in span:
                # Neighbours that share these and are marked as alternatives are conformers of one residue: the first
                # is taken. label_seq (mmCIF only) tells residues apart whose insertion codes somebody removed.
                site = (str(residue.seqid), residue.segment, residue.label_seq)
                letter = None
                is_conformer = site == previous and any(atom.altloc != "\0" for atom in residue)
                if protein and residue.entity_type == polymer and not is_conformer:
                    name = residue.name
                    if name not in letters:
                        letters[name] = one_letter(name) or one_letter(parents.get(name, ""))
                    # Caps such as ACE are no amino acid and have no CA.
                    letter = letters[name] or ("X" if has_ca(residue) else None)
                elif residue.is_water():
                    after_water = True
                previous = site
                rows.append(len(found) if letter else -1)
                if letter:
                    number, segment, label = site
                    part = residue.entity_id if parsed.labelled else segment
                    if part != key[1]:
                        key = (key[0], part, key[2])
                    if after_water:
                        if found and found[-1][0] == key:
                            closed.append(True)
                        after_water = False
                    found.append((key, len(closed) - 1, letter, number, label))
    keys, runs, letters, numbers, labels = map(list, zip(*found)) if found else ([], [], [], [], [])
    places = numbers
    if parsed.numbers is not None:
        numbers = [parsed.numbers[int(number) - 1] for number in numbers]
    return _Residues(rows, keys, runs, letters, numbers, labels, places), closed


def _complete_numbers(numbers: tuple[str, ...]) -> tuple[str, ...]:
    """Residues without a number get the one after their predecessor's; the first one gets 1."""
    if not _WITHOUT_NUMBER.search(",".join(numbers)):
        return numbers
    complete: list[str] = []
    for number in numbers:
        if number[:1] not in _NUMBER_STARTS:
            last = re.match(r"-?\d+", complete[-1]) if complete else None
            number = str(int(last[0]) + 1 if last else 1)
        complete.append(number)
    return tuple(complete)


def _split_into_molecules(
    residues: _Residues, coords: np.ndarray, closed: list[bool], parsed: ParsedStructure
) -> list[tuple[str, list[int]]]:
    """Chain id of the file and rows of each molecule, in file order."""
    molecules: dict[tuple, list[list[int]]] = {}
    order: list[tuple[str, list[int]]] = []
    numbers: dict[int, set[str]] = {}  # of each molecule, by its first row
    start = 0
    for (key, _), group in itertools.groupby(zip(residues.keys, residues.runs)):
        rows = range(start, start + len(list(group)))
        start = rows.stop
        parts = molecules.setdefault(key, [])
        # Most runs are a molecule of their own whose numbers grow.
        if not parts and _numbers_grow(residues, rows):
            parts.append(list(rows))
            order.append((key[0], parts[-1]))
            numbers[rows.start] = set(residues.numbers[rows.start : rows.stop])
            continue
        for row in rows:
            last = parts[-1] if parts else None
            if last is None or not _continues(residues, coords, closed, parsed, numbers[last[0]], last[-1], row):
                last = []
                parts.append(last)
                order.append((key[0], last))
                numbers[row] = set()
            last.append(row)
            numbers[last[0]].add(residues.numbers[row])
    # What stands alone beside a molecule of its id is a free amino acid, not a chain of one residue.
    longer = {name for name, rows in order if len(rows) > 1}
    return [(name, rows) for name, rows in order if len(rows) > 1 or name not in longer]


def _numbers_grow(residues: _Residues, rows: range) -> bool:
    numbers, labels = (column[rows.start : rows.stop] for column in (residues.numbers, residues.labels))
    if len(set(numbers)) < len(numbers):
        return False
    try:
        values = list(map(int, numbers))
    except ValueError:
        values = [_value(number) for number in numbers]
    known = [label for label in labels if label is not None]
    return None not in values and all(map(operator.le, values, values[1:])) and all(map(operator.lt, known, known[1:]))


def _value(number: str) -> int | None:
    """The number without its insertion code."""
    found = re.match(r"-?\d+", number)
    return int(found[0]) if found else None


def _continues(
    residues: _Residues,
    coords: np.ndarray,
    closed: list[bool],
    parsed: ParsedStructure,
    numbers: set[str],
    last: int,
    row: int,
) -> bool:
    """Whether the residue at `row` belongs to the molecule that holds `numbers` and ends at `last`."""
    labels = (residues.labels[last], residues.labels[row])
    is_labelled = parsed.labelled and None not in labels
    if is_labelled and labels[0] < labels[1]:
        return True
    number, before = residues.numbers[row], residues.numbers[last]
    bond = np.linalg.norm(coords[last, _C] - coords[row, _N])
    distance = np.linalg.norm(coords[last, _CA] - coords[row, _CA])
    is_bonded = bond < _PEPTIDE_BOND or (np.isnan(bond) and _ONE_RESIDUE < distance < _NEIGHBOURING_CA)
    is_closed = residues.runs[last] != residues.runs[row] and closed[residues.runs[row]]
    values = (_value(before), _value(number))
    are_neighbours = _ONE_RESIDUE < distance < _NEIGHBOURING_CA or (is_bonded and np.isnan(distance))
    if number == before and None not in values and not is_closed and not are_neighbours:
        # Conformers, or molecules listed residue by residue, whose marks somebody removed.
        if parsed.places is None:
            raise MergedResiduesError
        raise ValueError(
            f"{parsed.places[int(residues.places[row]) - 1]}: residue {number} of chain {residues.keys[row][0]!r} "
            "comes twice without being marked as an alternative location"
        )
    if is_bonded:
        return True
    gap = 0 if None in values else values[1] - values[0]
    if (number in numbers and number != before and None not in values) or (
        (gap < 0 or is_labelled) and distance > _OTHER_MOLECULE
    ):
        return False
    # Some programs write TER at every gap of a chain, so a loop of as many residues as are missing has to reach.
    return not is_closed or (1 < gap <= _LONGEST_LOOP and bool(distance <= _REACH * gap))

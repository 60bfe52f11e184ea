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
_REACH = 3.9
"""Å that each residue of a missing loop can span."""
_LONGEST_LOOP = 30
"""Residues that may be missing where a TER stands within a chain. Beyond it another molecule begins."""


@dataclass
class _Residues:
    """Columns of the residues that may be part of a protein chain, in file order."""

    rows: list[int]  # over all residues of the model; -1 for those left out
    keys: list[tuple[str, str, str]]  # chain id, segment, subchain where that is the file's own
    runs: list[int]
    letters: list[str]
    numbers: list[str]
    labels: list[int | None]


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
    closed = _closed_runs(parsed)
    residues = _list_residues(parsed)
    coords, b_factors, has_atoms, has_backbone = _backbone(parsed.structure, residues)
    molecules = _split_into_molecules(residues, coords, closed, parsed.labelled)
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
    return chains


def _refuse_without_coordinates(parsed: ParsedStructure, name: str, rows: list[int], has_atoms: np.ndarray) -> None:
    """Coordinates that mmCIF marks as unknown are as good as none; anything else is an error."""
    unread = parsed.unread()
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
    _check_runs(model)
    if parsed.labelled:
        parsed.structure.merge_chain_parts()
        parsed.structure.add_entity_types()
        if any(chain[0].subchain == "" for chain in model):
            parsed.structure.assign_subchains(False)
        return
    parsed.structure.add_entity_types()
    before: dict[str, gemmi.Residue | None] = {}  # where an earlier run of this id ends; none after a TER record
    for chain, ended in zip(model, _ended_runs(parsed)):
        name = chain.name
        if ended:
            _end_polymer(chain)
        elif name in before:
            _restore_polymer(chain, before[name])
        before[name] = None if ended or before.get(name, chain[0]) is None else chain[-1]
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


def _restore_polymer(chain: gemmi.Chain, before: gemmi.Residue | None) -> None:
    """
    Marks as polymer what a run that follows on a chain of the same id holds of proteins.

    That is from the first to the last of the ATOM records' amino acids that are bonded to another, or to the residue
    `before` the run. Amino acids that stand alone, or that are HETATM records, are ligands.
    """
    first, polymer_type = chain[0], gemmi.EntityType.Polymer
    goes_on = before is not None and before.entity_type == polymer_type and first.het_flag == "A"
    goes_on = goes_on and all(one.find_atom("CA", "*") for one in (before, first)) and _are_bonded(before, first)
    peptides = [i for i, residue in enumerate(chain) if residue.find_atom("CA", "*") and len(residue) > 1]
    bonded = [(i, j) for i, j in itertools.pairwise(peptides) if _are_bonded(chain[i], chain[j])]
    polymer = sorted({i for pair in bonded if any(chain[k].het_flag == "A" for k in pair) for i in pair})
    if goes_on:
        polymer = [0, *polymer]
    _set_type(chain, gemmi.EntityType.NonPolymer)
    for i in {0, *peptides} if goes_on else peptides:
        if polymer and polymer[0] <= i <= polymer[-1] and (chain[i].het_flag == "A" or i in polymer):
            chain[i].entity_type = polymer_type


def _end_polymer(chain: gemmi.Chain) -> None:
    """
    Marks a run that a TER record ends as polymer, up to its last amino acid; ligands and waters of the chain may stand
    before the TER, too, and amino acids among them are those that are not bonded to the polymer.
    """
    last = len(chain) - 1
    while last >= 0 and (chain[last].het_flag != "A" or not has_ca(chain[last])):
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
    entity = structure.get_entity_of(span)
    kind = entity.polymer_type if entity else gemmi.PolymerType.Unknown
    if kind == gemmi.PolymerType.Unknown:
        kind = span.check_polymer_type()
    return kind in _PEPTIDES


# --- Residues ----------------------------------------------------------------------------------------------------


def _list_residues(parsed: ParsedStructure) -> _Residues:
    structure = parsed.structure
    parents = parsed.parents | {modified.res_id.name: modified.parent_comp_id for modified in structure.mod_residues}
    rows: list[int] = []
    found: list[tuple] = []
    letters, polymer = {}, gemmi.EntityType.Polymer
    for run, chain in enumerate(structure[0]):
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
                previous = site
                rows.append(len(found) if letter else -1)
                if letter:
                    number, segment, label = site
                    if segment != key[1]:
                        key = (key[0], segment, key[2])
                    found.append((key, run, letter, number, label))
    keys, runs, letters, numbers, labels = map(list, zip(*found)) if found else ([], [], [], [], [])
    if parsed.numbers is not None:
        numbers = [parsed.numbers[int(number) - 1] for number in numbers]
    return _Residues(rows, keys, runs, letters, numbers, labels)


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
    residues: _Residues, coords: np.ndarray, closed: list[bool], labelled: bool
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
        # Most runs are a molecule of their own whose numbers are all different.
        if not parts and len(fresh := set(residues.numbers[rows.start : rows.stop])) == len(rows):
            parts.append(list(rows))
            order.append((key[0], parts[-1]))
            numbers[rows.start] = fresh
            continue
        for row in rows:
            last = parts[-1] if parts else None
            if last is None or not _continues(residues, coords, closed, labelled, numbers[last[0]], last[-1], row):
                last = []
                parts.append(last)
                order.append((key[0], last))
                numbers[row] = set()
            last.append(row)
            numbers[last[0]].add(residues.numbers[row])
    # What stands alone behind the end of a chain is a free amino acid, not a chain of one residue.
    return [(name, rows) for name, rows in order if len(rows) > 1 or not closed[residues.runs[rows[0]]]]


def _continues(
    residues: _Residues,
    coords: np.ndarray,
    closed: list[bool],
    labelled: bool,
    numbers: set[str],
    last: int,
    row: int,
) -> bool:
    """Whether the residue at `row` belongs to the molecule that holds `numbers` and ends at `last`."""
    if labelled and None not in (labels := (residues.labels[last], residues.labels[row])) and labels[0] < labels[1]:
        return True
    number, before = residues.numbers[row], residues.numbers[last]
    starts_again = number in numbers and number != before and number[:1] in _NUMBER_STARTS
    is_closed = residues.runs[last] != residues.runs[row] and closed[residues.runs[row]]
    if not starts_again and not is_closed:
        return True
    bond = np.linalg.norm(coords[last, _C] - coords[row, _N])
    distance = np.linalg.norm(coords[last, _CA] - coords[row, _CA])
    if bond < _PEPTIDE_BOND or (np.isnan(bond) and distance < _NEIGHBOURING_CA):
        return True
    if starts_again:
        return False
    # Some programs write TER at every gap of a chain, so a loop of as many residues as are missing has to reach.
    values = [re.match(r"-?\d+", text) for text in (before, number)]
    gap = int(values[1][0]) - int(values[0][0]) if all(values) else 0
    return 1 < gap <= _LONGEST_LOOP and bool(distance <= _REACH * gap)


# --- Atoms -------------------------------------------------------------------------------------------------------


def _backbone(structure: gemmi.Structure, residues: _Residues) -> tuple[np.ndarray, ...]:
    """
    Coordinates `(length, 5, 3)`, B-factors `(length,)`, and whether each residue has any atom and any backbone atom
    with coordinates (other than zeros), taken from all atoms at once.
    """
    length = len(residues.letters)
    atom_counts = [len(residue) for chain in structure[0] for residue in chain]
    for chain in structure[0]:
        # FlatStructure refuses names of more than 7 characters, and only atom names are needed from here on.
        chain.name = ""
        for residue in chain:
            residue.name = residue.subchain = residue.entity_id = ""
    atoms = gemmi.FlatStructure(structure)
    residue = np.repeat(np.arange(len(residues.rows)), atom_counts)
    row = np.array(residues.rows, dtype=int)[residue]
    with np.errstate(over="ignore", invalid="ignore"):
        position = atoms.pos.astype(np.float32)  # beyond the range of float32: infinite, so missing
        finite = np.isfinite(position[:, 0] + position[:, 1] + position[:, 2])
    names = np.array(atoms.atom_names).view(np.uint64).ravel()  # eight bytes each, compared as one number
    used = row >= 0
    present = used & finite

    coords = np.full((length, len(BACKBONE_ATOMS), 3), np.nan, dtype=np.float32)
    with_ca = None
    for slot, name in enumerate(BACKBONE_ATOMS):
        atom = np.flatnonzero(names == _as_number(name))
        owner = residue[atom]
        if (owner[1:] == owner[:-1]).any():
            with_ca = residue[names == _as_number("CA")] if with_ca is None else with_ca
            repeated = np.intersect1d(owner[1:][owner[1:] == owner[:-1]], with_ca)
            _check_alternatives(atoms, atom[np.isin(owner, repeated)], residue)
        atom = atom[present[atom]]
        coords[row[atom], slot] = position[atom]  # of repeated rows the last one stays: the last-listed altloc
    has_backbone = (np.isfinite(coords) & (coords != 0)).any(axis=(1, 2))
    _drop_placeholders(coords)

    # Each line overrides the one before it: any atom, the first present atom, the last-listed CA.
    b_factors = np.full(length, np.nan, dtype=np.float32)
    for atom in (
        np.flatnonzero(used)[::-1],
        np.flatnonzero(present)[::-1],
        np.flatnonzero(present & (names == _as_number("CA"))),
    ):
        b_factors[row[atom]] = atoms.b_iso[atom]
    has_atoms = np.zeros(length, dtype=bool)
    has_atoms[row[present]] = True
    return coords, b_factors, has_atoms, has_backbone


def _as_number(name: str) -> np.uint64:
    return np.frombuffer(name.encode().ljust(8, b"\0"), np.uint64)[0]


def _check_alternatives(atoms: gemmi.FlatStructure, found: np.ndarray, residue: np.ndarray) -> None:
    """Raises where an atom comes twice in a residue, at two places, without being marked as an alternative."""
    altlocs, positions = np.array(atoms.altlocs)[found], np.array(atoms.pos)[found]
    seen: dict[tuple, tuple] = {}
    for index, altloc, position in zip(residue[found].tolist(), altlocs.tolist(), map(tuple, positions.tolist())):
        if seen.setdefault((index, altloc), position) != position and not np.isnan(position[0]):
            raise MergedResiduesError


def _drop_placeholders(coords: np.ndarray) -> None:
    """
    Makes coordinates NaN, in place, that stand for missing atoms: several atoms of a residue at one point, and an atom
    at the origin that lies nowhere near the rest of its residue.
    """
    # Atoms at one point have one sum of coordinates, and an atom at the origin has the sum 0; few others have.
    sums = coords.sum(axis=-1)
    ordered = np.sort(sums, axis=-1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=-1) | (sums == 0).any(axis=-1)):
        distances = np.linalg.norm(coords[row, :, None] - coords[row, None], axis=-1)
        np.fill_diagonal(distances, np.nan)
        at_origin = (coords[row] == 0).all(axis=-1) & np.isfinite(distances).any(axis=-1)
        coords[row, (distances == 0).any(axis=-1) | (at_origin & ~(distances < 5).any(axis=-1))] = np.nan

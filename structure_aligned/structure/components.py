"""Which amino acid a residue name stands for: components of the PDB, and the names that simulation programs write."""

from __future__ import annotations

import functools

import gemmi


# Protonation and disulphide states as Amber, CHARMM, GROMACS, OPLS and Maestro name them.
_STATES = {
    "ARG": ("ARN", "ARGN"),
    "ASP": ("ASH", "ASPH", "ASPP"),
    "CYS": ("CYX", "CYM", "CYSH", "CYS1", "CYS2", "CYSX"),
    "GLU": ("GLH", "GLUH", "GLUP"),
    "HIS": (
        *("HID", "HIE", "HIP", "HSD", "HSE", "HSP", "HSC", "HISA", "HISB", "HISD", "HISE", "HISH", "HISN", "HISP"),
        *("HIS1", "HIS2", "HIS+"),
    ),
    "ILE": ("ILEU",),
    "LYS": ("LYN", "LYP", "LSN", "LYSH", "LYSN", "LYS+"),
    "TYR": ("TYM", "TYD"),
}
_PARENTS = {name: parent for parent, names in _STATES.items() for name in names}
_STANDARD = frozenset(gemmi.expand_one_letter_sequence("ACDEFGHIKLMNPQRSTVWY", gemmi.ResidueKind.AA))


@functools.lru_cache(maxsize=4096)
def simulated_parent(name: str) -> str | None:
    """
    The standard amino acid behind a name that simulation programs write, `None` for every other name.

    That is a protonation state (HIE, CYX, ASPP and their like) or one of Amber's terminal residues (NMET, CGLY, NHIE).
    """
    name = name.upper()
    if name in _PARENTS:
        return _PARENTS[name]
    if len(name) == 4 and name[0] in "NC":
        return name[1:] if name[1:] in _STANDARD else _PARENTS.get(name[1:])
    return None


@functools.lru_cache(maxsize=4096)
def one_letter(name: str) -> str | None:
    """The upper-case letter of an amino acid, or of its parent where gemmi's table of components has one."""
    info = gemmi.find_tabulated_residue(name)
    return info.one_letter_code.upper() if info.is_amino_acid() and info.one_letter_code.isalpha() else None


def has_ca(residue: gemmi.Residue) -> bool:
    """
    Whether a residue has an alpha carbon. Its name decides, because files without elements turn it into calcium;
    calcium itself is the only atom of its residue.
    """
    return residue.get_ca() is not None or (len(residue) > 1 and any(atom.name == "CA" for atom in residue))

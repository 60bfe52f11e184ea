"""Small PDB and mmCIF texts, atom by atom."""

import numpy as np


OFFSETS = {
    "N": (-1.2, 0.7, 0.0),
    "CA": (0.0, 0.0, 0.0),
    "C": (1.2, 0.8, 0.0),
    "O": (1.2, 2.0, 0.1),
    "CB": (0.0, -0.9, 1.2),
}


def atom(name, component, number, xyz, chain="A", record="ATOM", altloc=" ", insertion=" ", b=10.0):
    """One PDB atom record."""
    x, y, z = xyz
    return (
        f"{record:6}    1  {name:<3}{altloc}{component:>3} {chain}{number:4d}{insertion}   {x:8.3f}{y:8.3f}{z:8.3f}"
        f"  1.00{b:6.2f}          {name[0]:>2}\n"
    )


def residue(component, number, chain="A", record="ATOM", atoms=tuple(OFFSETS), **options):
    """The atom records of one residue; CA lies at (3.8 number, 0, 0), a hundred to a row."""
    row, column = divmod(number, 100)
    return "".join(
        atom(name, component, number, np.add(OFFSETS[name], (3.8 * column, 6 * row, 0)), chain, record, **options)
        for name in atoms
    )


def peptide(components, start=1, chain="A", record="ATOM"):
    return "".join(residue(component, start + i, chain, record) for i, component in enumerate(components))


NUCLEOTIDES = "".join(
    atom(name, component, number, (i, number * 6.0, 3.0), chain="N")
    for number, component in enumerate(("DA", "DG", "DC", "DT"), start=1)
    for i, name in enumerate(("P", "C4'", "C3'", "O3'"))
)


def as_mmcif(pdb, headers=""):
    """The same atoms as mmCIF without entities, as other programs write it."""
    rows = []
    for line in pdb.splitlines():
        if line.startswith(("ATOM", "HETATM")):
            name, altloc, insertion = line[12:16].strip(), line[16].replace(" ", "."), line[26].replace(" ", "?")
            rows.append(
                f'{line[:6]} {line[6:11]} {name[0]} "{name}" {altloc} {line[17:20]} {line[21]} 1 . {insertion} '
                f"{line[30:38]} {line[38:46]} {line[46:54]} 1.00 {line[60:66]} {line[22:26]} {line[21]} 1"
            )
    columns = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
    columns += "label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id "
    columns += "auth_asym_id pdbx_PDB_model_num"
    return "\n".join(["data_x", headers, "loop_", *(f"_atom_site.{c}" for c in columns.split()), *rows]) + "\n"

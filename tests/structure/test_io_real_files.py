"""`read_chains` on real files, where they are present: against their table, their columns, and gemmi itself."""

import csv
import gzip

import gemmi
import numpy as np

from structure_aligned.structure.io import read_chains


def test_split_structures_equal_their_table(real_data):
    folder = real_data("structures")
    with open(folder / "chains.tsv") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "test"]
    assert len(rows) == 160
    for row in rows:
        (chain,) = read_chains(folder / "test" / f"{row['id']}.cif.gz")
        assert (chain.id, chain.sequence) == (row["id"], row["sequence"])
        assert chain.resolution == (float(row["resolution"]) if row["resolution"] else None), row["id"]
        assert chain.r_free == (float(row["r_free"]) if row["r_free"] else None), row["id"]


def test_raw_pdb_files(real_data):
    paths = sorted(real_data("structures", "raw_pdb").glob("*.pdb.gz"))
    assert len(paths) == 120
    for path in paths:
        chains = read_chains(path)
        assert len({chain.chain_id for chain in chains}) == len(chains), path.name
        listed = ca_sites(path)
        for chain in chains:
            assert chain.entry_id == path.name[:4]
            found = {number for number, ca in zip(chain.residue_numbers, chain.ca) if not np.isnan(ca[0])}
            # Every ATOM record named CA is in, and what is more in comes from HETATM (modified residues).
            assert (
                listed[chain.chain_id, "ATOM"]
                <= found
                <= listed[chain.chain_id, "ATOM"] | listed[chain.chain_id, "HETATM"]
            )


def ca_sites(path):
    """Residue numbers with a CA by chain and record, read by columns."""
    sites = {}
    with gzip.open(path, "rt") as file:
        for line in file:
            record = line[:6].strip()
            if record in ("ATOM", "HETATM"):
                for kind in ("ATOM", "HETATM"):
                    sites.setdefault((line[21], kind), set())
                if line[12:16] == " CA ":
                    sites[line[21], record].add(line[22:27].strip())
    return sites


def test_gemmi_gives_the_same_first_conformer(golden):
    for path in sorted(golden("foldseek_3di").glob("*.cif.gz")):
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        expected = {}
        for chain in structure[0]:
            residues = list(chain.get_polymer().first_conformer())
            if residues:
                expected[chain.name] = [str(residue.seqid) for residue in residues]
        assert {chain.chain_id: list(chain.residue_numbers) for chain in read_chains(path)} == expected


def test_residues_that_share_a_number_in_deposited_entries(real_data):
    """The first residues of these chains have one author's number, without insertion codes."""
    folder = real_data("structures")
    with open(folder / "chains.tsv") as file:
        rows = {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}
    for name, length in (("3vho_B", 257), ("4q9p_B", 140)):
        (chain,) = read_chains(folder / rows[name]["split"] / f"{name}.cif.gz")
        assert len(chain) == length == int(rows[name]["length"])
        assert chain.sequence == rows[name]["sequence"]

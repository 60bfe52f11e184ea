"""Secondary structure: ideal folds, gaps, DSSP's own labels of real chains, and the definition by loops."""

import csv
import zipfile

import numpy as np
import pytest

from structure_aligned.structure.backbone import place_atoms, walk_from_origin
from structure_aligned.structure.io import read_chains
from structure_aligned.structure.secondary import assign_secondary_structure
from structure_aligned.structure.synthetic import synthetic_chain


def ideal(*torsions):
    torsions = np.array(torsions, dtype=float)
    return place_atoms(*walk_from_origin(torsions), torsions[:, 1])


def helix(length):
    return ideal(*[(-57, -47)] * length)


def hairpin(strand=7):
    """Two strands and the type I' turn between them: antiparallel, the pairs (i, 2 * strand + 1 - i)."""
    return ideal(*[(-120, 130)] * strand, (55, 38), (78, 20), *[(-120, 130)] * strand)


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def test_ideal_helix_and_extended_chain():
    for length in (6, 12, 40):
        # The first residue accepts only and the last donates only: neither lies behind two turns.
        assert assign_secondary_structure(helix(length)) == "C" + "H" * (length - 2) + "C"
    # Too short for two successive turns.
    assert assign_secondary_structure(helix(5)) == "CCCCC"
    assert assign_secondary_structure(ideal(*[(-120, 130)] * 30)) == "C" * 30


def test_hairpin():
    found = assign_secondary_structure(hairpin())
    assert len(found) == 16 and found[7:9] == "CC" and found[0] == found[-1] == "C"
    assert found == found[::-1] and found.count("E") >= 6 and "H" not in found


@pytest.mark.parametrize("seed", range(3))
def test_synthetic_folds(seed):
    helices = assign_secondary_structure(synthetic_chain("helix", 80, seed).coords)
    assert helices.count("H") > 50 and "E" not in helices
    # Their strands are packed, not paired; what pairs is chance.
    assert "H" not in assign_secondary_structure(synthetic_chain("strand", 80, seed).coords)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_too_short_for_anything(length):
    coords = helix(12)[:length].reshape(length, 5, 3)
    assert assign_secondary_structure(coords) == "C" * length
    assert assign_secondary_structure(np.full_like(coords, np.nan)) == "C" * length


def test_missing_atoms_break_the_chain():
    coords = helix(30)
    coords[:, 4] = np.nan  # CB is not looked at
    assert assign_secondary_structure(coords) == "C" + "H" * 28 + "C"
    assert assign_secondary_structure(coords[:, :4]) == "C" + "H" * 28 + "C"
    for atom in range(4):
        gap = coords.copy()
        gap[12, atom] = np.nan
        # The residue behind the gap has no C=O before it to place its hydrogen by.
        assert assign_secondary_structure(gap) == "C" + "H" * 10 + "CCC" + "H" * 15 + "C"
    coords[12, 1] = np.inf
    assert assign_secondary_structure(coords)[12] == "C"


def test_chain_break_by_distance():
    coords = helix(30)
    coords[15:] += coords[15, 0] - coords[14, 2]  # C to N is now 2.66 Å, with the bonds hardly changed
    assert assign_secondary_structure(coords)[14:16] == "CC"
    coords = np.concatenate([helix(12), helix(12) + 100.0])
    assert assign_secondary_structure(coords) == 2 * ("C" + "H" * 10 + "C")


def test_prolines_donate_no_bond():
    # Of a bond the helix has its ends from: without the last donor it ends one residue earlier.
    assert assign_secondary_structure(helix(12), "A" * 11 + "P") == "C" + "H" * 9 + "CC"
    assert assign_secondary_structure(helix(12), "P" + "A" * 11) == "C" + "H" * 10 + "C"


def test_rigid_motion_changes_nothing(real_data):
    path = sorted(real_data("structures", "test").glob("*.cif.gz"))[0]
    coords = read_chains(path)[0].coords.astype(np.float64)
    expected = assign_secondary_structure(coords)
    assert {"H", "E", "C"} == set(expected)
    for seed in range(3):
        assert assign_secondary_structure(coords @ rotation(seed) + 50.0) == expected


def test_long_chains_take_linear_memory():
    import tracemalloc

    parts = [synthetic_chain("mixed", 300, seed).coords + np.float32(300 * seed) for seed in range(10)]
    expected = "".join(map(assign_secondary_structure, parts))
    tracemalloc.start()
    found = assign_secondary_structure(np.concatenate(parts))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == expected
    assert peak < 30e6  # one float64 matrix of 3000 x 3000 is 72 MB


def by_loops(coords, sequence):
    """Kabsch & Sander's definition word by word, without bulges: chains without a break and without missing atoms."""
    length = len(coords)
    n, ca, c, o = coords[:, :4].astype(np.float64).swapaxes(0, 1)
    bonds = set()  # (C=O of, N-H of)
    for donor in range(1, length):
        if sequence[donor] == "P":
            continue
        h = n[donor] + (c[donor - 1] - o[donor - 1]) / np.linalg.norm(c[donor - 1] - o[donor - 1])
        energies = []
        for acceptor in range(length):
            if acceptor in (donor, donor - 1) or np.linalg.norm(ca[donor] - ca[acceptor]) > 9.0:
                continue
            inverse = [1 / np.linalg.norm(a - b) for a, b in ((o[acceptor], n[donor]), (c[acceptor], h))]
            inverse += [-1 / np.linalg.norm(a - b) for a, b in ((o[acceptor], h), (c[acceptor], n[donor]))]
            energies.append((27.89 * sum(inverse), acceptor))
        bonds |= {(acceptor, donor) for energy, acceptor in sorted(energies)[:2] if energy < -0.5}
    states = ["C"] * length
    for i in range(1, length - 1):
        for j in range(i + 3, length - 1):
            parallel = {(i - 1, j), (j, i + 1)} <= bonds or {(j - 1, i), (i, j + 1)} <= bonds
            if parallel or {(i, j), (j, i)} <= bonds or {(i - 1, j + 1), (j - 1, i + 1)} <= bonds:
                states[i] = states[j] = "E"
    for i in range(1, length - 4):
        if {(i - 1, i + 3), (i, i + 4)} <= bonds:
            states[i : i + 4] = "HHHH"
    return "".join(states)


def test_definition_by_loops(real_data):
    seen = set()
    checked = 0
    for path in sorted(real_data("structures", "test").glob("*.cif.gz"))[:40]:
        (chain,) = read_chains(path)
        steps = np.linalg.norm(chain.coords[1:, 0] - chain.coords[:-1, 2], axis=1)
        if len(chain) > 160 or not np.isfinite(chain.coords[:, :4]).all() or (steps > 2.5).any():
            continue
        found = assign_secondary_structure(chain.coords, chain.sequence)
        pairs = list(zip(by_loops(chain.coords, chain.sequence), found))
        # Bulges fill a few residues between bridges, and nothing else differs.
        assert {pair for pair in pairs if pair[0] != pair[1]} <= {("C", "E")}, chain.id
        assert sum(a != b for a, b in pairs) <= 0.06 * len(chain), chain.id
        seen |= set(found)
        checked += 1
        if checked == 6:
            break
    assert checked >= 3 and seen == set("HEC")


def labelled_chains(real_data):
    """`(chain, labels)` where FLIP has DSSP's three states (its H has 3-10 and pi helices in it) of a chain."""
    with zipfile.ZipFile(real_data("secondary_structure", "flip_secondary_structure.zip")) as archive:
        tables = []
        for name in ("sequences", "mask", "sampled"):
            lines = archive.read(f"splits/{name}.fasta").decode().split("\n")
            tables.append({a[1:].split()[0].lower().replace("-", "_"): b for a, b in zip(lines[::2], lines[1::2])})
    folder = real_data("structures")
    with open(folder / "chains.tsv") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["id"].lower() in tables[0]]
    for row in rows[::6]:
        sequence, mask, labels = (table[row["id"].lower()] for table in tables)
        kept = [index for index, flag in enumerate(mask) if flag == "1"]
        (chain,) = read_chains(folder / row["split"] / f"{row['id']}.cif.gz")
        if "".join(sequence[index] for index in kept) == chain.sequence:
            yield chain, "".join(labels[index] for index in kept)


def test_labels_of_dssp(real_data):
    pairs = [
        pair
        for chain, labels in labelled_chains(real_data)
        for pair in zip(labels, assign_secondary_structure(chain.coords, chain.sequence))
    ]
    assert len(pairs) > 10_000
    agreement = {key: pairs.count(key) / len(pairs) for key in set(pairs)}
    # Measured on 470 chains (71,000 residues): 96.2 %, all but 11 residues of the rest being 3-10 or pi helices,
    # which are H there and C here.
    assert sum(value for (a, b), value in agreement.items() if a == b) > 0.95
    assert sum(value for (a, b), value in agreement.items() if a != b and (a, b) != ("H", "C")) < 0.001


@pytest.mark.parametrize(
    ("coords", "sequence", "match"),
    [
        (np.zeros((3, 3, 3)), None, r"shape \(3, 3, 3\); expected"),
        (np.zeros((3, 5)), None, r"shape \(3, 5\)"),
        (np.zeros((3, 5, 3)), "AA", "3 residues but the sequence has 2"),
    ],
)
def test_refusals(coords, sequence, match):
    with pytest.raises(ValueError, match=match):
        assign_secondary_structure(coords, sequence)

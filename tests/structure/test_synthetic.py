"""Synthetic folds: ideal geometry, no clashes, folded, reproducible, and learnable from their sequences."""

import numpy as np
import pytest

from structure_aligned.structure import synthetic
from structure_aligned.structure.backbone import backbone_from_torsions
from structure_aligned.structure.io import read_chains
from structure_aligned.structure.synthetic import (
    KINDS,
    MAX_LENGTH,
    MIN_LENGTH,
    SEED_STRIDE,
    synthetic_chain,
    synthetic_chains,
    write_synthetic_folds,
)
from structure_aligned.structure.tokens import encode_3di


LETTERS = "ACDEFGHIKLMNPQRSTVWY"
N, CA, C, OXYGEN, CB = range(5)


@pytest.fixture(scope="module")
def chains():
    return synthetic_chains(300, seed=0)


@pytest.fixture(scope="module")
def other_chains():
    return synthetic_chains(45, seed=1)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def angle(a, b, c):
    return np.degrees(np.arccos((unit(a - b) * unit(c - b)).sum(-1)))


def dihedral(a, b, c, d):
    axis = unit(c - b)
    first = (a - b) - ((a - b) * axis).sum(-1, keepdims=True) * axis
    second = (d - c) - ((d - c) * axis).sum(-1, keepdims=True) * axis
    return np.degrees(np.arctan2((np.cross(axis, first) * second).sum(-1), (first * second).sum(-1)))


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def separations(length):
    return np.abs(np.arange(length)[:, None] - np.arange(length))


def test_torsions_are_recovered():
    torsions = np.random.default_rng(0).uniform(-180, 180, size=(50, 2))
    atoms = backbone_from_torsions(torsions)
    n, ca, c, o = (atoms[:, i] for i in (N, CA, C, OXYGEN))
    assert np.allclose(dihedral(c[:-1], n[1:], ca[1:], c[1:]), torsions[1:, 0], atol=1e-6)
    assert np.allclose(dihedral(n[:-1], ca[:-1], c[:-1], n[1:]), torsions[:-1, 1], atol=1e-6)
    assert np.allclose(np.abs(dihedral(ca[:-1], c[:-1], n[1:], ca[1:])), 180.0, atol=1e-4)
    # O, N and CA around C lie in a plane, O opposite the next CA.
    assert np.allclose(np.abs(dihedral(o[:-1], c[:-1], n[1:], ca[1:])), 0.0, atol=1e-4)


def test_ideal_secondary_structures_have_their_pitch():
    # Textbook rise per residue: 1.5 Å in a helix, about 3.3 Å in a strand; 3.6 residues per turn, right-handed.
    helix = backbone_from_torsions(np.tile([-57.0, -47.0], (19, 1)))[:, CA]
    strand = backbone_from_torsions(np.tile([-120.0, 130.0], (19, 1)))[:, CA]
    assert np.linalg.norm(helix[18] - helix[0]) / 18 == pytest.approx(1.5, abs=0.1)
    assert np.linalg.norm(strand[18] - strand[0]) / 18 == pytest.approx(3.3, abs=0.15)
    assert dihedral(*helix[:4]) == pytest.approx(50, abs=5)


@pytest.mark.parametrize("torsions", [np.zeros((0, 2)), np.zeros(4), np.zeros((3, 3)), np.array([[np.nan, 0.0]])])
def test_backbone_refuses_other_shapes(torsions):
    with pytest.raises(ValueError, match=r"expected finite phi and psi"):
        backbone_from_torsions(torsions)


def test_bonds_and_angles_are_ideal(chains):
    for chain in chains:
        n, ca, c, o, cb = (chain.coords[:, i].astype(float) for i in range(5))
        lengths = {
            1.458: n - ca,
            1.525: c - ca,
            1.231: o - c,
            1.329: n[1:] - c[:-1],
            1.530: (cb - ca)[np.isfinite(cb[:, 0])],
        }
        for ideal, bonds in lengths.items():
            # Coordinates have three decimals.
            assert np.abs(np.linalg.norm(bonds, axis=-1) - ideal).max() < 0.003
        assert np.abs(angle(n, ca, c) - 111.0).max() < 0.2
        assert np.abs(angle(ca[:-1], c[:-1], n[1:]) - 117.2).max() < 0.2
        assert np.abs(angle(c[:-1], n[1:], ca[1:]) - 121.7).max() < 0.2
        assert np.abs(np.linalg.norm(ca[1:] - ca[:-1], axis=-1) - 3.80).max() < 0.03


def test_cb_is_on_the_side_of_l_amino_acids(chains):
    for chain in chains[:20]:
        n, ca, c, _, cb = (chain.coords[:, i].astype(float) for i in range(5))
        # The tetrahedral approximation that 3Di uses for residues without CB.
        v1, v2 = unit(c - ca), unit(n - ca)
        u1, u2 = unit(v2 + v1 / 3), unit(np.cross(v1, v2 + v1 / 3))
        expected = ca + 1.5336 * (-v1 / 3 + np.sqrt(8) / 3 * (-u1 / 2 - np.sqrt(3) / 2 * u2))
        assert np.nanmax(np.linalg.norm(cb - expected, axis=-1)) < 0.1
        assert np.array_equal(np.isnan(cb[:, 0]), [letter == "G" for letter in chain.sequence])


def test_nothing_clashes(chains):
    for chain in chains[:120]:
        assert distances(chain.ca)[separations(len(chain)) >= 2].min() > 3.9
        atoms, residue = chain.coords.reshape(-1, 3), np.repeat(np.arange(len(chain)), 5)
        apart = np.abs(residue[:, None] - residue)
        assert np.nanmin(np.where(apart >= 2, distances(atoms), np.inf)) > 2.45  # the closest allowed pair is O to O


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [MIN_LENGTH, MAX_LENGTH])
def test_shortest_and_longest(kind, length):
    chain = synthetic_chain(kind, length, seed=3)
    assert len(chain) == length
    assert np.isfinite(chain.coords[:, :CB]).all()
    assert chain.residue_numbers == tuple(str(i) for i in range(1, length + 1))


def test_chains_are_folded(chains):
    for number, kind in enumerate(KINDS):
        long_range, sizes = [], []
        for chain in chains[number :: len(KINDS)]:
            contacts = (distances(chain.ca) < 8.0) & (separations(len(chain)) >= 12)
            long_range.append(contacts.sum() / 2 / len(chain))
            ca = chain.ca - chain.ca.mean(0)
            sizes.append(np.sqrt((ca**2).sum(1).mean()) / (2.2 * len(chain) ** 0.38))  # 1 in real globular proteins
        assert np.mean(sizes) < 1.5
        assert np.max(sizes) < 2.0
        assert np.mean(long_range) > {"helix": 0.25, "strand": 0.7, "mixed": 0.4}[kind]


def test_same_seed_same_chain(chains):
    again = synthetic_chain("strand", len(chains[1]), seed=1, resolution=1.8, r_free=0.2)
    assert again.digest() == chains[1].digest()
    assert (again.entry_id, again.chain_id, again.method) == ("syn00001", "A", "THEORETICAL MODEL")
    assert (again.resolution, again.r_free) == (1.8, 0.2)
    assert (chains[1].resolution, chains[1].r_free) == (None, None)
    assert [c.digest() for c in synthetic_chains(6)] == [c.digest() for c in chains[:6]]


def test_search_for_a_fold_ends(monkeypatch):
    monkeypatch.setattr(synthetic, "_clashes", lambda atoms, start: True)
    with pytest.raises(RuntimeError, match="no helix fold of 60 residues without clashes"):
        synthetic_chain("helix", 60, seed=0)


def test_chains_and_seeds_differ(chains, other_chains):
    everything = chains + other_chains
    assert len({c.digest() for c in everything}) == len({c.id for c in everything}) == len(everything)
    assert other_chains[0].entry_id == f"syn{SEED_STRIDE}"
    assert {40, 120} == {min(map(len, chains)), max(map(len, chains))}


def test_files_read_back_equal(tmp_path, chains):
    paths = write_synthetic_folds(tmp_path / "new", 6, resolution=2.0, r_free=0.25)
    assert [path.name for path in paths] == [f"syn{i:05d}.cif" for i in range(6)]
    for path, chain in zip(paths, chains):
        (read,) = read_chains(path)
        assert (read.entry_id, read.chain_id, read.sequence) == (chain.entry_id, chain.chain_id, chain.sequence)
        assert (read.residue_numbers, read.method) == (chain.residue_numbers, chain.method)
        assert read.predicted and chain.predicted
        assert (read.resolution, read.r_free) == (2.0, 0.25)
        np.testing.assert_allclose(read.coords, chain.coords, atol=1e-3, equal_nan=True)
        np.testing.assert_allclose(read.b_factors, chain.b_factors)
        assert read.digest() == chain.digest()


def test_files_are_reproducible(tmp_path):
    first, second, other = (write_synthetic_folds(tmp_path / str(i), 3, seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert {p.read_bytes() for p in first}.isdisjoint(p.read_bytes() for p in other)


def test_sequences_hold_all_letters_and_none_dominates(chains):
    counts = np.array([sum(chain.sequence.count(letter) for chain in chains) for letter in LETTERS])
    frequency = counts / counts.sum()
    assert frequency.min() > 0.01
    assert frequency.max() < 0.12


def test_hydrophobic_letters_are_inside(chains):
    inside, outside = [], []
    for chain in chains:
        neighbours = (distances(chain.ca) < 10.0).sum(1)
        for letter, count in zip(chain.sequence, neighbours):
            if letter in "ILVFM":
                inside.append(count)
            elif letter in "DEKRN":
                outside.append(count)
    assert np.mean(inside) > np.mean(outside) + 1.0


def windows(chains, reach=4):
    """Valid 3Di tokens `(M,)` of all chains and the letters around each `(M, 2 * reach + 1)`, 20 beyond the ends."""
    letters, tokens = [], []
    for chain in chains:
        indices = np.pad([LETTERS.index(letter) for letter in chain.sequence], reach, constant_values=20)
        chain_tokens, valid = encode_3di(chain.coords)
        letters.append(np.lib.stride_tricks.sliding_window_view(indices, 2 * reach + 1)[valid])
        tokens.append(chain_tokens[valid])
    return np.concatenate(letters), np.concatenate(tokens).astype(int)


def test_helices_and_strands_have_different_3di_tokens(chains):
    shares = []
    for number in range(2):
        _, tokens = windows(chains[number :: len(KINDS)])
        shares.append(np.bincount(tokens, minlength=20) / len(tokens))
    helix, strand = shares
    assert helix.argmax() != strand.argmax()
    assert np.abs(helix - strand).sum() / 2 > 0.4  # total variation distance
    mean = (helix + strand) / 2
    assert np.exp(-(mean[mean > 0] * np.log(mean[mean > 0])).sum()) > 7  # effective number of tokens


def test_3di_tokens_can_be_predicted_from_the_sequence(chains, other_chains):
    # Naive Bayes over the nine letters around a residue is right for 0.50 of the residues of other chains; always
    # giving the commonest token, for 0.27.
    letters, tokens = windows(chains)
    counts = np.full((20, letters.shape[1], 21), 0.5)
    for position in range(letters.shape[1]):
        np.add.at(counts, (tokens, position, letters[:, position]), 1.0)
    logs = np.log(counts / counts.sum(-1, keepdims=True))
    prior = np.log(np.bincount(tokens, minlength=20) + 1.0)

    letters, truth = windows(other_chains)
    scores = prior + sum(logs[:, position, letters[:, position]].T for position in range(letters.shape[1]))
    accuracy = (scores.argmax(1) == truth).mean()
    majority = (prior.argmax() == truth).mean()
    assert accuracy > majority + 0.18
    assert accuracy < 0.7  # a language model is left something to do


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coil", 60, 0), "kind is 'coil'; expected one of helix, strand, mixed"),
        (("helix", MIN_LENGTH - 1, 0), "length is 23; expected an integer, 24 to 300"),
        (("helix", MAX_LENGTH + 1, 0), "length is 301"),
        (("helix", 60.0, 0), "length is 60.0"),
        (("helix", 60, -1), "seed is -1; expected an integer, 0 or more"),
    ],
)
def test_chain_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_chain(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": SEED_STRIDE + 1}, "count is 100001"),
        ({"count": True}, "count is True"),
        ({"count": 3, "seed": -2}, "seed is -2"),
        ({"count": 3, "min_length": 80, "max_length": 60}, "min_length is 80; expected an integer, 24 to 60"),
        ({"count": 3, "max_length": 1000}, "max_length is 1000"),
    ],
)
def test_set_refuses_before_writing(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_synthetic_folds(tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()

"""3Di tokens: equal to Foldseek's on real chains and to mini3di's (all pairwise distances) on random coordinates."""

import mini3di
import numpy as np
import pytest
import torch

from structure_aligned.structure.io import read_chains
from structure_aligned.structure.tokens import (
    INVALID_TOKEN,
    STRUCTURE_ALPHABET_3DI,
    _nearest_other,
    encode_3di,
    structure_tokens_to_string,
)


ENCODER = mini3di.Encoder()


def random_coords(rng, length, missing=0.0, step=2.0):
    coords = np.cumsum(rng.normal(scale=step, size=(length, 1, 3)), axis=0) + rng.normal(size=(length, 5, 3))
    coords[rng.random((length, 5)) < missing] = np.nan
    return coords


def expected_tokens(coords):
    states = ENCODER.encode_atoms(coords[:, 1], coords[:, 4], coords[:, 0], coords[:, 2])
    return states.data, ~np.ma.getmaskarray(states)


def golden_strings(folder):
    strings, name = {}, ""
    for line in (folder / "expected_3di.fasta").read_text().splitlines():
        if line.startswith(">"):
            name = line[1:].strip()
        else:
            strings[name] = strings.get(name, "") + line.strip()
    return strings


def test_equal_to_foldseek(golden):
    folder = golden("foldseek_3di")
    expected = golden_strings(folder)
    seen = set()
    for path in sorted(folder.glob("*.cif.gz")):
        for chain in read_chains(path):
            coords = chain.coords
            if chain.entry_id == "5eil":
                # The Foldseek that wrote these strings dropped the modified residue BP5, number 9.
                coords = coords[[number != "9" for number in chain.residue_numbers]]
                assert len(coords) == len(chain) - 1
            assert structure_tokens_to_string(*encode_3di(coords)) == expected[chain.id], chain.id
            seen.add(chain.id)
    assert seen == set(expected)
    assert len(seen) == 13


@pytest.mark.parametrize("missing", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("seed", range(10))
def test_equal_to_mini3di(seed, missing):
    rng = np.random.default_rng(seed)
    for length in rng.integers(4, 200, size=8):
        coords = random_coords(rng, int(length), missing)
        tokens, valid = encode_3di(coords)
        reference, reference_valid = expected_tokens(coords)
        assert valid.any() or reference_valid.sum() <= 1  # mini3di takes residue 0 where there is no partner
        if valid.any():
            np.testing.assert_array_equal(valid, reference_valid)
        np.testing.assert_array_equal(tokens[valid], reference[valid])
        assert (tokens[~valid] == INVALID_TOKEN).all()


def test_far_from_the_origin():
    coords = random_coords(np.random.default_rng(0), 100)
    tokens, valid = encode_3di(coords)
    moved, moved_valid = encode_3di(coords + 5000.0)
    np.testing.assert_array_equal(moved, tokens)
    np.testing.assert_array_equal(moved_valid, valid)


@pytest.mark.parametrize("length", range(4))
def test_short_chains_have_no_tokens(length):
    # With three residues the middle one has no partner: Foldseek prints DDD.
    tokens, valid = encode_3di(random_coords(np.random.default_rng(0), length))
    assert tokens.dtype == np.uint8 and valid.dtype == bool
    assert tokens.tolist() == [INVALID_TOKEN] * length
    assert not valid.any()


def test_four_residues_are_partners_of_each_other():
    _, valid = encode_3di(random_coords(np.random.default_rng(0), 4))
    assert valid.tolist() == [False, True, True, False]


def test_a_missing_atom_takes_its_neighbours_along():
    coords = random_coords(np.random.default_rng(0), 60)
    everywhere = encode_3di(coords)[1]
    assert everywhere.tolist() == [False] + [True] * 58 + [False]
    coords[30, 2, 1] = np.inf
    valid = encode_3di(coords)[1]
    assert not valid[29:32].any()
    assert 0 < valid.sum() < 55 + 1
    coords[:, [3, 4]] = np.nan  # O plays no role, and CB is placed where it is missing
    assert encode_3di(coords)[1].sum() > 40


@pytest.mark.parametrize("missing", [1.0, 0.97])
def test_hardly_any_atom(missing):
    coords = random_coords(np.random.default_rng(0), 50, missing)
    tokens, valid = encode_3di(coords)
    assert not valid.any()
    assert (tokens == INVALID_TOKEN).all()


def test_types_and_input_unchanged():
    coords = random_coords(np.random.default_rng(1), 80, 0.05).astype(np.float32)
    before = coords.copy()
    tokens, valid = encode_3di(coords)
    np.testing.assert_array_equal(coords, before)
    for other in (
        torch.tensor(coords),
        torch.tensor(coords, dtype=torch.float64, requires_grad=True),
        coords.tolist(),
    ):
        np.testing.assert_array_equal(encode_3di(other)[0], tokens)
        np.testing.assert_array_equal(encode_3di(other)[1], valid)


@pytest.mark.parametrize("shape", [(5, 3), (10, 4, 3), (10, 5), (2, 10, 5, 3), (10, 5, 2)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"expected \(L, 5, 3\)"):
        encode_3di(np.zeros(shape))


def brute_force(points):
    squared = ((points[:, None] - points) ** 2).sum(-1)
    np.fill_diagonal(squared, np.inf)
    return squared.argmin(1)


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((50, 3)),
        np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3),
        np.random.default_rng(0).permutation(np.stack(np.meshgrid(*[np.arange(4.0)] * 3), -1).reshape(-1, 3)),
        np.random.default_rng(0).integers(0, 3, size=(200, 3)).astype(float),
        np.arange(30.0)[:, None] * [1.0, 0, 0],
        np.array([[0.0, 0, 0], [1, 1, 1]]),
        np.random.default_rng(0).normal(size=(500, 3)),
    ],
    ids=["one point", "grid", "shuffled grid", "duplicates", "line", "two", "random"],
)
def test_nearest_takes_the_lowest_index_of_equals(points):
    np.testing.assert_array_equal(_nearest_other(points), brute_force(points))


def test_tokens_as_letters():
    assert STRUCTURE_ALPHABET_3DI == "ACDEFGHIKLMNPQRSTVWY"
    tokens = np.array([2, 0, 19, 99], dtype=np.uint8)
    valid = np.array([False, True, True, False])
    assert structure_tokens_to_string(tokens, valid) == "DAYD"
    assert structure_tokens_to_string(tokens, valid, invalid="#") == "#AY#"
    assert structure_tokens_to_string(tokens[:3]) == "DAY"
    assert structure_tokens_to_string([]) == ""


@pytest.mark.parametrize(
    ("tokens", "valid", "invalid", "message"),
    [
        ([20], None, "D", "0 to 19"),
        ([-1], None, "D", "0 to 19"),
        ([1, 2], [True], "D", "expected"),
        ([[1]], None, "D", "expected"),
        ([1], None, "", "one character"),
    ],
)
def test_letters_refused(tokens, valid, invalid, message):
    with pytest.raises(ValueError, match=message):
        structure_tokens_to_string(tokens, valid, invalid)

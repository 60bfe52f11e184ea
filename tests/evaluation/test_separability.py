import numpy as np
import pytest
from sklearn.metrics import silhouette_samples
from sklearn.metrics.pairwise import cosine_distances

from structure_aligned.evaluation import separability
from structure_aligned.evaluation.separability import neighbour_purity, silhouettes


def test_silhouette_by_hand():
    # Unit vectors: cosine distances are 1 - cos of the angle between them.
    angles = np.radians([0, 60, 90, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = np.array([0, 0, 1, 1])
    expected = []
    for i in range(4):
        own = [j for j in range(4) if labels[j] == labels[i] and j != i]
        other = [j for j in range(4) if labels[j] != labels[i]]
        a, b = (np.mean([1 - np.cos(angles[i] - angles[j]) for j in members]) for members in (own, other))
        expected.append((b - a) / max(a, b))
    # By numbers: residue 0 is 0.5 from its own, and 1 and 2 from the others.
    assert expected[0] == pytest.approx((1.5 - 0.5) / 1.5)
    np.testing.assert_allclose(silhouettes(points, labels), expected)
    np.testing.assert_allclose(
        silhouettes(points, labels), silhouette_samples(points, labels, metric="cosine"), rtol=1e-12
    )
    np.testing.assert_allclose(silhouettes(7.0 * points, labels), expected)  # lengths do not count


def test_silhouettes_that_are_not_defined():
    assert np.isnan(silhouettes(np.eye(3), np.zeros(3, dtype=int))).all()
    assert np.isnan(silhouettes(np.eye(3), np.arange(3))).all()


@pytest.mark.parametrize("block", [2**24, 40])
def test_purity_by_a_loop(monkeypatch, block):
    monkeypatch.setattr(separability, "_BLOCK", block)
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    proteins = np.repeat([0, 1, 2, 3], [16, 16, 5, 3])
    purity, chance = neighbour_purity(embeddings, labels, proteins, k=4)
    distance = cosine_distances(embeddings)
    for i in range(40):
        others = [j for j in range(40) if proteins[j] != proteins[i]]
        nearest = sorted(others, key=lambda j: distance[i, j])[:4]
        assert purity[i] == pytest.approx(np.mean([labels[j] == labels[i] for j in nearest]))
        assert chance[i] == pytest.approx(np.mean([labels[j] == labels[i] for j in others]))


def test_residues_of_the_own_protein_are_no_neighbours():
    # Each protein has a place of its own, so that its residues are all alike; labels follow nothing.
    rng = np.random.default_rng(0)
    proteins = np.repeat(np.arange(6), 20)
    labels = np.repeat(np.arange(6) % 2, 20)  # one label per protein
    embeddings = np.eye(6)[proteins] + 0.01 * rng.normal(size=(120, 6))
    purity, chance = neighbour_purity(embeddings, labels, proteins, k=10)
    assert abs(purity.mean() - 0.4) < 0.15  # 1 with neighbours of the own protein
    assert chance[0] == pytest.approx(40 / 100)


def test_few_or_no_other_residues():
    embeddings, labels, proteins = np.eye(4), np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    purity, chance = neighbour_purity(embeddings, labels, proteins, k=10)
    np.testing.assert_allclose(purity, [0, 0, 1, 1 / 3])  # all of the other protein's
    np.testing.assert_allclose(chance, purity)
    assert all(np.isnan(values).all() for values in neighbour_purity(embeddings, labels, np.zeros(4), k=2))
    with pytest.raises(ValueError, match="k is 0"):
        neighbour_purity(embeddings, labels, proteins, k=0)

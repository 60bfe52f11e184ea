import sys

import numpy as np
import pytest

from structure_aligned.evaluation import embedding_plot
from structure_aligned.evaluation.embedding_plot import plot_embedding
from structure_aligned.evaluation.residue_labels import NO_LABEL
from structure_aligned.structure.synthetic import synthetic_chains
from tests import tiny


pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def chains():
    made = synthetic_chains(6, max_length=50)
    made[0].coords[3:9] = np.nan
    return made


def size_of(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_a_panel_for_each_model(chains, tmp_path):
    one = plot_embedding(tiny.esm_model(), chains, tmp_path / "one.png", method="pca", max_residues=60)
    models = {"ESM2": tiny.esm_model(), "AMPLIFY": tiny.FAMILIES["AMPLIFY"].model()}
    two = plot_embedding(models, chains, tmp_path / "two.png", method="pca", max_residues=60)
    assert size_of(two)[0] > 1.8 * size_of(one)[0] and size_of(two)[1] == size_of(one)[1]
    again = plot_embedding(models, chains, tmp_path / "again.png", method="pca", max_residues=60)
    assert again.read_bytes() == two.read_bytes()


def test_residues_drawn(chains):
    labels = [embedding_plot.secondary_structure_labels(chain) for chain in chains]
    drawn, states = embedding_plot._draw(labels, 70, seed=0)
    assert len(states) == 70 == sum(map(len, drawn))
    assert (states != NO_LABEL).all() and not set(drawn[0]) & set(range(3, 9))
    assert np.concatenate([own[part] for own, part in zip(labels, drawn)]).tolist() == states.tolist()


def test_pca_keeps_the_two_widest_directions():
    rng = np.random.default_rng(0)
    angles = rng.uniform(-0.5, 0.5, 50)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(50)], axis=1) * rng.uniform(1, 9, (50, 1))
    points = embedding_plot._project(circle, "pca", 0)
    # Lengths do not count: what is left is the angle.
    assert abs(np.corrcoef(points[:, 0], np.sin(angles))[0, 1]) > 0.999


def test_what_is_refused(chains, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="method is 'tsne'"):
        plot_embedding(tiny.esm_model(), chains, tmp_path / "a.png", method="tsne")
    with pytest.raises(ValueError, match="max_residues is 0"):
        plot_embedding(tiny.esm_model(), chains, tmp_path / "a.png", max_residues=0)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap-learn"):
        plot_embedding(tiny.esm_model(), chains, tmp_path / "a.png", method="umap")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="structure-aligned\\[plot\\]"):
        plot_embedding(tiny.esm_model(), chains, tmp_path / "a.png")

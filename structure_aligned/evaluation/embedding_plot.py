"""A picture of residue embeddings, coloured by secondary structure."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.trunks import tokenizer_of
from ..structure.chain import ProteinChain
from ..structure.secondary import SECONDARY_STATES
from ..utils.files import atomic_file
from ..utils.names import picture_text
from .residue_labels import NO_LABEL, secondary_structure_labels
from .separability import silhouettes
from .trunk_outputs import stream_hidden_states


# Okabe & Ito's, which the colour-blind tell apart.
_COLOURS = {"H": "#D55E00", "E": "#0072B2", "C": "#B8B8B8"}
_NAMES = {"H": "helix", "E": "strand", "C": "other"}
_INK = "#303030"


def plot_embedding(
    models: PreTrainedModel | Mapping[str, PreTrainedModel],
    chains: Sequence[ProteinChain],
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    method: str | None = None,
    max_residues: int = 3_000,
    max_tokens: int = 4096,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """
    Draws residue embeddings in two dimensions as PNG, with the mean silhouette of the residues drawn, which is a
    number of the embeddings themselves and not of the picture.

    Needs matplotlib (`pip install "structure-aligned[plot]"`). No display is needed and no global state is changed.

    Args:
        models ([`PreTrainedModel`] or `Mapping`): One model, or several by name, one panel each, of the same residues.
        chains (`Sequence[ProteinChain]`): Their residues with a whole backbone are drawn from.
        path (`str` or `os.PathLike`): The file; its folder must exist.
        tokenizer ([`PreTrainedTokenizerBase`], *optional*): Each model's family's by default.
        method (`str`, *optional*): `"umap"` (of cosine distances) or `"pca"` (of embeddings of unit length). By
            default UMAP where umap-learn is installed.
        max_residues (`int`, *optional*, defaults to 3000): Drawn at random from all chains.
        max_tokens, seed, progress: As for [`evaluate_probes`].

    Raises:
        ImportError: There is no matplotlib, or no umap-learn for `method="umap"`.
        ValueError: No residue has a label, or the method is another.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "structure-aligned[plot]".') from error
    if method is None:
        method = "umap" if importlib.util.find_spec("umap") is not None else "pca"
    if method not in ("umap", "pca"):
        raise ValueError(f"method is {method!r}; expected 'umap' or 'pca'.")
    if not isinstance(models, Mapping):
        models = {type(models).__name__: models}
    drawn, labels = _draw([secondary_structure_labels(chain) for chain in chains], max_residues, seed)
    sequences = [chain.sequence for chain in chains]

    figure = Figure(figsize=(0.4 + 4.4 * len(models), 4.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    order = np.random.default_rng(seed).permutation(len(labels))  # so that no state lies on top of the others
    colours = np.array([_COLOURS[SECONDARY_STATES[label]] for label in labels])
    for axes, (name, model) in zip(panels, models.items()):
        own = tokenizer_of(model.config) if tokenizer is None else tokenizer
        parts: list[np.ndarray] = [np.empty(0)] * len(chains)
        for index, states in stream_hidden_states(model, sequences, own, max_tokens, name if progress else None):
            parts[index] = states[drawn[index]]
        embeddings = np.concatenate(parts)
        points = _project(embeddings, method, seed)
        axes.scatter(*points[order].T, s=5, c=colours[order], linewidths=0, alpha=0.75)
        silhouette = silhouettes(embeddings, labels).mean()
        score = "" if np.isnan(silhouette) else f"\nmean silhouette {silhouette:.3f}"
        axes.set_title(f"{picture_text(name)}{score}", fontsize=10, color=_INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"{method.upper()} 1", fontsize=9, color=_INK)
        axes.set_ylabel(f"{method.upper()} 2", fontsize=9, color=_INK)
        axes.spines[["top", "right"]].set_visible(False)
    counts = np.bincount(labels, minlength=len(SECONDARY_STATES))
    for state, count in zip(SECONDARY_STATES, counts):
        panels[0].scatter([], [], s=22, c=_COLOURS[state], label=f"{_NAMES[state]} ({count:,})")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path = Path(path)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=130, format="png")
    return path


def _draw(labels: list[np.ndarray], count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Positions in each chain, and the labels of all of them in that order."""
    known = [(index, position) for index, own in enumerate(labels) for position in np.flatnonzero(own != NO_LABEL)]
    if count < 1 or not known:
        raise ValueError(
            f"{len(labels)} chains have {len(known)} residues with a whole backbone and max_residues is {count}; "
            "expected at least one of each."
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(known), min(count, len(known)), replace=False))
    pairs = np.array(known)[chosen]
    drawn = [pairs[pairs[:, 0] == index, 1] for index in range(len(labels))]
    return drawn, np.concatenate([own[positions] for own, positions in zip(labels, drawn)])


def _project(embeddings: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Two coordinates `(N, 2)` of each embedding."""
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("method='umap' needs umap-learn: pip install umap-learn; or take 'pca'.") from error
        return UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(embeddings)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    return PCA(2, svd_solver="full").fit_transform(unit)

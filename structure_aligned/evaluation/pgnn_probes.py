"""What can be read linearly from the embeddings of a pGNN: how one pre-training is told from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..structure.chain import ProteinChain
from .contacts import contact_map, contact_precision
from .probes import EmbeddedChains, Probing, label_chains
from .residue_labels import NO_LABEL, RESIDUE_TASKS


MIN_SEPARATION = 6
NEGATIVES_PER_CONTACT = 5


def evaluate_pgnn(
    pgnn: Any,
    train_chains: Sequence[ProteinChain],
    test_chains: Sequence[ProteinChain],
    *,
    num_contact_chains: int = 40,
    max_train_residues: int = 20_000,
    max_iter: int = 300,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """
    Probes of a pGNN's residue embeddings, each fitted on the training chains and judged on the test chains.

    Accuracy of a logistic regression for secondary structure and 3Di tokens; and contacts (CB within 8 Å, at least 6
    residues apart) by one on products and absolute differences of two residues' embeddings.

    Args:
        pgnn (`Any`): With `embed_batch(chains)`, such as [`GearNetModel`].
        train_chains, test_chains (`list[ProteinChain]`): No sequence may be in both.
        num_contact_chains (`int`, *optional*, defaults to 40): Training chains that contacts are fitted on, the first.
        max_train_residues, max_iter (`int`, *optional*, default to 20000 and 300): As in [`evaluate_probes`].

    Returns:
        `list[dict[str, Any]]`: A row per test chain with `id`, `secondary_structure` and `structure_tokens` (accuracy)
        with their `_majority`, and `contacts`, P@L.
    """
    train_embeddings, test_embeddings = (_embed(pgnn, chains) for chains in (train_chains, test_chains))
    tasks = list(RESIDUE_TASKS)
    train, test = (label_chains(chains, tasks) for chains in (train_chains, test_chains))
    for item, own in zip((*train, *test), (*train_embeddings, *test_embeddings)):
        for labels in item.labels.values():
            labels[~np.isfinite(own[:, 0])] = NO_LABEL  # not in the graph, so there is nothing to read from
    names = [item.id for item in (*train, *test)]
    states = EmbeddedChains(dict(zip(names, (*train_embeddings, *test_embeddings))))
    probing = Probing(max_train_residues, 0, 1, 1.0, max_iter, 1, seed, False)
    rows = probing.judge(states, train, test, tasks)
    rng = np.random.default_rng(seed)
    parts = [
        _drawn_pairs(chain, own, rng)
        for chain, own in zip(train_chains[:num_contact_chains], train_embeddings[:num_contact_chains])
    ]
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=max_iter))
    regression.fit(
        np.concatenate([features for features, _ in parts]), np.concatenate([labels for _, labels in parts])
    )
    for row, chain, own in zip(rows, test_chains, test_embeddings):
        row["contacts"] = _precision(regression, chain, own)
    return rows


def _embed(pgnn: Any, chains: Sequence[ProteinChain]) -> list[np.ndarray]:
    return [embedding.float().cpu().numpy() for embedding in pgnn.embed_batch(list(chains))]


def _pair_features(own: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([own[first] * own[second], np.abs(own[first] - own[second])], axis=1)


def _drawn_pairs(chain: ProteinChain, own: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all contacts of a chain and of some pairs that are none."""
    contacts, labelled = contact_map(chain.coords, chain.sequence)
    usable = np.triu(labelled & np.isfinite(own[:, 0])[:, None] & np.isfinite(own[:, 0])[None], k=MIN_SEPARATION)
    positive = np.argwhere(usable & contacts)
    negative = np.argwhere(usable & ~contacts)
    negative = negative[rng.permutation(len(negative))[: NEGATIVES_PER_CONTACT * max(1, len(positive))]]
    pairs = np.concatenate([positive, negative])
    labels = np.repeat([True, False], [len(positive), len(negative)])
    return _pair_features(own, pairs[:, 0], pairs[:, 1]), labels


def _precision(regression: Any, chain: ProteinChain, own: np.ndarray) -> float:
    size = len(chain.sequence)
    scores = np.zeros((size, size))
    present = np.isfinite(own[:, 0])
    for index in np.flatnonzero(present):
        partners = np.flatnonzero(present)
        partners = partners[partners >= index + MIN_SEPARATION]
        if len(partners):
            features = _pair_features(own, np.full(len(partners), index), partners)
            scores[index, partners] = scores[partners, index] = regression.decision_function(features)
    contacts, labelled = contact_map(chain.coords, chain.sequence)
    return float(contact_precision(scores, contacts, labelled & present[:, None] & present[None])["all_P@L"])

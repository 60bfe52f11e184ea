"""Probes of a pGNN's embeddings, with networks that know everything and nothing."""

import numpy as np
import pytest
import torch

from structure_aligned.evaluation.contacts import contact_map
from structure_aligned.evaluation.pgnn_probes import evaluate_pgnn
from structure_aligned.structure.secondary import SECONDARY_STATES, assign_secondary_structure
from structure_aligned.structure.synthetic import synthetic_chains


class Oracle:
    """Secondary structure, and coordinates, which tell of contacts by their difference."""

    output_dim = 6

    def embed_batch(self, chains):
        rows = []
        for chain in chains:
            states = [SECONDARY_STATES.index(s) for s in assign_secondary_structure(chain.coords, chain.sequence)]
            rows.append(torch.cat([torch.eye(3)[states], torch.from_numpy(chain.ca)], dim=1))
        return rows


class Noise:
    output_dim = 6

    def embed_batch(self, chains):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(len(chain), 6, generator=generator) for chain in chains]


@pytest.fixture(scope="module")
def chains():
    made = synthetic_chains(24, seed=5)
    return made[:18], made[18:]


def test_what_is_there_is_found_and_nothing_else(chains):
    train, test = chains
    known, unknown = evaluate_pgnn(Oracle(), train, test), evaluate_pgnn(Noise(), train, test)
    assert [row["id"] for row in known] == [chain.id for chain in test]
    assert np.mean([row["secondary_structure"] for row in known]) > 0.99
    chance = np.mean([_contact_share(chain) for chain in test])
    assert np.mean([row["contacts"] for row in known]) > 4 * chance
    assert np.mean([row["contacts"] for row in unknown]) < 2.5 * chance
    for task in ("secondary_structure", "structure_tokens"):
        assert np.mean([row[task] for row in unknown]) < np.mean([row[f"{task}_majority"] for row in unknown]) + 0.05


def _contact_share(chain):
    contacts, labelled = contact_map(chain.coords, chain.sequence)
    far = np.triu(labelled, k=6)
    return contacts[far].mean()


def test_residues_without_an_embedding_have_no_say(chains):
    train, test = chains

    class Gaps(Oracle):
        def embed_batch(self, chains):
            rows = super().embed_batch(chains)
            for row in rows:
                row[3:6] = torch.nan
            return rows

    rows = evaluate_pgnn(Gaps(), train, test)
    full = evaluate_pgnn(Oracle(), train, test)
    assert all(np.isfinite(row["contacts"]) for row in rows)
    assert all(a["secondary_structure_residues"] < b["secondary_structure_residues"] for a, b in zip(rows, full))

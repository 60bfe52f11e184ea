"""Tiny models, rows and pGNNs built in-process, for tests all over the package."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import EsmForMaskedLM, PreTrainedConfig

from structure_aligned.data.builder import FEATURES
from structure_aligned.models.alignment import AmplifyForStructureAlignment, EsmForStructureAlignment
from structure_aligned.models.amplify import AmplifyForMaskedLM
from structure_aligned.models.amplify_tokenizer import amplify_tokenizer
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.models.trunks import fresh_trunk
from structure_aligned.structure.chain import ProteinChain


AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
STRUCTURE_DIM = 24


@dataclass(frozen=True)
class Family:
    """One family of sequence trunks: what tests need to know to be the same for all of them."""

    model_type: str
    plain: type
    aligned: type
    tokenizer: Callable
    hidden_states: int
    """Number of `hidden_states` of two layers: with the embedding or without."""
    config_options: dict

    def config(self, **changes) -> PreTrainedConfig:
        heads = {"structure_alignment": {"structure_dim": STRUCTURE_DIM}}
        return fresh_trunk(self.model_type, 2, 32, 4, **(heads | self.config_options | changes))[0]

    def model(self, seed: int = 0, **changes):
        torch.manual_seed(seed)
        return self.aligned(self.config(**changes)).eval()


FAMILIES = {
    "esm": Family("esm", EsmForMaskedLM, EsmForStructureAlignment, esm2_tokenizer, 3, {}),
    # The published initialisation is so narrow that a network of this size hardly depends on its input.
    "AMPLIFY": Family(
        "AMPLIFY",
        AmplifyForMaskedLM,
        AmplifyForStructureAlignment,
        amplify_tokenizer,
        2,
        {"embedding_init_range": 0.5, "decoder_init_range": 0.2},
    ),
}

esm_config = FAMILIES["esm"].config
esm_model = FAMILIES["esm"].model


def row(index: int, length: int | None = None, pgnn: str = "tiny") -> dict:
    """A dataset row with random content; the second residue has no CA, first and last no 3Di token."""
    rng = np.random.default_rng(index)
    length = length or int(rng.integers(12, 40))
    embedding = rng.normal(size=(length, STRUCTURE_DIM)).astype(np.float16)
    present = np.ones(length, dtype=bool)
    present[1] = False
    embedding[~present] = np.nan
    token_mask = np.ones(length, dtype=bool)
    token_mask[[0, -1]] = False
    values = dict.fromkeys(FEATURES)
    return values | {
        "id": f"row{index}_A",
        "entry": f"row{index}",
        "chain": "A",
        "sequence": "".join(rng.choice(list(AMINO_ACIDS), length)),
        "length": length,
        "structure_tokens": rng.integers(0, 20, length).astype(np.uint8),
        "structure_token_mask": token_mask,
        "structure_embedding": embedding.tobytes(),
        "structure_embedding_shape": embedding.shape,
        "structure_embedding_mask": present,
        "b_factors": np.full(length, 20.0, dtype=np.float32),
        "predicted": False,
        "digest": str(index),
        "pgnn": pgnn,
    }


def named(name: str) -> dict:
    """Columns of a chain whose entry and chain are the two parts of `name`, such as `1abc_A`."""
    entry, _, chain = name.rpartition("_")
    return {"id": name, "entry": entry, "chain": chain}


def dataset(count: int, **options):
    import datasets

    return datasets.Dataset.from_list([row(index, **options) for index in range(count)], features=FEATURES)


def chain(length: int = 30, seed: int = 0, entry_id: str = "tiny", **fields) -> ProteinChain:
    """A random coil with about ideal CA distances; good enough for everything that only needs coordinates."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(length, 3))
    ca = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    offsets = np.array([[-1.2, 0.7, 0.3], [0, 0, 0], [1.2, 0.8, -0.2], [1.4, 1.9, 0.3], [-0.3, -0.9, 1.2]])
    return ProteinChain(
        **{
            "entry_id": entry_id,
            "chain_id": "A",
            "sequence": "".join(rng.choice(list(AMINO_ACIDS), length)),
            "coords": (ca[:, None] + offsets).astype(np.float32),
            "residue_numbers": tuple(str(number) for number in range(1, length + 1)),
            "b_factors": np.full(length, 20.0, dtype=np.float32),
        }
        | fields
    )


class WindowGNN:
    """A pGNN by contract only: `output_dim` and `embed_batch`. Counts what it is asked to embed."""

    output_dim = STRUCTURE_DIM

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.batches: list[list[str]] = []

    def weights_digest(self) -> str:
        return f"{self.scale:032.6f}"

    def embed_batch(self, chains: list[ProteinChain]) -> list[torch.Tensor]:
        self.batches.append([chain.id for chain in chains])
        embeddings = []
        for one in chains:
            ca = torch.from_numpy(one.ca)
            centred = self.scale * (ca - ca.nanmean(dim=0)) / 10
            features = torch.cat([torch.sin(centred * k) for k in range(1, self.output_dim // 3 + 1)], dim=1)
            embeddings.append(features[:, : self.output_dim])
        return embeddings

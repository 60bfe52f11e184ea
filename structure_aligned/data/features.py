"""
Content-addressed store of per-structure features, so that no work on a structure is ever done twice.

Two kinds of records, each one safetensors file written atomically:

* `chains/`: what a structure file contains (chains, 3Di tokens), keyed by the file's bytes, its name and
  `CHAIN_VERSION`;
* `embeddings/`: the pGNN's residue embeddings of one chain, keyed by the chain's digest, the pGNN's identity and
  `EMBEDDING_VERSION`.

An interrupted build finds what it had finished; a changed file, pGNN or code version finds nothing under its new key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..objectives.reference import CONTRASTIVE_PARTS
from ..structure.chain import ProteinChain
from ..structure.io import read_chains
from ..structure.tokens import encode_3di
from .records import DamagedRecordError, read_arrays, read_metadata, write_record


CHAIN_VERSION = 2
"""Raise when `read_chains` or `encode_3di` give other results for the same file."""

EMBEDDING_VERSION = 1
"""Raise when a pGNN gives other results for the same weights and chain."""

REFERENCE_COLUMNS = ("token_loss", *CONTRASTIVE_PARTS)
"""What is stored of the reference model's losses per residue: that of the 3Di token, and the parts of the contrastive
ones (`objectives.reference.CONTRASTIVE_PARTS`). NaN where a residue has no token or no embedding."""

_METADATA_FIELDS = (
    *("entry_id", "chain_id", "sequence", "resolution", "r_free", "method", "deposition_date", "predicted"),
)


class ProteinGNN(Protocol):
    """What the builder asks of a pGNN."""

    output_dim: int

    def embed_batch(self, chains: list[ProteinChain]) -> list[Any]:
        """One float tensor of shape `(L, output_dim)` per chain; rows of residues without CA are NaN."""


@dataclass(frozen=True)
class ChainRecord:
    """What is known of a stored chain without reading its arrays."""

    path: str
    index: int
    digest: str
    id: str
    entry_id: str
    chain_id: str
    sequence: str
    resolution: float | None
    r_free: float | None
    method: str | None
    deposition_date: str | None
    predicted: bool

    def __len__(self) -> int:
        return len(self.sequence)


def pgnn_identity(pgnn: ProteinGNN) -> str:
    """
    Name of a pGNN and its weights, equal for equal results: `class:layers:output_dim:dtype:digest`.

    The digest is the object's own `weights_digest()` where it has one (both pGNNs of this package do), else the
    fingerprint that Datasets takes of any picklable object.
    """
    for attribute in ("output_dim", "embed_batch"):
        if not hasattr(pgnn, attribute):
            raise ValueError(
                f"A {type(pgnn).__name__} is no pGNN: it has no {attribute!r}. Give a GearNetModel, or an object with "
                "output_dim and embed_batch(list of ProteinChain) -> list of (L, output_dim) tensors."
            )
    if hasattr(pgnn, "weights_digest"):
        digest = pgnn.weights_digest()
    else:
        from datasets.fingerprint import Hasher

        digest = Hasher.hash(pgnn)
    layers = getattr(getattr(pgnn, "config", None), "embedding_layers", "last")
    dtype = str(getattr(pgnn, "dtype", "float32")).removeprefix("torch.")
    return f"{type(pgnn).__name__}:{layers}:{pgnn.output_dim}:{dtype}:{digest[:32]}"


class FeatureStore:
    """
    The records below one folder. Safe for any number of processes: files appear complete or not at all.

    Args:
        root (`str` or `os.PathLike`): Created when missing.
        pgnn (`str`): As [`pgnn_identity`] gives it.
    """

    def __init__(self, root: str | os.PathLike, pgnn: str) -> None:
        self.root = Path(root)
        self.pgnn = pgnn
        self._embedding_key = _digest(f"{EMBEDDING_VERSION}|{pgnn}".encode())[:16]

    def chains_path(self, path: str | os.PathLike, content_digest: str) -> Path:
        # The name counts because the entry id comes from it in files that state none.
        key = _digest(f"{CHAIN_VERSION}|{Path(path).name}|{content_digest}".encode())
        return self.root / "chains" / key[:2] / f"{key}.safetensors"

    def embedding_path(self, chain_digest: str) -> Path:
        return self.root / "embeddings" / self._embedding_key / chain_digest[:2] / f"{chain_digest}.safetensors"

    def chain_records(self, path: Path) -> list[ChainRecord] | None:
        """Records of a stored file, or `None` where it has to be read (again): it is missing or damaged."""
        try:
            metadata = json.loads(read_metadata(path)["chains"])
        except (FileNotFoundError, DamagedRecordError, KeyError, json.JSONDecodeError):
            return None
        return [ChainRecord(path=str(path), index=index, **item) for index, item in enumerate(metadata)]

    def parse(self, path: str | os.PathLike, content_digest: str) -> list[ChainRecord]:
        """Read a structure file, encode its chains and store both. Errors are those of `read_chains`."""
        chains = read_chains(path)
        arrays, metadata = {}, []
        for index, chain in enumerate(chains):
            tokens, valid = encode_3di(chain.coords)
            arrays |= {
                f"{index}.coords": chain.coords,
                f"{index}.b_factors": chain.b_factors,
                f"{index}.residue_numbers": _to_bytes(json.dumps(chain.residue_numbers)),
                f"{index}.structure_tokens": tokens,
                f"{index}.structure_token_mask": valid,
            }
            metadata.append(
                {name: getattr(chain, name) for name in _METADATA_FIELDS} | {"id": chain.id, "digest": chain.digest()}
            )
        target = self.chains_path(path, content_digest)
        write_record(target, arrays, {"chains": json.dumps(metadata)})
        return [ChainRecord(path=str(target), index=index, **item) for index, item in enumerate(metadata)]

    def write_embedding(self, chain_digest: str, embedding: np.ndarray) -> None:
        """
        Store an embedding as float16.

        Args:
            embedding (`np.ndarray` of shape `(L, output_dim)`): NaN rows are residues that the pGNN left out.
        """
        stored = to_float16(embedding, chain_digest)
        write_record(self.embedding_path(chain_digest), {"embedding": stored}, {"pgnn": self.pgnn})

    def has_embedding(self, chain_digest: str) -> bool:
        return self.embedding_path(chain_digest).exists()

    def embedding(self, chain_digest: str) -> np.ndarray | None:
        """The stored float16 embedding of shape `(L, output_dim)`; `None` where there is none."""
        try:
            return read_arrays(self.embedding_path(chain_digest), ["embedding"])["embedding"]
        except FileNotFoundError:
            return None


def to_float16(embedding: np.ndarray, chain_digest: str) -> np.ndarray:
    """An embedding as it is stored; a `ValueError` where float16 does not hold it."""
    # float32 first: it holds every float16 and bfloat16, and overflow shows as inf.
    with np.errstate(over="ignore"):
        stored = np.asarray(embedding, dtype=np.float32).astype(np.float16)
    if np.isinf(stored).any():
        raise ValueError(
            f"The pGNN's embedding of chain {chain_digest[:12]} reaches {np.nanmax(np.abs(embedding)):.3g}, more "
            "than float16 holds (65504). Check its weights; a trained GearNet stays far below."
        )
    return stored


def load_chain(record: ChainRecord) -> ProteinChain:
    """The [`ProteinChain`] of a record, as `read_chains` gave it."""
    coords, numbers, b_factors = _chain_arrays(record, "coords", "residue_numbers", "b_factors")
    return ProteinChain(
        **{name: getattr(record, name) for name in _METADATA_FIELDS},
        coords=coords,
        residue_numbers=tuple(json.loads(numbers.tobytes())),
        b_factors=b_factors,
    )


def load_b_factors(record: ChainRecord) -> np.ndarray:
    """B-factors (or pLDDT) of a record's residues, float32 of shape `(L,)`."""
    return _chain_arrays(record, "b_factors")[0]


def load_row(record: ChainRecord, embedding_path: Path, pgnn: str) -> dict[str, Any]:
    """One dataset row (see `data/builder.py` for the columns)."""
    return make_row(record, read_arrays(embedding_path, ["embedding"])["embedding"], pgnn)


def make_row(record: ChainRecord, embedding: np.ndarray, pgnn: str) -> dict[str, Any]:
    """As [`load_row`], with the float16 embedding at hand."""
    tokens, token_mask, b_factors = _chain_arrays(record, "structure_tokens", "structure_token_mask", "b_factors")
    if not len(record) == len(tokens) == len(embedding):
        raise ValueError(
            f"{record.id} has {len(record)} residues, {len(tokens)} 3Di tokens and {len(embedding)} embeddings; the "
            f"feature cache is damaged. Delete {record.path} and the embedding {record.digest}, and build again."
        )
    return {
        "id": record.id,
        "entry": record.entry_id,
        "chain": record.chain_id,
        "sequence": record.sequence,
        "length": len(record),
        "structure_tokens": tokens,
        "structure_token_mask": token_mask,
        "structure_embedding": np.ascontiguousarray(embedding).tobytes(),
        "structure_embedding_shape": embedding.shape,
        "structure_embedding_mask": ~np.isnan(embedding).any(axis=1),
        "b_factors": b_factors,
        "resolution": record.resolution,
        "r_free": record.r_free,
        "method": record.method,
        "deposition_date": record.deposition_date,
        "predicted": record.predicted,
        "digest": record.digest,
        "pgnn": pgnn,
    }


def decode_embedding(row: dict[str, Any]) -> np.ndarray:
    """The float16 `(L, output_dim)` array of a dataset row, without a copy; NaN at residues the pGNN left out."""
    # The shape is a tensor in a dataset of the format "torch".
    shape = tuple(int(size) for size in row["structure_embedding_shape"])
    try:
        return np.frombuffer(row["structure_embedding"], dtype=np.float16).reshape(shape)
    except ValueError as error:
        raise ValueError(
            f"{row.get('id', 'A row')} has a structure_embedding that does not hold float16 numbers of the shape "
            f"{shape} ({error}); rebuild the dataset, or leave the row out."
        ) from error


def decode_reference_losses(row: dict[str, Any]) -> np.ndarray:
    """The float32 `(L, 6)` array of a row that [`attach_reference_losses`] has completed; see `REFERENCE_COLUMNS`."""
    return np.frombuffer(row["reference_losses"], dtype=np.float32).reshape(-1, len(REFERENCE_COLUMNS))


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes; a `ValueError` where it has gone or may not be read."""
    state = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                state.update(block)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    return state.hexdigest()


def combined_digest(parts: Iterable[str]) -> str:
    """SHA-256 of a sequence of strings."""
    return _digest("\n".join(parts).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _chain_arrays(record: ChainRecord, *names: str) -> list[np.ndarray]:
    arrays = read_arrays(record.path, [f"{record.index}.{name}" for name in names])
    return list(arrays.values())


def _to_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)

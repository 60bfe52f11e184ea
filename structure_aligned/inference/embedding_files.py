"""Files of embeddings: Parquet or safetensors, written complete or not at all, and read back in order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..utils.files import atomic_file, read_json
from .embeddings import SequenceEmbedding


FORMATS = ("parquet", "safetensors")
MANIFEST_NAME = "manifest.json"
_IDS = "ids"
# Rows that a reader of a Parquet file holds at once.
_ROW_GROUP = 256


@dataclass
class EmbeddingShard:
    """
    The embeddings of some proteins, as one file holds them.

    Args:
        ids (`list[str]`): Of n proteins.
        lengths (`np.ndarray` of shape `(n,)`): Their residues.
        residues (`np.ndarray` of shape `(sum of lengths, hidden_size)`, *optional*): One protein after the other.
        mean (`np.ndarray` of shape `(n, hidden_size)`, *optional*)
    """

    ids: list[str]
    lengths: np.ndarray
    residues: np.ndarray | None = None
    mean: np.ndarray | None = None

    @classmethod
    def empty(cls, ids: list[str], lengths: list[int], width: int, pooling: str, dtype: str) -> EmbeddingShard:
        """With room for what `pooling` asks for; every number must be `put`."""
        residues = None if pooling == "mean" else np.empty((sum(lengths), width), dtype=dtype)
        mean = None if pooling == "residue" else np.empty((len(ids), width), dtype=dtype)
        return cls(ids, np.array(lengths, dtype=np.int64), residues, mean)

    @property
    def offsets(self) -> np.ndarray:
        """`(n + 1,)`, where in `residues` each protein begins and the last one ends."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def put(self, index: int, start: int, embedding: SequenceEmbedding) -> None:
        """The embedding of protein `index`, whose residues begin at `start`."""
        if self.residues is not None:
            self.residues[start : start + self.lengths[index]] = embedding.residues
        if self.mean is not None:
            self.mean[index] = embedding.mean

    def __iter__(self) -> Iterator[tuple[str, SequenceEmbedding]]:
        offsets = self.offsets
        for index, name in enumerate(self.ids):
            residues = None if self.residues is None else self.residues[offsets[index] : offsets[index + 1]]
            yield name, SequenceEmbedding(residues, None if self.mean is None else self.mean[index])


def write_shard(path: str | os.PathLike, shard: EmbeddingShard) -> None:
    """
    Writes a file of the format that its name ends in, atomically; equal shards give equal bytes.

    * `.parquet`: a row per protein with `id`, `length` and, where they are there, `mean_embedding` (list of
      hidden_size numbers) and `residue_embeddings` (list of length lists of hidden_size numbers).
    * `.safetensors`: the tensors `mean` `(n, hidden_size)`, `residues` `(sum of lengths, hidden_size)` and `offsets`
      `(n + 1,)`; protein i has the rows from `offsets[i]` to `offsets[i + 1]`. The metadata's `ids` are a JSON list.
    """
    with atomic_file(path) as file:
        if str(path).endswith(".parquet"):
            # Numbers like these do not compress, and their dictionaries and statistics would be of no use.
            plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
            pq.write_table(_table(shard), file, row_group_size=_ROW_GROUP, **plain)
        else:
            arrays = {"mean": shard.mean, "residues": shard.residues, "offsets": shard.offsets}
            # One key only: safetensors writes several in an order that changes from run to run.
            metadata = {_IDS: json.dumps(shard.ids)}
            file.write(save({name: array for name, array in arrays.items() if array is not None}, metadata))


def _table(shard: EmbeddingShard) -> pa.Table:
    columns: dict[str, pa.Array] = {"id": pa.array(shard.ids), "length": pa.array(shard.lengths.astype(np.int32))}
    if shard.mean is not None:
        columns["mean_embedding"] = _vectors(shard.mean)
    if shard.residues is not None:
        columns["residue_embeddings"] = pa.ListArray.from_arrays(
            pa.array(shard.offsets.astype(np.int32)), _vectors(shard.residues)
        )
    return pa.table(columns)


def _vectors(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def read_embeddings(path: str | os.PathLike) -> Iterator[tuple[str, SequenceEmbedding]]:
    """
    Ids and embeddings that [`embed_fasta`] wrote, in the order of the FASTA file, without reading it all at once.

    Args:
        path (`str` or `os.PathLike`): The folder, or one of its files.

    Raises:
        ValueError: The folder is not finished, or a file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        manifest = path / MANIFEST_NAME
        if not manifest.is_file():
            raise ValueError(f"{path} has no {MANIFEST_NAME}; expected a folder that examples/embed.py has written.")
        files = [path / one["name"] for one in read_json(manifest, kind=dict)["files"]]
        if missing := [file.name for file in files if not file.exists()]:
            raise ValueError(
                f"{path} is not finished: {len(missing)} of {len(files)} files are missing, such as {missing[0]}. Run "
                "the command that began it once more."
            )
    else:
        files = [path]
    for file in files:
        try:
            yield from (_read_parquet if file.suffix == ".parquet" else _read_safetensors)(file)
        except (SafetensorError, pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it and run the command that wrote it again."
            ) from error


def _read_parquet(path: Path) -> Iterator[tuple[str, SequenceEmbedding]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROW_GROUP):
            found = {name: batch.column(name) for name in batch.schema.names}
            mean = residues = None
            if "mean_embedding" in found:
                mean = _rows(found["mean_embedding"])
            if "residue_embeddings" in found:
                residues = _rows(found["residue_embeddings"].flatten())
            yield from EmbeddingShard(found["id"].to_pylist(), found["length"].to_numpy(), residues, mean)


def _rows(vectors: pa.Array) -> np.ndarray:
    return vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)


def _read_safetensors(path: Path) -> Iterator[tuple[str, SequenceEmbedding]]:
    with safe_open(path, framework="numpy") as file:
        ids, names = json.loads(file.metadata()[_IDS]), set(file.keys())
        offsets = file.get_tensor("offsets")
        mean = file.get_tensor("mean") if "mean" in names else None
        residues = file.get_slice("residues") if "residues" in names else None
        for index, name in enumerate(ids):
            rows = None if residues is None else residues[offsets[index] : offsets[index + 1]]
            yield name, SequenceEmbedding(rows, None if mean is None else mean[index])

"""Writing the Arrow shards of a dataset: embedding, rows, masks; what is damaged in the feature cache is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from datasets.utils import logging, tqdm

from ..utils.files import atomic_file
from .builder import FEATURES
from .dataset_folder import DatasetFolder, Entry
from .features import ChainRecord, FeatureStore, ProteinGNN, file_digest, load_chain, make_row, to_float16
from .quality import MASK_COLUMNS, mask_rows
from .ranks import Ranks
from .reading import embed_chains, residue_batches
from .records import DamagedRecordError


logger = logging.get_logger(__name__)


class ShardWriter:
    """
    Embeds the chains of shards and writes them.

    Args:
        pgnn, max_batch_residues, cache_embeddings: See [`prepare_dataset`].
        store ([`FeatureStore`]): Of the records, and of the embeddings with `cache_embeddings`.
        masking (`dict`, *optional*): Arguments of [`mask_rows`] where uncertain residues lose their labels.
    """

    def __init__(
        self,
        pgnn: ProteinGNN,
        store: FeatureStore,
        masking: dict[str, Any] | None,
        max_batch_residues: int,
        cache_embeddings: bool,
    ) -> None:
        self.pgnn, self.store, self.masking = pgnn, store, masking
        self.max_batch_residues, self.cache_embeddings = max_batch_residues, cache_embeddings

    def write(self, folder: DatasetFolder, ranks: Ranks) -> None:
        """Write this process's share of the shards that are missing."""
        sizes = folder.shards()
        todo = list(ranks.mine(list(sizes)))
        label = "Writing shards" if ranks.world_size == 1 else f"Writing shards, rank 0 of {ranks.world_size}"
        total = sum(sizes[path] for _, path in todo)
        with tqdm(total=total, desc=label, unit="chain", disable=ranks.rank != 0) as progress:
            for _, path in todo:
                with atomic_file(path) as file:
                    writer = ArrowWriter(features=FEATURES, stream=file, writer_batch_size=100)
                    for row in self._rows(folder.task(path), ranks):
                        writer.write(row)
                        progress.update()
                    writer.finalize(close_stream=False)
                    # Before the shard has its name: with the last one, rank 0 takes the sum.
                    ranks.count(now=True)

    def _rows(self, entries: list[Entry], ranks: Ranks) -> Iterator[dict[str, Any]]:
        sources = {record.path: (source, digest) for record, source, digest in entries}
        records = [record for record, _, _ in entries]
        for batch in residue_batches(records, self.max_batch_residues):
            embeddings = {record.digest: self._stored_embedding(record.digest) for record in batch}
            missing = {record.digest: record for record in batch if embeddings[record.digest] is None}
            if missing:
                chains = [self._repairing(load_chain, record, sources) for record in missing.values()]
                for digest, embedding in zip(missing, embed_chains(self.pgnn, chains)):
                    embeddings[digest] = to_float16(embedding, digest)
                    if self.cache_embeddings:
                        self.store.write_embedding(digest, embeddings[digest])
            rows = [
                self._repairing(make_row, record, sources, embeddings[record.digest], self.store.pgnn)
                for record in batch
            ]
            if self.masking is not None:
                self._mask(rows)
            ranks.count(embedded=len(missing))
            yield from rows

    def _stored_embedding(self, digest: str) -> np.ndarray | None:
        try:
            return self.store.embedding(digest)
        except DamagedRecordError as error:
            logger.warning(f"{error} It is made anew.")
            return None

    def _repairing(
        self, load: Callable[..., Any], record: ChainRecord, sources: dict[str, tuple[str, str]], *others: Any
    ) -> Any:
        """`load(record, *others)`; where the record has gone or is damaged, its structure file is read again first."""
        try:
            return load(record, *others)
        except (FileNotFoundError, DamagedRecordError) as error:
            source, digest = sources[record.path]
            logger.warning(f"{record.path} is missing or damaged; reading {source} again.")
            if file_digest(source) != digest:
                raise ValueError(
                    f"{source} has changed since its chains were listed, and its record is missing or damaged. Delete "
                    "the unfinished dataset and start again with the files as they are now."
                ) from error
            self.store.parse(source, digest)
            return load(record, *others)

    def _mask(self, rows: list[dict[str, Any]]) -> None:
        types = {"b_factors": pa.list_(pa.float32()), **dict.fromkeys(MASK_COLUMNS, pa.list_(pa.bool_()))}
        table = pa.table(
            {name: pa.array([row[name] for row in rows], types.get(name)) for name in ("id", "predicted", *types)}
        )
        masks = mask_rows(table, **self.masking)
        for name in masks.column_names:
            for row, mask in zip(rows, masks[name].to_pylist()):
                row[name] = mask

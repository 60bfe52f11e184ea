"""
A dataset folder written by any number of processes on any number of machines, and finished by whoever comes next.

All processes list the same files and so agree on the same work without talking: the structure files are read in parts
into an index ([`ChainIndex`]), rank 0 makes the plan (filters, splits) from it, the rows are written in Arrow shards,
and rank 0 writes what makes the folder a dataset. Part and shard `i` belong to rank `i % world_size`, appear under
their names only when complete, and are never written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.utils import logging

from .builder import FEATURES, REPORT_NAME, BuildReport
from .chain_index import ChainIndex, Listing, unreadable
from .dataset_folder import DatasetFolder, Entry
from .features import EMBEDDING_VERSION, FeatureStore, ProteinGNN, combined_digest, file_digest, pgnn_identity
from .quality import masking_scale, mean_b_factors
from .ranks import Ranks
from .reading import unique_chains
from .selecting import ChainFilter
from .shard_writer import ShardWriter
from .split_summary import SUMMARY_NAME, SplitSummary
from .splits import split_chains


logger = logging.get_logger(__name__)

SHARDING_VERSION = 1
"""Raise when the same files and options give another dataset."""


@dataclass
class PreparedDataset:
    """
    What [`prepare_dataset`] made.

    Args:
        path (`Path`): For `datasets.load_from_disk`.
        report ([`BuildReport`]): Of all processes together, also of those that were killed, up to their last second.
        splits (`dict`): For each split its numbers of `chains`, `residues` and `shards`.
        summary ([`SplitSummary`], *optional*): Where splits were asked for.
        finished_before (`bool`): Whether there was nothing left to do.
    """

    path: Path
    report: BuildReport
    splits: dict[str, dict[str, int]]
    summary: SplitSummary | None = None
    finished_before: bool = False

    @classmethod
    def of(cls, folder: DatasetFolder, finished_before: bool = False) -> PreparedDataset:
        """What a finished folder holds."""
        report = BuildReport(**json.loads((folder.root / REPORT_NAME).read_text()))
        splits = {
            name: {"chains": len(rows), "residues": sum(rows["length"][:]), "shards": len(rows.cache_files)}
            for name, rows in datasets.load_from_disk(folder.root).items()
        }
        stored = folder.root / SUMMARY_NAME
        summary = SplitSummary(**json.loads(stored.read_text())) if stored.exists() else None
        return cls(folder.root, report, splits, summary, finished_before)


@dataclass(frozen=True)
class _Options:
    """What decides the content of the dataset, apart from the files and the pGNN."""

    filters: ChainFilter
    on_error: str
    predicted: bool | None
    max_b_factor: float | None
    min_plddt: float | None
    plddt_scale: int | str
    splits: dict[str, Any] | None
    shard_chains: int
    masking: dict[str, Any] | None = field(init=False)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; choose 'raise' or 'skip'.")
        if self.shard_chains < 1:
            raise ValueError(f"shard_chains is {self.shard_chains}; expected at least 1.")
        scale = masking_scale(self.max_b_factor, self.min_plddt, self.plddt_scale)
        masking = {"max_b_factor": self.max_b_factor, "min_plddt": self.min_plddt, "plddt_scale": scale}
        asked = self.max_b_factor is not None or self.min_plddt is not None
        object.__setattr__(self, "masking", masking if asked else None)

    def key(self) -> list[str]:
        splits = dict(self.splits or {})
        clusters = splits.get("clusters")
        if isinstance(clusters, Mapping):
            splits["clusters"] = combined_digest(f"{name}\t{clusters[name]}" for name in sorted(clusters))
        elif clusters is not None:
            splits["clusters"] = file_digest(clusters)
        scale = self.plddt_scale if splits else None
        return [
            repr(self.filters),
            f"{self.on_error}|{self.predicted}|{self.masking}|{scale}|{self.shard_chains}",
            repr(sorted(splits.items())),
        ]


def prepare_dataset(
    structures: Any,
    pgnn: ProteinGNN | str | os.PathLike,
    output: str | os.PathLike,
    *,
    feature_cache: str | os.PathLike | None = None,
    rank: int = 0,
    world_size: int = 1,
    on_error: str = "raise",
    predicted: bool | None = None,
    max_batch_residues: int = 2048,
    max_b_factor: float | None = None,
    min_plddt: float | None = None,
    plddt_scale: int | str = 100,
    splits: dict[str, Any] | None = None,
    shard_chains: int = 1000,
    cache_embeddings: bool = True,
    num_proc: int = 1,
    timeout: float = 1800.0,
    poll: float = 1.0,
    **filters: Any,
) -> PreparedDataset | None:
    """
    Builds the dataset of [`StructureDatasetBuilder`], split and masked where asked for, as one of several processes
    that share a file system. It goes to a folder that `datasets.load_from_disk` reads as a `DatasetDict`.

    The rows and their order do not depend on the number of processes. All may be killed and started again, as many
    or not: finished shards stay, and with `cache_embeddings` the embeddings of unfinished ones too. A process holds
    the rows of a hundred chains; rank 0 also what is known of all chains, without their arrays.

    Args:
        structures, pgnn, on_error, predicted, max_batch_residues: As [`StructureDatasetBuilder`] takes them.
        output (`str` or `os.PathLike`): New or empty, or an unfinished one of the same call.
        feature_cache (`str` or `os.PathLike`, *optional*): Folder that all processes see; by default
            `structure_features` in the cache of Datasets.
        rank, world_size (`int`, *optional*, defaults to 0 and 1): Which process this is, of how many.
        max_b_factor, min_plddt, plddt_scale (*optional*): As [`mask_low_confidence`] takes them.
        splits (`dict`, *optional*): Arguments of [`split_chains`], for which there must be one split of structures.
        shard_chains (`int`, *optional*, defaults to 1000): Chains of an Arrow file. There should be several files for
            each process.
        cache_embeddings (`bool`, *optional*, defaults to `True`): Whether embeddings are stored one by one too. Else
            they take half the space, a killed process loses the shard it was at, and a later dataset starts anew.
        num_proc (`int`, *optional*, defaults to 1): Processes with which each rank reads structures.
        timeout (`float`, *optional*, defaults to 1800): Seconds to wait for other ranks that show no progress.
        poll (`float`, *optional*, defaults to 1): Seconds between two looks at what others have finished.
        **filters: As [`StructureDatasetBuilder`] takes them: `max_resolution`, `chains` and so on.

    Returns:
        [`PreparedDataset`] on rank 0, which waits for the others; `None` elsewhere.

    Raises:
        `ValueError`: The structures, the options or what is in `output` do not allow it.
        `TimeoutError`: Other ranks made no progress; it names what is missing, and whose it is.
        `OSError`: Nothing can be written, as on a full disk; nothing finished is lost.

    Example:

    ```python
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    prepare_dataset("pdb_files", "gearnet", "datasets/pdb", rank=rank, world_size=world_size, max_resolution=3.0)
    ```
    """
    if max_batch_residues < 1:
        raise ValueError(f"max_batch_residues is {max_batch_residues}; expected at least 1.")
    options = _Options(
        ChainFilter(**filters), on_error, predicted, max_b_factor, min_plddt, plddt_scale, splits, shard_chains
    )
    by_split = structures if isinstance(structures, dict) else {"train": structures}
    if splits is not None and list(by_split) != ["train"]:
        raise ValueError(f"Chains of {list(by_split)} cannot be split again; give all structures as one list.")
    if isinstance(pgnn, (str, os.PathLike)):
        from ..models.pgnn import load_pgnn  # with Transformers, which the reading workers do without

        pgnn = load_pgnn(pgnn)
    if feature_cache is None:
        feature_cache = Path(datasets.config.HF_DATASETS_CACHE) / "structure_features"
    store = FeatureStore(feature_cache, pgnn_identity(pgnn))
    listings = {name: Listing.of(given, on_error) for name, given in by_split.items()}
    key = combined_digest(
        [f"{SHARDING_VERSION}|{EMBEDDING_VERSION}|{FEATURES}", store.pgnn, *options.key()]
        + [f"{name}:{listing.key}" for name, listing in listings.items()]
        + [f"{one['source']}: {one['reason']}" for listing in listings.values() for one in listing.left_out]
    )[:32]
    folder = DatasetFolder(Path(output), key)
    if folder.check():
        return PreparedDataset.of(folder, finished_before=True) if rank == 0 else None

    ranks = Ranks(folder.work / "ranks", rank, world_size, timeout, poll)
    ranks.count(now=True)
    writer = ShardWriter(pgnn, store, options.masking, max_batch_residues, cache_embeddings)
    try:
        return _work(folder, listings, writer, options, ranks, num_proc)
    except Exception as error:
        if rank != 0 and isinstance(error, FileNotFoundError) and folder.finished():
            folder.remove_work()  # all was done already, and rank 0 has ended the work under this process's hands
            return None
        with suppress(OSError):  # a full disk, of which the first error speaks
            ranks.count(now=True)
        raise


def _work(
    folder: DatasetFolder,
    listings: dict[str, Listing],
    writer: ShardWriter,
    options: _Options,
    ranks: Ranks,
    num_proc: int,
) -> PreparedDataset | None:
    """This process's part from the index to its last shard; on rank 0 also what comes between and after."""
    indexes = [ChainIndex(listing, writer.store) for listing in listings.values()]
    for index in indexes:
        index.build(ranks, options.on_error, num_proc)
    if ranks.rank == 0:
        for index in indexes:
            ranks.wait(index.paths, "parts of the index")
        if not folder.plan_path.exists():
            folder.check()  # once more: another command may have begun here meanwhile
            _make_plan(folder, listings, writer.store, options, ranks)
    elif not ranks.wait([folder.plan_path], "plans", folder.finished):
        folder.remove_work()
        return None
    shards = list(folder.shards())
    if ranks.rank == 0 and len(shards) < ranks.world_size:
        logger.warning(
            f"{len(shards)} shards for {ranks.world_size} processes: some have nothing to do. A smaller shard_chains "
            f"(now {options.shard_chains}) lets all take part."
        )
    writer.write(folder, ranks)
    if ranks.rank != 0:
        return None
    ranks.wait(shards, "dataset shards")
    totals = ranks.totals()
    folder.finish({name: totals[name] for name in ("parsed", "embedded")})
    return PreparedDataset.of(folder)


def _make_plan(
    folder: DatasetFolder, listings: dict[str, Listing], store: FeatureStore, options: _Options, ranks: Ranks
) -> None:
    """Which chains go to which shard: what only those who see all chains can tell. Done by rank 0 alone."""
    files = {path for one in listings.values() for path in one.files}
    skipped = [item for one in listings.values() for item in one.left_out]
    report, summary = BuildReport(files=len(files) + len(skipped), skipped=skipped), None
    chosen: dict[str, list[Entry]] = {}
    for name, listing in listings.items():
        index = ChainIndex(listing, store)
        rows = index.read()
        errors = rows["error"][:]
        failed = np.flatnonzero([error is not None for error in errors])
        for row in rows.select(failed).select_columns(["source", "error"]):
            if options.on_error == "raise":
                raise unreadable(row["error"])
            report.skipped.append({"source": row["source"], "reason": f"unreadable: {row['error']}"})
        rows = rows.select(np.flatnonzero([error is None for error in errors]))
        listed: list[Entry] = []
        for record, source, digest in index.records(rows):
            if options.predicted is not None:
                record = replace(record, predicted=options.predicted)
            listed.append((record, source, digest))
        # By identity: copies of a file in two folders have equal records.
        number_of = {id(record): number for number, (record, _, _) in enumerate(listed)}
        report.chains += len(listed)
        ranks.count()
        records, dropped = options.filters.apply([record for record, _, _ in listed])
        report.skipped += dropped
        records, dropped = unique_chains(records, options.on_error)
        report.skipped += dropped
        if not records:
            raise ValueError(
                f"No chain is left for the split {name!r}: {len(listing.files)} files, left out: {report.reasons()}. "
                "Loosen the filters or give other structures."
            )
        numbers = [number_of[id(record)] for record in records]
        chosen[name] = [listed[number] for number in numbers]
        ranks.count()
        if options.splits is None and options.min_plddt is None:
            continue
        known = rows.select(numbers).rename_columns({"entry_id": "entry", "chain_id": "chain"})
        if options.predicted is not None:
            known = known.remove_columns("predicted").add_column("predicted", [options.predicted] * len(known))
        if options.min_plddt is not None:
            mean_b_factors(known, options.plddt_scale)  # raises now what masking would raise hours later
        if options.splits is not None:
            named = {(entry[0].entry_id, entry[0].chain_id): entry for entry in chosen[name]}
            parts, summary = split_chains(known, plddt_scale=options.plddt_scale, **options.splits)
            chosen = {
                part: [named[pair] for pair in zip(members["entry"], members["chain"])]
                for part, members in parts.items()
            }
    report.rows = sum(map(len, chosen.values()))
    if report.skipped:
        logger.warning(
            f"{len(report.skipped)} files or chains are not in the dataset ({report.reasons()}); each with its reason "
            f"in {folder.root / REPORT_NAME}."
        )
    common = f"{FEATURES}|{store.pgnn}|{options.masking}"
    fingerprints = {
        name: combined_digest(
            [common, *(json.dumps(asdict(record) | {"path": None, "index": None}) for record, _, _ in entries)]
        )[:16]
        for name, entries in chosen.items()
    }
    others = {"report": asdict(report), "summary": None if summary is None else asdict(summary)}
    for _ in folder.write_plan(chosen, fingerprints, options.shard_chains, **others):
        ranks.count()

"""
What structure files contain, as Arrow files in the feature cache, made by many processes and read without memory.

A listing of files (paths, sizes, times of change) has a key, and below it one Arrow file for every so many structure
files. It holds a row for each chain, and one for each file that cannot be read. Another build of the same files finds
them there and reads no structure file at all. As `make` does, it takes a file whose size and time of change are the
same for the same file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.utils import tqdm

from ..utils.files import atomic_file
from .features import CHAIN_VERSION, ChainRecord, FeatureStore, combined_digest, file_digest, load_b_factors
from .ranks import Ranks
from .reading import map_processes, parse_file
from .records import DamagedRecordError
from .selecting import resolve_structures


INDEX_VERSION = 1
_RECORD_FIELDS = (
    *("index", "digest", "id", "entry_id", "chain_id", "sequence", "resolution", "r_free", "method"),
    *("deposition_date", "predicted"),
)
_FEATURES = datasets.Features(
    {
        "source": datasets.Value("string"),
        "source_digest": datasets.Value("string"),
        "error": datasets.Value("string"),
        "index": datasets.Value("int32"),
        **{name: datasets.Value("string") for name in ("digest", "id", "entry_id", "chain_id", "sequence")},
        "length": datasets.Value("int32"),
        "resolution": datasets.Value("float64"),
        "r_free": datasets.Value("float64"),
        "method": datasets.Value("string"),
        "deposition_date": datasets.Value("string"),
        "predicted": datasets.Value("bool"),
        "b_factors": datasets.List(datasets.Value("float32")),
    }
)


@dataclass(frozen=True)
class Listing:
    """
    Structure files in their order.

    Args:
        files (`list[str]`): Absolute paths.
        key (`str`): Changes with any file's path, size or time of change.
        left_out (`list[dict]`): `{"source", "reason"}` of what cannot be used.
    """

    files: list[str]
    key: str
    left_out: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, structures: Any, on_error: str = "raise") -> Listing:
        """What `structures` mean, with what cannot be used left out or, with `on_error="raise"`, refused."""
        left_out: list[dict[str, str]] = []
        paths = resolve_structures(structures, left_out if on_error == "skip" else None)
        files = [os.path.abspath(path) for path in paths]
        runs = [files[start : start + 1000] for start in range(0, len(files), 1000)]
        # Asking a network file system for millions of files is waiting, not computing.
        with ThreadPoolExecutor(16) as pool:
            digests = list(pool.map(_digest_of_states, runs))
        return cls(files, combined_digest([f"{INDEX_VERSION}|{CHAIN_VERSION}", *digests])[:32], left_out)

    def shards(self) -> list[list[str]]:
        """The files in parts whose size depends on their number alone, not on who reads them."""
        size = min(1000, max(16, -(-len(self.files) // 256)))
        return [self.files[start : start + size] for start in range(0, len(self.files), size)]


class ChainIndex:
    """
    The index of a listing.

    Args:
        listing ([`Listing`]): Of the structure files.
        store ([`FeatureStore`]): Where the records go, and the index beside them.
    """

    def __init__(self, listing: Listing, store: FeatureStore) -> None:
        self.store = store
        self._parts = listing.shards()
        folder = store.root / "index" / listing.key
        width = f"{len(self._parts):05d}"
        self.paths = [folder / f"chains-{number:05d}-of-{width}.arrow" for number in range(len(self._parts))]

    def build(self, ranks: Ranks, on_error: str, num_proc: int = 1) -> None:
        """
        Write this process's share of what is missing.

        Raises:
            `ValueError`: With `on_error="raise"`, where a file cannot be read.
        """
        todo = list(ranks.mine(self.paths))
        total = sum(len(self._parts[number]) for number, _ in todo)
        with tqdm(total=total, desc="Reading structures", unit="file", disable=ranks.rank != 0) as progress:
            for number, path in todo:
                with atomic_file(path) as file:
                    writer = ArrowWriter(features=_FEATURES, stream=file, writer_batch_size=1000)
                    jobs = [(self.store, source) for source in self._parts[number]]
                    for parsed, rows in map_processes(_rows_of_file, jobs, num_proc):
                        for row in rows:
                            if row["error"] is not None and on_error == "raise":
                                raise unreadable(row["error"])
                            writer.write(row)
                        ranks.count(parsed=parsed)
                        progress.update()
                    writer.finalize(close_stream=False)
                    ranks.count(now=True)

    def read(self) -> datasets.Dataset:
        """All rows in the order of the files, in memory-mapped files."""
        parts = [datasets.Dataset.from_file(str(path)) for path in self.paths]
        return datasets.concatenate_datasets([part for part in parts if len(part)] or parts[:1])

    def records(self, rows: datasets.Dataset) -> Iterator[tuple[ChainRecord, str, str]]:
        """Of each chain its record, and path and digest of the structure file it comes from."""
        columns = [*_RECORD_FIELDS, "source", "source_digest"]
        for batch in rows.select_columns(columns).with_format(None).iter(batch_size=1000):
            for values in zip(*(batch[name] for name in columns)):
                item: dict[str, Any] = dict(zip(columns, values))
                source, digest = item.pop("source"), item.pop("source_digest")
                yield ChainRecord(path=str(self.store.chains_path(source, digest)), **item), source, digest


def unreadable(error: str) -> ValueError:
    """What is raised for a file that cannot be read."""
    return ValueError(f"{error}\nWith on_error='skip' such files are left out and reported.")


def _digest_of_states(files: list[str]) -> str:
    return combined_digest(map(_state, files))


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError:  # it has gone since it was listed, which is said when it is read
        return f"{path}|gone"
    return f"{path}|{state.st_size}|{state.st_mtime_ns}"


def _rows_of_file(job: tuple[FeatureStore, str]) -> tuple[int, list[dict[str, Any]]]:
    """Whether the file had to be parsed (0 or 1), and its rows in the index."""
    store, source = job
    try:
        digest = file_digest(source)
    except ValueError as error:
        return 0, [dict.fromkeys(_FEATURES) | {"source": source, "source_digest": "", "error": str(error)}]
    records, error, parsed = store.chain_records(store.chains_path(source, digest)), None, 0
    try:
        factors = [load_b_factors(record) for record in records or ()]
    except DamagedRecordError:
        records = None
    if records is None:
        _, records, error = parse_file((store, source, digest))
        parsed, factors = int(error is None), [load_b_factors(record) for record in records]
    common = dict.fromkeys(_FEATURES) | {"source": source, "source_digest": digest}
    if error is not None:
        return parsed, [common | {"error": error}]
    rows = []
    for record, values in zip(records, factors):
        known = {name: getattr(record, name) for name in _RECORD_FIELDS}
        rows.append(common | known | {"length": len(record), "b_factors": values})
    return parsed, rows

"""Steps from files to embeddings that all ways of building a dataset share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from ..structure.chain import ProteinChain
from .features import ChainRecord, FeatureStore, ProteinGNN


Sized = TypeVar("Sized")


def parse_file(job: tuple[FeatureStore, str, str]) -> tuple[str, list[ChainRecord], str | None]:
    """Path, records and, where it cannot be read, the error of a file; `job` is a store, a path and its digest."""
    store, path, digest = job
    try:
        return path, store.parse(path, digest), None
    except FileNotFoundError:
        return path, [], f"{path} has gone since the files were listed."
    except ValueError as error:
        return path, [], str(error)


def map_processes(function: Callable[[Any], Any], jobs: list, num_proc: int) -> Iterator:
    """Results in the order of the jobs."""
    if num_proc <= 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    # Forked where the system can, as Datasets itself does: a script without a __main__ guard then still works.
    # The children only parse; they never touch torch's threads.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(num_proc, mp_context=multiprocessing.get_context(method)) as pool:
        yield from pool.map(function, jobs, chunksize=max(1, min(16, len(jobs) // (4 * num_proc))))


def unique_chains(records: list[ChainRecord], on_error: str) -> tuple[list[ChainRecord], list[dict[str, str]]]:
    """
    The first record of each entry and chain, and `{"source", "reason"}` of the others.

    Raises:
        `ValueError`: With `on_error="raise"`, where a chain of an entry comes twice.
    """
    first: dict[tuple[str, str], ChainRecord] = {}
    skipped = []
    for record in records:
        if first.setdefault((record.entry_id, record.chain_id), record) is not record:
            message = f"duplicate id: {record.id} comes from more than one file; ids name rows and must be unique"
            if on_error == "raise":
                raise ValueError(f"{message}. Remove one, or take the first with on_error='skip'.")
            skipped.append({"source": record.id, "reason": message})
    return list(first.values()), skipped


def residue_batches(items: list[Sized], max_residues: int) -> Iterator[list[Sized]]:
    """Runs of items of at most `max_residues` together; a longer item goes alone."""
    batch: list[Sized] = []
    residues = 0
    for item in items:
        if batch and residues + len(item) > max_residues:
            yield batch
            batch, residues = [], 0
        batch.append(item)
        residues += len(item)
    if batch:
        yield batch


def embed_chains(pgnn: ProteinGNN, chains: list[ProteinChain]) -> list[np.ndarray]:
    """
    Embeddings of some chains at once, float32 arrays of shape `(L, output_dim)`.

    Raises:
        `ValueError`: Where the pGNN gives other numbers or shapes than it was asked for.
    """
    embeddings = pgnn.embed_batch(chains)
    if len(embeddings) != len(chains):
        raise ValueError(
            f"{type(pgnn).__name__}.embed_batch gave {len(embeddings)} embeddings for {len(chains)} chains; expected "
            "one each, in order."
        )
    arrays = []
    for chain, embedding in zip(chains, embeddings):
        array = torch.as_tensor(embedding).detach().float().cpu().numpy()
        if array.shape != (len(chain), pgnn.output_dim):
            raise ValueError(
                f"The embedding of {chain.id} has shape {array.shape}; expected ({len(chain)}, {pgnn.output_dim}), a "
                "row for each residue."
            )
        arrays.append(array)
    return arrays

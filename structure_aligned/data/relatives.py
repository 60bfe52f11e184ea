"""Which chains are related: one entry, one sequence or one cluster. What must not lie on both sides of a split."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..utils.files import read_lines
from .quality import require_columns


Clusters = Mapping[str, str] | str | os.PathLike
MISSING_CLUSTERS = ("raise", "own")

_ALPHAFOLD_ENTRY = re.compile(r"(af-\w+?)(-\d+)?-f\d+\b.*")


def read_clusters(path: str | os.PathLike) -> dict[str, str]:
    """
    Reads a cluster file of MMseqs2 (`*_cluster.tsv`): a line `representative<TAB>member` for each sequence.

    Returns:
        `dict[str, str]`: The representative of each member.

    Raises:
        ValueError: A line is not of two columns, or a member is in two clusters. The message names the line.
    """
    clusters: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "MMseqs2's *_cluster.tsv"), start=1):
        columns = line.strip().split("\t")
        if columns == [""]:
            continue
        if len(columns) != 2 or not all(columns):
            raise ValueError(
                f"{path}, line {number}: {line.strip()[:80]!r} has {len(columns)} columns; expected "
                "representative<TAB>member, as MMseqs2 writes *_cluster.tsv."
            )
        representative, member = columns
        if clusters.setdefault(member, representative) != representative:
            raise ValueError(
                f"{path}, line {number}: {member} is in the cluster of {representative} and in that of "
                f"{clusters[member]}; expected one. Columns are representative<TAB>member; are they swapped?"
            )
    if not clusters:
        raise ValueError(f"{path} is empty; expected lines of representative<TAB>member.")
    return clusters


class ChainKey(NamedTuple):
    """
    What tells a chain from others and by what it is related to them.

    Args:
        entry, chain (`str`): Which chain of which entry this is.
        id (`str`): A label, by which cluster files name the chain. It is compared as a whole and never taken apart,
            because entries and chain ids may contain any character.
        sequence (`str`): The [`sequence_digest`] of its sequence.
    """

    entry: str
    chain: str
    id: str
    sequence: str


def sequence_digest(sequence: str) -> str:
    """What stands for a sequence in a [`ChainKey`]."""
    return hashlib.sha256(sequence.encode()).hexdigest()[:16]


def chain_keys(dataset: datasets.Dataset) -> list[ChainKey]:
    """The [`ChainKey`] of each row."""
    plain = require_columns(dataset, ("entry", "chain", "id", "sequence")).with_format(None)
    digests = map(sequence_digest, plain["sequence"][:])
    keys = [ChainKey(*values) for values in zip(plain["entry"][:], plain["chain"][:], plain["id"][:], digests)]
    if unnamed := next((key for key in keys if None in key), None):
        raise ValueError(f"The dataset has a row without an id, entry or chain: {unnamed}. Expected all three.")
    return keys


def entry_key(entry: str) -> str:
    """
    What counts as one entry: its id in lower case. All fragments and isoforms that AlphaFold DB has of a protein count
    as one entry, because they overlap: `af-q8wz42` of `AF-Q8WZ42-F12-model_v4`.
    """
    return _ALPHAFOLD_ENTRY.sub(r"\1", entry.lower())


def clusters_of(chains: Iterable[ChainKey], clusters: Clusters, missing: str = "raise") -> list[str | None]:
    """
    The cluster of each chain, by its representative.

    A chain is looked up by its id, then by its id with the entry in any case (PDB ids are written both ways, chain ids
    are not).

    Args:
        chains (`list[ChainKey]`): Of [`chain_keys`].
        clusters (`str`, `os.PathLike` or `dict`): A file for [`read_clusters`], or what it returns.
        missing (`str`, *optional*, defaults to `"raise"`): `"own"` gives chains without a cluster `None`.

    Raises:
        ValueError: A chain has no cluster, the file has its id in several ways that lie in different clusters, or one
            name of the file is the id of several chains.
    """
    if missing not in MISSING_CLUSTERS:
        raise ValueError(f"missing_clusters is {missing!r}; choose {', '.join(map(repr, MISSING_CLUSTERS))}.")
    source = Path(clusters).name if isinstance(clusters, (str, os.PathLike)) else "those given"
    table = clusters if isinstance(clusters, Mapping) else read_clusters(clusters)
    any_case: dict[str, list[str]] = {}
    for member in table:
        any_case.setdefault(member.lower(), []).append(member)
    found: list[str | None] = []
    absent = []
    owners: dict[str, ChainKey] = {}
    for key in chains:
        members = [key.id]
        if key.id not in table:
            members = [member for member in any_case.get(key.id.lower(), ()) if member.endswith(key.chain)]
        representatives = {table[member] for member in members}
        if len(representatives) > 1:
            raise ValueError(
                f"{key.id} could be any of several members of {source} whose entry ids differ in case and which lie "
                f"in different clusters ({', '.join(sorted(representatives))}); write the ids as the dataset does."
            )
        for member in members:
            other = owners.setdefault(member, key)
            if (other.entry.lower(), other.chain) != (key.entry.lower(), key.chain):
                raise ValueError(
                    f"{member} of {source} could be chain {other.chain!r} of the entry {other.entry!r} or chain "
                    f"{key.chain!r} of the entry {key.entry!r}; expected names of one chain each. Rename one of the "
                    "structure files, or leave it out."
                )
        if not representatives:
            absent.append(key.id)
        found.append(next(iter(representatives), None))
    if absent and missing == "raise":
        raise ValueError(
            f"{len(absent)} of {len(found)} chains are in no cluster of {source}: {', '.join(sorted(absent)[:5])}"
            f"{', …' if len(absent) > 5 else ''}. Its members are named like {next(iter(table), None)}. Cluster all "
            "of the dataset's sequences under their ids, or give missing_clusters='own' to take such chains for "
            "clusters of their own."
        )
    return found


def relations(
    chains: list[ChainKey],
    known: Iterable[ChainKey],
    clusters: Clusters | None = None,
    missing_clusters: str = "raise",
) -> list[tuple[str, str] | None]:
    """
    For each chain, in what it is related to any of the known ones: its `"id"`, `"entry"`, `"sequence"` or `"cluster"`,
    whichever comes first, and its value. `None` where it is not related.
    """
    known = list(known)
    if strange := [one for one in known if not isinstance(one, ChainKey)]:
        raise ValueError(
            f"Training chains were given as {strange[0]!r}; expected what chain_keys(dataset) gives of the training "
            "set, because an id does not tell where the entry ends."
        )
    # Together, because a name of the cluster file must not be one chain here and another one there.
    found = _clusters_of_all([*chains, *known], clusters, missing_clusters)
    seen = {item for pair in zip(known, found[len(chains) :]) for item in _kinds(*pair)}
    related: list[tuple[str, str] | None] = []
    for one, cluster in zip(chains, found):
        kind, value = next((item for item in _kinds(one, cluster) if item in seen), (None, None))
        related.append(None if kind is None else (kind, one.id if kind == "id" else value))
    return related


def group_rows(*keys: Iterable[str | None]) -> np.ndarray:
    """
    Groups of rows that are linked, directly or through other rows, by an equal key.

    Args:
        keys (`list[str | None]`): One list per kind of key, with an entry per row; `None` links nothing.

    Returns:
        `np.ndarray` of shape `(rows,)`: Numbers of the groups, from 0.
    """
    rows, columns, count, seen = [], [], 0, 0
    for kind in keys:
        values = list(kind)
        count = len(values)
        numbers: dict[str, int] = {}
        for row, value in enumerate(values):
            if value is not None:
                rows.append(row)
                columns.append(seen + numbers.setdefault(value, len(numbers)))
        seen += len(numbers)
    size = count + seen
    links = coo_array((np.ones(len(rows), dtype=bool), (rows, count + np.array(columns, dtype=int))), (size, size))
    return connected_components(links, directed=False)[1][:count]


def leave_out_related(
    dataset: datasets.Dataset,
    reference: datasets.Dataset | Iterable[ChainKey],
    clusters: Clusters | None = None,
    missing_clusters: str = "raise",
) -> tuple[datasets.Dataset, list[dict[str, str]]]:
    """
    Leaves out the chains that a reference model has seen, and what is related to those: a reference never judges the
    chains it was trained on.

    Args:
        dataset (`datasets.Dataset`): The main training set, or a set to validate or test on.
        reference (`datasets.Dataset` or `list[ChainKey]`): The reference's training chains: rows, or what
            [`chain_keys`] gives of them.
        clusters, missing_clusters: See [`clusters_of`]; without `clusters` only entry and sequence count.

    Returns:
        The dataset without related rows, and `{"source", "reason"}` of each of those.
    """
    known = chain_keys(reference) if isinstance(reference, datasets.Dataset) else reference
    chains = chain_keys(dataset)
    kept, dropped = [], []
    for row, relation in enumerate(relations(chains, known, clusters, missing_clusters)):
        if relation is None:
            kept.append(row)
            continue
        kind, value = relation
        what = "reference chain" if kind == "id" else f"{kind} of a reference chain"
        dropped.append({"source": chains[row].id, "reason": f"{what}: {value}"})
    return dataset.select(kept), dropped


def assert_disjoint(
    splits: Mapping[str, datasets.Dataset], clusters: Clusters | None = None, missing_clusters: str = "raise"
) -> None:
    """
    Makes sure that no chain, entry, sequence or cluster is in two splits.

    Args:
        splits (`datasets.DatasetDict`): Such as `{"reference": …, "train": …}`.
        clusters, missing_clusters: See [`clusters_of`].

    Raises:
        ValueError: Names two related chains and their splits.
    """
    if clusters is not None and not isinstance(clusters, Mapping):
        clusters = read_clusters(clusters)
    chains = [(split, one) for split, dataset in splits.items() for one in chain_keys(dataset)]
    found = _clusters_of_all([one for _, one in chains], clusters, missing_clusters)
    first: dict[tuple[str, Any], tuple[str, ChainKey]] = {}
    for (split, one), cluster in zip(chains, found):
        for item in _kinds(one, cluster):
            other_split, other = first.setdefault(item, (split, one))
            if other_split != split:
                raise ValueError(
                    f"{other.id} in {other_split!r} and {one.id} in {split!r} have the same {item[0]}; expected "
                    "splits without related chains. Make them with split_chains, or use leave_out_related."
                )


def _kinds(chain: ChainKey, cluster: str | None) -> list[tuple[str, Any]]:
    """By what a chain is related to others that have the same."""
    kinds = [("id", (chain.entry, chain.chain)), ("entry", entry_key(chain.entry)), ("sequence", chain.sequence)]
    return kinds if cluster is None else [*kinds, ("cluster", cluster)]


def _clusters_of_all(chains: list[ChainKey], clusters: Clusters | None, missing: str) -> list[str | None]:
    return [None] * len(chains) if clusters is None else clusters_of(chains, clusters, missing)

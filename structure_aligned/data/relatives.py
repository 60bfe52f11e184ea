"""Which chains are related: one entry, one sequence or one cluster. What must not lie on both sides of a split."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

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


def clusters_of(ids: Iterable[str], clusters: Clusters, missing: str = "raise") -> list[str | None]:
    """
    The cluster of each chain, by its representative.

    An id is looked up as it is, then with its entry id in any case (PDB ids are written both ways, chain ids are not).

    Args:
        ids (`list[str]`): Row ids, `entry_chain`.
        clusters (`str`, `os.PathLike` or `dict`): A file for [`read_clusters`], or what it returns.
        missing (`str`, *optional*, defaults to `"raise"`): `"own"` gives chains without a cluster `None`.

    Raises:
        ValueError: A chain has no cluster, or the file has its id in several ways that lie in different clusters.
    """
    if missing not in MISSING_CLUSTERS:
        raise ValueError(f"missing_clusters is {missing!r}; choose {', '.join(map(repr, MISSING_CLUSTERS))}.")
    source = Path(clusters).name if isinstance(clusters, (str, os.PathLike)) else "those given"
    table = clusters if isinstance(clusters, Mapping) else read_clusters(clusters)
    any_case: dict[str, set[str]] = {}
    for member, representative in table.items():
        any_case.setdefault(_any_case(member), set()).add(representative)
    found: list[str | None] = []
    absent = []
    for chain_id in ids:
        representatives = {table[chain_id]} if chain_id in table else any_case.get(_any_case(chain_id), set())
        if len(representatives) > 1:
            raise ValueError(
                f"{chain_id} could be any of several members of {source} whose entry ids differ in case and which lie "
                f"in different clusters ({', '.join(sorted(representatives))}); write the ids as the dataset does."
            )
        if not representatives:
            absent.append(chain_id)
        found.append(next(iter(representatives), None))
    if absent and missing == "raise":
        raise ValueError(
            f"{len(absent)} of {len(found)} chains are in no cluster of {source}: {', '.join(sorted(absent)[:5])}"
            f"{', …' if len(absent) > 5 else ''}. Its members are named like {next(iter(table), None)}. Cluster all "
            "of the dataset's sequences under their ids, or give missing_clusters='own' to take such chains for "
            "clusters of their own."
        )
    return found


def entry_of(chain_id: str) -> str:
    """
    The entry of a row id, in lower case: `1abc` of `1ABC_A`. All fragments and isoforms that AlphaFold DB has of a
    protein count as one entry, because they overlap: `af-q8wz42` of `AF-Q8WZ42-F12-model_v4_A`.
    """
    entry = chain_id.rpartition("_")[0] or chain_id
    return _ALPHAFOLD_ENTRY.sub(r"\1", entry.lower())


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
    reference: datasets.Dataset | Mapping[str, str] | Iterable[str],
    clusters: Clusters | None = None,
    missing_clusters: str = "raise",
) -> tuple[datasets.Dataset, list[dict[str, str]]]:
    """
    Leaves out the chains that a reference model has seen, and what is related to those: a reference never judges the
    chains it was trained on.

    Args:
        dataset (`datasets.Dataset`): The main training set, or a set to validate or test on.
        reference (`datasets.Dataset`, `dict` or `list[str]`): The reference's training chains: rows, a dict from id
            to sequence, or ids alone (identical sequences are then found where the dataset holds the chain itself).
        clusters, missing_clusters: See [`clusters_of`]; without `clusters` only entry and sequence count.

    Returns:
        The dataset without related rows, and `{"source", "reason"}` of each of those.
    """
    require_columns(dataset, ("id", "sequence"))
    plain = dataset.with_format(None)
    ids, sequences = plain["id"][:], plain["sequence"][:]
    if isinstance(reference, datasets.Dataset):
        reference = reference.with_format(None)
        known = dict(zip(reference["id"][:], reference["sequence"][:]))
    elif isinstance(reference, Mapping):
        known = dict(reference)
    else:
        wanted = {reference} if isinstance(reference, str) else set(reference)
        known = dict.fromkeys(wanted) | {name: text for name, text in zip(ids, sequences) if name in wanted}
    seen = (set(known), {entry_of(name) for name in known}, set(known.values()) - {None})
    keys = [ids, [entry_of(name) for name in ids], sequences]
    if clusters is not None:
        table = clusters if isinstance(clusters, Mapping) else read_clusters(clusters)
        seen = (*seen, set(clusters_of(known, table, missing_clusters)) - {None})
        keys.append(clusters_of(ids, table, missing_clusters))
    kept, dropped = [], []
    kinds = ("reference chain", "entry of a reference chain", "sequence of a reference chain")
    kinds += ("cluster of a reference chain",)
    for row, values in enumerate(zip(*keys)):
        kind = next((i for i, value in enumerate(values) if value in seen[i]), None)
        if kind is None:
            kept.append(row)
        else:
            text = hashlib.sha256(values[2].encode()).hexdigest()[:12] if kind == 2 else values[kind]
            dropped.append({"source": ids[row], "reason": f"{kinds[kind]}: {text}"})
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
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for split, dataset in splits.items():
        plain = require_columns(dataset, ("id", "sequence")).with_format(None)
        ids = plain["id"][:]
        keys = {"id": ids, "entry": map(entry_of, ids), "sequence": plain["sequence"][:]}
        if clusters is not None:
            keys["cluster"] = clusters_of(ids, clusters, missing_clusters)
        for kind, values in keys.items():
            for chain_id, value in zip(ids, values):
                other, other_split = first.setdefault((kind, value), (chain_id, split)) if value else ("", split)
                if other_split != split:
                    raise ValueError(
                        f"{other} in {other_split!r} and {chain_id} in {split!r} have the same {kind}; expected "
                        "splits without related chains. Make them with split_chains, or use leave_out_related."
                    )


def _any_case(chain_id: str) -> str:
    entry, underscore, chain = chain_id.rpartition("_")
    return f"{entry.lower()}{underscore}{chain}"

"""What a reference model was trained on, kept beside its weights: it must not judge chains that it has seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel

from ..utils.names import from_table_field, table_field
from .relatives import Clusters, clusters_of, entry_of, read_clusters


RECORD_NAME = "training_chains.tsv"


def sequence_digest(sequence: str) -> str:
    """What stands for a sequence in the record."""
    return hashlib.sha256(sequence.encode()).hexdigest()[:16]


def write_training_chains(folder: str | os.PathLike, dataset: datasets.Dataset) -> Path:
    """Writes ids and digests of the sequences of `dataset`, the training set of the model saved in `folder`."""
    plain = dataset.with_format(None)
    path = Path(folder) / RECORD_NAME
    lines = [
        f"{table_field(name)}\t{sequence_digest(text)}\n" for name, text in zip(plain["id"][:], plain["sequence"][:])
    ]
    path.write_text("".join(lines))
    return path


def read_training_chains(folder: str | os.PathLike) -> dict[str, str] | None:
    """The record as a dict from id to digest of the sequence; `None` where the folder has none."""
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return None
    chains = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise ValueError(f"{path}, line {number}: {line[:80]!r}; expected id<TAB>digest of the sequence.")
        chains[from_table_field(columns[0])] = columns[1]
    return chains


def training_chains_of(model: PreTrainedModel) -> dict[str, str] | None:
    """The record of a model: set on it as `training_chains`, or in the local folder that it was loaded from."""
    chains = getattr(model, "training_chains", None)
    if chains is None and (folder := getattr(model.config, "_name_or_path", None)):
        chains = read_training_chains(folder)
    return chains


def seen_reasons(
    dataset: datasets.Dataset, chains: dict[str, str], clusters: Clusters | None = None
) -> list[str | None]:
    """
    For every row of `dataset`, why it counts as seen by a model trained on `chains`, or `None`.

    Args:
        chains (`dict`): Of [`read_training_chains`].
        clusters (`str`, `os.PathLike` or `dict`, *optional*): Of [`read_clusters`]; chains without a cluster are
            related to none.
    """
    plain = dataset.with_format(None)
    ids = plain["id"][:]
    keys: list[tuple[str, list[Any], set[Any]]] = [
        ("trained on it", ids, set(chains)),
        ("trained on a chain of its entry", [entry_of(name) for name in ids], {entry_of(name) for name in chains}),
        ("trained on its sequence", [sequence_digest(text) for text in plain["sequence"][:]], set(chains.values())),
    ]
    if clusters is not None:
        table = read_clusters(clusters) if isinstance(clusters, (str, os.PathLike)) else clusters
        seen = set(clusters_of(chains, table, missing="own")) - {None}
        keys.append(("trained on a chain of its cluster", clusters_of(ids, table, missing="own"), seen))
    reasons: list[str | None] = [None] * len(ids)
    for reason, values, seen in keys:
        for row, value in enumerate(values):
            if reasons[row] is None and value in seen:
                reasons[row] = reason
    return reasons


def check_unseen(dataset: datasets.Dataset, model: PreTrainedModel, clusters: Clusters | None = None) -> None:
    """Raises `ValueError` where the model was trained on chains of `dataset`, or does not say on what."""
    chains = training_chains_of(model)
    remedy = "A reference that has memorised a chain makes it look hard."
    if chains is None:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise ValueError(
            f"The reference model {name} has no record of its training chains ({RECORD_NAME}, as "
            "examples/train_reference.py writes it): nobody can tell whether it has seen those it is to judge. "
            f"{remedy} Set model.training_chains = {{id: sequence_digest(sequence)}}, or allow it with "
            "allow_seen=True."
        )
    reasons = seen_reasons(dataset, chains, clusters)
    seen = [index for index, reason in enumerate(reasons) if reason is not None]
    if seen:
        ids = dataset.with_format(None)["id"]
        named = ", ".join(f"{ids[index]} ({reasons[index]})" for index in seen[:3])
        raise ValueError(
            f"The reference model has seen {len(seen)} of {len(reasons)} chains that it is to judge: {named}"
            f"{', …' if len(seen) > 3 else ''}. {remedy} Leave them out with leave_out_seen(dataset, model), split "
            "the data with split_chains, or allow it with allow_seen=True."
        )


def leave_out_seen(
    dataset: datasets.Dataset, model: PreTrainedModel, clusters: Clusters | None = None
) -> datasets.Dataset:
    """`dataset` without the chains that the reference model was trained on and their relatives."""
    chains = training_chains_of(model)
    if chains is None:
        check_unseen(dataset, model, clusters)
    reasons = seen_reasons(dataset, chains, clusters)
    return dataset.select([index for index, reason in enumerate(reasons) if reason is None])

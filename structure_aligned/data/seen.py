"""What a reference model was trained on, kept beside its weights: it must not judge chains that it has seen."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
from transformers import PreTrainedModel

from ..utils.files import atomic_file
from .relatives import ChainKey, Clusters, chain_keys, relations


RECORD_NAME = "training_chains.tsv"

_HEADER = "\t".join(ChainKey._fields)
_KINDS = {
    "id": "trained on it",
    "entry": "trained on a chain of its entry",
    "sequence": "trained on its sequence",
    "cluster": "trained on a chain of its cluster",
}


def write_training_chains(folder: str | os.PathLike, dataset: datasets.Dataset) -> Path:
    """
    Writes the [`chain_keys`] of `dataset`, the training set of the model saved in `folder`.

    The file is a table with a line for each chain, between a header and a line that says how many there are. Each
    column is a JSON string, so that ids may contain tabs, newlines or any other character.
    """
    path, keys = Path(folder) / RECORD_NAME, chain_keys(dataset)
    lines = [_HEADER, *("\t".join(map(json.dumps, key)) for key in keys), _closing(len(keys))]
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return path


def read_training_chains(folder: str | os.PathLike) -> list[ChainKey] | None:
    """
    The chains of the record in a model's folder; `None` where it has no record.

    Raises:
        ValueError: The record is damaged or incomplete, or an earlier version wrote it.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return None
    again = (
        "Write it again with write_training_chains(folder, dataset), from the dataset that the model was trained on."
    )
    header, *lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    if header != _HEADER:
        raise ValueError(
            f"{path} begins with {header[:80]!r}; expected the columns {_HEADER!r}. It is damaged, or an earlier "
            f"version wrote it. {again}"
        )
    count = len(lines) - 2
    if count < 0 or lines[count:] != [_closing(count), ""]:
        raise ValueError(
            f"{path} is incomplete: it ends with {lines[-2:]} instead of a line with the number of its chains. {again}"
        )
    chains = []
    for number, line in enumerate(lines[:count], start=2):
        try:
            chains.append(ChainKey(*map(json.loads, line.split("\t"))))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: {line[:80]!r}; expected a JSON string in each of the columns {_HEADER!r}. "
                f"{again}"
            ) from error
    return chains


def _closing(count: int) -> str:
    return f"# {count} chains"


def training_chains_of(model: PreTrainedModel) -> list[ChainKey] | None:
    """The chains that were set on a model as `training_chains`, or recorded in the folder that it was loaded from."""
    chains = getattr(model, "training_chains", None)
    if chains is None and (folder := getattr(model.config, "_name_or_path", None)):
        chains = read_training_chains(folder)
    return chains


def seen_reasons(
    dataset: datasets.Dataset, chains: list[ChainKey], clusters: Clusters | None = None
) -> list[str | None]:
    """
    For every row of `dataset`, why it counts as seen by a model trained on `chains`, or `None`.

    Args:
        chains (`list[ChainKey]`): Of [`read_training_chains`].
        clusters (`str`, `os.PathLike` or `dict`, *optional*): Of [`read_clusters`]; chains without a cluster are
            related to none.
    """
    related = relations(chain_keys(dataset), chains, clusters, missing_clusters="own")
    return [None if relation is None else _KINDS[relation[0]] for relation in related]


def check_unseen(dataset: datasets.Dataset, model: PreTrainedModel, clusters: Clusters | None = None) -> None:
    """Raises `ValueError` where the model was trained on chains of `dataset`, or does not say on what."""
    chains = training_chains_of(model)
    remedy = "A reference that has memorised a chain makes it look hard."
    if chains is None:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        raise ValueError(
            f"The reference model {name} has no record of its training chains ({RECORD_NAME}, as "
            "examples/train_reference.py writes it): nobody can tell whether it has seen those it is to judge. "
            f"{remedy} Set model.training_chains = chain_keys(its_training_set), or allow it with "
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

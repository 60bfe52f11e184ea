"""The structures that rows of a dataset were made of, in the files they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from datasets.utils import logging

from ..structure.chain import ProteinChain
from ..structure.io import read_chains
from .selecting import resolve_structures


logger = logging.get_logger(__name__)


def find_chains(structures: Any, rows: datasets.Dataset, max_files: int | None = None) -> dict[str, ProteinChain]:
    """
    Reads the chains of some rows again, for what a dataset does not hold: coordinates.

    Files whose name has the entry id of a row are read first, and reading ends when all chains are found: of a large
    folder with usual names, only the files that are needed. A chain counts only when its content is the row's (by
    `digest`). Files that cannot be read are passed over.

    Args:
        structures (`str`, `os.PathLike` or `list`): As for [`StructureDatasetBuilder`].
        rows (`datasets.Dataset`): Of that builder.
        max_files (`int`, *optional*): Read no more files than this of those whose name does not tell.

    Returns:
        `dict[str, ProteinChain]`: By id, those that were found, in the order of the rows.
    """
    wanted = {row["id"]: row["digest"] for row in rows.with_format(None).select_columns(["id", "digest"])}
    entries = {name.rpartition("_")[0].lower() for name in wanted}
    named, others = [], []
    for path in resolve_structures(structures, left_out=[]):
        name = path.name.lower()
        (named if any(entry in name for entry in entries) else others).append(path)
    found: dict[str, ProteinChain] = {}
    for path in [*named, *others[:max_files]]:
        if len(found) == len(wanted):
            break
        for chain in _readable(path):
            if chain.id not in found and wanted.get(chain.id) == chain.digest():
                found[chain.id] = chain
    return {name: found[name] for name in wanted if name in found}


def _readable(path: Path) -> list[ProteinChain]:
    try:
        return read_chains(path)
    except (ValueError, OSError) as error:
        logger.info(f"Passed over: {error}")
        return []

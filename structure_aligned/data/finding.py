"""The structures that rows of a dataset were made of, in the files they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from datasets.utils import logging

from ..structure.chain import ProteinChain
from ..structure.io import read_chains
from .quality import require_columns
from .selecting import resolve_structures


logger = logging.get_logger(__name__)


def find_chains(structures: Any, rows: datasets.Dataset, max_files: int | None = None) -> list[ProteinChain | None]:
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
        `list[ProteinChain | None]`: The chain of each row, `None` where it was not found.
    """
    columns = require_columns(rows, ("entry", "chain", "digest")).with_format(None)
    wanted = list(zip(columns["entry"], columns["chain"], columns["digest"]))
    needed = set(wanted)
    entries = {entry.lower() for entry, _, _ in needed}
    named, others = [], []
    for path in resolve_structures(structures, left_out=[]):
        name = path.name.lower()
        (named if any(entry in name for entry in entries) else others).append(path)
    found: dict[tuple[str, str, str], ProteinChain] = {}
    for path in [*named, *others[:max_files]]:
        if len(found) == len(needed):
            break
        for chain in _readable(path):
            key = (chain.entry_id, chain.chain_id, chain.digest())
            if key in needed:
                found.setdefault(key, chain)
    return [found.get(key) for key in wanted]


def _readable(path: Path) -> list[ProteinChain]:
    try:
        return read_chains(path)
    except (ValueError, OSError) as error:
        logger.info(f"Passed over: {error}")
        return []

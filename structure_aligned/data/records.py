"""Records (safetensors) that notice when their bytes have changed."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..utils.files import atomic_file


CHECKSUMS = "checksums"
"""Key in a record's metadata: JSON of the CRC-32 of each array (with its type and shape) and, under `""`, of the other
metadata. Records of earlier versions have none and are taken as they are."""


class DamagedRecordError(ValueError):
    """A stored record is truncated, or its bytes are not those that were written."""

    def __init__(self, path: str | os.PathLike, why: str) -> None:
        super().__init__(
            f"The record {path} is damaged: {why}. Delete it to have it, and nothing else, computed again."
        )


def write_record(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write arrays and metadata as a safetensors file with checksums, atomically."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sums = {"": _metadata_sum(metadata)} | {name: _array_sum(array) for name, array in arrays.items()}
    data = save(arrays, metadata | {CHECKSUMS: json.dumps(sums)})
    # Written by Python, because safetensors' own writer does not say which error the system gave.
    with atomic_file(path, durable=False) as file:
        file.write(data)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """
    A record's metadata, checked, without its arrays.

    Raises:
        `FileNotFoundError`, [`DamagedRecordError`]
    """
    with _open(path) as file:
        return _checked_metadata(file, path)[0]


def read_arrays(path: str | os.PathLike, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """
    Arrays of a record, all by default, each checked.

    Raises:
        `FileNotFoundError`, [`DamagedRecordError`]
    """
    with _open(path) as file:
        sums = _checked_metadata(file, path)[1]
        arrays = {}
        for name in file.keys() if names is None else names:
            arrays[name] = file.get_tensor(name)
            if sums is not None and sums.get(name) != _array_sum(arrays[name]):
                raise DamagedRecordError(path, f"the checksum of {name!r} does not fit its bytes")
        return arrays


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise DamagedRecordError(path, str(error)) from error


def _checked_metadata(file: Any, path: str | os.PathLike) -> tuple[dict[str, str], dict[str, int] | None]:
    metadata = dict(file.metadata() or {})
    if CHECKSUMS not in metadata:
        return metadata, None
    try:
        sums = json.loads(metadata.pop(CHECKSUMS))
    except json.JSONDecodeError as error:
        raise DamagedRecordError(path, f"its checksums are no JSON ({error})") from error
    if sums.get("") != _metadata_sum(metadata):
        raise DamagedRecordError(path, "the checksum of its metadata does not fit")
    return metadata, sums


def _metadata_sum(metadata: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _array_sum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(f"{array.dtype.str}{array.shape}".encode()))

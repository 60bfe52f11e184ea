"""What a folder of embeddings will hold: its manifest, and the sequences of each file until that file is written."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.ranks import remove_temporary
from ..utils.files import MAX_BYTES, read_json, write_json
from .embedding_files import MANIFEST_NAME
from .fasta import FastaRecord, clean_sequence, read_fasta


PLAN_VERSION = 1
"""Raise when the same input and options give other files."""

WORK_FOLDER = ".embedding"
DUPLICATES = ("error", "number")


class EmbeddingPlan:
    """
    The folder of one embedding job. Rank 0 makes the plan from the input; the others wait for it.

    Args:
        root (`Path`): The folder.
        job (`dict`): What decides on the files' content, apart from the input: `model` and `options`; JSON.
    """

    def __init__(self, root: Path, job: dict[str, Any]) -> None:
        self.root, self.job = root, {"version": PLAN_VERSION} | job
        self.work = root / WORK_FOLDER
        self.manifest_path = root / MANIFEST_NAME
        # Says that the tasks of all files are there.
        self.marker = self.work / "tasks.json"

    def manifest(self) -> dict[str, Any] | None:
        """The stored one, `None` where there is none yet; a `ValueError` where it is of another job."""
        if not self.manifest_path.exists():
            return None
        try:
            stored = read_json(self.manifest_path, kind=dict)
        except ValueError as error:
            raise ValueError(f"{error} Give a new folder, or delete it.") from error
        now, before = _flat(self.job), _flat({name: stored.get(name) for name in self.job})
        if differences := [name for name in {**now, **before} if now.get(name) != before.get(name)]:
            shown = "; ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in differences)
            raise ValueError(
                f"{self.root} holds embeddings of another job: {shown}. Give a new folder, delete it, or repeat the "
                "options."
            )
        return stored

    def check(self) -> dict[str, Any] | None:
        """As `manifest`; a `ValueError` also where the folder holds something else than a job."""
        # In this order, because rank 0 may begin meanwhile: its manifest is its first file.
        inside = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        stored = self.manifest()
        others = sorted(name for name in inside if name != WORK_FOLDER and not name.startswith(f".{MANIFEST_NAME}"))
        if stored is None and others:
            raise ValueError(
                f"{self.root} is not empty and has no {MANIFEST_NAME}: it holds {', '.join(others[:3])}. Give a new "
                "folder, or delete it."
            )
        return stored

    def files(self, manifest: dict[str, Any]) -> list[Path]:
        return [self.root / one["name"] for one in manifest["files"]]

    def task(self, number: int) -> tuple[list[str], list[str]]:
        """Ids and sequences of a file."""
        stored = read_json(self._task_path(number), max_bytes=MAX_BYTES)
        return stored["ids"], stored["sequences"]

    def make(
        self, fasta: str | os.PathLike, shard_residues: int, suffix: str, duplicates: str, alive: Callable[[], None]
    ) -> dict[str, Any]:
        """
        Read the input, write what each file will hold and last the manifest; with a manifest there, see that it is of
        the same input, and write again what is missing.

        Args:
            alive (`Callable`): Called for each record.

        Raises:
            ValueError: The input is none, or other than before; or the folder holds something else.
        """
        stored = self.check()
        if stored is None:
            shutil.rmtree(self.work / "tasks", ignore_errors=True)
            self.marker.unlink(missing_ok=True)  # what was planned without a manifest may be of another input
        missing = stored is None or not all(path.exists() for path in self.files(stored))
        write = missing and not self.marker.exists()
        source = _Input(fasta, shard_residues, alive)
        sizes: list[dict[str, int]] = []
        for number, (ids, sequences) in enumerate(source.shards()):
            sizes.append({"sequences": len(ids), "residues": sum(map(len, sequences))})
            if write:
                self._write_task(number, ids, sequences)
        found = source.summary()
        if stored is not None and stored["input"] != found | {"renamed": stored["input"]["renamed"]}:
            raise ValueError(
                f"{self.root} holds embeddings of other sequences ({_described(stored['input'])}) than {fasta} has "
                f"({_described(found)}). Give a new folder, or delete it."
            )
        if write:
            renamed = self._settle_duplicates(len(sizes), source.id_hashes, duplicates)
            write_json(self.marker, {"renamed": renamed})
        if stored is not None:
            return stored
        renamed = read_json(self.marker)["renamed"]
        names = [f"embeddings-{number:05d}-of-{len(sizes):05d}.{suffix}" for number in range(len(sizes))]
        manifest = self.job | {
            "input": found | {"renamed": renamed},
            "files": [{"name": name} | size for name, size in zip(names, sizes)],
        }
        write_json(self.manifest_path, manifest)
        return manifest

    def finish(self) -> None:
        """Delete what was only needed on the way."""
        shutil.rmtree(self.work, ignore_errors=True)
        remove_temporary(self.root)

    def _task_path(self, number: int) -> Path:
        return self.work / "tasks" / f"{number:05d}.json"

    def _write_task(self, number: int, ids: list[str], sequences: list[str]) -> None:
        write_json(self._task_path(number), {"ids": ids, "sequences": sequences}, durable=False)

    def _settle_duplicates(self, count: int, id_hashes: np.ndarray, duplicates: str) -> int:
        """Number the ids that come again, or refuse them; how many there were."""
        id_hashes = np.sort(id_hashes)
        repeated = set(id_hashes[1:][id_hashes[1:] == id_hashes[:-1]].tolist())
        if not repeated:
            return 0
        seen: Counter[str] = Counter()
        first: dict[str, int] = {}
        renamed, record, examples = 0, 0, []
        for number in range(count):
            ids, sequences = self.task(number)
            changed = False
            for index, name in enumerate(ids):
                record += 1
                if _hash(name) not in repeated:
                    continue
                seen[name] += 1
                first.setdefault(name, record)
                if seen[name] == 1:
                    continue
                renamed, changed = renamed + 1, True
                if len(examples) < 5:
                    examples.append(f"{name} (records {first[name]} and {record})")
                ids[index] = f"{name}/{seen[name]}"
                place = np.searchsorted(id_hashes, _hash(ids[index]))
                if duplicates == "number" and place < len(id_hashes) and id_hashes[place] == _hash(ids[index]):
                    raise ValueError(
                        f"Record {record} would be numbered {ids[index]}, but another record has that id. Rename one."
                    )
            if changed and duplicates == "number":
                self._write_task(number, ids, sequences)
        if renamed and duplicates == "error":
            more = f" and {renamed - len(examples)} more" if renamed > len(examples) else ""
            raise ValueError(
                f"Ids come more than once: {', '.join(examples)}{more}. Make them unique, or have them numbered "
                "(ID, ID/2, ID/3 …) with duplicates='number' (--duplicates number)."
            )
        return renamed


class _Input:
    """A FASTA file cut into the sequences of each file; what is known of all is known after the last one."""

    def __init__(self, fasta: str | os.PathLike, shard_residues: int, alive: Callable[[], None]) -> None:
        self.fasta, self.shard_residues, self.alive = fasta, shard_residues, alive
        self._digest = hashlib.sha256()
        self._hashes = array("Q")  # eight bytes for each sequence, all that is kept of them
        self.residues = self.replaced = 0

    @property
    def id_hashes(self) -> np.ndarray:
        return np.array(self._hashes, dtype=np.uint64)

    def shards(self) -> Iterator[tuple[list[str], list[str]]]:
        ids: list[str] = []
        sequences: list[str] = []
        size = 0
        for record in read_fasta(self.fasta):
            self.alive()
            sequence = self._take(record)
            if ids and size + len(sequence) > self.shard_residues:
                yield ids, sequences
                ids, sequences, size = [], [], 0
            ids.append(record.id)
            sequences.append(sequence)
            size += len(sequence)
        if not ids:
            raise ValueError(f"{self.fasta} holds no sequence; expected a FASTA file.")
        yield ids, sequences

    def _take(self, record: FastaRecord) -> str:
        sequence, replaced = clean_sequence(record.sequence, f"Record {record.number} ({record.id}) of {self.fasta}")
        self._digest.update(f"{record.id}\n{sequence}\n".encode())
        self._hashes.append(_hash(record.id))
        self.residues += len(sequence)
        self.replaced += replaced
        return sequence

    def summary(self) -> dict[str, Any]:
        return {
            "digest": self._digest.hexdigest(),
            "sequences": len(self._hashes),
            "residues": self.residues,
            "read_as_x": self.replaced,
        }


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _described(summary: dict[str, Any]) -> str:
    counts = f"{summary['sequences']:,} with {summary['residues']:,} residues"
    return f"{counts}, digest {summary['digest'][:12]}"


def _flat(job: dict[str, Any]) -> dict[str, Any]:
    """The innermost names and values of nested dicts."""
    flat: dict[str, Any] = {}
    for name, value in job.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat

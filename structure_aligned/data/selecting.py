"""Which structure files a build takes, and which of their chains."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..utils.files import file_problem
from .features import ChainRecord


STRUCTURE_SUFFIXES = tuple(suffix + packed for suffix in (".pdb", ".ent", ".cif", ".mmcif") for packed in ("", ".gz"))
CHAIN_CHOICES = ("all", "first", "longest")


def resolve_structures(structures: Any, left_out: list[dict[str, str]] | None = None) -> list[Path]:
    """
    Files meant by a path, a folder (searched with its sub-folders, but for hidden ones and links), a glob or a list
    of these: sorted, each once.

    Args:
        left_out (`list`, *optional*): Gets `{"source", "reason"}` of what cannot be used: folders that may not be
            read, and what is named like a structure file but is not one (a folder, a pipe, a dangling link) or
            has a name that is not UTF-8.

    Raises:
        `FileNotFoundError`: Where a path or glob matches nothing.
        `ValueError`: Where a folder holds no structure file; without `left_out`, where something cannot be used.
    """
    if isinstance(structures, (str, os.PathLike)):
        structures = [structures]
    problems: list[tuple[str, str]] = []
    found: set[Path] = set()
    for item in structures:
        name = os.fspath(item)
        before = len(problems)
        if os.path.isdir(name):
            inside = set(_files_below(name, problems))
            if not inside and len(problems) == before:
                raise ValueError(
                    f"{name} holds no structure file; expected some of {', '.join(STRUCTURE_SUFFIXES)}. Links to "
                    "other folders are not followed: give those folders themselves."
                )
            found |= inside
            continue
        matches = [name] if os.path.exists(name) else _expanded(name)
        # Other folders that a glob matches are not meant.
        wanted = (one for one in matches if one.lower().endswith(STRUCTURE_SUFFIXES) or not os.path.isdir(one))
        files = set(_usable(wanted, problems))
        if not files and len(problems) == before:
            raise FileNotFoundError(
                f"{name} is neither a file nor a folder, and as a glob it matches no file. Check the path."
            )
        found |= files
    for path, problem in sorted(set(problems)):  # in one order for all processes that share the work
        if left_out is None:
            raise ValueError(
                f"{path} {problem}. Remove it, or leave such files out where there is an option on_error='skip'."
            )
        left_out.append({"source": path, "reason": f"unreadable: {path} {problem}"})
    return sorted(found)


def _expanded(pattern: str) -> list[str]:
    """Paths that a glob matches."""
    if "**" not in Path(pattern).parts:
        return glob.glob(pattern)
    # The `glob` module follows links to folders, and those to a folder above themselves in ever more ways.
    path = Path(f"{pattern}/*" if Path(pattern).name == "**" else pattern)
    return [
        str(match)
        for match in Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        if not any(part.startswith(".") and part not in path.parts for part in match.parts)
    ]


def _files_below(folder: str, problems: list[tuple[str, str]]) -> Iterator[Path]:
    """Structure files in a folder, in any order; what cannot be used goes to `problems`."""

    def refused(error: OSError) -> None:
        problems.append((_shown(error.filename), f"cannot be read ({error.strerror})"))

    for root, folders, files in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named = (os.path.join(root, name) for name in folders + files if name.lower().endswith(STRUCTURE_SUFFIXES))
        yield from _usable(named, problems)


def _usable(paths: Iterable[str], problems: list[tuple[str, str]]) -> Iterator[Path]:
    for path in paths:
        problem = file_problem(path)
        if problem is None and not os.access(path, os.R_OK):
            problem = "cannot be read (Permission denied)"
        if problem is None and _shown(path) != path:
            problem = "has a name that is not UTF-8"
        if problem is None:
            yield Path(path)
        else:
            problems.append((_shown(path), problem))


def _shown(path: str) -> str:
    """A path as it can be printed and stored, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class ChainFilter:
    """
    Conditions that a chain must meet; see [`StructureDatasetBuilder`] for their meaning. What an entry does not state
    does not meet a bound: no resolution is not a good resolution.
    """

    max_resolution: float | None = None
    max_r_free: float | None = None
    methods: tuple[str, ...] | None = None
    min_length: int | None = None
    max_length: int | None = None
    chains: str | tuple[str, ...] = "all"
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.chains, str) and self.chains not in CHAIN_CHOICES:
            raise ValueError(
                f"chains is {self.chains!r}; choose {', '.join(map(repr, CHAIN_CHOICES))}, or give a list of ids such "
                "as ['1abc_A']."
            )
        for name in ("methods", "chains"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.methods, str):
            object.__setattr__(self, "methods", (self.methods,))

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in fields(cls))

    def apply(self, records: list[ChainRecord]) -> tuple[list[ChainRecord], list[dict[str, str]]]:
        """
        Returns:
            The records that meet the conditions, in order, and `{"source", "reason"}` of each that does not.
        """
        chosen = self._chosen_ids(records)
        kept, dropped, sequences = [], [], set()
        for record in records:
            reason = self._reason(record)
            if reason is None and chosen is not None and (record.path, record.index) not in chosen:
                reason = f"chain choice: not taken by chains={self.chains if isinstance(self.chains, str) else 'list'}"
            if reason is None and self.drop_duplicates and record.sequence in sequences:
                reason = "duplicate sequence: an earlier chain has it"
            if reason is None:
                sequences.add(record.sequence)
                kept.append(record)
            else:
                dropped.append({"source": record.id, "reason": reason})
        return kept, dropped

    def _reason(self, record: ChainRecord) -> str | None:
        for name, unit, bound in (("resolution", " Å", self.max_resolution), ("r_free", "", self.max_r_free)):
            value = getattr(record, name)
            if bound is not None and value is None:
                return f"{name}: not stated, and at most {bound}{unit} was asked for"
            if bound is not None and value > bound:
                return f"{name}: {value:g}{unit} is more than {bound}{unit}"
        if self.methods is not None and record.method not in {method.upper() for method in self.methods}:
            return f"method: {record.method} is none of {', '.join(self.methods)}"
        if self.min_length is not None and len(record) < self.min_length:
            return f"length: {len(record)} is less than {self.min_length}"
        if self.max_length is not None and len(record) > self.max_length:
            return f"length: {len(record)} is more than {self.max_length}"
        return None

    def _chosen_ids(self, records: list[ChainRecord]) -> set[tuple[str, int]] | None:
        if self.chains == "all":
            return None
        if not isinstance(self.chains, str):
            wanted = set(self.chains)
            taken = [record for record in records if record.id in wanted]
            named: dict[str, ChainRecord] = {}
            for record in taken:
                other = named.setdefault(record.id, record)
                if (other.entry_id, other.chain_id) != (record.entry_id, record.chain_id):
                    raise ValueError(
                        f"chains names {record.id!r}, which is chain {other.chain_id!r} of the entry "
                        f"{other.entry_id!r} and chain {record.chain_id!r} of the entry {record.entry_id!r}; expected "
                        "an id of one chain. Give the structure file of the one that you want instead."
                    )
            return {(record.path, record.index) for record in taken}
        # The choice is among the chains that pass the other conditions, so that a good chain is never lost to a
        # longer one that is dropped anyway.
        best: dict[str, ChainRecord] = {}
        for record in records:
            if self._reason(record) is not None:
                continue
            current = best.get(record.path)
            if current is None or (self.chains == "longest" and len(record) > len(current)):
                best[record.path] = record
        return {(record.path, record.index) for record in best.values()}

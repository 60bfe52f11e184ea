"""Labels that probes learn: secondary structure and 3Di tokens of residues, fold class of chains, labelled sets."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..inference.fasta import FastaRecord, parse_fasta, read_fasta
from ..structure.chain import ProteinChain
from ..structure.secondary import SECONDARY_STATES, assign_secondary_structure
from ..structure.tokens import encode_3di


NO_LABEL = -1
"""Of residues that have no label: unresolved ones, and ends without a 3Di token."""

FOLD_CLASSES = ("alpha", "beta", "mixed", "few")
"""All-alpha, all-beta, both, and little secondary structure: about CATH's classes 1 to 4."""

MIN_HELIX, MIN_STRAND = 0.15, 0.10
"""Fractions of residues above which a fold counts as one with helices and one with strands."""

_FILES = ("sequences", "sampled", "mask")
_UNRESOLVED, _RESOLVED = "0", "1"
_MAX_UNPACKED = 256 * 1024**2


@dataclass(frozen=True, eq=False)
class LabelledSequence:
    """
    A protein with labels.

    Args:
        id (`str`): Its name.
        sequence (`str`): L one-letter codes.
        labels (`dict[str, np.ndarray]`, each of shape `(L,)` and int64): Of each residue task; `NO_LABEL` (−1) where a
            residue has none.
        fold_class (`str`, *optional*): Of the whole protein.
    """

    id: str
    sequence: str
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    fold_class: str | None = None

    def __post_init__(self) -> None:
        for task, labels in self.labels.items():
            if labels.shape != (len(self.sequence),):
                raise ValueError(
                    f"{self.id}: {task} has labels of shape {labels.shape} for {len(self.sequence)} residues; give "
                    "one each."
                )

    def __len__(self) -> int:
        return len(self.sequence)


def secondary_structure_labels(chain: ProteinChain) -> np.ndarray:
    """
    Three states `(L,)` of a chain, indices into `"HEC"`; `NO_LABEL` where N, CA, C or O is missing.

    Eight states of DSSP become three as in [`assign_secondary_structure`]: H is helix, E and B are strand, and all
    else (3-10 and pi helices too) is the rest. Other sets, FLIP's among them, count G and I as helices: a probe fitted
    on the one is not to be judged by the other.
    """
    states = assign_secondary_structure(chain.coords, chain.sequence)
    labels = np.array([SECONDARY_STATES.index(state) for state in states], dtype=np.int64)
    labels[~_whole_backbone(chain)] = NO_LABEL
    return labels


def structure_token_labels(chain: ProteinChain) -> np.ndarray:
    """3Di tokens `(L,)` of a chain, 0 to 19; `NO_LABEL` where none is defined, see [`encode_3di`]."""
    tokens, valid = encode_3di(chain.coords)
    return np.where(valid, tokens.astype(np.int64), NO_LABEL)


RESIDUE_TASKS = {"secondary_structure": secondary_structure_labels, "structure_tokens": structure_token_labels}
"""What gives the labels of a chain, by task."""


def fold_class(chain: ProteinChain) -> str | None:
    """
    Class of a chain by its secondary-structure content: `"alpha"` with more than 15 % helix and at most 10 % strand,
    `"beta"` with more than 10 % strand and at most 15 % helix, `"mixed"` with more of both, `"few"` with less of both;
    `None` for a chain without any whole backbone.

    The thresholds are those of Nakashima, Nishikawa & Ooi (J. Biochem. 1986). CATH's classes are drawn by hand where
    content does not decide, and its unit is the domain: give its labels where you have them.
    """
    whole = _whole_backbone(chain)
    if not whole.any():
        return None
    states = np.array(list(assign_secondary_structure(chain.coords, chain.sequence)))[whole]
    helix, strand = (states == "H").mean() > MIN_HELIX, (states == "E").mean() > MIN_STRAND
    return {(True, False): "alpha", (False, True): "beta", (True, True): "mixed", (False, False): "few"}[helix, strand]


def _whole_backbone(chain: ProteinChain) -> np.ndarray:
    return np.isfinite(chain.coords[:, :4]).all(axis=(1, 2))


def read_residue_labels(
    folder: str | os.PathLike, task: str = "secondary_structure"
) -> dict[str, list[LabelledSequence]]:
    """
    Reads a set of labelled residues as FLIP lays it out (Dallago et al., doi:10.1101/2021.11.09.467890), such as its
    three-state secondary structure: `sequences.fasta`, `sampled.fasta` (a letter per residue; headers such as
    `>1abc-A SET=train VALIDATION=False`) and `mask.fasta` (1 where resolved, 0 elsewhere).

    Args:
        folder (`str` or `os.PathLike`): With the three files, in it or in its `splits/`; or the .zip that FLIP gives
            out, or a folder with that .zip alone.
        task (`str`, *optional*, defaults to `"secondary_structure"`): Name of the labels.

    Returns:
        `dict[str, list[LabelledSequence]]`: By split: `train`, `validation` (of the training set, where VALIDATION is
        True) and `test`, those that the file has. Labels are indices into the letters `"HEC"`, or for others than
        these, into all letters of the file in alphabetical order.

    Raises:
        FileNotFoundError: There are no such files.
        ValueError: They do not fit each other; the message names the protein.
    """
    files = {name: _by_name(records, name) for name, records in _label_files(Path(folder)).items()}
    sequences, labelled, masks = (files[name] for name in _FILES)
    letters = set().union(*(letters for _, letters in labelled.values()))
    alphabet = SECONDARY_STATES if letters <= set(SECONDARY_STATES) else "".join(sorted(letters))
    codes = {letter: index for index, letter in enumerate(alphabet)}
    splits: dict[str, list[LabelledSequence]] = {}
    for name, (header, states) in labelled.items():
        if name not in sequences:
            raise ValueError(f"{folder}: {name} is in sampled.fasta but not in sequences.fasta; get the files anew.")
        sequence, mask = sequences[name][1], masks[name][1] if name in masks else _RESOLVED * len(states)
        if not len(sequence) == len(states) == len(mask):
            raise ValueError(
                f"{folder}: {name} has {len(sequence)} residues, {len(states)} labels and {len(mask)} mask digits; "
                "expected as many of each."
            )
        if set(mask) - {_UNRESOLVED, _RESOLVED}:
            raise ValueError(f"{folder}: the mask of {name} has the characters {sorted(set(mask))}; expected 0 and 1.")
        labels = np.array([codes[state] for state in states], dtype=np.int64)
        labels[np.array(list(mask)) == _UNRESOLVED] = NO_LABEL
        item = LabelledSequence(name, sequence, {task: labels})
        splits.setdefault(_split_of(header, f"{folder}: {name}"), []).append(item)
    return splits


def _split_of(header: Mapping[str, str], name: str) -> str:
    if "SET" not in header:
        raise ValueError(f"{name} has no SET= in the header of sampled.fasta; expected SET=train or SET=test.")
    held_out = header["SET"] == "train" and header.get("VALIDATION", "False").lower() == "true"
    return "validation" if held_out else header["SET"]


def _label_files(folder: Path) -> dict[str, Iterable[FastaRecord]]:
    """Records of each of the three files; the mask may be missing."""
    if folder.suffix.lower() == ".zip":
        records = {name: parse_fasta(text.splitlines(), f"{name}.fasta") for name, text in _unpacked(folder).items()}
    else:
        roots = [root for root in (folder, folder / "splits") if (root / "sampled.fasta").is_file()]
        archives = sorted(folder.glob("*.zip"))
        if not roots and len(archives) == 1:
            return _label_files(archives[0])
        paths = {name: roots[0] / f"{name}.fasta" for name in _FILES} if roots else {}
        records = {name: read_fasta(path) for name, path in paths.items() if path.is_file()}
    if missing := [f"{name}.fasta" for name in _FILES if name not in records]:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; expected {', '.join(f'{name}.fasta' for name in _FILES)}, "
            "as FLIP's residue-level sets have them."
        )
    return records


def _unpacked(path: Path) -> dict[str, str]:
    """Texts of the three files in a .zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {Path(one.filename).name: one for one in archive.infolist() if "__MACOSX" not in one.filename}
            found = {name: inside[f"{name}.fasta"] for name in _FILES if f"{name}.fasta" in inside}
            # An archive gives no more of a file than it states.
            if sum(one.file_size for one in found.values()) > _MAX_UNPACKED:
                raise ValueError(f"its files have more than {_MAX_UNPACKED:,} bytes")
            return {name: archive.read(one).decode("utf-8-sig") for name, one in found.items()}
    # Encrypted archives are a RuntimeError, other ways to pack a NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected the .zip that FLIP gives out.") from error


def _by_name(records: Iterable[FastaRecord], file: str) -> dict[str, tuple[dict[str, str], str]]:
    """Fields of the header (`KEY=value`) and letters of each entry."""
    entries: dict[str, tuple[dict[str, str], str]] = {}
    for record in records:
        if record.id in entries:
            raise ValueError(f"{record.id} comes twice in {file}.fasta; names must be unique.")
        fields = dict(part.split("=", 1) for part in record.description.split() if "=" in part)
        entries[record.id] = fields, record.sequence
    if not entries:
        raise ValueError(f"{file}.fasta has no entries; expected lines that begin with '>'.")
    return entries

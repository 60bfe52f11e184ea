"""Labels that probes learn: secondary structure and 3Di tokens of residues, fold class of chains, labelled sets."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    files = {name: _parse_fasta(text, name) for name, text in _label_files(Path(folder)).items()}
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


def _label_files(folder: Path) -> dict[str, str]:
    """Text of each of the three files; the mask may be missing."""
    if folder.suffix.lower() == ".zip":
        with zipfile.ZipFile(folder) as archive:
            inside = {Path(name).name: name for name in archive.namelist() if not name.startswith("__MACOSX")}
            found = {name: inside[f"{name}.fasta"] for name in _FILES if f"{name}.fasta" in inside}
            texts = {name: archive.read(path).decode() for name, path in found.items()}
    else:
        roots = [root for root in (folder, folder / "splits") if (root / "sampled.fasta").is_file()]
        archives = sorted(folder.glob("*.zip"))
        if not roots and len(archives) == 1:
            return _label_files(archives[0])
        paths = {name: roots[0] / f"{name}.fasta" for name in _FILES} if roots else {}
        texts = {name: path.read_text() for name, path in paths.items() if path.is_file()}
    if missing := [f"{name}.fasta" for name in _FILES if name not in texts]:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; expected {', '.join(f'{name}.fasta' for name in _FILES)}, "
            "as FLIP's residue-level sets have them."
        )
    return texts


def _parse_fasta(text: str, file: str) -> dict[str, tuple[dict[str, str], str]]:
    """Fields of the header (`KEY=value`) and letters of each entry."""
    entries: dict[str, tuple[dict[str, str], str]] = {}
    for header, letters in _fasta_entries(text):
        name, *fields = header.split()
        entries[name] = (dict(part.split("=", 1) for part in fields if "=" in part), letters)
    if not entries:
        raise ValueError(f"{file}.fasta has no entries; expected lines that begin with '>'.")
    return entries


def _fasta_entries(text: str) -> Iterator[tuple[str, str]]:
    header, parts, seen = None, [], Counter()
    for line in [*io.StringIO(text), ">"]:
        line = line.strip()
        if not line.startswith(">"):
            parts.append(line)
            continue
        if header is not None:
            yield header, "".join(parts)
        header, parts = line[1:].strip(), []
        if header and (seen.update([header.split()[0]]) or seen[header.split()[0]] > 1):
            raise ValueError(f"{header.split()[0]} comes twice in one FASTA file; names must be unique.")

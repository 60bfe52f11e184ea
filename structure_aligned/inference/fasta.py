"""FASTA files of any size, read record by record, and the rule for odd letters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers.utils import logging

from ..utils.files import read_lines


logger = logging.get_logger(__name__)

MAX_RECORD = 16 * 1024**2
"""Longer records are refused; the longest protein known has some 45,000 residues."""

KNOWN_LETTERS = "ACDEFGHIKLMNPQRSTVWYBOUXZ"
"""Amino acids, selenocysteine, pyrrolysine and the ambiguous ones. What of these a tokenizer lacks is its unknown."""

_TO_X = str.maketrans({letter: "X" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in KNOWN_LETTERS})


@dataclass(frozen=True)
class FastaRecord:
    """
    One entry of a FASTA file, as it stands there.

    Args:
        number (`int`): Which of the file, from 1.
        id (`str`): The header up to the first white space.
        description (`str`): The rest of the header.
        sequence (`str`): Without line ends; may be empty.
    """

    number: int
    id: str
    description: str
    sequence: str


def read_fasta(path: str | os.PathLike) -> Iterator[FastaRecord]:
    """
    The records of a FASTA file in order, one in memory at a time.

    Args:
        path (`str` or `os.PathLike`): As [`read_lines`] takes it: plain or gzipped, which its content says and not
            its name; `-` is the standard input. Lines that are blank or begin with `;` are skipped.

    Raises:
        ValueError: It is not a FASTA file, a header has no id, a record is longer than `MAX_RECORD`, or the file
            cannot be read to its end. The message names the record.
    """
    name = "The standard input" if str(path) == "-" else str(path)
    yield from parse_fasta(read_lines(path, "a FASTA file"), name)


def read_single_fasta(path: str | os.PathLike) -> str:
    """The sequence of a FASTA file that holds exactly one, by the rule of [`clean_sequence`]."""
    records = []
    for record in read_fasta(path):
        records.append(record)
        if len(records) > 1:
            break
    if len(records) != 1 or not records[0].sequence:
        found = "more than one protein" if len(records) > 1 else "no protein"
        raise ValueError(f"{path} has {found}; expected a FASTA file with exactly one, not empty.")
    cleaned, replaced = clean_sequence(records[0].sequence, f"The sequence of {path}")
    if replaced:
        logger.warning(f"{replaced} letters of {path} that stand for no amino acid are read as X.")
    return cleaned


def parse_fasta(lines: Iterable[str], name: str) -> Iterator[FastaRecord]:
    """As [`read_fasta`], of lines that were read already; `name` is for the errors."""
    header, letters, length, number = None, [], 0, 0
    for line in lines:
        line = line.strip()
        if line.startswith(">"):
            if header is not None:
                yield _record(number, header, letters, name)
            header, letters, length, number = line[1:], [], 0, number + 1
        elif not line or line.startswith(";"):
            continue
        elif header is None:
            raise ValueError(f"{name} begins with {line[:40]!r}; expected a FASTA file, whose headers begin with >.")
        else:
            letters.append(line)
            length += len(line)
            if length > MAX_RECORD:
                raise ValueError(
                    f"Record {number} ({header[:40]}) of {name} has more than {MAX_RECORD:,} letters; expected a "
                    "protein. Remove it."
                )
    if header is not None:
        yield _record(number, header, letters, name)


def _record(number: int, header: str, letters: list[str], name: str) -> FastaRecord:
    parts = header.split(maxsplit=1)
    if not parts:
        raise ValueError(f"Record {number} of {name} has no id; expected a name right after the >.")
    return FastaRecord(number, parts[0], parts[1] if len(parts) > 1 else "", "".join(letters))


def clean_sequence(sequence: str, name: str) -> tuple[str, int]:
    """
    A sequence as models here take it, and how many of its letters became X.

    White space is dropped, letters become upper-case and stops (`*`) at the end are removed. U, Z, O, B and X stay as
    they are: it is the tokenizer that has them or not. J, the one letter that is left, becomes X.

    Raises:
        ValueError: Nothing is left, or it has gaps, inner stops, digits and the like, which are no residues.
    """
    cleaned = "".join(sequence.split()).rstrip("*")
    if not cleaned:
        raise ValueError(f"{name} is empty; expected at least one residue. Remove it.")
    if not (cleaned.isascii() and cleaned.isalpha()):
        strange = sorted({letter for letter in cleaned if not (letter.isascii() and letter.isalpha())})
        raise ValueError(
            f"{name} contains {', '.join(map(repr, strange[:5]))}; expected one-letter codes: remove gaps, cut at "
            "inner stops or write X."
        )
    cleaned = cleaned.upper()  # only now: some other letters become two
    made = cleaned.translate(_TO_X)
    return made, 0 if made == cleaned else sum(one != other for one, other in zip(made, cleaned))


def clean_sequences(sequences: Sequence[str]) -> list[str]:
    """
    A list by the rule of [`clean_sequence`]; a warning says how many letters became X.

    Raises:
        ValueError: It is a string or holds something else than proteins; says which, counted from 0.
    """
    if isinstance(sequences, str):
        raise ValueError(f"sequences is the string {sequences[:20]!r}; expected a list of sequences, as [sequence].")
    pairs = [clean_sequence(sequence, f"Sequence {index}") for index, sequence in enumerate(sequences)]
    if replaced := sum(count for _, count in pairs):
        logger.warning(f"{replaced} letters that stand for no amino acid are read as X.")
    return [sequence for sequence, _ in pairs]

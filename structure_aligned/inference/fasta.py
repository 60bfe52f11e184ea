"""FASTA files of any size, read record by record, and the rule for odd letters."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from transformers.utils import logging


logger = logging.get_logger(__name__)

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
        path (`str` or `os.PathLike`): Plain or gzipped, which its content says and not its name; `-` is the standard
            input. Lines may end in LF or CRLF, and lines that are blank or begin with `;` are skipped.

    Raises:
        ValueError: It is no FASTA file, a header has no id, or its compressed data is cut off or damaged.
    """
    name = "standard input" if str(path) == "-" else str(path)
    header, lines, number = None, [], 0
    with _opened(path) as file:
        try:
            for line in file:
                line = line.strip()
                if line.startswith(b">"):
                    if header is not None:
                        yield _record(number, header, lines, name)
                    header, lines, number = line[1:], [], number + 1
                elif not line or line.startswith(b";"):
                    continue
                elif header is None:
                    raise ValueError(
                        f"{name} begins with {line[:40]!r}; expected a FASTA file, whose headers begin with >."
                    )
                else:
                    lines.append(line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{name} is damaged after record {number} ({error}); fetch or compress it anew."
            ) from error
    if header is not None:
        yield _record(number, header, lines, name)


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield from _decompressed(sys.stdin.buffer)
        return
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file; give a FASTA file, or - for the standard input.")
    with open(path, "rb") as file:
        yield from _decompressed(file)


def _decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    if file.peek(2)[:2] == b"\x1f\x8b":
        with gzip.open(file) as plain:
            yield plain
    else:
        yield file


def _record(number: int, header: bytes, lines: list[bytes], name: str) -> FastaRecord:
    try:
        text, sequence = header.decode(), b"".join(lines).decode("ascii")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Record {number} of {name} is no text ({error}); expected UTF-8 and one-letter codes."
        ) from error
    parts = text.split(maxsplit=1)
    if not parts:
        raise ValueError(f"Record {number} of {name} has no id; expected a name right after the >.")
    return FastaRecord(number, parts[0], parts[1] if len(parts) > 1 else "", sequence)


def clean_sequence(sequence: str, name: str) -> tuple[str, int]:
    """
    A sequence as models here take it, and how many of its letters became X.

    White space is dropped, letters become upper-case and stops (`*`) at the end are removed. U, Z, O, B and X stay as
    they are: it is the tokenizer that has them or not. J, the one letter that is left, becomes X.

    Raises:
        ValueError: Nothing is left, or it has gaps, inner stops, digits and the like, which are no residues.
    """
    cleaned = "".join(sequence.split()).upper().rstrip("*")
    if not cleaned:
        raise ValueError(f"{name} is empty; expected at least one residue. Remove it.")
    if not (cleaned.isascii() and cleaned.isalpha()):
        strange = sorted({letter for letter in cleaned if not (letter.isascii() and letter.isalpha())})
        raise ValueError(
            f"{name} contains {', '.join(map(repr, strange[:5]))}; expected one-letter codes: remove gaps, cut at "
            "inner stops or write X."
        )
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

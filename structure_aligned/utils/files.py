"""The one way to read a user's text and the one way to write a result."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import itertools
import json
import os
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml


MAX_BYTES = 1024**3
"""Files that are larger than this after decompression are refused where they are read into memory as a whole."""

MAX_LINE = 64 * 1024**2
"""Longer lines are refused where a file of any size is read line by line."""

TEMPORARY_SUFFIX = ".tmp"

_CHUNK = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
# Structures, sequences and tables shrink to a third or a tenth. A gzip stream can claim a factor of 1,032 and has to
# be stopped long before it fills the memory.
_EXPANSION_FREE = 64 * 1024**2
_MAX_EXPANSION = 200
_MAX_EMPTY_MEMBERS = 10_000


def read_bytes(path: str | os.PathLike, expected: str, max_bytes: int | None = None) -> bytes:
    """
    Reads a whole file and unpacks it where its content says that it is gzipped, whatever its name.

    Args:
        path (`str` or `os.PathLike`): A regular file.
        expected (`str`): What the file should be, for the errors: `"a FASTA file"`.
        max_bytes (`int`, *optional*, defaults to `MAX_BYTES`): Limit of the unpacked size.

    Raises:
        ValueError: The file is missing, is not a regular file, may not be read, is damaged, or is too large.
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    data, size = [], 0
    with _opened(path, expected) as file:
        for chunk in _chunks(file, path):
            data.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ValueError(
                    f"{path} holds more than {limit:,} bytes; expected {expected} of at most that size. Split it."
                )
    return b"".join(data)


def is_gzipped(path: str | os.PathLike) -> bool:
    """Whether a file's content, not its name, says that it is gzipped."""
    with open(path, "rb") as file:
        return file.read(2) == _GZIP_MAGIC


def read_text(path: str | os.PathLike, expected: str, max_bytes: int | None = None) -> str:
    """
    Reads a whole text file: UTF-8 with or without a byte order mark whatever the locale, plain or gzipped, with lines
    that end in LF, CRLF or CR. All line ends are LF in what is returned.

    Args:
        path, expected, max_bytes: See [`read_bytes`].

    Raises:
        ValueError: See [`read_bytes`]; or the file is not UTF-8.
    """
    decoder = _text_decoder()
    try:
        return decoder.decode(read_bytes(path, expected, max_bytes), final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected {expected}.") from error


def read_lines(path: str | os.PathLike, expected: str) -> Iterator[str]:
    """
    Yields the lines of a text file of any size, without their ends; a chunk and a line are in memory at a time.

    Args:
        path (`str` or `os.PathLike`): As for [`read_text`]; `-` is the standard input.
        expected (`str`): What the file should be, for the errors.

    Raises:
        ValueError: See [`read_text`]; or a line is longer than `MAX_LINE` characters.
    """
    decoder = _text_decoder()
    rest: list[str] = []  # pieces of a line whose end is still to come
    with _opened(path, expected) as file:
        for chunk in itertools.chain(_chunks(file, path), [b""]):  # the last for what the decoder still holds
            try:
                first, *lines = decoder.decode(chunk, final=not chunk).split("\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 text ({error.reason}); expected {expected}.") from error
            rest.append(first)
            if sum(map(len, rest)) > MAX_LINE:
                raise ValueError(
                    f"{path} has a line of more than {MAX_LINE:,} characters; expected {expected}. Break its lines."
                )
            if lines:
                yield "".join(rest)
                yield from lines[:-1]
                rest = lines[-1:]
    if last := "".join(rest):
        yield last


def read_json(path: str | os.PathLike, expected: str = "a JSON file", max_bytes: int | None = None) -> Any:
    """
    Reads a JSON file.

    Raises:
        ValueError: See [`read_text`]; or it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(read_text(path, expected, max_bytes))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); expected {expected}.") from error


def read_yaml(path: str | os.PathLike, expected: str = "a YAML file", max_bytes: int = 1024**2) -> Any:
    """
    Reads a YAML file with plain values only.

    Raises:
        ValueError: See [`read_text`]; or it is not YAML, or is nested too deeply.
    """
    try:
        return yaml.safe_load(read_text(path, expected, max_bytes))
    # PyYAML lets the ValueErrors of impossible dates and numbers through.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is not valid YAML ({error}); expected {expected}.") from error


def read_table(
    path: str | os.PathLike, expected: str = "a CSV with a header"
) -> tuple[list[str], list[dict[str, str]]]:
    """
    Reads a CSV file, every cell as the text that it is.

    Returns:
        `tuple[list[str], list[dict[str, str]]]`: The columns, and the rows in order.

    Raises:
        ValueError: See [`read_text`]; or there is no row, a column comes twice, or a row (counted from 1 after the
            header) does not fit the header.
    """
    text = read_text(path, expected)
    if "\0" in text:
        raise ValueError(f"{path} holds a NUL character; expected {expected}.")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[dict[str, str]] = []
    try:
        columns = list(reader.fieldnames or [])
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise ValueError(f"{path} has the column {twice[0]!r} more than once; rename one of them.")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}: row {len(rows) + 1} does not have the {len(columns)} cells of the header.")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path}: row {len(rows) + 1} cannot be read ({error}); expected {expected}.") from error
    if not rows:
        raise ValueError(f"{path} has no rows; expected {expected} and at least one row.")
    return columns, rows


@contextmanager
def atomic_file(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """
    Opens a binary file that gets its name when the block ends, and vanishes when the block raises.

    Args:
        path (`str` or `os.PathLike`): Its folder is created when missing; a file of this name is replaced.
        durable (`bool`, *optional*, defaults to `True`): Whether the content is on the disk before the file gets its
            name, so that not even a power failure leaves half a file.

    Raises:
        OSError: Writing fails. The message has the path and says what to do.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # Errors of other files, opened in the block, speak for themselves.
        own = isinstance(error, OSError) and error.errno is not None
        if own and error.filename in (None, str(temporary), str(path.parent)):
            raise _explained(error, path) from error
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, value: Any, durable: bool = True) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path, durable) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


@contextmanager
def _opened(path: str | os.PathLike, expected: str) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError(f"There is no file {path}; expected {expected}.")
        # Opening a pipe or a device may wait forever.
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe, a device or a socket"
            raise ValueError(f"{path} is {kind}; expected {expected}.")
        file = open(path, "rb")  # noqa: SIM115 (errors of the block are not errors of opening)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); expected {expected}.") from error
    with file:
        yield file


def _chunks(file: BinaryIO, path: str | os.PathLike) -> Iterator[bytes]:
    """The content in pieces of bounded size, unpacked where it is gzipped; all members of it."""
    name = "The standard input" if str(path) == "-" else str(path)
    try:
        data = file.read(_CHUNK)
        if not data.startswith(_GZIP_MAGIC):
            while data:
                yield data
                data = file.read(_CHUNK)
            return
        member, packed, unpacked, empty_members, before = zlib.decompressobj(wbits=31), len(data), 0, 0, 0
        while True:
            piece = member.decompress(data, _CHUNK)
            data = member.unconsumed_tail
            unpacked += len(piece)
            if unpacked > max(_EXPANSION_FREE, _MAX_EXPANSION * packed):
                raise ValueError(
                    f"{name} unpacks to more than {_MAX_EXPANSION} times its {packed:,} bytes, as no text does; "
                    "expected ordinary gzip data."
                )
            if piece:
                yield piece
            if member.eof:
                empty_members += unpacked == before
                if empty_members > _MAX_EMPTY_MEMBERS:
                    raise ValueError(f"{name} consists of empty gzip members; expected ordinary gzip data.")
                data = member.unused_data.lstrip(b"\0")  # padding after the last member is allowed
                while not data:
                    data = file.read(_CHUNK)
                    if not data:
                        return
                    packed += len(data)
                    data = data.lstrip(b"\0")
                member, before = zlib.decompressobj(wbits=31), unpacked
            elif not data:
                data = file.read(_CHUNK)
                packed += len(data)
                # Without input the stream may still hold output that found no room in the piece before.
                if not data and not piece:
                    raise EOFError("it ends in the middle of the compressed stream")
    except (EOFError, zlib.error) as error:
        raise ValueError(
            f"{name} holds broken gzip data ({error}); expected a complete file. Copy or compress it again."
        ) from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}); copy it again.") from error


def _text_decoder() -> io.IncrementalNewlineDecoder:
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)


def _explained(error: OSError, path: Path) -> OSError:
    """The error with the path it concerns and what can be done; of the same kind and number."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Free space there, or give another folder" if full else "Remove the cause"
    return OSError(
        error.errno,
        f"{os.strerror(error.errno)} while writing {path}. {advice}, and run the same command again: what is finished "
        "is kept, and no half file was left",
        str(path),
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can (Windows opens no folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

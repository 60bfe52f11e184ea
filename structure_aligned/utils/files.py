"""The one way to read a user's text and the one way to write a result."""

from __future__ import annotations

import codecs
import csv
import errno
import gzip
import io
import itertools
import json
import os
import stat
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml


MAX_BYTES = 1024**3
"""Files that are larger than this after decompression are refused where they are read into memory as a whole."""

MAX_LINE = 64 * 1024**2
"""Longer lines are refused where a file of any size is read line by line."""

MAX_CELLS = 10_000_000
"""Tables of more cells are refused: a short cell takes fifty times its bytes in memory."""

TEMPORARY_SUFFIX = ".tmp"

_CHUNK = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
# Of a gzip stream less is read at a time, because each of its members copies what is left of the piece.
_PACKED_CHUNK = 16 * 1024
# Structures, sequences and tables shrink to a third or a tenth. A gzip stream can claim a factor of 1,032 and has to
# be stopped long before it fills the memory.
_EXPANSION_FREE = 16 * 1024**2
_MAX_EXPANSION = 200
_MAX_EMPTY_MEMBERS = 10_000
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
    that end in LF, CRLF or CR. All line ends are LF in what is returned. For the arguments see [`read_bytes`].

    Raises:
        ValueError: See [`read_bytes`]; or the file is not UTF-8.
    """
    data = read_bytes(path, expected, max_bytes)
    try:
        return _text_decoder().decode(data, final=True)
    except UnicodeDecodeError as error:
        raise _not_text(path, expected, error, 1) from error


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
    length, number = 0, 1
    with _opened(path, expected) as file:
        for chunk in itertools.chain(_chunks(file, path), [b""]):  # the last for what the decoder still holds
            try:
                first, *lines = decoder.decode(chunk, final=not chunk).split("\n")
            except UnicodeDecodeError as error:
                raise _not_text(path, expected, error, number) from error
            rest.append(first)
            length += len(first)
            if length > MAX_LINE:
                raise ValueError(
                    f"{path}, line {number}: it is longer than {MAX_LINE:,} characters; expected {expected}. Break it."
                )
            if lines:
                yield "".join(rest)
                yield from lines[:-1]
                rest = lines[-1:]
                length = len(rest[0])
                number += len(lines)
    if last := "".join(rest):
        yield last


def read_json(
    path: str | os.PathLike, expected: str = "a JSON file", max_bytes: int = 64 * 1024**2, kind: type = object
) -> Any:
    """
    Reads a JSON file.

    Raises:
        ValueError: See [`read_text`]; or it is not JSON, is nested too deeply, or is not a `kind`.
    """
    text = read_text(path, expected, max_bytes)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); expected {expected}.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected {expected} with a {kind.__name__}.")
    return value


def read_yaml(path: str | os.PathLike, expected: str = "a YAML file", max_bytes: int = 64 * 1024) -> Any:
    """
    Reads a YAML file with plain values only, and without merge keys (`<<`).

    Raises:
        ValueError: See [`read_text`]; or it is not YAML, or is nested too deeply.
    """
    text = read_text(path, expected, max_bytes)
    try:
        return yaml.load(text, _PlainLoader)
    # PyYAML lets the ValueErrors of impossible dates and numbers through, and the TypeErrors of keys that are lists.
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not valid YAML ({error}); expected {expected}.") from error


class _PlainLoader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys are not expanded: a few lines of them can multiply to gigabytes."""


def read_table(
    path: str | os.PathLike, expected: str = "a CSV with a header"
) -> tuple[list[str], list[dict[str, str]]]:
    """
    Reads a CSV file, every cell as the text that it is.

    Returns:
        `tuple[list[str], list[dict[str, str]]]`: The columns, and the rows in order.

    Raises:
        ValueError: See [`read_lines`]; or there is no row, a column comes twice, or a row (counted from 1 after the
            header) does not fit the header.
    """
    # Strict, because a quotation mark that is never closed would silently take the following rows into its cell.
    reader = csv.DictReader(_table_lines(path, expected), strict=True)
    rows: list[dict[str, str]] = []
    try:
        columns = list(reader.fieldnames or [])
        if twice := sorted(column for column, count in Counter(columns).items() if count > 1):
            raise ValueError(f"{path} has the column {twice[0]!r} more than once; rename one of them.")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}: row {len(rows) + 1} does not have the {len(columns)} cells of the header.")
            if len(rows) * len(columns) > MAX_CELLS:
                raise ValueError(f"{path} has more than {MAX_CELLS:,} cells; expected {expected}. Split it.")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{path}: row {len(rows) + 1} cannot be read ({error}); expected {expected}.") from error
    if not rows:
        raise ValueError(f"{path} has no rows; expected {expected} and at least one row.")
    return columns, rows


def write_table(path: str | os.PathLike, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a CSV file atomically, gzipped where its name ends in .gz."""
    with atomic_file(path) as file:
        packed = str(path).lower().endswith(".gz")
        binary = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if packed else file
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()
        if packed:
            binary.close()


@contextmanager
def atomic_file(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """
    Opens a binary file that gets its name when the block ends, and vanishes when the block raises.

    Args:
        path (`str` or `os.PathLike`): Its folder is created when missing; a file of this name is replaced.
        durable (`bool`, *optional*, defaults to `True`): Whether the content is on the disk before the file gets its
            name, so that not even a power failure leaves half a file.

    Raises:
        ValueError: The path is that of a folder, a pipe or a device.
        OSError: Writing fails. The message has the path and says what to do.
    """
    path = Path(path)
    mode = _mode_of(path)
    # The name may be as long as the system allows, and of characters of four bytes.
    temporary = path.parent / f".{path.name[:48]}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            if mode is not None:
                os.chmod(temporary, mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # Errors of other files, opened in the block, speak for themselves.
        own = isinstance(error, OSError) and error.errno is not None
        if own and error.filename in (None, str(temporary), str(path.parent)):
            raise _explained(error, path) from error
        raise
    if durable:
        _sync_folder(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file atomically. What came from a name that is not UTF-8 is written as escapes."""
    with atomic_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike, value: Any, durable: bool = True) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path, durable) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


@contextmanager
def _opened(path: str | os.PathLike, expected: str) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    if problem := file_problem(path):
        raise ValueError(f"{path} {problem}; expected {expected}.")
    try:
        file = open(path, "rb")  # noqa: SIM115 (errors of the block are not errors of opening)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); expected {expected}.") from error
    with file:
        yield file


def file_problem(path: str | os.PathLike) -> str | None:
    """Why a path is not that of a file that opens at once, in words to put after its name; `None` where it is one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            return f"is a link that leads to no file ({getattr(error, 'strerror', error)})"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return "does not exist"
        return f"cannot be read ({getattr(error, 'strerror', error)})"
    return _special_kind(mode)  # opening a pipe or a device may wait forever


def _special_kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    return "is a folder" if stat.S_ISDIR(mode) else "is a pipe, a device or a socket"


def _chunks(file: BinaryIO, path: str | os.PathLike) -> Iterator[bytes]:
    """The content in pieces of bounded size, unpacked where it is gzipped; all members of it."""
    name = "The standard input" if str(path) == "-" else str(path)
    try:
        data = file.read(_PACKED_CHUNK)
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
                    data = file.read(_PACKED_CHUNK)
                    if not data:
                        return
                    packed += len(data)
                    data = data.lstrip(b"\0")
                member, before = zlib.decompressobj(wbits=31), unpacked
            elif not data:
                data = file.read(_PACKED_CHUNK)
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


def _table_lines(path: str | os.PathLike, expected: str) -> Iterator[str]:
    size = 0
    for number, line in enumerate(read_lines(path, expected), 1):
        size += len(line) + 1
        if size > MAX_BYTES:
            raise ValueError(f"{path} holds more than {MAX_BYTES:,} characters; expected {expected}. Split it.")
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: it holds a NUL character; expected {expected}.")
        yield line + "\n"


def _text_decoder() -> io.IncrementalNewlineDecoder:
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)


def _not_text(path: str | os.PathLike, expected: str, error: UnicodeDecodeError, number: int) -> ValueError:
    """What to raise where the bytes that begin with the line of this number are not UTF-8."""
    data, place = error.object, error.start
    if number == 1 and data.startswith(_UTF16_MARKS):
        return ValueError(f"{path} is UTF-16 text; expected {expected} in UTF-8. Save it as UTF-8.")
    ends = data.count(b"\n", 0, place) + data.count(b"\r", 0, place) - data.count(b"\r\n", 0, place)
    return ValueError(
        f"{path}, line {number + ends}: it holds the byte 0x{data[place]:02x}, which is not UTF-8 text; expected "
        f"{expected}. Save it as UTF-8."
    )


def _mode_of(path: Path) -> int | None:
    """Permissions of a file that will be replaced, which the new one gets; `None` where there is none."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if kind := _special_kind(mode):
        raise ValueError(f"{path} {kind} and cannot be replaced by a file; give the name of a file.")
    return stat.S_IMODE(mode)


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
    """Make a rename durable, where the system can: Windows opens no folders, and some file systems refuse."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""What all attacks share: the two outcomes that are allowed, and the limits within which they have to come."""

import contextlib
import os
import signal
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Refused:
    """The input must be refused by a `ValueError` (where documented, another error) whose message holds the words."""

    words: tuple[str, ...]
    errors: type | tuple[type, ...] = ValueError


def refused(*words, errors=ValueError):
    return Refused(words, errors)


def check(run, expected, *names):
    """
    Runs an attack.

    Args:
        run (`Callable`): Reads the hostile input.
        expected: The right value, or [`Refused`].
        names: What a refusal names beside its own words, such as the path of the file.
    """
    if isinstance(expected, Refused):
        with pytest.raises(expected.errors) as raised:
            run()
        message = str(raised.value)
        for word in (*map(str, names), *expected.words):
            assert word in message, f"{word!r} is not in {message!r}"
        # A message that repeats the whole file is as good as none.
        assert len(message) < 2_000
    else:
        assert run() == expected


def write(folder, name, content):
    """A file of text, of bytes, or of what `content(path)` makes in its place."""
    path = folder / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def memory_below(megabytes):
    """The memory that Python allocates meanwhile has to stay below a limit."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1024**2, f"{peak / 1024**2:.0f} MiB"


@contextlib.contextmanager
def ends_within(seconds):
    """Whatever hangs is interrupted by an error."""

    def stop(*_):
        raise AssertionError(f"it was still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files_below(folder):
    """Every file, folder and link below a folder, with the content of the files."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in folders + names:
            path = Path(root, name)
            found[path.relative_to(folder)] = path.read_bytes() if path.is_file() else None
    return found

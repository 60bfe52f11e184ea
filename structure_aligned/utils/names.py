"""Names that come from data, where they become file names, cells of tables or text in pictures."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any
from urllib.parse import quote


MAX_FILE_NAME = 120
"""Bytes of what [`safe_file_name`] gives: file systems hold 255, and suffixes come on top."""


def safe_file_name(name: str) -> str:
    """
    A file name for an id that comes from data. It never names another folder, and two ids never get the same one
    (where the file system tells capital letters from small ones).

    Letters, digits, `_`, `-` and all but a leading `.` stay as they are, and everything else is percent-encoded. A
    name that would be too long is cut and ends with `%~` and a digest of the id.

    Args:
        name (`str`): Any text. Callers append suffixes such as `.png`.

    Example:

    ```python
    >>> safe_file_name("1abc_A"), safe_file_name("../../x"), safe_file_name("")
    ('1abc_A', '%2E.%2F..%2Fx', '%')

    ```
    """
    data = name.encode(errors="surrogatepass")
    encoded = quote(data, safe="").replace("~", "%7E") or "%"
    if encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}"
    if len(encoded) <= MAX_FILE_NAME:
        return encoded
    # An encoded name never contains "%~", so that no short id gives what a long one gives.
    tail = f"%~{hashlib.sha256(data).hexdigest()[:32]}"
    return encoded[: MAX_FILE_NAME - len(tail)] + tail


def plain_text(value: Any) -> str:
    """Text on one line: white space becomes single blanks, and other control characters become `�`."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") else sign
        for sign in " ".join(str(value).split())
    )


def picture_text(value: Any, width: int = 80) -> str:
    """Text for a title or label of Matplotlib, where `$` would begin a formula: on one line, cut at `width`."""
    text = plain_text(value)
    return (text if len(text) <= width else f"{text[: width - 1]}…").replace("$", r"\$")


def markdown_cell(value: Any) -> str:
    """Text for a cell of a Markdown table: nothing in it ends the cell or the row, and tags are shown as they are."""
    return plain_text(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

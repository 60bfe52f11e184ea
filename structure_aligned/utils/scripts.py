"""What all scripts share: an error of the user's input is one line and not a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def clean_errors(main: Callable[..., Any], code: int = 1) -> Callable[..., Any]:
    """
    The `main` of a script, where errors of files, options and missing packages end the process with one line,
    `error: …`, and this exit code. Under `python -X dev` they keep their traceback.

    What is printed never fails for a letter that the terminal, or a name that is not UTF-8, does not have.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):  # some programs put streams of their own there
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
        except (ValueError, OSError, ImportError, RecursionError) as error:
            if sys.flags.dev_mode:
                raise
            message = f"error: {' '.join(str(error).split()) or type(error).__name__}"
            if code == 1:
                sys.exit(message)
            print(message, file=sys.stderr)
            sys.exit(code)

    return wrapped

"""Options that must be numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any


def check_options(options: Mapping[str, Any], at_least_zero: Collection[str] = ()) -> None:
    """
    Raises `ValueError`, with the name of the option, for NaN and infinity, which comparisons let pass.

    Args:
        options (`Mapping[str, Any]`): Options by name. Lists and dicts are searched; values that are not numbers pass.
        at_least_zero (`Collection[str]`, *optional*): Names of options that must not be negative.
    """
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}; expected a finite number.")
        if name in at_least_zero and isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"{name} is {value}; expected 0 or more.")
        if isinstance(value, Mapping):
            check_options({f"{name}[{key!r}]": one for key, one in value.items()})
        elif isinstance(value, (list, tuple)):
            check_options({f"{name}[{index}]": one for index, one in enumerate(value)})

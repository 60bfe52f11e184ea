"""Results on disk: one JSON file per task and model, under a key of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import MAX_BYTES, read_json, write_text


PACKAGE = Path(__file__).resolve().parents[1]

_RESULT_CODE = ("structure/*.py", "models/*.py", "data/tokenizing.py", "evaluation/*.py")
_NOT_RESULT_CODE = ("report", "report_page", "report_plots", "report_store", "report_style", "report_tables")
_NOT_RESULT_CODE += ("report_text", "statistics")


@cache
def code_version() -> str:
    """SHA-256 of the package's source that results are computed with; how they are shown and tested is left out."""
    digest = hashlib.sha256()
    for pattern in _RESULT_CODE:
        for path in sorted(PACKAGE.glob(pattern)):
            if path.stem not in _NOT_RESULT_CODE:
                digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Of JSON's own types: arrays and numpy's numbers become lists and numbers, NaN and infinities `None`."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(content: Any) -> str:
    return json.dumps(plain(content), allow_nan=False, indent=1) + "\n"


class ResultStore:
    """
    Results in a folder, each as `<task>-<key>.json`. Two models with the same weights share theirs; a changed key is
    another file, so that going back to what was before costs nothing.

    Args:
        folder (`Path`): Made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.computed: list[str] = []
        """Files that this store has written, in order."""

    def path(self, task: str, depends_on: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(plain(depends_on), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{task}-{key[:24]}.json"

    def read(self, task: str, depends_on: Mapping[str, Any]) -> dict[str, Any] | None:
        """`None` where there is none, or one that is damaged or of something else: it is then computed again."""
        path = self.path(task, depends_on)
        try:
            content = read_json(path, max_bytes=MAX_BYTES)
        except ValueError:
            return None
        return content if isinstance(content, dict) and content.get("depends_on") == plain(depends_on) else None

    def get(self, task: str, depends_on: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is stored, else what `compute` gives, which is stored first. Either way it went through JSON."""
        stored = self.read(task, depends_on)
        if stored is not None:
            return stored
        path = self.path(task, depends_on)
        write_text(path, to_json({"task": task, "depends_on": depends_on} | compute()))
        self.computed.append(path.name)
        return self.read(task, depends_on)

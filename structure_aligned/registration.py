"""
Makes the Auto classes of Transformers know this package's networks, from `import structure_aligned` on.

Importing them for it would take the seconds that torch and Transformers need, also where only structures are read. So
they are registered at the moment the Auto classes themselves are imported; at once, where they already are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@dataclass(frozen=True)
class _Registration:
    """
    Our modules that register themselves, and when they can.

    Any of them may be the one being imported when its own imports bring in the Auto classes; it then registers at its
    end, as it would anyway. For that to work they must not import from one another.

    Args:
        after (`str`): The module of the Auto classes.
        complete (`tuple[str, ...]`): What our modules import from and what may itself import the Auto classes, so that
            it can be half-way through when those are there.
        modules (`tuple[str, ...]`): Ours.
    """

    after: str
    complete: tuple[str, ...]
    modules: tuple[str, ...]


_REGISTRATIONS = (
    _Registration("transformers.models.auto.configuration_auto", (), ("models.configuration",)),
    _Registration(
        "transformers.models.auto.modeling_auto",
        ("transformers.modeling_layers",),
        ("models.amplify", "models.gearnet", "models.proteinmpnn"),
    ),
)
_WATCHED = {name for item in _REGISTRATIONS for name in (item.after, *item.complete)}


class _AutoClassFinder(MetaPathFinder):
    """Finds the watched modules as Python does, and registers as soon as all that is needed has been executed."""

    def __init__(self) -> None:
        self.executing: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _WATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.executing.add(fullname)
            try:
                execute(module)
            finally:
                self.executing.discard(fullname)
            self.register(fullname)

        spec.loader.exec_module = execute_and_register
        return spec

    def register(self, executed: str) -> None:
        """What waited for this module, where it need not wait for another."""
        for item in _REGISTRATIONS:
            needed = {item.after, *item.complete}
            if executed in needed and item.after in sys.modules and not needed & self.executing:
                for module in item.modules:
                    importlib.import_module(f"{__package__}.{module}")


def install() -> None:
    """Register now or later. Further calls change nothing."""
    if any(isinstance(finder, _AutoClassFinder) for finder in sys.meta_path):
        return
    finder = _AutoClassFinder()
    sys.meta_path.insert(0, finder)
    for item in _REGISTRATIONS:
        finder.register(item.after)

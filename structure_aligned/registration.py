"""
Makes the Auto classes of Transformers know this package's networks, from `import structure_aligned` on.

Importing them for it would take the seconds that torch and Transformers need, also where only structures are read. So
they are registered at the moment the Auto classes themselves are imported; at once, where they already are.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


# Our modules that register themselves with the Auto classes, by the module of Transformers after whose import they
# can. Any of them may be the one being imported when its own imports bring in the Auto classes; it then registers at
# its end, as it would anyway. For that to work they must not import from one another.
_REGISTERED_AFTER = {
    "transformers.models.auto.configuration_auto": ("models.configuration",),
    "transformers.models.auto.modeling_auto": ("models.amplify", "models.gearnet", "models.proteinmpnn"),
}


def _register(name: str) -> None:
    for module in _REGISTERED_AFTER[name]:
        importlib.import_module(f"{__package__}.{module}")


class _AutoClassFinder(MetaPathFinder):
    """Finds the modules of the Auto classes as Python does, and registers as soon as they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTERED_AFTER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(fullname)

        spec.loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Register now or later. Further calls change nothing."""
    if not any(isinstance(finder, _AutoClassFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoClassFinder())
    for name in _REGISTERED_AFTER:
        if name in sys.modules:
            _register(name)

"""Makes the model known to transformers' Auto classes without importing transformers.

Importing transformers and torch takes seconds, `mu2 --help` answers at once. So the model registers itself
as soon as somebody else imports transformers, before or after `import mu2llm`.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTERS = "mu2llm.model"  # importing it registers


def register_with_transformers() -> None:
    """Registers now where transformers is there already, else right after its import."""
    if "transformers" in sys.modules:
        importlib.import_module(REGISTERS)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Finds transformers as the other finders do, and adds the registration behind its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "transformers":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec and spec.loader:
                spec.loader = _ThenRegister(spec.loader)
                return spec
        return None


class _ThenRegister(Loader):
    """Another loader, with the registration behind it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__
        module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        importlib.import_module(REGISTERS)

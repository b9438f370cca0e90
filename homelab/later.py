"""Modules that are imported when they are first used. The one place where an import waits, but for three that can't
come from here.

What it saves is a tenth to a quarter of a second of every `pulumi up` that changes nothing (measured with
`python -X importtime`): asyncssh, the models of a host's facts, NVIDIA's data. A program that declares resources needs
none of them until it plans something.

The three, in processor time: questionary (80 ms, homelab/cli/questions.py), which only a person at a terminal needs;
the provider's work (270 ms, homelab/provider/registry.py), whose modules are named in a table; and its base where a
diff asks for it (homelab/provider/serve.py), since pydantic, while it defines models, looks at every module that is
loaded, and so would load these.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

# One module at a time: importlib's LazyLoader, until Python 3.12, shows a second thread a module of which nothing is
# loaded yet.
_LOADING = threading.RLock()
_ALREADY = frozenset(("__class__", "__dict__", "__spec__", "__name__", "__loader__", "__package__", "__path__"))


class _Later(ModuleType):
    """A module whose first attribute that is asked for imports it."""

    def __getattribute__(self, name: str) -> Any:
        if name not in _ALREADY:
            with _LOADING:
                about = object.__getattribute__(self, "__dict__")
                if object.__getattribute__(self, "__class__") is _Later and not about.get("_loading"):
                    about["_loading"] = True
                    try:
                        about["__spec__"].loader.exec_module(self)
                    finally:
                        del about["_loading"]
                    object.__setattr__(self, "__class__", ModuleType)
        return object.__getattribute__(self, name)


def later(name: str) -> ModuleType:
    """The module; its first attribute that is asked for imports it.

    :raises ModuleNotFoundError: there is none.
    """
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.find_spec(name)
    if found is None or found.loader is None:
        raise ModuleNotFoundError(f"no module {name}", name=name)
    module = importlib.util.module_from_spec(found)
    module.__class__ = _Later
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:  # as an import does
        setattr(sys.modules[parent], child, module)
    return module

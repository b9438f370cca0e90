"""Modules that are imported at their first use. All late imports of the program come from here, except for two.

That saves a tenth to a quarter of a second of every `pulumi up` that changes nothing (measured with
`python -X importtime`): asyncssh, the models of a host's facts, NVIDIA's data. A program that declares resources needs
none of them until it plans something.

The two other late imports: the provider's work (270 ms of processor time), whose modules homelab/provider/registry.py
has in a table; and in homelab/provider/serve.py what a run has loaded already if it holds a host.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_OWN_ATTRIBUTES = frozenset(("__class__", "__dict__", "__spec__", "__name__", "__loader__", "__package__", "__path__"))


class _Later(ModuleType):
    """A module that is imported when its first attribute is read.

    One thread loads it, and others wait: importlib's LazyLoader, until Python 3.12, gives a second thread the module
    before anything of it is loaded. Each module has its own lock, as with any import. With one lock for all, two
    threads could wait for each other: one loads such a module, the other imports what both need.
    """

    def __getattribute__(self, name: str) -> Any:
        if name not in _OWN_ATTRIBUTES:
            namespace = object.__getattribute__(self, "__dict__")
            with namespace["_lock"]:
                if object.__getattribute__(self, "__class__") is _Later and not namespace.get("_loading"):
                    namespace["_loading"] = True
                    try:
                        namespace["__spec__"].loader.exec_module(self)
                    finally:
                        del namespace["_loading"]
                    object.__setattr__(self, "__class__", ModuleType)
        return object.__getattribute__(self, name)


def later(name: str) -> ModuleType:
    """A module that is imported when its first attribute is read.

    :param name: its full name.
    :raises ModuleNotFoundError: there is none.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module {name}", name=name)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["_lock"] = threading.RLock()
    module.__class__ = _Later
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:  # an import does the same
        setattr(sys.modules[parent], child, module)
    return module

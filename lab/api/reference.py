"""Which operations there are and what they take: reference.toml, read."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from homelab.guest.options import Parameters, parameters, tables

_FILE = Path(__file__).with_name("reference.toml")


@dataclass
class Operation:
    """A method on a path."""

    method: str
    path: str
    parameters: Parameters

    @property
    def of_node(self) -> bool:
        """Whether the node that the path names answers, to which others pass the request on."""
        return self.path.startswith("/nodes/{node}/")


class Reference:
    """All operations, found by method and path."""

    def __init__(self) -> None:
        read = tomllib.loads(_FILE.read_text(encoding="utf-8"))
        self.options, paths = tables().options, parameters(read["paths"])
        self.operations: dict[tuple[str, str], Operation] = {}
        for name, block in read["operations"].items():
            method, path = name.split(" ")
            known = {key: one for key, one in paths.items() if f"{{{key}}}" in path}
            for taken in block.pop("takes", ()):
                known |= self.options[taken]
            self.operations[method, path] = Operation(method, path, known | parameters(block))

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        """Return the operation and the parameters in the path; None when there is none."""
        parts = path.split("/")
        for wanted, operation in self._by_method.get(method, []):
            # A volume's name has a slash of its own.
            given = path.split("/", len(wanted) - 1) if wanted[-1] == "{volume}" else parts
            if len(given) != len(wanted):
                continue
            if all(w == g or (w.startswith("{") and g) for w, g in zip(wanted, given, strict=True)):
                return operation, {w[1:-1]: g for w, g in zip(wanted, given, strict=True) if w.startswith("{")}
        return None

    @functools.cached_property
    def _by_method(self) -> dict[str, list[tuple[list[str], Operation]]]:
        """The operations with the parts of their paths."""
        found: dict[str, list[tuple[list[str], Operation]]] = {}
        for operation in self.operations.values():
            found.setdefault(operation.method, []).append((operation.path.split("/"), operation))
        return found


@functools.cache
def reference() -> Reference:
    """The reference, read once."""
    return Reference()

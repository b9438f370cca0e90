"""Which operations there are and what they take: reference.txt, read."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

from homelab.guest import options as guest_options
from homelab.guest.options import Parameters, Tables

_FILE = Path(__file__).with_name("reference.txt")


@dataclass
class Operation:
    """A method on a path."""

    method: str
    path: str
    parameters: Parameters = field(default_factory=dict)

    @property
    def of_node(self) -> bool:
        """Whether the node that the path names answers, to which others pass the request on."""
        return self.path.startswith("/nodes/{node}/")


class Reference(Tables):
    """All operations, found by method and path.

    Args:
        text: the content of options.txt and reference.txt.
    """

    def __init__(self, text: str) -> None:
        self.operations: dict[tuple[str, str], Operation] = {}
        self._of_paths: Parameters = {}
        super().__init__(text)

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

    def block(self, verb: str, rest: str) -> Parameters:
        """Begin a block: also that of an operation, or a parameter of paths."""
        if verb in ("options", "format"):
            return super().block(verb, rest)
        if verb == "parameter":
            self._of_paths.update(guest_options.parameters(rest))
            return {}
        self.operations[verb, rest] = operation = Operation(verb, rest)
        operation.parameters.update((n, p) for n, p in self._of_paths.items() if f"{{{n}}}" in rest)
        return operation.parameters


@functools.cache
def reference() -> Reference:
    """The reference, read once."""
    return Reference(guest_options.text() + _FILE.read_text(encoding="utf-8"))

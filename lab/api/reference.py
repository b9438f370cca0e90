"""Which operations there are and what they take: reference.txt, read."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

_FILE = Path(__file__).with_name("reference.txt")
_PARAMETER = re.compile(
    r"(?P<name>[\w-]+)(?:\*(?P<count>\d+))?(?P<optional>\?)? "
    r"(?P<kind>boolean|integer|number|text|list|one of (?P<words>.+?))"
    r"(?: (?P<low>[\d.]*?)\.\.(?P<high>[\d.]*))?"
    r"(?: with (?P<requires>\S+))?(?: as (?P<format>\S+))?(?: like (?P<pattern>.+))?"
)


@dataclass(frozen=True)
class Parameter:
    """One parameter. `low` and `high` bound a number's value or a text's length."""

    name: str
    kind: str
    optional: bool = False
    words: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    requires: str | None = None
    format: str | None = None
    pattern: str | None = None


@dataclass
class Operation:
    """A method on a path."""

    method: str
    path: str
    parameters: dict[str, Parameter] = field(default_factory=dict)

    @property
    def of_node(self) -> bool:
        """Whether the node that the path names answers, to which others pass the request on."""
        return self.path.startswith("/nodes/{node}/")


@dataclass(frozen=True)
class PropertyFormat:
    """A property string's keys; `default` is the key of a word without `=`, `aliases` see reference.txt's head."""

    keys: dict[str, Parameter]
    default: str | None = None
    aliases: str | None = None


class Reference:
    """All operations, found by method and path.

    Args:
        text: the content of reference.txt.
    """

    def __init__(self, text: str) -> None:
        self.operations: dict[tuple[str, str], Operation] = {}
        self.options: dict[str, dict[str, Parameter]] = {}
        self.formats: dict[str, PropertyFormat] = {}
        self._of_paths: dict[str, Parameter] = {}
        self._read(text)

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

    def _read(self, text: str) -> None:
        into: dict[str, Parameter] = {}
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith("  takes: "):
                into.update(self.options[line.removeprefix("  takes: ")])
            elif line.startswith("  "):
                into.update(_parameters(line.strip()))
            else:
                verb, _, rest = line.partition(" ")
                if verb == "options":
                    into = self.options[rest] = {}
                elif verb == "format":
                    name, *words = rest.split()
                    keys = dict(zip(words[::2], words[1::2], strict=True))
                    into = {}
                    self.formats[name] = PropertyFormat(into, keys.get("default"), keys.get("aliases"))
                elif verb == "parameter":
                    self._of_paths.update(_parameters(rest))
                else:
                    self.operations[verb, rest] = operation = Operation(verb, rest)
                    into = operation.parameters
                    into.update((n, p) for n, p in self._of_paths.items() if f"{{{n}}}" in rest)


def _parameters(line: str) -> dict[str, Parameter]:
    match = _PARAMETER.fullmatch(line)
    if match is None:
        raise ValueError(f"{_FILE.name}: wanted `name kind ...` as its head describes, found {line!r}")
    words = tuple(match["words"].split()) if match["words"] else ()
    names = [match["name"]] if not match["count"] else [f"{match['name']}{n}" for n in range(int(match["count"]))]
    return {
        name: Parameter(
            name,
            "one of" if words else match["kind"],
            bool(match["optional"]),
            words,
            float(match["low"]) if match["low"] else None,
            float(match["high"]) if match["high"] else None,
            match["requires"],
            match["format"],
            match["pattern"],
        )
        for name in names
    }


@functools.cache
def reference() -> Reference:
    """The reference, read once."""
    return Reference(_FILE.read_text(encoding="utf-8"))

"""The stack's outputs, on which other programs may rely.

`version` is raised when something is taken away or changes its meaning; additions leave it as it is. A consumer reads
`version` first, ignores keys that it doesn't know, and takes a key that is missing as null where null is allowed:
Pulumi's Python SDK drops nulls from what a StackReference reads. One in Python calls `consumed`.

What each part of them is, homelab/shapes.py says; docs/outputs.schema.json is made from that (docs/tables/outputs.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from homelab.errors import HomelabError
from homelab.shapes import ContainerOutput, HostOutput, VmOutput

VERSION: Literal[1] = 1


# Text for a number would be a change.
@with_config(ConfigDict(strict=True))
class Outputs(TypedDict):
    """All outputs of a stack."""

    version: Literal[1]
    """of the contract"""
    hosts: dict[str, HostOutput]
    vms: dict[str, VmOutput]
    containers: dict[str, ContainerOutput]
    result: list[str]
    """what the last `up` has come to, in lines for people; not for programs"""


def put_out(part: type[Any], values: Mapping[str, Any], *, beyond: Iterable[str] = ()) -> dict[str, Any]:
    """A part of the outputs, without nulls: a missing key means the same, and a preview knows of it.

    :param part: its type in homelab/shapes.py.
    :param beyond: keys of it that come from elsewhere.
    :raises TypeError: a value was forgotten, or isn't of the contract.
    """
    if wrong := (part.__annotations__.keys() - beyond) ^ values.keys():
        raise TypeError(f"{part.__name__}: outputs that are missing or not known: {sorted(wrong)}")
    filled: dict[str, Any] = without_nulls(values)
    return filled


def consumed(stack: str, values: Mapping[str, object]) -> Outputs:
    """The outputs of another stack, for a program that takes them by a StackReference.

    :param stack: its name, for messages.
    :param values: its outputs.
    :raises HomelabError: they are of another version, or don't fit the types.
    """
    found = _whole(values)
    version = found.get("version")
    if version != VERSION:
        there = f"no `version`; there is {', '.join(sorted(values)) or 'nothing'}"
        raise HomelabError(
            wanted=f"version {VERSION} of a homelab stack's outputs from {stack}",
            found=there if version is None else f"version {version!r}",
            why="it isn't known which cards there are, or something in them means something else: a card might be "
            "taken from where it must not be",
            next=f"run `pulumi up` in {stack} to its end, with the same checkout of homelab as this program's; or "
            "correct the stack's name",
        )
    try:
        return TypeAdapter(Outputs).validate_python(found)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise HomelabError(
            wanted=f"the outputs of {stack} as version {VERSION} has them (docs/outputs.md)",
            found="\n        ".join(problems),
            why="this program would work with half of what it has to know",
            next=f"run `pulumi up` in {stack} with this checkout of homelab",
        ) from None


def without_nulls(value: Any) -> Any:
    """A value without keys whose value is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _whole(value: Any) -> Any:
    # Pulumi carries every number as a floating-point one: 103.0 is 103.
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

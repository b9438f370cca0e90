"""What the resources of homelab's provider have in common: inputs, outputs, and what a change of an input leads to.

A resource is declared in resource.py of its subject, and its work is done by work.py beside it, in the provider's
process. Both go by the dataclasses of the declaration: a program that leaves out an input is told so before anything
runs, and the provider turns properties into these types and back in one place (homelab/resources/work/plain.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pulumi

from homelab.remote import scripts

if TYPE_CHECKING:
    from pydantic import BaseModel

#: Inputs of a resource, outputs, or both, by name.
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class HostInputs:
    """`host`: its name in the settings."""

    host: str


@dataclass(frozen=True, kw_only=True)
class NodeInputs(HostInputs):
    """`node`: the host's name in Proxmox VE."""

    node: str


@dataclass(frozen=True, kw_only=True)
class NoOutputs:
    """The outputs of a resource that puts nothing out but its inputs."""


class Resource(pulumi.CustomResource):
    """A resource of homelab's provider. `inputs`: by the names that the class's `Inputs` has; one that is None may be
    left out.

    `replaced_by`: inputs whose change makes another one; `ignored`: inputs whose change is no reason to do anything,
    since they only say how; `asks_for_update`: outputs that ask for an update when there is something in them, such as
    drift.

    An output whose parts have a shape (homelab/shapes.py) is annotated below `if TYPE_CHECKING`: Pulumi compares each
    value with its annotation while a program runs, and knows no typed dictionaries.

    No output is ever null: what is null in the state comes back from a refresh as not known, and would change whatever
    takes it.
    """

    #: Module and name of its type, short: Pulumi's display has a column of that width.
    kind: ClassVar[str]
    Inputs: ClassVar[type[Any]]
    Outputs: ClassVar[type[Any]] = NoOutputs
    replaced_by: ClassVar[frozenset[str]] = frozenset()
    ignored: ClassVar[frozenset[str]] = frozenset()
    asks_for_update: ClassVar[tuple[str, ...]] = ()
    delete_before_replace: ClassVar[bool] = False

    def __init__(self, name: str, *, opts: pulumi.ResourceOptions | None = None, **inputs: pulumi.Input[Any]) -> None:
        fields = {field.name: field for field in dataclasses.fields(self.Inputs)}
        needed = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
        if wrong := (inputs.keys() - fields.keys()) | (needed - inputs.keys()):
            raise TypeError(f"{type(self).__name__} {name}: inputs that are missing or not known: {sorted(wrong)}")
        super().__init__(self.token(), name, {**inputs, **dict.fromkeys(self.output_names())}, opts)

    @classmethod
    def token(cls) -> str:
        """The type as the engine knows it."""
        return f"homelab:{cls.kind}"

    @classmethod
    def output_names(cls) -> list[str]:
        """The properties that are put out beside the inputs."""
        return [field.name for field in dataclasses.fields(cls.Outputs)]

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        """Of the inputs that `changed`, those for which another resource is made.

        :param state: the resource's inputs and outputs until now.
        :param changed: each with its new value.
        """
        return changed.keys() & cls.replaced_by

    @classmethod
    def says_nothing(cls, key: str, new: Any) -> bool:
        """Is an input's new value no reason to do anything, whatever it was before?

        :param key: the input's name.
        """
        return False


def declared(kind: type[Resource] = Resource) -> dict[str, type[Resource]]:
    """A type's token -> the class that declares it, of the modules that are imported.

    :param kind: of these alone.
    """
    here = {kind.token(): kind} if "Inputs" in kind.__dict__ else {}
    return here | {token: cls for part in kind.__subclasses__() for token, cls in declared(part).items()}


def digest(settings: BaseModel, leave_out: Collection[str] | Mapping[str, object]) -> str:
    """16 hexadecimal digits that change when one of the settings does.

    :param leave_out: settings that don't count, by their names in the model.
    """
    # A setting that this program has and the one before it hadn't is as if it had been there, while no user sets it.
    values = settings.model_dump(mode="json", exclude=leave_out, exclude_defaults=True)  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Probe(Resource):
    """Reads a host and owns nothing there; a refresh finds drift. What it puts out is planned anew when `stale`.

    Its input `settings` is a digest of the settings that it plans by: with their change it plans anew, also without a
    refresh. The settings themselves come with the provider's configuration, in which alone they are whole: how a host
    is reached is no resource's input.
    """

    asks_for_update = ("stale",)


class Act(Resource):
    """Something that is done, and done again with the change of any input. It owns nothing.

    What it follows has changed: then another one takes its place. Only this program has changed since the state was
    written: then the same one is done again, by an update. Either way the same work is done, and what depends on it
    follows its outputs.

    `answers`: inputs made of what layers answered.
    """

    answers: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def replacing(cls, state: Values, changed: Values) -> set[str]:
        return {
            key
            for key, new in changed.items()
            if key not in cls.answers or not scripts.same_answers(state.get(key), new)
        }


class Owned(Resource):
    """Something on a host that is this program's, and is given back with the resource; `drift` is mended by an
    update."""

    asks_for_update = ("drift",)

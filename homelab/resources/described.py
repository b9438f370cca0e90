"""Hosts and guests as a program of one's own describes them: plain dictionaries with the keys of docs/settings.md.

Secrets may be outputs, such as those of `pulumi.Config().require_secret`. Everything else decides which resources there
are, and so has to be there when the program runs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import pulumi

from homelab.errors import HomelabError
from homelab.settings import Host, Vm, model_of, parse
from homelab.settings.container import Container
from homelab.stack import Refusal

HostInput = Host | Mapping[str, Any]
VmInput = Vm | Mapping[str, Any]
ContainerInput = Container | Mapping[str, Any]

# The keys of a host whose values may be outputs.
_SECRETS = {("ssh", "privateKey"), ("ssh", "password")}
# What stands for an output in the settings -> the output.
_OUTPUTS: dict[str, pulumi.Output[str]] = {}
# What HomelabProvider was given, by section: each as a text without outputs.
_GIVEN: dict[str, set[str]] = {}


def host_of(described: HostInput) -> Host:
    """A host's settings.

    :raises Refusal: they are mistaken.
    """
    return described if isinstance(described, Host) else _model(Host, "hosts", described)


def vm_of(described: VmInput) -> Vm:
    """A VM's settings.

    :raises Refusal: they are mistaken.
    """
    return described if isinstance(described, Vm) else _model(Vm, "vms", described)


def vms_of(described: Mapping[str, VmInput]) -> dict[str, Vm]:
    """The settings of VMs, by name.

    :raises Refusal: they are mistaken.
    """
    return {name: vm_of(vm) for name, vm in described.items()}


def container_of(described: ContainerInput) -> Container:
    """A container's settings.

    :raises Refusal: they are mistaken.
    """
    return described if isinstance(described, Container) else _model(Container, "containers", described)


def value_of(secret: str) -> pulumi.Output[str]:
    """The value of a secret of a host's settings, which may be known later than they are."""
    return pulumi.Output.secret(_OUTPUTS.get(secret, secret))


def give(parts: Mapping[str, Mapping[str, object]]) -> None:
    """Checks what HomelabProvider has, by section. Components may be given nothing else from then on.

    :raises Refusal: it is mistaken.
    """
    try:
        parse(_with_stand_ins(parts, ()))
    except HomelabError as error:
        raise _refusal(error) from None
    for section, part in parts.items():
        _GIVEN.setdefault(section, set()).update(map(_text, part.values()))


class HomelabProvider(pulumi.ProviderResource):
    """homelab's provider, told of hosts and guests by the program: in place of the keys `homelab:hosts` and so on in
    the stack's configuration, which is then not needed. Made before the resources of homelab, it is the provider of all
    of them that name no other.
    """

    def __init__(
        self,
        name: str,
        hosts: Mapping[str, Mapping[str, Any]],
        vms: Mapping[str, Mapping[str, Any]] | None = None,
        containers: Mapping[str, Mapping[str, Any]] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """:param hosts: all hosts of the program, by name, each as the components have it.
        :param vms: all VMs, likewise.
        :param containers: all containers, likewise.
        :raises Refusal: they are mistaken.
        """
        parts = {"hosts": hosts, "vms": vms or {}, "containers": containers or {}}
        give(parts)
        texts = {key: pulumi.Output.json_dumps(part) for key, part in parts.items()}
        secret = pulumi.ResourceOptions(additional_secret_outputs=list(texts))
        super().__init__("homelab", name, texts, pulumi.ResourceOptions.merge(secret, opts))
        pulumi.runtime.register_stack_transformation(self._given)

    def _given(self, args: pulumi.ResourceTransformationArgs) -> pulumi.ResourceTransformationResult | None:
        """This provider for a resource of homelab that has none."""
        opts = args.opts
        has_one = opts.provider or opts.providers or (opts.parent and opts.parent.get_provider(args.type_))
        if has_one or not args.type_.startswith("homelab:"):
            return None
        given = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(provider=self))
        return pulumi.ResourceTransformationResult(args.props, given)


def _model(model: type[Any], section: str, described: Mapping[str, Any]) -> Any:
    try:
        settings = model_of(model, section, _with_stand_ins(described, ()))
        if _GIVEN and _text(described) not in _GIVEN[section]:
            raise HomelabError(
                wanted=f"what a component is given, in {section} of HomelabProvider, too",
                found=f"not there, or described otherwise: {_label(described)}",
                why="HomelabProvider's hosts and guests are the ones that are checked before anything is changed",
                next=f"give HomelabProvider the same dictionary: {section}={{NAME: …}}",
            )
        return settings
    except HomelabError as error:
        raise _refusal(error) from None


def _refusal(error: HomelabError) -> Refusal:
    """The refusal of a program's own descriptions, which stand in no file of settings."""
    in_file = "correct Pulumi.<stack>.yaml"
    return Refusal(error.retold(next=error.next.replace(in_file, "correct what the program describes")))


def _text(described: object) -> str:
    return json.dumps(described, default=lambda _: None, sort_keys=True)


def _label(described: Mapping[str, object]) -> str:
    """A host, VM or container as a message names it."""
    keys = ("host", "vmid", "ctid", "address")
    return ", ".join(f"{key} {described[key]}" for key in keys if key in described)


def _with_stand_ins(value: Any, place: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_stand_ins(entry, (*place, str(key))) for key, entry in value.items()}
    if not isinstance(value, pulumi.Output):
        return value
    if place[-2:] not in _SECRETS:
        raise HomelabError(
            wanted=f"a value for {'.'.join(place)} that is there when the program runs",
            found="an output",
            why="it decides which resources there are; only secrets may be outputs",
            next=f"give it as a plain value; outputs may be: {', '.join(sorted('.'.join(key) for key in _SECRETS))}",
        )
    text = f"output {uuid.uuid4()}"
    _OUTPUTS[text] = value
    return text

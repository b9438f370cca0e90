"""Hosts and guests as a program of one's own describes them: plain dictionaries with the keys of docs/settings.md.

Secrets may be outputs, such as those of `pulumi.Config().require_secret`. Everything else decides which resources there
are, and so has to be there when the program runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pulumi

from homelab.errors import HomelabError
from homelab.settings import Host, Vm, model_of
from homelab.settings.container import Container
from homelab.stack import Refusal

HostInput = Host | Mapping[str, Any]
VmInput = Vm | Mapping[str, Any]
ContainerInput = Container | Mapping[str, Any]

# The keys of a host whose values may be outputs.
_SECRETS = {("ssh", "privateKey"), ("ssh", "password"), ("api", "tokenSecret"), ("api", "password")}
# What stands for an output in the settings -> the output.
_OUTPUTS: dict[str, pulumi.Output[str]] = {}


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


class HomelabProvider(pulumi.ProviderResource):
    """homelab's provider, told of hosts and guests by the program: in place of the keys `homelab:hosts` and so on in
    the stack's configuration, which is then not needed. The resources of homelab get it by `provider` in their options.
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
        """
        parts = {"hosts": hosts, "vms": vms or {}, "containers": containers or {}}
        texts = {key: pulumi.Output.json_dumps(part) for key, part in parts.items()}
        secret = pulumi.ResourceOptions(additional_secret_outputs=list(texts))
        super().__init__("homelab", name, texts, pulumi.ResourceOptions.merge(secret, opts))


def _model(model: type[Any], section: str, described: Mapping[str, Any]) -> Any:
    try:
        return model_of(model, section, _with_stand_ins(described, ()))
    except HomelabError as error:
        raise Refusal(error) from None


def _with_stand_ins(value: Any, place: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_stand_ins(entry, (*place, str(key))) for key, entry in value.items()}
    if not isinstance(value, pulumi.Output):
        return value
    if place not in _SECRETS:
        raise HomelabError(
            wanted=f"a value for {'.'.join(place)} that is there when the program runs",
            found="an output",
            why="it decides which resources there are; only secrets may be outputs",
            next=f"give it as a plain value; outputs may be: {', '.join(sorted('.'.join(key) for key in _SECRETS))}",
        )
    text = f"output {uuid.uuid4()}"
    _OUTPUTS[text] = value
    return text

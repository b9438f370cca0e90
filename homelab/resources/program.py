"""The settings of a running program: from the stack's configuration, or from hosts and guests that a program of one's
own describes as plain dictionaries with the keys of docs/settings.md.

Secrets in these may be outputs, such as those of `pulumi.Config().require_secret`. Everything else decides which
resources there are, and so has to be there when the program runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pulumi

from homelab.errors import HomelabError
from homelab.resources import limits
from homelab.settings import Settings, parse
from homelab.stack import Refusal, load

# The keys of a host whose values may be outputs.
_SECRETS = {("ssh", "privateKey"), ("ssh", "password")}


def settings_of_the_stack() -> Settings:
    """The settings of the running program's stack. From here on every resource of a host has a limit of time.

    :raises Refusal: they are mistaken.
    """
    try:
        settings = load()
    except HomelabError as error:
        raise Refusal(error) from None
    limits.limit_every_resource(settings)
    return settings


class HomelabProvider(pulumi.ProviderResource):
    """homelab's provider, told of hosts and guests by the program: in place of the keys `homelab:hosts` and so on in
    the stack's configuration, which is then not needed. Made before the resources of homelab, it is the provider of all
    of them that name no other. `settings`: the hosts and guests, for the components.
    """

    settings: Settings

    def __init__(
        self,
        name: str,
        *,
        hosts: Mapping[str, Mapping[str, Any]],
        vms: Mapping[str, Mapping[str, Any]] | None = None,
        containers: Mapping[str, Mapping[str, Any]] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """:param hosts: all hosts of the program, by name.
        :param vms: all VMs, likewise.
        :param containers: all containers, likewise.
        :raises Refusal: they are mistaken.
        """
        parts = {"hosts": hosts, "vms": vms or {}, "containers": containers or {}}
        self.settings = settings_of(parts)
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


def settings_of(parts: Mapping[str, Mapping[str, object]]) -> Settings:
    """The settings that a program describes.

    :param parts: section, such as `hosts`, -> name -> the description.
    :raises Refusal: they are mistaken.
    """
    outputs: dict[str, pulumi.Output[str]] = {}
    try:
        settings = parse(_with_placeholders(parts, (), outputs))
    except HomelabError as error:
        raise Refusal(error) from None
    for ssh in [host.ssh for host in settings.hosts.values()] + [vm.ssh for vm in settings.vms.values() if vm.ssh]:
        ssh.know_later(outputs)
    return settings


def _with_placeholders(value: Any, place: tuple[str, ...], outputs: dict[str, pulumi.Output[str]]) -> Any:
    """A value of the settings with a text in place of each output.

    :param outputs: gets each output, by its text.
    """
    if isinstance(value, Mapping):
        return {key: _with_placeholders(entry, (*place, str(key)), outputs) for key, entry in value.items()}
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
    outputs[text] = value
    return text

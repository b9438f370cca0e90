"""GpuLxc: a container that shares cards with the host's driver. Adopted as it is, or created.

In this order: the device nodes on the host (CardNodes), the container's configuration with the restart that brings it
into force, packages for its Intel and AMD cards where the settings want them, a look from inside. Owns in the
configuration the keys and lines that it added, found again by content; what others have given the container stays.
Undone by taking them out, with a restart if the container runs; a created one is removed, unless it is protected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pulumi

from homelab.container import makers
from homelab.container.resource import ContainerProbe, ContainerVerification
from homelab.guest.resource import Guest
from homelab.later import later
from homelab.remote import scripts
from homelab.resources import command as remote
from homelab.resources import limits
from homelab.settings import Container, Host
from homelab.shapes import BootSeen, CardPlan, ContainerSeen, SharedCard
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.terms import Terms
from remote_scripts.tools.plain import to_plain

if TYPE_CHECKING:
    from homelab.resources import card_libraries
else:
    card_libraries = later("homelab.resources.card_libraries")


class GpuLxc(pulumi.ComponentResource):
    """Outputs: `container`, for the stack's outputs (homelab/contract.py); `in_force`: a text that changes with each
    restart of the container by this program, a trigger for what is installed in it; `started`: a text that changes with
    each such restart and with each reboot of the host by this program.

    `host`: the container's; `cards`: all of the host, HostProbe's `gpus`; `boot`: the host's, HostReboot's `boot`.
    """

    container: pulumi.Output[ContainerSeen]
    in_force: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(
        self,
        host: Host,
        container: Container,
        cards: pulumi.Input[dict[str, CardPlan]],
        boot: pulumi.Input[BootSeen],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("homelab:gpu:GpuLxc", container.name, {}, opts)
        name, node = container.name, host.node_name
        depends_on = opts.depends_on if opts else None
        instance: pulumi.Input[str] = ""
        options = pulumi.ResourceOptions(parent=self, depends_on=depends_on)
        if created := Guest.of(name, container, node, options):
            instance, depends_on = created.instance, [created]
        probe = ContainerProbe(
            f"{name}-probe",
            {
                "host": container.host,
                "node": node,
                "container": name,
                "ctid": container.ctid,
                "settings": ContainerProbe.settings_of(container),
                "power": container.wanted_power,
                "gpus": cards,
                "boot": boot,
                "instance": instance,
                "goes_away": _goes_away(container),
                "shutdown": container.shutdown.model_dump(mode="json"),
            },
            pulumi.ResourceOptions(parent=self, depends_on=depends_on),
        )
        taken = pulumi.Output.all(probe.minors, probe.functions, probe.shared).apply(
            lambda values: makers.cards_of(container, values[0], values[1], values[2])
        )
        owner = f"{pulumi.get_project()}/{pulumi.get_stack()}/{name}"
        given = remote.layer(
            f"{name}-cards",
            host,
            "container_cards",
            pulumi.Output.all(taken, probe.rebooted_at).apply(
                lambda values: ContainerCards(
                    ctid=container.ctid,
                    cards=values[0],
                    terms=Terms(
                        owner=owner,
                        power=container.wanted_power,
                        rebooted_at=int(values[1]),
                        shutdown=container.shutdown.timeout,
                        otherwise=container.shutdown.otherwise,
                    ),
                    goes_away=_goes_away(container),
                )
            ),
            pulumi.ResourceOptions(parent=self, depends_on=[probe]),
            generation=pulumi.Output.concat(instance, probe.generation.apply(lambda times: str(int(times)))),
            identity=[container.host, str(container.ctid)],
            seconds=limits.of_step(host) + 2 * container.shutdown.timeout,
        )
        last: pulumi.Resource = given
        install_outputs: list[pulumi.Input[Any]] = []
        if container.libraries:
            stack = card_libraries.limits_of(container)
            last = packages = remote.layer(
                f"{name}-libraries",
                host,
                "card_libraries",
                pulumi.Output.from_input(cards).apply(
                    lambda cards: card_libraries.card_libraries(name, container, cards)
                ),
                pulumi.ResourceOptions(parent=self, depends_on=[given]),
                generation=pulumi.Output.concat(instance, probe.again.apply(lambda times: str(int(times)))),
                undone=not _goes_away(container),
                identity=() if _goes_away(container) else [container.host, str(container.ctid)],
                seconds=limits.of_step(host, stack),
                ctid=container.ctid,
                proxy=stack.proxy_address,
            )
            install_outputs += [packages.stdout, probe.again]
        verification = ContainerVerification(
            f"{name}-opened",
            {
                "host": container.host,
                "ctid": container.ctid,
                "cards": taken.apply(to_plain),
                "uses": sorted(container.libraries),
                "after": [given.stdout, probe.shared, *install_outputs],
            },
            pulumi.ResourceOptions(parent=self, depends_on=[last]),
        )
        self.in_force = given.stdout.apply(_in_force)
        both = pulumi.Output.all(boot, self.in_force)
        self.started = both.apply(lambda values: f"boot {values[0]['id']}, {values[1]}")
        self.container = pulumi.Output.all(
            name=probe.guest_name,
            minors=probe.minors,
            functions=probe.functions,
            shared=probe.shared,
            given=given.stdout,
            state=verification.state,
            nodes=verification.nodes,
        ).apply(lambda values: _output(container, node, **values))
        self.register_outputs({"container": self.container, "in_force": self.in_force})


def _in_force(output: str) -> str:
    """What changes with each change of the container's configuration by this program.

    :param output: of the layer container_cards.
    """
    answer = scripts.answer(output)
    return f"{answer['digest']} {answer['revision']}"


def _goes_away(container: Container) -> bool:
    return container.create is not None and not container.create.protect


def _output(
    container: Container,
    node: str,
    *,
    name: str,
    minors: list[int],
    functions: list[str],
    shared: dict[str, SharedCard],
    given: str,
    state: str,
    nodes: list[str],
) -> ContainerSeen:
    """The container for the stack's outputs.

    :param given: the output of the layer container_cards.
    """
    entry_kinds = set(scripts.answer(given)["devices"].values())
    method: Literal["device", "mount-entry", "mixed"] | None = "mixed" if entry_kinds else None
    if len(entry_kinds) == 1:
        method = "device" if entry_kinds == {"dev"} else "mount-entry"
    return {
        "host": container.host,
        "node": node,
        "ctid": container.ctid,
        "name": name,
        "state": state,
        "gpus": [int(minor) for minor in minors],
        "addresses": functions,
        "cards": {gpu: card["nodes"] for gpu, card in sorted(shared.items())},
        "nodes": nodes,
        "method": method,
    }

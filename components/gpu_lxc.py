"""GpuLxc: a container that shares cards with the host's driver. Adopted as it is, or created.

In this order: the device nodes on the host (CardNodes), the container's configuration with the restart that brings it
into force, packages for its Intel and AMD cards where the settings want them, a look from inside. Owns in the
configuration the keys and lines that it added, found again by content; what others have given the container stays.
Undone by taking them out, with a restart if the container runs; a created one is removed, unless it is protected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pulumi

from homelab.container import makers
from homelab.container.resource import ContainerProbe, ContainerVerification
from homelab.guest.mark import goes_away
from homelab.later import later
from homelab.remote import scripts
from homelab.resources import limits
from homelab.resources.command import Place, Request, step
from homelab.settings import Container, Host
from homelab.shapes import BootSeen, CardPlan, ContainerOutput
from remote_scripts.both.container_cards import Wanted as ContainerCards
from remote_scripts.both.terms import Terms
from remote_scripts.tools.plain import to_plain

from .component import GuestComponent

if TYPE_CHECKING:
    from homelab.resources import card_libraries
    from remote_scripts.notes.container_note import Cards
else:
    card_libraries = later("homelab.resources.card_libraries")


class GpuLxc(GuestComponent):
    """Outputs: `container`, for the stack's outputs; `in_force`: a text that changes with each restart of the container
    by this program, a trigger for what is installed in it; `started`: a text that changes with each such restart and
    with each reboot of the host by this program.

    `host`: the container's; `cards`: all of the host, HostProbe's `gpus`; `boot`: the host's, HostReboot's `boot`.
    """

    container: pulumi.Output[ContainerOutput]
    in_force: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(
        self,
        container: Container,
        *,
        host: Host,
        cards: pulumi.Input[dict[str, CardPlan]],
        boot: pulumi.Input[BootSeen],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("gpu:GpuLxc", container, host, boot, opts)
        name, identity = container.name, [container.host, str(container.ctid)]
        probe = ContainerProbe(
            f"{name}-probe",
            **self._guest,
            container=name,
            ctid=container.ctid,
            settings=ContainerProbe.settings_of(container),
            gpus=cards,
            opts=self._part(),
        )
        found = pulumi.Output.all(minors=probe.minors, functions=probe.functions, shared=probe.shared)
        taken: pulumi.Output[Cards] = found.apply(lambda seen: makers.cards_of(container, **seen))
        owner = f"{pulumi.get_project()}/{pulumi.get_stack()}/{name}"
        wanted = pulumi.Output.all(cards=taken, rebooted_at=probe.rebooted_at).apply(
            lambda seen: _wanted(container, owner, **seen)
        )
        given = step(
            f"{name}-cards",
            place=Place(host),
            request=Request(
                "container_cards",
                wanted,
                self._generation(probe.generation),
                seconds=limits.of_step(host) + 2 * container.shutdown.timeout,
            ),
            identity=identity,
            opts=self._part(probe),
        )
        last: pulumi.Resource = given
        install_outputs: list[pulumi.Input[Any]] = []
        if container.libraries:
            stack = card_libraries.limits_of(container)
            wanted_packages = pulumi.Output.from_input(cards).apply(
                lambda gpus: card_libraries.card_libraries(name, container, gpus)
            )
            last = packages = step(
                f"{name}-libraries",
                place=Place(host),
                request=Request(
                    "card_libraries",
                    wanted_packages,
                    self._generation(probe.again),
                    seconds=limits.of_step(host, stack),
                    ctid=container.ctid,
                    proxy=stack.proxy_address,
                ),
                undone=not goes_away(container.create),
                identity=identity,
                opts=self._part(given),
            )
            install_outputs += [packages.stdout, probe.again]
        verification = ContainerVerification(
            f"{name}-opened",
            host=container.host,
            ctid=container.ctid,
            cards=taken.apply(to_plain),
            uses=sorted(container.libraries),
            after=[given.stdout, probe.shared, *install_outputs],
            opts=self._part(last),
        )
        answer = given.stdout.apply(scripts.answer)
        self.in_force = answer.apply(lambda seen: f"{seen['digest']} {seen['revision']}")
        self.started = pulumi.Output.concat("boot ", self._boot_id, ", ", self.in_force)
        output = {
            "host": container.host,
            "node": host.node_name,
            "ctid": container.ctid,
            "name": probe.guest_name,
            "state": verification.state,
            "gpus": probe.minors,
            "addresses": probe.functions,
            "cards": probe.shared.apply(lambda shared: {gpu: card["nodes"] for gpu, card in sorted(shared.items())}),
            "nodes": verification.nodes,
            "method": answer.apply(_method),
        }
        self.container = pulumi.Output.from_input(cast("ContainerOutput", output))
        self.register_outputs({"container": self.container, "in_force": self.in_force})

    def _generation(self, drifted: pulumi.Output[int]) -> pulumi.Output[str]:
        """Of a step: another container, or one more drift, makes it run again."""
        return pulumi.Output.concat(self._instance, drifted.apply(lambda times: str(int(times))))


def _wanted(container: Container, owner: str, *, cards: Cards, rebooted_at: int) -> ContainerCards:
    terms = Terms(
        owner=owner,
        power=container.wanted_power,
        rebooted_at=int(rebooted_at),
        shutdown=container.shutdown.timeout,
        otherwise=container.shutdown.otherwise,
    )
    return ContainerCards(ctid=container.ctid, cards=cards, terms=terms, goes_away=goes_away(container.create))


def _method(answer: dict[str, Any]) -> str | None:
    """How the container's configuration gives it the devices.

    :param answer: of the layer container_cards.
    """
    kinds = {"device" if kind == "dev" else "mount-entry" for kind in answer["devices"].values()}
    return "mixed" if len(kinds) > 1 else next(iter(kinds), None)

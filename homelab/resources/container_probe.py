"""ContainerProbe: which of the driver's cards a container is to have, as numbers; where drift of its configuration is found.

Reads the host, passes every check or fails before anything is changed, and puts out what the scripts are told. `read` (``pulumi
refresh``) compares the host with that: what differs raises ``generation``, with which the configuration is written again and the
chain behind it follows; numbers that have changed ask for an update. It owns nothing on the host.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.base import HostProvider, stopped_by_us
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.host.facts import HostFacts
    from homelab.settings import Container

OUTPUTS = ("minors", "functions", "guest_name", "resume", "generation", "stale")


class ContainerProbeProvider(HostProvider):
    """See the module. Inputs: host, node, container (its name in the settings), ctid, wanted, gpus (as HostProbe has them), boot, instance."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(
            str(int(props["ctid"])), {**props, **self._planned(props, None), "generation": 0, "stale": False}
        )

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(
            {**news, **self._planned(news, olds.get("boot")), "generation": int(olds["generation"]), "stale": False},
        )

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = bool(olds.get("stale")) or any(olds.get(key) != news.get(key) for key in news if key not in OUTPUTS)
        replaces = [key for key in ("host", "ctid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=False)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        if "minors" not in props:  # `pulumi import` has nothing to compare with; adopting takes no import
            return ReadResult(id_, props)
        facts = self.facts_of_refresh(props)
        drift = _drift(facts, props)
        moved = self._moved(facts, props)
        for difference in drift + moved:
            tell(f"{props['container']}: drift: {difference}")
        gone = facts.guests.config(int(props["ctid"])) is None
        generation = int(props["generation"]) + bool(drift)
        return ReadResult(id_, {**props, "generation": generation, "stale": bool(moved) or gone})

    def _moved(self, facts: HostFacts, props: dict[str, Any]) -> list[str]:
        """The numbers that the driver has given to the container's cards since."""
        from homelab.container import plan as container_plan

        container = self._settings(props)
        if container is None:  # it leaves the stack
            return []
        want = _wanted(props)
        found, _ = container_plan.numbers(
            props["container"], container, container_plan.cards(facts, want, {}, props["node"]), want
        )
        had = [int(number) for number in props["minors"]]
        return [] if found == had else [f"its cards are /dev/nvidia{found}, not /dev/nvidia{had}"]

    def _settings(self, props: dict[str, Any]) -> Container | None:
        return self.containers(props).get(props["container"])

    def _planned(self, props: dict[str, Any], boot: dict[str, Any] | None) -> dict[str, Any]:
        """``boot``: the last one that this container was planned under."""
        from homelab.container import plan as container_plan
        from homelab.errors import HomelabError, raise_all
        from homelab.remote import guard, ssh

        container = self._settings(props)
        if container is None:
            raise HomelabError(
                wanted=f"homelab:containers.{props['container']} in the stack's configuration",
                found="it is missing",
                why="it says which cards the container is to have",
                next="put it back, or run `pulumi up` to give the container up",
            )
        guard.hold(props["host"], self.host(props))
        facts = asyncio.run(ssh.read(self.host(props), guests=True))
        want = _wanted(props)
        found = container_plan.cards(facts, want, self.vms(props), props["node"])
        minors, errors = container_plan.check(props["container"], container, facts, found, want)
        raise_all(errors)
        config = facts.guests.config(int(props["ctid"]))
        return {
            "minors": minors,
            "functions": container_plan.functions([found.slots[number] for number in minors], facts),
            "resume": props["wanted"]["power"] == "keep" and stopped_by_us(int(props["ctid"]), props["boot"], boot),
            "guest_name": config.values.get("hostname", props["container"]) if config else props["container"],
        }


def _wanted(props: dict[str, Any]) -> Any:
    from homelab.host import plan

    return plan.Wanted("", "", {}, [], props["gpus"])


def _drift(facts: HostFacts, props: dict[str, Any]) -> list[str]:
    ctid = int(props["ctid"])
    config = facts.guests.config(ctid)
    if config is None:
        return [f"container {ctid} is gone"]
    known = next((one for one in facts.containers if one.id == ctid), None)
    found = known.drift if known else ["nothing on the host tells what was given to it"]
    power, runs = props["wanted"]["power"], ctid in facts.guests.running_containers
    if power != "keep" and runs != (power == "running"):
        found = [*found, f"container {ctid} is {'running' if runs else 'stopped'} instead of {power}"]
    return found


class ContainerProbe(Resource, module="homelab", name="ContainerProbe"):
    """The dynamic resource. Outputs: ``minors`` (numbers of /dev/nvidiaN), ``functions`` (addresses of the cards' display
    functions), ``guest_name``, ``resume`` (did a reboot of ours stop it?), ``generation`` (how often it drifted).
    """

    minors: pulumi.Output[list[int]]
    functions: pulumi.Output[list[str]]
    guest_name: pulumi.Output[str]
    resume: pulumi.Output[bool]
    generation: pulumi.Output[int]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(ContainerProbeProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)

"""NvidiaSystem: what a system is that NVIDIA's stack is to be installed on; where drift of the stack is found. It owns nothing.

`create` and `update` wait until the system answers, read it, and refuse what can't work before anything is installed. `read`
(``pulumi refresh``) compares it with what the steps left there: a layer that differs gets a higher ``generation``, with which its
step runs again, and what follows it.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.system import SystemProvider
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.nvidia.plan import Request
    from homelab.nvidia.reading import Reading

OUTPUTS = ("facts", "generation", "stale")
# What the steps leave on a system, in the order in which they do.
LAYERS = ("repository", "driver", "boot", "cuda", "toolkit")


class NvidiaSystemProvider(SystemProvider):
    """See the module. Inputs: `System.inputs`."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        facts = self._planned(props)
        return CreateResult(
            str(props["system_name"]),
            {**props, "facts": facts, "generation": dict.fromkeys(LAYERS, 0), "stale": False},
        )

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        return UpdateResult({**news, "facts": self._planned(news), "generation": olds["generation"], "stale": False})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        changed = bool(olds.get("stale")) or any(olds.get(key) != news.get(key) for key in news if key not in OUTPUTS)
        replaces = [key for key in ("host", "system_name", "target", "ctid") if olds.get(key) != news.get(key)]
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=False)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        # Said whatever the steps do: under `purge` they have taken back what they added by now.
        if props["nvidia"]["on_destroy"] == "keep" and props["stays"]:
            tell(
                f"{props['system_name']}: NVIDIA's stack stays as it is (onDestroy: keep): driver, CUDA, container toolkit, their "
                "repositories and the pin"
            )

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        if "facts" not in props or self.stack(props) is None:  # `pulumi import`, or it leaves the stack
            return ReadResult(id_, props)
        name = props["system_name"]
        reading = self._reading(props)
        if reading is None:
            return ReadResult(id_, props)
        drift = list(reading.drift)
        drift += [
            f"{step}: nothing there tells of it any more" for step in _expected(props) if step not in reading.steps
        ]
        old, new = props["facts"], _facts(reading, props)
        changed = [
            key
            for key in ("distribution", "version", "running", "kernels", "host_driver", "cards")
            if old.get(key) != new.get(key)
        ]
        for difference in drift:
            tell(f"{name}: drift: {difference}")
        for key in changed:
            tell(f"{name}: drift: {key.replace('_', ' ')} is {new.get(key)} instead of {old.get(key)}")
        drifted = {line.partition(":")[0] for line in drift}
        generation = {layer: int(props["generation"].get(layer, 0)) + (layer in drifted) for layer in LAYERS}
        return ReadResult(id_, {**props, "generation": generation, "stale": bool(changed)})

    def _reading(self, props: dict[str, Any]) -> Reading | None:
        """The system as a refresh sees it: a host and its containers on the host's one connection; None where it can't be reached."""
        from homelab.errors import UnreachableError
        from homelab.nvidia import reading

        if props["target"] != "vm":
            key = "host" if props["target"] == "host" else str(int(props["ctid"]))
            text = self.facts_of_refresh(props).systems.get(key)
            if text is None:
                tell(f"{props['system_name']}: it doesn't run: NVIDIA's stack in it was not compared")
            return None if text is None else reading.parse(text)
        try:
            return asyncio.run(self.read_system(props))
        except UnreachableError as error:
            # A VM may be off for good reasons; that is no reason to stop the refresh of everything else.
            tell(f"{props['system_name']}: not in reach, and not compared: {error.found}")
            return None

    def _planned(self, props: dict[str, Any]) -> dict[str, Any]:
        if props["target"] != "vm":
            from homelab.remote import guard

            guard.hold(props["host"], self.host(props))
        from homelab.nvidia.plan import plan_stack

        stack = self.stack(props)
        patience = stack.timeouts.reboot if stack else 0
        facts = _facts(asyncio.run(self.read_system_in_time(props, patience)), props)
        request = request_of(props, facts, stack)
        for note in plan_stack(request).notes:  # or all that stands against it
            tell(f"{props['system_name']}: {note}")
        return facts


def _expected(props: dict[str, Any]) -> list[str]:
    """The layers that the settings ask for."""
    stack = props["nvidia"]
    wanted = {"repository": True, "driver": True, "cuda": stack.get("cuda"), "toolkit": stack.get("container_toolkit")}
    return [layer for layer, there in wanted.items() if there]


def _facts(reading: Reading, props: dict[str, Any]) -> dict[str, Any]:
    """What is known of the system, as the state holds it: nothing that the steps themselves change."""
    system = dataclasses.asdict(reading.system)
    return {
        **{
            key: value for key, value in system.items() if key not in ("offered", "loaded", "loaded_flavour", "nouveau")
        },
        "kernels": list(reading.system.kernels or ()) if props["target"] == "host" else [reading.system.running],
        "cards": list(reading.system.cards or ()),
        "runtimes": sorted(reading.system.runtimes or ()),
    }


def request_of(
    props: dict[str, Any], facts: dict[str, Any], stack: Any, offered: dict[str, list[str]] | None = None
) -> Request:
    """What `nvidia.plan` plans.

    :param props: ``target`` and ``system_name``.
    :param facts: as NvidiaSystem puts them out.
    :param stack: the settings.
    :param offered: package -> versions, once the repositories are there.
    """
    from homelab.nvidia.plan import Request
    from homelab.nvidia.plan import System as Facts

    known = {
        **facts,
        "kernels": tuple(facts["kernels"]),
        "cards": tuple(facts["cards"]),
        "runtimes": frozenset(facts["runtimes"]),
        "offered": None if offered is None else {name: tuple(versions) for name, versions in offered.items()},
    }
    return Request(props["target"], stack, Facts(**known), props["system_name"])


class NvidiaSystem(Resource, module="homelab", name="NvidiaSystem"):
    """The dynamic resource. Outputs: ``facts`` (fields of `nvidia.request.System`), ``generation`` (layer -> how often it drifted)."""

    facts: pulumi.Output[dict[str, Any]]
    generation: pulumi.Output[dict[str, int]]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(NvidiaSystemProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)

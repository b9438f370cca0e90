"""ContainerVerification: a look from inside a container, once what gives it its cards is in force. An act, which owns nothing.

What is wrong is said device by device, and the diagnosis (`python -m homelab doctor container ID`) is part of the message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource

from homelab.resources.base import HostProvider, replaced_by
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.settings import Host

OUTPUTS = ("state", "nodes")


class ContainerVerificationProvider(HostProvider):
    """See the module. Inputs: host, ctid, devices (as container_gpus.sh takes them), after (what it follows)."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        answer = asyncio.run(_verified(self.host(props), int(props["ctid"]), props["devices"]))
        told = ", ".join(answer["nodes"]) or f"nothing (it is {answer['state']})"
        tell(f"opened in container {int(props['ctid'])}, by root and by an ordinary user: {told}")
        return CreateResult(str(int(props["ctid"])), {**props, **answer})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        return replaced_by(olds, news, *OUTPUTS)


async def _verified(host: Host, ctid: int, devices: dict[str, str]) -> dict[str, Any]:
    from homelab.doctor import container_report
    from homelab.doctor.devices import Cards
    from homelab.errors import HomelabError, UnreachableError
    from homelab.remote import diagnosis, scripts, ssh

    try:
        async with ssh.connect(host) as session:
            text = await session.run("apply", scripts.container_verification(ctid, devices))
    except UnreachableError:
        raise
    except HomelabError as error:
        cards = Cards([int(number) for number in devices["MINORS"].split()], "the stack's configuration")
        table = container_report(await diagnosis.read(host, [ctid]), ctid, cards=cards)
        raise HomelabError(
            wanted=error.wanted, found=f"{error.found}\n{table}", why=error.why, next=error.next
        ) from error
    answer = scripts.answer(text)
    return {name: answer[name] for name in OUTPUTS}


class ContainerVerification(Resource, module="homelab", name="ContainerVerification"):
    """The dynamic resource. Outputs: ``state`` (running or stopped), ``nodes`` (paths that could be opened inside)."""

    state: pulumi.Output[str]
    nodes: pulumi.Output[list[str]]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(ContainerVerificationProvider(), name, {**inputs, **dict.fromkeys(OUTPUTS)}, opts)

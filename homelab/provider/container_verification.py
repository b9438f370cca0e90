"""The work on a ContainerVerification: opens the nodes from inside, and says device by device what is wrong."""

from __future__ import annotations

import asyncio

from homelab.container import makers
from homelab.doctor import container_report
from homelab.doctor.devices import WantedCards
from homelab.errors import HomelabError, UnreachableError
from homelab.provider.base import Work
from homelab.remote import diagnosis, scripts, ssh
from homelab.resources.container_verification import ContainerVerification
from homelab.settings import Host
from homelab.text import tell


class ContainerVerificationWork(Work[ContainerVerification.Inputs, ContainerVerification.Outputs]):
    """Opens the device nodes of a container's cards from inside it."""

    resource = ContainerVerification

    def id(self, inputs: ContainerVerification.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: ContainerVerification.Inputs) -> ContainerVerification.Outputs:
        outputs, remarks = asyncio.run(_verify(self.host(inputs), inputs.ctid, inputs.devices))
        opened = ", ".join(outputs.nodes) or f"nothing (it is {outputs.state})"
        who = "root and by an ordinary user"
        if inputs.devices.get("CARDS"):
            who = "root and by whom each is for (an ordinary user, or a member of its group)"
        tell(f"opened in container {inputs.ctid}, by {who}: {opened}")
        for remark in remarks:
            tell(f"container {inputs.ctid}: {remark}")
        return outputs


async def _verify(host: Host, ctid: int, devices: dict[str, str]) -> tuple[ContainerVerification.Outputs, list[str]]:
    try:
        async with ssh.connect(host) as session:
            text = await session.run("apply", scripts.container_verification(ctid, devices))
    except UnreachableError:
        raise
    except HomelabError as error:
        reading = await diagnosis.read(host, [ctid])
        cards = WantedCards(
            [int(number) for number in devices["MINORS"].split()],
            "the stack's configuration",
            nodes=makers.nodes(devices.get("CARDS", ""), reading.facts.drm),
        )
        table = container_report(reading, ctid, cards=cards)
        raise error.retold(found=f"{error.found}\n{table}") from error
    answer = scripts.answer(text)
    return ContainerVerification.Outputs(state=answer["state"], nodes=answer["nodes"]), answer["tried"]

"""The work on a ContainerVerification: opens the nodes from inside, and says device by device what is wrong."""

from __future__ import annotations

from homelab.container import makers
from homelab.doctor import container
from homelab.doctor.devices import WantedCards
from homelab.errors import HomelabError, UnreachableError
from homelab.provider.base import Work
from homelab.remote import diagnosis, ssh
from homelab.resources.container_verification import ContainerVerification
from homelab.text import tell
from remote_scripts.layers.container_verification import Wanted


class ContainerVerificationWork(Work[ContainerVerification.Inputs, ContainerVerification.Outputs]):
    """Opens the device nodes of a container's cards from inside it."""

    resource = ContainerVerification

    def id(self, inputs: ContainerVerification.Inputs) -> str:
        return str(inputs.ctid)

    def create(self, inputs: ContainerVerification.Inputs) -> ContainerVerification.Outputs:
        ctid, cards, host = inputs.ctid, inputs.cards, self.host(inputs)
        wanted = Wanted(ctid=ctid, cards=cards, uses=tuple(inputs.uses))
        try:
            answer = ssh.Session(host).ask("apply", "container_verification", wanted)
        except UnreachableError:
            raise
        except HomelabError as error:
            reading = diagnosis.read(host, [ctid])
            nodes = makers.nodes(" ".join(cards.cards), reading.facts.drm)
            expected = WantedCards([*cards.minors], "the stack's configuration", nodes=nodes)
            table = container.diagnose(reading, ctid, cards=expected).text()
            raise error.retold(found=f"{error.found}\n{table}") from error
        opened = ", ".join(answer["nodes"]) or f"nothing (it is {answer['state']})"
        who = "root and by an ordinary user"
        if cards.cards:
            who = "root and by whom each is for (an ordinary user, or a member of its group)"
        tell(f"{inputs.host}: opened in container {ctid}, by {who}: {opened}")
        for remark in answer["tried"]:
            tell(f"{inputs.host}: container {ctid}: {remark}")
        return ContainerVerification.Outputs(state=answer["state"], nodes=answer["nodes"])

"""The work on a ContainerVerification: opens the nodes from inside, and says which can't be opened."""

from __future__ import annotations

from homelab.errors import HomelabError, UnreachableError
from homelab.provider.base import Work
from homelab.remote import ssh
from homelab.resources.container_verification import ContainerVerification
from homelab.text import tell
from remote_scripts.both.container_verification import Wanted


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
            raise error.retold(next=f"{error.next}; `homelab doctor container {ctid}` shows each device") from error
        opened = ", ".join(answer["nodes"]) or f"nothing (state: {answer['state']})"
        tell(f"{inputs.host}: opened in container {ctid}, by {answer['by']}: {opened}")
        for remark in answer["tried"]:
            tell(f"{inputs.host}: container {ctid}: {remark}")
        return ContainerVerification.Outputs(state=answer["state"], nodes=answer["nodes"])

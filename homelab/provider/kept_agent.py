"""The work on KeptAgent: puts the agent on the host, and looks whether it is there."""

from __future__ import annotations

from homelab.provider.base import Work
from homelab.remote import agent, host_session, ssh
from homelab.resources.kept_agent import KeptAgent
from homelab.text import tell


class KeptAgentWork(Work[KeptAgent.Inputs, KeptAgent.Outputs]):
    """Puts this program's agent on a host, and compares it."""

    resource = KeptAgent

    def create(self, inputs: KeptAgent.Inputs) -> KeptAgent.Outputs:
        host = self.host(inputs)
        host_session.of(inputs.host).hold(host)
        ssh.Session(host).put_agent(inputs.owner, float(host.timeouts.step))
        return KeptAgent.Outputs()

    def update(
        self, inputs: KeptAgent.Inputs, before: KeptAgent.Inputs, outputs: KeptAgent.Outputs
    ) -> KeptAgent.Outputs:
        return self.create(inputs)

    def read(self, inputs: KeptAgent.Inputs, outputs: KeptAgent.Outputs) -> KeptAgent.Outputs:
        if inputs.version != agent.version():
            return outputs  # another version's: that of this one comes with the next `up`
        if self.facts_of_refresh(inputs).agents.get(inputs.owner) == inputs.version:
            return KeptAgent.Outputs()
        sentence = "this program's agent is missing on the host, or changed"
        tell(f"{inputs.host}: drift: {sentence}")
        return KeptAgent.Outputs(drift=[sentence])

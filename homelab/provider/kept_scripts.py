"""The work on KeptScripts: puts the agent on the host, and looks whether it is there."""

from __future__ import annotations

import asyncio

from homelab.provider.base import Work
from homelab.remote import agent, guard, ssh
from homelab.resources.kept_scripts import KeptScripts
from homelab.text import tell


class KeptScriptsWork(Work[KeptScripts.Inputs, KeptScripts.Outputs]):
    """Puts this program's agent on a host, and compares it."""

    resource = KeptScripts

    def create(self, inputs: KeptScripts.Inputs) -> KeptScripts.Outputs:
        asyncio.run(self._put(inputs))
        return KeptScripts.Outputs()

    def update(
        self, inputs: KeptScripts.Inputs, before: KeptScripts.Inputs, outputs: KeptScripts.Outputs
    ) -> KeptScripts.Outputs:
        return self.create(inputs)

    def read(self, inputs: KeptScripts.Inputs, outputs: KeptScripts.Outputs) -> KeptScripts.Outputs:
        if inputs.version != agent.version():
            return outputs  # another version's: that of this one comes with the next `up`
        facts = self.facts_of_refresh(inputs)
        drift: list[str] = []
        if facts.agents.get(inputs.owner) != agent.version():
            drift.append("this program's agent is missing on the host, or changed")
        for sentence in drift:
            tell(f"{inputs.host}: drift: {sentence}")
        return KeptScripts.Outputs(drift=drift)

    async def _put(self, inputs: KeptScripts.Inputs) -> None:
        host = self.host(inputs)
        await asyncio.to_thread(guard.hold, inputs.host, host)
        async with ssh.connect(host) as session:
            await session.put_agent(inputs.owner, float(host.timeouts.script))

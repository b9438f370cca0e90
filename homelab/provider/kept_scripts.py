"""The work on KeptScripts: puts the scripts on the host, and looks whether they are there."""

from __future__ import annotations

import asyncio

from homelab.provider.base import Work
from homelab.remote import agent, guard, kept_scripts, ssh
from homelab.resources.kept_scripts import KeptScripts
from homelab.text import tell


class KeptScriptsWork(Work[KeptScripts.Inputs, KeptScripts.Outputs]):
    """Puts this program's scripts on a host, and compares them."""

    resource = KeptScripts

    def create(self, inputs: KeptScripts.Inputs) -> KeptScripts.Outputs:
        asyncio.run(self._put(inputs))
        return KeptScripts.Outputs()

    def update(
        self, inputs: KeptScripts.Inputs, before: KeptScripts.Inputs, outputs: KeptScripts.Outputs
    ) -> KeptScripts.Outputs:
        return self.create(inputs)

    def read(self, inputs: KeptScripts.Inputs, outputs: KeptScripts.Outputs) -> KeptScripts.Outputs:
        if inputs.version != kept_scripts.version():
            return outputs  # another version's scripts: those of this one come with the next `up`
        facts = self.facts_of_refresh(inputs)
        names_on_host = facts.kept_scripts
        lacking = sorted({script.name for script in kept_scripts.texts()} - {*names_on_host.get(inputs.owner, ())})
        drift: list[str] = []
        if lacking:
            names = ", ".join(script.rpartition(".")[0] for script in lacking[:3])
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            drift.append(f"scripts of this program's are missing on the host, or changed: {names}{more}")
        if facts.agents.get(inputs.owner) != agent.version():
            drift.append("this program's agent is missing on the host, or changed")
        for sentence in drift:
            tell(f"{inputs.host}: drift: {sentence}")
        return KeptScripts.Outputs(drift=drift)

    async def _put(self, inputs: KeptScripts.Inputs) -> None:
        host = self.host(inputs)
        await asyncio.to_thread(guard.hold, inputs.host, host)
        async with ssh.connect(host) as session:
            # Of the two the one that says that the host has no Python that will do.
            await session.put_agent(inputs.owner, float(host.timeouts.script))
            seconds = float(host.timeouts.script)
            await session.ask("apply", "kept_scripts", kept_scripts.put(inputs.owner), seconds)

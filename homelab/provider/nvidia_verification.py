"""The work on an NvidiaVerification: NVIDIA's stack used from inside."""

from __future__ import annotations

import asyncio

from homelab.errors import raise_all
from homelab.nvidia import verification
from homelab.provider.systems import SystemWork
from homelab.remote import scripts
from homelab.resources.nvidia import NvidiaVerification
from homelab.shapes import StackInUse
from homelab.text import tell

# What a script's own time limit leaves for the connection and the answer, in seconds.
SLACK_SECONDS = 60


class NvidiaVerificationWork(SystemWork[NvidiaVerification.Inputs, NvidiaVerification.Outputs]):
    """See the module."""

    resource = NvidiaVerification

    def create(self, inputs: NvidiaVerification.Inputs) -> NvidiaVerification.Outputs:
        return NvidiaVerification.Outputs(result=asyncio.run(self._verified(inputs)))

    async def _verified(self, inputs: NvidiaVerification.Inputs) -> StackInUse:
        stack = self.wanted_stack(inputs)
        if inputs.target == "vm" and stack is not None:
            # It may have been started a moment ago.
            await self.read_system_in_time(inputs, stack.timeouts.reboot)
        async with self.session(inputs, float(inputs.timeout) + SLACK_SECONDS) as run:
            answer = scripts.answer(await run("verify", inputs.script))
        result, errors = verification.judge(answer, verification.Expected(**inputs.wanted))
        raise_all(errors)
        cards = ", ".join(card.get("name") or "a card without a name" for card in result["gpus"])
        tell(f"{inputs.system_name}: verified from inside: {cards}, driver {result.get('driver')}")
        return result
